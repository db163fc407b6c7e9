"""GenerateInstructions in the worker: what it books of a call that was stopped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ptalign.nouns import Instruction, Policy, Spent, Topic
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.worker.jobs import generate as stage

PARENT = "instructionSets/1"
SPENT = Spent(id="3", counts={"drafts": 40, "written": 10, "rejected.equal": 30}, seconds=2.5)


def stopped(accepted: int, **request: Any) -> Any:
    """A job that was stopped with so many records in its log, the parent's first."""
    records = [
        Instruction(id=f"{i}", text=f"Ask {i}.", topic="t", domain="tone") for i in range(accepted)
    ]
    row = SimpleNamespace(body=res.InstructionSet(harmful=500).SerializeToString())
    return SimpleNamespace(
        request=pb.GenerateInstructionsRequest(model="m", policy="tone", **request),
        log=lambda *_: SimpleNamespace(read=lambda: iter(records)),
        costs=lambda: SimpleNamespace(read=lambda: iter((SPENT,))),
        policies=[Policy(name="tone", topics=(Topic(id="t", domain="tone", title="Curt"),))],
        resource={PARENT: row}.__getitem__,
        parent=lambda name: f"{name}@sha256:0",
        room=SimpleNamespace(settings=SimpleNamespace(limits=SimpleNamespace(floor=0.5))),
    )


def test_a_stopped_extension_says_how_many_are_missing() -> None:
    """Of 500 that were to become 600 it had 510: more than the 100 asked for, so none was."""
    made = stage.partial(stopped(510, count=100, parent=PARENT))
    assert made is not None
    assert (made.message.harmful, made.message.shortfall, made.partial) == (510, 90, True)
    fresh = stage.partial(stopped(30, count=100))
    assert fresh is not None
    assert fresh.message.shortfall == 70


def test_a_set_cut_short_knows_what_it_cost() -> None:
    made = stage.partial(stopped(10, count=100))
    assert made is not None
    assert (made.message.stats["yield"], made.message.stats["seconds"]) == (0.25, 2.5)
    assert made.message.rejected == {"equal": 30}
