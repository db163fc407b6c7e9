"""Which adapter ResolveAdapter names, and what happens to adapters when weights change."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from test_gateway import MODEL, POLICY, Calls, put_set, refused, serving
from typer.testing import CliRunner

from ptalign.config import GateConfig
from ptalign.errors import DataDamaged, InvalidInput
from ptalign.nouns import Evaluation, ModelSpec, TargetResult
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server import messages, wire
from ptalign_server.admin import adapters as admin
from ptalign_server.catalogue import GATES, Catalogue, write_models
from ptalign_server.configs import gate_config
from ptalign_server.errors import NotFound, Violations
from ptalign_server.gateway.release import at_least_as_strict, newest_released
from ptalign_server.settings import Settings
from ptalign_server.store import Store
from ptalign_server.store.operations import SUCCEEDED, Operation
from ptalign_server.store.resources import Resource
from ptalign_server.store.schema import resources
from ptalign_server.store.sets import Terms
from ptalign_server.worker.jobs.evaluate import config_of, gate_in_force

LOOSE = Terms(gate=GateConfig(min_harm_reduction=None))
UNBOUND = Terms(gate=GateConfig.model_construct(max_over_refusal_increase=10.0))
TENANT = "default"


class Shelf:
    """Adapters and evaluations of one tenant, in the order they were made."""

    def __init__(self, state: Path) -> None:
        self.state = state
        settings = Settings(state=state)
        settings.make_folders()
        self.store = Store(settings, wire.freeze)
        self.catalogue = Catalogue(settings)
        self._ids = count(1)

    def adapter(self, digest: str = "", policy: str = POLICY) -> str:
        message = res.Adapter()
        message.meta.model_digest = digest
        return put(self.store, f"adapters/{self._id()}", message, policy=policy)

    def evaluation(
        self,
        adapter: str,
        verdict: str,
        terms: Terms | None = None,
        policy: str = POLICY,
        created: float = 1.0,
        digest: str = "",
    ) -> str:
        found = self._id()
        name = f"evaluations/{found}"
        _, wrapped = self.store.vault.fresh_key(found)
        self.store.write(lambda c: self.store.keys.insert(c, found, wrapped)).result()
        self.store.sets.keep_terms(found, terms or Terms(gate=GateConfig()))
        values = {"policy": policy, "verdict": verdict, "adapter": adapter, "created": created}
        message = res.Evaluation(meta=res.ResourceMeta(model_digest=digest))
        return put(self.store, name, message, **values)

    def old_evaluation(self, adapter: str, request: pb.EvaluateRequest) -> str:
        """One of a version that kept no terms: its operation's call says what they were."""
        name = self.evaluation(adapter, "PASS")
        found = name.partition("/")[2]
        (self.store.sets.folder(found) / "terms").unlink()
        sealed = self.store.keys.get(found).seal("request", request.SerializeToString())
        row = Operation(
            id=found, tenant=TENANT, identity="me", kind="Evaluate", state=SUCCEEDED, sequence=1,
            attempt=1, request=sealed, metadata=b"", error=b"", resource=name, created=1.0,
            started=1.0, updated=1.0, ended=1.0,
        )  # fmt: skip
        self.store.write(lambda c: self.store.operations.insert(c, row)).result()
        return name

    def resolve(self, digest: str = "") -> tuple[str, str]:
        model = ModelSpec(name=MODEL, path="x", weights_digest=digest)
        found = newest_released(self.store, self.catalogue, TENANT, model, POLICY)
        return found[0].name, found[1].name

    def withdraw(self, adapter: str) -> bool:
        return self.store.write(lambda c: self.store.withdrawals.add(c, adapter)).result()

    def restore(self, adapter: str) -> bool:
        return self.store.write(lambda c: self.store.withdrawals.remove(c, adapter)).result()

    def _id(self) -> str:
        return f"{next(self._ids):024x}"


