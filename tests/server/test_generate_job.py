"""GenerateInstructions in the worker: what it books of a call that was stopped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ptalign.nouns import Instruction, InstructionSet, Policy, Spent, Topic
from ptalign_proto.v1 import resources_pb2 as res
from ptalign_proto.v1 import safety_tuning_pb2 as pb
from ptalign_server.worker.jobs import generate as stage

PARENT, CUT = "instructionSets/1", "instructionSets/2"
SPENT = Spent(id="3", counts={"drafts": 40, "written": 10, "rejected.equal": 30}, seconds=2.5)


def row(harmful: int, *parents: str, partial: bool = False) -> Any:
    message = res.InstructionSet(harmful=harmful)
    message.meta.parents.extend(parents)
    body = message.SerializeToString()
    return SimpleNamespace(body=body, collection="instructionSets", partial=partial)


def stopped(accepted: int, **request: Any) -> Any:
    """A job that was stopped with so many records in its log, the parent's first."""
    records = [
        Instruction(id=f"{i}", text=f"Ask {i}.", topic="t", domain="tone") for i in range(accepted)
    ]
    rows = {PARENT: row(500), CUT: row(500, PARENT, partial=True)}
    return SimpleNamespace(
        request=pb.GenerateInstructionsRequest(model="m", policy="tone", **request),
        log=lambda *_: SimpleNamespace(read=lambda: iter(records)),
        costs=lambda: SimpleNamespace(read=lambda: iter((SPENT,))),
        policies=[Policy(name="tone", topics=(Topic(id="t", domain="tone", title="Curt"),))],
        resource=rows.__getitem__,
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


def missing(accepted: int, requested: int, parent: str, harmful: int = 0) -> str:
    """What is said of a finished set of so many; `harmful` is in a stopped parent."""
    job = stopped(0, count=100, parent=parent)
    if harmful:
        job.resource = lambda _: row(harmful, partial=True)
    records = [
        Instruction(id=f"{i}", text=f"Ask {i}.", topic="t", domain="tone") for i in range(accepted)
    ]
    noun = InstructionSet(records=tuple(records), requested=requested)
    return stage._made(job, noun, partial=False).shortage


@pytest.mark.parametrize("parent", [PARENT, CUT])
def test_the_floor_is_of_what_was_to_be_added(parent: str) -> None:
    """None of 100 was a success beside 500 that were there, however often it was tried."""
    assert missing(500, 600, parent).startswith("accepted 0 of 100, below the operator's floor")
    assert missing(549, 600, parent).startswith("accepted 49 of 100")
    assert not missing(550, 600, parent)


def test_the_floor_knows_what_was_left_out_of_the_parent() -> None:
    """Of 500 the policy's list forbids 200: 400 with the 100 that were asked for is all of it."""
    assert not missing(400, 400, PARENT)
    assert missing(340, 400, PARENT).startswith("accepted 40 of 100")


def test_a_stopped_set_that_is_gone_on_with_is_one_request() -> None:
    """99 of 100 and then none of the last: in one call it would have been called short."""
    assert not missing(99, 100, CUT, harmful=99)
    assert missing(49, 100, CUT, harmful=49).startswith("accepted 49 of 100")


def test_a_set_cut_short_knows_what_it_cost() -> None:
    made = stage.partial(stopped(10, count=100))
    assert made is not None
    assert (made.message.stats["yield"], made.message.stats["seconds"]) == (0.25, 2.5)
    assert made.message.rejected == {"equal": 30}
