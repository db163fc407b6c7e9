"""An adapter belongs to the weights it was trained on, not to the name they had."""

from __future__ import annotations

from ptalign.errors import Unsupported
from ptalign.nouns import ModelSpec
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_server.store.resources import Resource

SHOWN = 19
"""Characters of a digest in a message: ``sha256:`` and 12 digits."""


def same_weights(adapter: Resource, model: ModelSpec) -> bool:
    """Whether the model still has the weights that the adapter was trained on.

    True where either digest is not known.
    """
    trained = _trained_on(adapter)
    return not trained or not model.weights_digest or trained == model.weights_digest


def check_weights(field: str, adapter: Resource, model: ModelSpec) -> None:
    """Refuses an adapter of earlier weights.

    Raises:
        Unsupported: The catalogue's entry holds other weights than the adapter was trained on.
    """
    if not same_weights(adapter, model):
        raise Unsupported(
            f"{field}: {adapter.name} was trained on weights {_trained_on(adapter)[:SHOWN]}, and "
            f"model {model.name} now has {model.weights_digest[:SHOWN]}. Align again on the new "
            "weights, or ask the operator to put the old ones back."
        )


def _trained_on(adapter: Resource) -> str:
    return str(res.Adapter.FromString(adapter.body).meta.model_digest)
