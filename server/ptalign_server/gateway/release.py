"""Which adapter may be served: the newest that PASSed the operator's gate and has not FAILed since.

One that the operator withdrew or deleted is passed over, whatever it PASSed. See docs/adr/0010.
"""

from __future__ import annotations

from ptalign.config import GateConfig
from ptalign.errors import PtalignError
from ptalign.nouns import ModelSpec
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import configs
from ptalign_server.catalogue import DEFAULT_GATE, GATES, Catalogue
from ptalign_server.errors import NotFound
from ptalign_server.gateway.weights import same_base, same_weights
from ptalign_server.store import Store
from ptalign_server.store.resources import Resource
from ptalign_server.store.sets import Terms

LOOSER = "the gate is looser than the operator's: a PASS by it releases no adapter"
BESIDE_AN_ADAPTER = "the baseline is an adapter: only a PASS against the bare model releases"


def newest_released(
    store: Store, catalogue: Catalogue, tenant: str, model: ModelSpec, policy: str
) -> tuple[Resource, Resource]:
    """The newest adapter of a model and policy that may be served, and the evaluation it PASSed.

    Raises:
        NotFound: There is none yet.
    """
    withdrawn = set(store.withdrawals.names())
    for name in store.resources.evaluated(tenant, model.name):
        if name in withdrawn:
            continue
        adapter = store.resources.get(name, tenant)
        if adapter.policy != policy or not same_weights(adapter, model):
            continue
        passed = _released_by(adapter, store, catalogue)
        if passed is not None:
            return adapter, passed
    raise NotFound


def released_by(adapter: Resource, store: Store, catalogue: Catalogue) -> Resource | None:
    """The evaluation by which ResolveAdapter names an adapter, or would without a newer one.

    Withdrawn or not. Of a model that is not in the catalogue now nobody knows the weights.
    """
    model = catalogue.models.get(adapter.model)
    if model is not None and not same_weights(adapter, model):
        return None
    return _released_by(adapter, store, catalogue)


def why_withheld(gate: GateConfig, baseline: str, operator: GateConfig) -> str:
    """Why a PASS releases no adapter; empty where it does.

    Args:
        gate: The one in force.
        baseline: Adapter that was compared with; empty for the bare model.
        operator: The operator's own gate.
    """
    if baseline:
        return BESIDE_AN_ADAPTER
    return "" if at_least_as_strict(gate, operator) else LOOSER


def at_least_as_strict(gate: GateConfig, operator: GateConfig) -> bool:
    """Whether whatever keeps `gate` keeps the operator's gate too, limit by limit."""
    return all(
        _as_strict(name, getattr(gate, name), getattr(operator, name))
        for name in GateConfig.model_fields
    )


def _as_strict(name: str, limit: float | None, wanted: float | None) -> bool:
    if wanted is None:
        return True
    if limit is None:  # not checked
        return False
    return limit >= wanted if name.startswith("min_") else limit <= wanted


def _released_by(adapter: Resource, store: Store, catalogue: Catalogue) -> Resource | None:
    """The evaluation that releases an adapter, of all of them; None where its files are gone.

    A FAIL blocks the adapter whatever it was measured by. A PASS counts only if it was reached as
    the operator asks: an experiment with limits of its own changes nothing. INCONCLUSIVE is passed
    over: one suite tried on an adapter, or a guard that is down, says nothing against it. So is
    what was measured over other weights than the adapter's: calls of earlier versions, whose model
    was replaced while they waited.
    """
    if adapter.purged:
        return None
    for evaluation in store.resources.evaluations_of(adapter.tenant, adapter.name):
        if not same_base(evaluation, adapter):
            continue
        if evaluation.verdict == "FAIL":
            return None
        passed = evaluation.verdict == "PASS" and evaluation.policy == adapter.policy
        if passed and _counts(evaluation, store, catalogue):
            return evaluation
    return None


def _counts(evaluation: Resource, store: Store, catalogue: Catalogue) -> bool:
    """Whether the gate was at least the operator's and the baseline the bare model."""
    terms = store.sets.load_terms(evaluation.name) or _terms_of_call(evaluation, store)
    if terms is None:
        return False
    return not why_withheld(terms.gate, terms.baseline, catalogue.gate(""))


def _terms_of_call(evaluation: Resource, store: Store) -> Terms | None:
    """What an evaluation of an earlier version went by: its call says it; None once deleted.

    Gates were as shipped then: the operator's of today decided nothing.
    """
    try:
        operation = store.operations.get(evaluation.id, evaluation.tenant)
        sealed = store.keys.get(operation.id).open("request", operation.request)
        request = pb.EvaluateRequest.FromString(sealed)
        shipped = GATES[configs.gate_named(request) or DEFAULT_GATE]
        gate = configs.eval_config(request, shipped).gate
    except (PtalignError, KeyError):  # deleted, or limits or a gate that no version takes now
        return None
    return Terms(gate=gate, baseline=request.baseline.adapter)