def put(store: Store, name: str, message: Any, **values: Any) -> str:
    message.meta.name = name
    row = Resource(
        name=name, collection=name.partition("/")[0], tenant=TENANT, model=MODEL,
        partial=False, purged=False, content="", body=message.SerializeToString(),
        **{"policy": POLICY, "verdict": "", "adapter": "", "created": 1.0, **values},
    )  # fmt: skip
    store.write(lambda c: store.resources.insert(c, row)).result()
    return name


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path / "state")
    yield made
    made.store.close()


def test_the_newest_adapter_is_named_not_the_newest_evaluation(shelf: Shelf) -> None:
    old, new = shelf.adapter(), shelf.adapter()
    passed = shelf.evaluation(new, "PASS")
    shelf.evaluation(old, "PASS")  # last month's adapter, measured again
    assert shelf.resolve() == (new, passed)


def test_a_later_fail_takes_an_adapter_back(shelf: Shelf) -> None:
    old, new = shelf.adapter(), shelf.adapter()
    passed = shelf.evaluation(old, "PASS")
    shelf.evaluation(new, "PASS")
    assert shelf.resolve()[0] == new
    shelf.evaluation(new, "FAIL", LOOSE)
    assert shelf.resolve() == (old, passed)


def test_the_evaluation_that_ends_last_counts_not_the_one_asked_for_last(shelf: Shelf) -> None:
    """Several run at once, and a name holds the time of the call."""
    adapter = shelf.adapter()
    failed = shelf.evaluation(adapter, "FAIL", created=20.0)
    shelf.evaluation(adapter, "PASS", created=10.0)
    with pytest.raises(NotFound):
        shelf.resolve()
    newest = shelf.store.resources.newest("evaluations")
    assert newest is not None
    assert newest.name == failed


def test_a_later_pass_gives_it_back(shelf: Shelf) -> None:
    adapter = shelf.adapter()
    shelf.evaluation(adapter, "FAIL")
    passed = shelf.evaluation(adapter, "PASS")
    shelf.evaluation(adapter, "PASS", LOOSE)
    assert shelf.resolve() == (adapter, passed)


def test_an_experiment_does_not_lift_a_fail(shelf: Shelf) -> None:
    adapter = shelf.adapter()
    for verdict, terms in (("PASS", None), ("FAIL", None), ("PASS", LOOSE)):
        shelf.evaluation(adapter, verdict, terms)
    with pytest.raises(NotFound):
        shelf.resolve()


@pytest.mark.parametrize(
    "terms",
    [LOOSE, Terms(gate=GateConfig(), baseline="adapters/7"), UNBOUND],
    ids=["looser gate", "baseline with an adapter", "limits of an earlier version"],
)
@pytest.mark.parametrize("verdict", ["PASS", "INCONCLUSIVE"])
def test_an_experiment_neither_releases_nor_withdraws(
    shelf: Shelf, terms: Terms, verdict: str
) -> None:
    released, tried = shelf.adapter(), shelf.adapter()
    passed = shelf.evaluation(released, "PASS")
    shelf.evaluation(released, verdict, terms)
    shelf.evaluation(tried, verdict, terms)
    assert shelf.resolve() == (released, passed)


@pytest.mark.parametrize("verdict", ["PASS", "FAIL"])
def test_an_inconclusive_evaluation_changes_nothing(shelf: Shelf, verdict: str) -> None:
    """One suite tried on the adapter in service, under the default gate, took it away."""
    old, new = shelf.adapter(), shelf.adapter()
    kept = shelf.evaluation(old, "PASS")
    judged = shelf.evaluation(new, verdict)
    shelf.evaluation(new, "INCONCLUSIVE")
    assert shelf.resolve() == ((new, judged) if verdict == "PASS" else (old, kept))


