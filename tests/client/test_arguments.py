"""What a caller passes wrongly is told as a field, what it takes, and what to send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ptalign_client as pt

ASK: dict[str, Any] = {"model": "tiny", "policy": "tone-en"}
MARK = pt.Annotation(instruction="i", good="g")


def asking(**values: Any) -> Callable[[pt.Client], object]:
    return lambda c: c.generate_instructions(**{**ASK, "count": 5, **values})


def judging(**values: Any) -> Callable[[pt.Client], object]:
    return lambda c: c.evaluate(**{"target": pt.Target(model="tiny"), **values})


def pairing(**values: Any) -> Callable[[pt.Client], object]:
    return lambda c: c.synthesize_pairs(model="tiny", instruction_set="instructionSets/1", **values)


def training(**values: Any) -> Callable[[pt.Client], object]:
    return lambda c: c.align(**{"model": "tiny", "pair_set": "pairSets/1", **values})


def marked(held_out: Any) -> pt.Record:
    return pt.Record(kind="pair", instruction="i", held_out=held_out)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (asking(count="x"), "count: must be a whole number in 1..20000, not text"),
        (asking(count=2.5), "count: must be a whole number in 1..20000, not float"),
        (asking(count=-3), "count: must be 1..20000, got -3"),
        (asking(seed=-1), "seed: must be 0..4294967295, got -1"),
        (asking(model=5), "model: must be a text, not 5"),
        (asking(topics="manners"), "topics: must be a list of texts, [...], not a text"),
        (asking(policy={"title": "t"}), "policy: must be a name or a PolicySpec, not a dict"),
        (asking(parent=7), "parent: must be a name or a resource, not int"),
        (judging(samples=-1), "samples: must be 1..100000, got -1"),
        (judging(gate=0.5), "gate: must be a name or a GateSpec, not a float"),
        (judging(target={"model": "tiny"}), "target: must be an Adapter, its name or a Target"),
        (judging(target="tiny"), "target: 'tiny' is not an adapter's name. Send adapters/ID"),
        (judging(also="adapters/x"), "also: must be a list"),
        (judging(also=5), "also: must be a list of adapters or targets. Send [...]."),
        (judging(also={"model": "tiny"}), "also: must be a list of adapters or targets."),
        (judging(also=pt.Target(model="tiny")), "also: must be a list of adapters or targets."),
        (judging(also=[3]), "also[0]: must be an Adapter, its name or a Target, not an int"),
        (judging(suites="attack"), "suites: must be a list of texts"),
        (pairing(rounds=-1), "rounds: must be 1..8, got -1"),
        (pairing(rounds=0), "rounds: must be 1..8, got 0. Leave it out"),
        (
            pairing(annotations=[{"instruction": "i"}]),
            "annotations[0]: must be an Annotation, not a dict. "
            "Send ptalign_client.Annotation(instruction=..., good=...).",
        ),
        (pairing(annotations=MARK), "annotations: must be an AnnotationSet, its name or a list"),
        (training(budget=pt.Budget(steps=-1)), "budget.steps: must be a whole number from 0 up"),
        (training(lora={"rank": 8}), "lora: must be a Lora, not a dict"),
        (training(pair_set=None), "pair_set: must be a name or a resource, not NoneType"),
        (
            lambda c: c.annotate([MARK, {"instruction": "i", "good": "g"}], **ASK),
            "items[1]: must be an Annotation, not a dict. "
            "Send ptalign_client.Annotation(instruction=..., good=...).",
        ),
        (
            lambda c: c.annotate([pt.Annotation(instruction="i", good=3)], **ASK),  # type: ignore[arg-type]
            "items[0].good: must be a text, not 3",
        ),
        (lambda c: c.merge("pairSets/1"), "names: must be a list of names"),
        (lambda c: list(c.chat(["Hi"], model="tiny")), "messages[0]: must be a ChatMessage"),
        (
            lambda c: c.import_set([{"id": "1"}], kind="pairSets", **ASK),
            "records[0]: must be a Record, not a dict",
        ),
        (
            lambda c: c.import_set([marked("yes")], kind="pairSets", **ASK),
            "records[0].held_out: must be True or False, not a text",
        ),
        (
            lambda c: c.import_set([pt.Record(), marked(7)], kind="pairSets", **ASK),
            "records[1].held_out: must be True or False, not 7",
        ),
    ],
)
def test_a_wrong_argument_is_a_sentence(
    client: pt.Client, served: Any, call: Callable[[pt.Client], object], says: str
) -> None:
    """They were KeyError, TypeError and AttributeError of the inside."""
    with pytest.raises(pt.InvalidArgument) as caught:
        call(client)
    assert says in str(caught.value)
    assert caught.value.violations[0].field == says.partition(":")[0]
    assert not served.service.jobs


def test_an_adapter_may_be_named(client: pt.Client, served: Any) -> None:
    made = client.align(model="tiny", pair_set="pairSets/1").result()
    client.evaluate(target=made.name, baseline=made.name, also=[made.name])
    client.evaluate(target=made, baseline=made, also=[made])
    named, passed = served.service.called("Evaluate")
    named.request_id = passed.request_id
    assert named == passed
    assert (named.target.model, named.target.adapter) == ("tiny", made.name)
    # The server numbers those beside: two of one method were refused for their equal labels.
    assert [named.target.label, named.also[0].label] == [made.method, ""]


def test_none_beside_is_an_empty_list(client: pt.Client, served: Any) -> None:
    """As None is for the suites and judges of the same call."""
    nothing: Any = None
    client.evaluate(target=pt.Target(model="tiny"), suites=nothing, also=nothing)
    (request,) = served.service.called("Evaluate")
    assert not request.also


def test_an_adapter_that_is_not_there_starts_nothing(client: pt.Client, served: Any) -> None:
    with pytest.raises(pt.NotFound):
        client.evaluate(target="adapters/x")
    assert not served.service.called("Evaluate")
