"""Keys and sealing: every set has a key of its own, wrapped by the operator's key.

Destroying a wrapped key destroys the set's text, in backups too.
"""

from ptalign_server.vault.keycommand import KeyCommand
from ptalign_server.vault.keyfile import KeyFile
from ptalign_server.vault.operator import KeysAway, OperatorKeys
from ptalign_server.vault.seal import SetKey, Vault
from ptalign_server.vault.source import operator_keys

__all__ = ["KeyCommand", "KeyFile", "KeysAway", "OperatorKeys", "SetKey", "Vault", "operator_keys"]
