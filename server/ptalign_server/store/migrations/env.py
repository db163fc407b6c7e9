"""Alembic's entry: runs inside the caller's transaction."""

from alembic import context

from ptalign_server.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,
)
context.run_migrations()
