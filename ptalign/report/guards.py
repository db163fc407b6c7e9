"""What the guards of a training found, in words for a manager."""

from __future__ import annotations

from typing import Any

from ptalign.nouns import Adapter

BUDGETS = {
    "benign_kl": "Change on ordinary answers, KL in nats a token",
    "twin_refusals": "Share of legitimate twins refused beyond the original's",
    "mle_fit": "Loss on good answers, its end against its start",
    "twin_fit": "Loss on legitimate twins, its end against its start",
}
NOTES = {
    "twins": "Legitimate twins",
    "ut_weight": "Moves of the weight λ",
    "candidates": "Words of bad answers",
    "left_out": "Left out",
    "blocked": "Never synthesised",
    "layout": "Computed row by row",
    "live": "Saved files",
}
MARKS = {
    "ok": ("kept", "✓ kept"),
    "exceeded": ("broken", "✗ over limit"),
    "unsure": ("unsure", "? not settled"),
    "not judged": ("", "– not judged"),
}
"""State of a budget -> its CSS class and its mark in the list."""


def guards(adapter: Adapter) -> dict[str, Any]:
    """``budgets`` (class, mark, title, words), ``notes`` (title, words), and ``exceeded``: whether
    some budget was, which only a training with ``guards="record"`` survives."""
    parted = {
        name: adapter.guards[name].partition(": ") for name in BUDGETS & adapter.guards.keys()
    }
    return {
        "budgets": [
            (*MARKS.get(parted[name][0], ("", parted[name][0])), title, parted[name][2])
            for name, title in BUDGETS.items()
            if name in parted
        ],
        "notes": [
            (NOTES.get(name, name.replace("_", " ")), _plain(words))
            for name, words in adapter.guards.items()
            if name not in BUDGETS
        ],
        "exceeded": any(state == "exceeded" for state, _, _ in parted.values()),
    }


def weight_words(adapter: Adapter) -> str:
    """How lambda was set: its gradients are measured only if the call gave no weight."""
    if any(log.grad_norm_ut for log in adapter.ledger):
        return "set by gradient norms, then moved by the budgets"
    return "set by whoever asked for the training: no budget moved it"


def _plain(words: str) -> str:
    return words.removeprefix("ok: ").replace("ut_weight x", "times ")
