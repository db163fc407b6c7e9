"""Where the operator's keys come from, as the settings say."""

from __future__ import annotations

from ptalign.errors import InvalidInput
from ptalign_server.settings import Settings
from ptalign_server.vault.keycommand import KeyCommand
from ptalign_server.vault.keyfile import KeyFile
from ptalign_server.vault.operator import OperatorKeys


def operator_keys(settings: Settings) -> OperatorKeys:
    """The operator's keys, read once.

    Raises:
        InvalidInput: Two sources are set, or the command is none.
        KeysAway: The source cannot be read.
        DataDamaged: The key file is not one.
    """
    if not settings.key_command:
        return KeyFile(settings.key_path)
    if settings.key_file is not None:
        raise InvalidInput(
            "PTALIGN_KEY_COMMAND",
            "PTALIGN_KEY_FILE is set too, and keys come from one place",
            "Unset the one that does not hold the keys of this database.",
        )
    return KeyCommand(settings.key_command)
