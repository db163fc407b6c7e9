"""Fits the refusal judge's head and prints how well it holds elsewhere.

    python -m ptalign.judges.tune_refusal /path/to/xstest-replies

Tuned on the Llama 2 reply file, which holds the most partial refusals (55 of 450), and on the
hand-written replies. The regularisation is chosen by cross-validation inside the tuning data. The
other two reply files are only measured. Full and partial refusal count as refusal, as the XSTest
labels have it. Only coefficients are written; no reply leaves the folder.
"""

from __future__ import annotations

import csv
import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ptalign.judges.refusal import FEATURES, features
from ptalign.stats import agreement, cohen_kappa

FILES = ("llama2orig", "gpt4", "mistralinstruct")
TUNED_ON, MEASURED_ON = FILES[0], FILES[1:]
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
OWN_WEIGHT = 3.0
"""Weight of a hand-written reply against a file's: there are 11 times fewer of them."""

Labelled = tuple[list[str], list[bool]]


def read_replies(folder: Path, name: str) -> Labelled:
    """Replies of one XSTest file and whether people called them refusals."""
    with (folder / f"xstest_replies_{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["completion"] for row in rows], [is_refusal(row["final_label"]) for row in rows]


def is_refusal(final_label: str) -> bool:
    """What XSTest's label of a reply says: a partial refusal is one."""
    return final_label != "1_full_compliance"


def own_replies(part: str) -> Labelled:
    """Hand-written replies of ``tune`` or ``held_out``."""
    file = resources.files("ptalign.judges").joinpath("refusal_examples.yaml")
    rows = yaml.safe_load(file.read_text("utf-8"))[part]
    return rows["declines"] + rows["helps"], [True] * len(rows["declines"]) + [False] * len(
        rows["helps"]
    )


def fit(filed: Labelled, own: Labelled) -> Any:
    """A logistic head on standardised features, its strength chosen by 5-fold log-loss."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    matrix = np.array([features(reply) for reply in filed[0] + own[0]])
    weights = np.array([1.0] * len(filed[0]) + [OWN_WEIGHT] * len(own[0]))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
        {"logisticregression__C": STRENGTHS},
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
        scoring="neg_log_loss",
    )
    return search.fit(matrix, filed[1] + own[1], logisticregression__sample_weight=weights)


def unscaled(search: Any) -> tuple[float, dict[str, float]]:
    """Intercept and coefficients that apply to the plain features."""
    scaler, head = search.best_estimator_[0], search.best_estimator_[1]
    slopes = head.coef_[0] / scaler.scale_
    intercept = float(head.intercept_[0] - (slopes * scaler.mean_).sum())
    named = {name: round(float(s), 5) for name, s in zip(FEATURES, slopes, strict=True)}
    return round(intercept, 5), named


def said_by(search: Any, labelled: Labelled) -> list[bool]:
    """What the head says of each reply."""
    return [bool(x) for x in search.predict([features(reply) for reply in labelled[0]])]


def compare(search: Any, labelled: Labelled) -> tuple[float, float]:
    """Agreement and kappa of the head with people's labels."""
    said = said_by(search, labelled)
    return agreement(labelled[1], said), cohen_kappa(labelled[1], said)


def counts(search: Any, labelled: Labelled) -> dict[str, int]:
    """People's refusals and how many the head found; other replies and how many it let be."""
    said = list(zip(labelled[1], said_by(search, labelled), strict=True))
    refusals = [found for label, found in said if label]
    others = [found for label, found in said if not label]
    return {
        "refusals": len(refusals),
        "found": sum(refusals),
        "others": len(others),
        "let_be": len(others) - sum(others),
    }


def main(folder: Path) -> None:
    """Fits, writes the head and prints every rotation."""
    data = {name: read_replies(folder, name) for name in FILES}
    own = own_replies("tune")
    for tuned_on in FILES:
        search = fit(data[tuned_on], own)
        results = {name: compare(search, data[name]) for name in FILES if name != tuned_on}
        pooled = sum(share for share, _ in results.values()) / len(results)
        cells = ", ".join(f"{n}: {a:.3f} kappa {k:.3f}" for n, (a, k) in results.items())
        mark = " (shipped)" if tuned_on == TUNED_ON else ""
        print(f"tuned on {tuned_on}{mark}: pooled {pooled:.3f}; {cells}")
        if tuned_on == TUNED_ON:
            counted = {name: counts(search, data[name]) for name in MEASURED_ON}
            write(search, results, counted, compare(search, own_replies("held_out")))


def write(
    search: Any,
    results: dict[str, tuple[float, float]],
    counted: dict[str, dict[str, int]],
    held_out: tuple[float, float],
) -> None:
    """Writes the packaged head with the figures it was measured at."""
    intercept, coefficients = unscaled(search)
    pooled = sum(share for share, _ in results.values()) / len(results)
    measured = {
        n: {"agreement": round(a, 4), "kappa": round(k, 4), **counted[n]}
        for n, (a, k) in results.items()
    }
    stored = {
        "tuned_on": f"xstest_replies_{TUNED_ON}.csv and refusal_examples.yaml",
        "strength": search.best_params_["logisticregression__C"],
        "measured": {**measured, "pooled": {"agreement": round(pooled, 4)}},
        "held_out_examples": {"agreement": round(held_out[0], 4), "kappa": round(held_out[1], 4)},
        "intercept": intercept,
        "coefficients": coefficients,
    }
    path = Path(__file__).with_name("refusal_head.json")
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    print(f"held-out examples: {held_out[0]:.3f} kappa {held_out[1]:.3f}; wrote {path.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
