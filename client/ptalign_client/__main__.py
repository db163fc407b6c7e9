"""``python -m ptalign_client`` is the `ptalign` command."""

from ptalign_client.cli import main

main()
