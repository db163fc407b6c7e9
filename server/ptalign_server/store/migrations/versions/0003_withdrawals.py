"""Adapters that the operator withdrew."""

from alembic import op

from ptalign_server.store.schema import withdrawals

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the table, where the first step did not make it: that one makes all there are now."""
    withdrawals.create(op.get_bind(), checkfirst=True)


def downgrade() -> None:
    """Drops it."""
    withdrawals.drop(op.get_bind())