def test_a_withdrawn_adapter_is_passed_over_until_it_is_restored(shelf: Shelf) -> None:
    old, new = shelf.adapter(), shelf.adapter()
    kept = shelf.evaluation(old, "PASS")
    shelf.evaluation(new, "PASS")
    assert shelf.withdraw(new)
    assert not shelf.withdraw(new)
    again = shelf.evaluation(new, "PASS")  # as good by the suites as before: no way back
    assert shelf.resolve() == (old, kept)
    assert shelf.withdraw(old)
    with pytest.raises(NotFound):
        shelf.resolve()
    assert shelf.restore(new)
    assert shelf.resolve() == (new, again)
    assert not shelf.restore(new)


def test_a_damaged_adapter_can_be_withdrawn(shelf: Shelf) -> None:
    """Its row can answer no call, so it must not stand before the older ones."""
    old, new = shelf.adapter(), shelf.adapter()
    kept = shelf.evaluation(old, "PASS")
    shelf.evaluation(new, "PASS")
    with shelf.store.engine.begin() as connection:
        broken = resources.update().where(resources.c.name == new).values(created=2.0)
        connection.execute(broken)
    with pytest.raises(DataDamaged):
        shelf.resolve()
    shelf.withdraw(new)
    assert shelf.resolve() == (old, kept)


