"""Token weights: which tokens of a toxic answer are pushed down.

A scorer gives each token of a toxic answer a number, larger meaning more toxic; `weigh` turns the
numbers into weights under one threshold for the whole set. Imports torch only inside `contrast`.
"""

from ptalign.weights.scorers import Scorer, scorer_named
from ptalign.weights.threshold import TokenWeights, weigh

__all__ = ["Scorer", "TokenWeights", "scorer_named", "weigh"]
