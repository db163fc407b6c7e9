"""First schema."""

from alembic import op

from ptalign_server.store.schema import metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates every table of the first release."""
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    """Drops them."""
    metadata.drop_all(op.get_bind())