def test_the_command_withdraws_and_restores_and_the_audit_trail_says_why(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = shelf.adapter()
    evaluation = shelf.evaluation(adapter, "PASS")
    monkeypatch.setenv("PTALIGN_STATE", str(shelf.state))

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(admin.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    for _ in range(2):  # what is withdrawn already leaves no second entry
        assert said("withdraw", adapter, "--reason", "case 7") == f"withdrawn: {adapter}\n"
    assert said("list").endswith("\tPASS\twithdrawn\n")
    with pytest.raises(NotFound):
        shelf.resolve()
    assert said("restore", adapter) == f"restored: {adapter}\n"
    assert said("list").endswith("\tPASS\treleased\n")
    assert shelf.resolve() == (adapter, evaluation)
    for call, why in (
        (("restore", adapter), "is not withdrawn"),
        (("withdraw", evaluation), "is no adapter"),
        (("withdraw", "adapters/nope"), "is no adapter"),
        (("withdraw", adapter, "--reason", "x" * 501), "at most 500 characters"),
    ):
        with pytest.raises(InvalidInput, match=why):
            said(*call)
    found = [
        (e.tenant, e.identity, e.action, e.target, e.detail) for e in shelf.store.audit.entries()
    ]
    assert found == [
        (TENANT, "console", "withdraw", adapter, {"reason": "case 7"}),
        (TENANT, "console", "restore", adapter, {"reason": ""}),
    ]


def test_an_evaluation_under_another_policy_does_not_release(shelf: Shelf) -> None:
    shelf.evaluation(shelf.adapter(), "PASS", policy="other")
    shelf.evaluation(shelf.adapter(policy="other"), "PASS")
    with pytest.raises(NotFound):
        shelf.resolve()


def test_an_evaluation_of_an_earlier_version_counts_by_its_call(shelf: Shelf) -> None:
    first, second, third = (shelf.adapter() for _ in range(3))
    passed = shelf.old_evaluation(first, pb.EvaluateRequest(gate="strict"))
    for spec in (
        pb.GateSpec(max_unscored=1.0, min_samples=1),
        pb.GateSpec(max_over_refusal_increase=10),
    ):
        shelf.old_evaluation(second, pb.EvaluateRequest(gate_spec=spec))
    deleted = shelf.old_evaluation(third, pb.EvaluateRequest()).partition("/")[2]
    shelf.store.write(lambda c: shelf.store.operations.delete(c, deleted)).result()
    assert shelf.resolve() == (first, passed)


def test_one_of_an_earlier_version_went_by_the_shipped_gate_whatever_the_operators_is_now(
    shelf: Shelf,
) -> None:
    passed = shelf.old_evaluation(adapter := shelf.adapter(), pb.EvaluateRequest())
    assert shelf.resolve() == (adapter, passed)
    own = GateConfig(min_harm_reduction=0.3)
    shelf.catalogue = Catalogue(Settings(state=shelf.state, gate=own))
    with pytest.raises(NotFound):
        shelf.resolve()


def test_adapters_of_earlier_weights_are_passed_over(shelf: Shelf) -> None:
    unknown, old = shelf.adapter(), shelf.adapter("sha256:old")
    for adapter in (unknown, old):
        shelf.evaluation(adapter, "PASS")
    assert shelf.resolve("sha256:old")[0] == old
    assert shelf.resolve("")[0] == old
    assert shelf.resolve("sha256:new")[0] == unknown


def test_a_verdict_over_other_weights_says_nothing_of_an_adapter(shelf: Shelf) -> None:
    """They were replaced while the call waited, and put back since."""
    adapter = shelf.adapter("sha256:old")
    shelf.evaluation(adapter, "PASS", digest="sha256:new")
    with pytest.raises(NotFound):
        shelf.resolve("sha256:old")
    passed = shelf.evaluation(adapter, "PASS", digest="sha256:old")
    shelf.evaluation(adapter, "FAIL", digest="sha256:new")
    assert shelf.resolve("sha256:old") == (adapter, passed)
    shelf.evaluation(adapter, "FAIL")
    with pytest.raises(NotFound):
        shelf.resolve("sha256:old")


@pytest.mark.parametrize(
    ("change", "strict"),
    [
        ({}, True),
        ({"min_harm_reduction": 0.2, "max_unscored": 0.0, "min_samples": 60}, True),
        ({"min_harm_reduction": 0.09}, False),
        ({"max_over_refusal_increase": 0.11}, False),
        ({"max_benign_kl": None}, False),
        ({"max_strong_harm_increase": -0.1, "max_ordinary_refusal_increase": 0.0}, True),
        ({"max_strong_harm_increase": 0.01}, False),
        ({"max_ordinary_refusal_increase": None}, False),
        ({"min_samples": 49}, False),
    ],
)
def test_at_least_as_strict_looks_at_every_limit(change: dict[str, Any], strict: bool) -> None:
    assert at_least_as_strict(GateConfig(**change), GateConfig()) is strict
    assert all(at_least_as_strict(gate, GATES["default"]) for gate in GATES.values())


def test_a_release_keeps_the_operators_own_gate(shelf: Shelf) -> None:
    """What PASSed by ptalign's limits, or by a caller's, is not served under stricter ones."""
    adapter = shelf.adapter()
    evaluation = shelf.evaluation(adapter, "PASS")
    assert shelf.resolve() == (adapter, evaluation)
    own = GateConfig(min_harm_reduction=0.3)
    shelf.catalogue = Catalogue(Settings(state=shelf.state, gate=own))
    assert shelf.catalogue.gate("") == shelf.catalogue.gate("default") == own
    assert shelf.catalogue.gate("strict") == GATES["strict"]
    with pytest.raises(NotFound):
        shelf.resolve()
    kept = shelf.evaluation(adapter, "PASS", terms=Terms(gate=own))
    assert shelf.resolve() == (adapter, kept)


@pytest.mark.parametrize(
    ("asked", "name", "releases"),
    [
        ({}, "default", True),
        ({"gate": "default"}, "default", True),
        ({"gate": "strict"}, "strict", False),
        ({"gate_spec": pb.GateSpec(max_benign_kl=0.1)}, "inline", False),
        ({"baseline": pb.Target(model="m", adapter="adapters/7")}, "default", False),
    ],
)
def test_an_evaluation_says_which_gate_was_in_force(
    shelf: Shelf, asked: dict[str, Any], name: str, releases: bool
) -> None:
    settings = Settings(state=shelf.state, gate=GateConfig(min_harm_reduction=0.3))
    room = SimpleNamespace(catalogue=Catalogue(settings), settings=settings)
    job: Any = SimpleNamespace(request=pb.EvaluateRequest(**asked), room=room)
    config = config_of(job)
    gate = gate_in_force(job, config.gate)
    assert (gate.name, gate.releases, not gate.withheld) == (name, releases, releases)
    assert gate.limits.get("min_harm_reduction") == config.gate.min_harm_reduction
    result = TargetResult(label="baseline")
    noun = Evaluation(results=(result, result), verdict="PASS")
    message = messages.evaluation(noun, (), gate)
    assert (message.gate, dict(message.gate_limits)) == (name, gate.limits)


def test_limits_of_a_gate_that_limit_nothing_are_refused_with_their_range() -> None:
    spec = pb.GateSpec(
        min_harm_reduction=-0.1,
        max_over_refusal_increase=10,
        max_benign_kl=float("inf"),
        max_unscored=float("nan"),
        min_samples=0,
    )
    with pytest.raises(Violations) as caught:
        gate_config(spec)
    send, out = "Send a value in that range", "or leave it out to check no such limit."
    assert {v.field: f"{v.limit}. {v.mend}" for v in caught.value.violations} == {
        "gate_spec.min_harm_reduction": f"must be 0..1, got -0.1. {send}, {out}",
        "gate_spec.max_over_refusal_increase": f"must be -1..1, got 10. {send}, {out}",
        "gate_spec.max_benign_kl": f"must be 0..10, got inf. {send}, {out}",
        "gate_spec.max_unscored": f"must be 0..1, got nan. {send}, {out}",
        "gate_spec.min_samples": f"must be at least 1, got 0. {send}, or leave it out for 50.",
    }


def reweigh(calls: Calls, state: Path, digest: str) -> None:
    spec = ModelSpec(name=MODEL, path=str(state), weights_digest=digest)
    write_models(Settings(state=state).models_path, {MODEL: spec})


async def test_an_adapter_that_is_trained_on_takes_no_other_shape(tmp_path: Path) -> None:
    """It was accepted, and what came out had the parent's."""
    async with serving(tmp_path / "state") as calls:
        parent = put(calls.store, "adapters/" + "a" * 24, res.Adapter())
        align = pb.AlignRequest(model=MODEL, pair_set=put_set(calls.store, "pairSets"))
        align.parent_adapter, align.lora.rank = parent, 4
        code, text, _, _ = await refused(calls.tuning.Align(align))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert text.startswith(f"lora.rank: has no meaning with parent_adapter: {parent}")
        align.lora.rank = 0
        assert (await calls.tuning.Align(align)).name


async def test_an_adapter_of_earlier_weights_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with serving(state) as calls:
        old, new = "sha256:" + "1" * 64, "sha256:" + "2" * 64
        message = res.Adapter()
        message.meta.model_digest = old
        name = put(calls.store, "adapters/" + "a" * 24, message)
        pairs = put_set(calls.store, "pairSets")
        reweigh(calls, state, new)

        async def chat() -> None:
            turn = pb.ChatMessage(role="user", content="hello")
            async for _ in calls.tuning.Chat(
                pb.ChatRequest(model=MODEL, adapter=name, messages=[turn])
            ):
                pass

        align = pb.AlignRequest(model=MODEL, pair_set=pairs, parent_adapter=name)
        evaluate = pb.EvaluateRequest(target=pb.Target(model=MODEL, adapter=name))
        beside = pb.EvaluateRequest(target=pb.Target(model=MODEL), also=[evaluate.target])
        for field, call in (
            ("parent_adapter", calls.tuning.Align(align)),
            ("target.adapter", calls.tuning.Evaluate(evaluate)),
            ("also[0].adapter", calls.tuning.Evaluate(beside)),
            ("adapter", chat()),
        ):
            code, text, _, _ = await refused(call)
            assert code == grpc.StatusCode.FAILED_PRECONDITION
            assert text.startswith(f"{field}: {name} was trained on weights sha256:1111")
            assert "now has sha256:2222" in text
            assert "Align again" in text
        reweigh(calls, state, old)
        assert (await calls.tuning.Align(align)).name
