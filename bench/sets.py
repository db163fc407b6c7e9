"""Sets: the near-duplicate filter against all pairs, and a million records through the library.

    python -m bench.sets [--quick]

The filter decides text by text as the engine delivers them; so does its rival, which asks
rapidfuzz for the nearest of all texts kept so far. rapidfuzz's C++ matrix of all pairs, which needs
all texts beforehand, is shown beside it. The records are written by a process of their own and then
read through a real gRPC server in another; both processes' memory peaks count.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

from bench.million import million
from bench.results import Result, device_name
from ptalign.text.near import NearDuplicates, rouge_l, tokens

THRESHOLD = 0.7
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
VOCABULARY = 20_000
Decide = Callable[[list[str]], list[int]]


def main() -> None:
    """Prints the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="50,000 records, no 100,000 texts")
    quick = parser.parse_args().quick
    rows = [asdict(result) for result in filters(quick)] + million(50_000 if quick else 1_000_000)
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


def filters(quick: bool) -> list[Result]:
    """The filter's CPU seconds beside its rivals', after comparing what they keep."""
    texts = instructions(10_000)
    seconds, kept = timed(by_index, texts)
    found = []
    for name, rival, goal in (
        ("rapidfuzz, text by text against all kept", one_by_one, 20.0),
        ("rapidfuzz, C++ matrix of all pairs, all texts at once", by_matrix, 1.0),
    ):
        theirs, wanted = timed(rival, texts)
        if kept != wanted:
            raise RuntimeError(f"the filter's decisions differ from those of {name}")
        found.append(row(f"near-duplicates of 10,000: {name}", seconds, theirs, goal, len(texts)))
    if not quick:
        many = instructions(100_000)
        spent, _ = timed(by_index, many)
        found.append(row("near-duplicates of 100,000; theirs: limit", spent, 60.0, 1.0, len(many)))
    return found


def row(name: str, ours: float, theirs: float, goal: float, count: int) -> Result:
    """CPU seconds of both."""
    return Result(name, ours, theirs, theirs / ours, goal, "CPU s", count, 0.0, device_name())


def timed(decide: Decide, texts: list[str]) -> tuple[float, list[int]]:
    """CPU seconds and the positions kept."""
    begun = time.process_time()
    kept = decide(texts)
    return time.process_time() - begun, kept


def by_index(texts: list[str]) -> list[int]:
    """The product's filter."""
    index, kept = NearDuplicates(THRESHOLD), []
    for place, text in enumerate(texts):
        if index.find(text) is None:
            index.add(text)
            kept.append(place)
    return kept


def one_by_one(texts: list[str]) -> list[int]:
    """Indel similarity is 2 LCS / (|a| + |b|): ROUGE-L F1. Ties at the edge are checked exactly."""
    held: list[tuple[str, ...]] = []
    kept = []
    for place, text in enumerate(texts):
        words = tokens(text)
        found = process.extractOne(
            words, held, scorer=Indel.normalized_similarity, score_cutoff=THRESHOLD
        )
        if found is None or rouge_l(words, found[0]) <= THRESHOLD:
            held.append(words)
            kept.append(place)
    return kept


def by_matrix(texts: list[str], block: int = 500) -> list[int]:
    """The same decisions from blocks of the lower half of the matrix."""
    words, kept = [tokens(text) for text in texts], np.zeros(len(texts), dtype=bool)
    for start in range(0, len(words), block):
        rows = words[start : start + block]
        near = process.cdist(
            rows,
            words[: start + len(rows)],
            scorer=Indel.normalized_similarity,
            score_cutoff=THRESHOLD - 1e-6,
            workers=1,
        )
        for place, scores in enumerate(near, start):
            rivals = np.flatnonzero((scores[:place] > 0) & kept[:place])
            kept[place] = all(rouge_l(words[place], words[r]) <= THRESHOLD for r in rivals)
    return [int(place) for place in np.flatnonzero(kept)]


def instructions(count: int, seed: int = 0) -> list[str]:
    """Texts of 6 to 23 words under Zipf's law; one in seven is an earlier one, changed a little."""
    draw = random.Random(seed)
    vocabulary = [
        "".join(draw.choices(SYLLABLES, k=draw.choice((1, 2, 2, 3, 3, 4)))) + str(i % 7)
        for i in range(VOCABULARY)
    ]
    weights = [1 / (rank + 3) for rank in range(VOCABULARY)]
    pool = draw.choices(vocabulary, weights, k=40 * 25_000)
    made: list[str] = []
    for _ in range(count):
        if made and draw.random() < 1 / 7:
            words = made[draw.randrange(len(made))].split()
            for _ in range(draw.randrange(1, 6)):
                words[draw.randrange(len(words))] = draw.choice(pool)
        else:
            words = draw.choices(pool, k=draw.randrange(6, 24))
        made.append(" ".join(words))
    return made


if __name__ == "__main__":
    main()
