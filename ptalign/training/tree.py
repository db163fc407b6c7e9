"""The prompt tree: many samples in one row, each shared prefix computed once.

Samples are inserted into a trie of tokens. A node's position is its depth and it attends to its
ancestors, so a node's hidden state is what it would be in its own sequence. Pairs share their
prompt, all samples share the system prompt, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ptalign.training.texts import Sample

OnRow = Callable[[int, int], None]
"""Told the rows that are done and rows in all."""


@dataclass(slots=True)
class Row:
    """One forward pass: tokens with their ancestors, and the places where a loss is taken."""

    samples: list[Sample]
    tokens: list[int]
    """[nodes] token ids."""
    parents: list[int]
    """[nodes] index of each node's parent; -1 at a root."""
    depths: list[int]
    """[nodes] positions."""
    paths: list[list[int]]
    """Per sample: its nodes, prompt first, up to the one that predicts its last target."""

    @property
    def size(self) -> int:
        return len(self.tokens)

    def ancestry(self) -> np.ndarray:
        """[nodes, nodes] bool: row i may attend to column j."""
        seen = np.zeros((self.size, self.size), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        return seen


@dataclass(slots=True)
class Targets:
    """The rows that carry a loss, over all samples of one `Row`."""

    nodes: Tensor
    """[targets] index of the node that predicts the token."""
    tokens: Tensor
    """[targets] token ids to predict."""
    weights: Tensor
    """[targets] float32."""
    owners: Tensor
    """[targets] index of the sample in the row."""


@dataclass(slots=True)
class _Trie:
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    def missing(self, ids: Sequence[int]) -> int:
        """How many nodes `ids` would add."""
        node = -1
        for shared, token in enumerate(ids):
            if (child := self.children.get((node, token))) is None:
                return len(ids) - shared
            node = child
        return 0

    def growth(self, group: Sequence[Sequence[int]]) -> int:
        """How many nodes a group would add, prefixes shared within it counted once."""
        return sum(
            min([self.missing(ids), *(len(ids) - _shared(ids, other) for other in group[:place])])
            for place, ids in enumerate(group)
        )

    def insert(self, ids: Sequence[int]) -> list[int]:
        """Nodes of `ids`, made where they are missing."""
        path, node = [], -1
        for depth, token in enumerate(ids):
            child = self.children.get((node, token))
            if child is None:
                child = self.children[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            path.append(child)
            node = child
        return path


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def inputs_of(sample: Sample) -> tuple[int, ...]:
    """Tokens a forward pass must see: the last target is predicted, never read."""
    return sample.prompt + sample.answer[: max(sample.used - 1, 0)]


def pack(groups: Iterable[Sequence[Sample]], budget: int, *, share: bool = True) -> list[Row]:
    """Packs groups of samples into rows of about `budget` nodes.

    Args:
        groups: Samples that share a prompt, or whose losses need each other, stay in one row.
        budget: Nodes per row; one group larger than this gets a row of its own.
        share: False: each sample is a sequence of its own, packed without sharing (for bench).
    """
    rows: list[Row] = []
    trie, held = _Trie(), 0
    for group in groups:
        live = [s for s in group if s.used]
        inputs = [inputs_of(s) for s in live]
        new = trie.growth(inputs) if share else sum(map(len, inputs))
        if held and held + new > budget:
            trie = _Trie()
        if not trie.tokens and live:
            rows.append(Row([], trie.tokens, trie.parents, trie.depths, []))
        for sample, ids in zip(live, inputs, strict=True):
            if not share:
                trie.children = {}
            rows[-1].samples.append(sample)
            rows[-1].paths.append(trie.insert(ids))
        held = len(trie.tokens)
    return rows


def targets_of(row: Row, device: torch.device | str = "cpu") -> Targets:
    """The targets of all samples of a row; the other answer tokens are left out."""
    nodes, tokens, weights, owners = [], [], [], []
    for owner, (sample, path) in enumerate(zip(row.samples, row.paths, strict=True)):
        first = len(sample.prompt) - 1
        for i in sample.places:
            nodes.append(path[first + i])
            tokens.append(sample.answer[i])
            weights.append(sample.weights[i])
            owners.append(owner)
    return Targets(
        torch.tensor(nodes, dtype=torch.long, device=device),
        torch.tensor(tokens, dtype=torch.long, device=device),
        torch.tensor(weights, dtype=torch.float32, device=device),
        torch.tensor(owners, dtype=torch.long, device=device),
    )
