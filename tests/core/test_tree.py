"""The prompt tree: what is shared, what is dropped, what is in which row."""

from __future__ import annotations

import itertools
import random

import pytest

from ptalign.training.texts import Sample
from ptalign.training.tree import inputs_of, pack, targets_of


def sample(key: str, prompt: list[int], answer: list[int], weights: list[float]) -> Sample:
    return Sample(key, "positive", tuple(prompt), tuple(answer), tuple(weights))


def test_prompt_is_computed_once() -> None:
    """Prompt of 3, answers of 3 and 2: the last token of each is predicted, never read.

    Nodes: 3 + 2 + 1 = 6, against 5 + 4 = 9 without sharing.
    """
    one = sample("a", [1, 2, 3], [4, 5, 6], [1, 1, 1])
    two = sample("b", [1, 2, 3], [7, 8], [1, 1])
    (row,) = pack([[one, two]], 100)
    assert row.size == 6
    assert row.depths == [0, 1, 2, 3, 4, 3]
    (apart,) = pack([[one, two]], 100, share=False)
    assert apart.size == 9


def test_both_answers_are_predicted_from_the_last_prompt_node() -> None:
    one = sample("a", [1, 2, 3], [4, 5], [1, 1])
    two = sample("b", [1, 2, 3], [7, 8], [1, 1])
    (row,) = pack([[one, two]], 100)
    targets = targets_of(row)
    assert targets.nodes.tolist() == [2, 3, 2, 4]
    assert targets.tokens.tolist() == [4, 5, 7, 8]
    assert targets.owners.tolist() == [0, 0, 1, 1]


def test_an_answer_sees_its_own_branch_only() -> None:
    one = sample("a", [1, 2], [4, 5], [1, 1])
    two = sample("b", [1, 2], [7, 8], [1, 1])
    (row,) = pack([[one, two]], 100)
    assert row.ancestry().astype(int).tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 0, 1],
    ]


def test_toxic_tail_after_the_last_weighted_token_is_dropped() -> None:
    """Weights 0 1 0 0 0: the second token is predicted from the first; three are never seen."""
    tail = sample("a", [1, 2], [4, 5, 6, 7, 8], [0, 1, 0, 0, 0])
    assert inputs_of(tail) == (1, 2, 4)
    (row,) = pack([[tail]], 100)
    assert targets_of(row).tokens.tolist() == [5]
    assert targets_of(row).nodes.tolist() == [2]


def test_samples_without_weights_cost_nothing() -> None:
    assert pack([[sample("a", [1, 2], [3], [0])]], 100) == []


def test_system_prompt_is_shared_between_pairs_of_a_row() -> None:
    groups = [[sample(str(i), [9, 9, 9, i], [50, 51], [1, 1])] for i in range(3)]
    (row,) = pack(groups, 100)
    assert row.size == 3 + 3 * 2


def test_budget_closes_a_row_and_keeps_groups_whole() -> None:
    groups = [
        [sample(f"{i}a", [i, 1, 2], [3, 4], [1, 1]), sample(f"{i}b", [i, 1, 2], [5, 6], [1, 1])]
        for i in range(10, 15)
    ]
    rows = pack(groups, 12)  # 5 nodes a group: two fit
    assert [[s.key for s in r.samples] for r in rows] == [
        ["10a", "10b", "11a", "11b"],
        ["12a", "12b", "13a", "13b"],
        ["14a", "14b"],
    ]


@pytest.mark.parametrize("share", [True, False])
def test_rows_are_as_full_as_their_order_allows(share: bool) -> None:
    """No row is over the budget, and the group that opens the next one would not have fitted."""
    draw = random.Random(1)
    groups = []
    for i in range(60):
        prompt = [9, 9, draw.randrange(3), *(draw.randrange(9) for _ in range(draw.randrange(4)))]
        answers = [[draw.randrange(3) for _ in range(draw.randrange(1, 9))] for _ in range(2)]
        groups.append([sample(f"{i}/{j}", prompt, a, [1] * len(a)) for j, a in enumerate(answers)])
    rows = pack(groups, 50, share=share)
    assert len(rows) > 5
    assert max(row.size for row in rows) <= 50
    by_key = {s.key: g for g in groups for s in g}
    for row, following in itertools.pairwise(rows):
        here = [by_key[s.key] for s in row.samples[::2]]
        (both,) = pack([*here, by_key[following.samples[0].key]], 10**9, share=share)
        assert both.size > 50


def test_every_path_spells_its_sample() -> None:
    """Random samples with many shared prefixes: following a path gives back the tokens."""
    draw = random.Random(0)
    groups = []
    for i in range(40):
        prompt = [draw.randrange(3) for _ in range(draw.randrange(1, 6))]
        answers = [[draw.randrange(3) for _ in range(draw.randrange(1, 6))] for _ in range(2)]
        groups.append([sample(f"{i}/{j}", prompt, a, [1] * len(a)) for j, a in enumerate(answers)])
    for row in pack(groups, 30):
        for held, path in zip(row.samples, row.paths, strict=True):
            assert tuple(row.tokens[n] for n in path) == inputs_of(held)
            assert [row.depths[n] for n in path] == list(range(len(path)))
            assert [row.parents[n] for n in path] == [-1, *path[:-1]]


def test_spans_cover_a_row_and_see_only_ancestors() -> None:
    """Two pairs under one system token 9: each span's keys are its branch, nothing of the others.

    Nodes: 9 1 4 | 6 (second answer of the first pair) | 2 5 | 7.
    """
    from ptalign.training.attention import spans_of

    groups = [
        [sample("a", [9, 1], [4, 0], [1, 1]), sample("b", [9, 1], [6, 0], [1, 1])],
        [sample("c", [9, 2], [5, 0], [1, 1]), sample("d", [9, 2], [7, 0], [1, 1])],
    ]
    (row,) = pack(groups, 100)
    spans = spans_of(row, row.ancestry(), "cpu")
    assert [(s.start, s.stop) for s in spans] == [(0, 3), (3, 4), (4, 6), (6, 7)]
    assert [s.keys.tolist() for s in spans] == [[0, 1, 2], [0, 1, 3], [0, 4, 5], [0, 4, 6]]
