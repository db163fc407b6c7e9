"""Legal holds, which were a file of each server's own."""

from alembic import op

from ptalign_server.store.schema import holds

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the table, where the first step did not make it: that one makes all there are now."""
    holds.create(op.get_bind(), checkfirst=True)


def downgrade() -> None:
    """Drops it."""
    holds.drop(op.get_bind())
