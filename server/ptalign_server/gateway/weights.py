"""What was made with a model belongs to the weights it had then, not to their name."""

from __future__ import annotations

from ptalign.errors import Unsupported
from ptalign.nouns import ModelSpec
from ptalign_server.errors import AdapterDeleted
from ptalign_server.store.resources import Resource
from ptalign_server.wire import COLLECTIONS

SHOWN = 19
"""Characters of a digest in a message: ``sha256:`` and 12 digits."""


def same_weights(made: Resource, model: ModelSpec) -> bool:
    """Whether the model still has the weights that a set was written by, an adapter trained on.

    True where either digest is not known.
    """
    return same_digest(_made_with(made), model)


def same_digest(then: str, model: ModelSpec) -> bool:
    """Whether the model has weights of a digest; True where either is not known."""
    return not then or not model.weights_digest or then == model.weights_digest


def same_base(one: Resource, other: Resource) -> bool:
    """Whether two were made with the same weights; True where either's are not known."""
    then, now = _made_with(one), _made_with(other)
    return not then or not now or then == now


def check_weights(field: str, adapter: Resource, model: ModelSpec) -> None:
    """Refuses an adapter that is deleted, or of earlier weights.

    Raises:
        AdapterDeleted: Its files are gone.
        Unsupported: The catalogue's entry holds other weights than the adapter was trained on.
    """
    if adapter.purged:
        raise AdapterDeleted(adapter.name)
    if not same_weights(adapter, model):
        raise Unsupported(
            f"{field}: {adapter.name} was trained on weights {_made_with(adapter)[:SHOWN]}, and "
            f"model {model.name} now has {model.weights_digest[:SHOWN]}. Align again on the new "
            "weights, or ask the operator to put the old ones back."
        )


def _made_with(made: Resource) -> str:
    return str(COLLECTIONS[made.collection].FromString(made.body).meta.model_digest)
