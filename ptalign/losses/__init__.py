"""Losses as pure functions of the target's margin, and the fused head that makes margins.

With So = the sum of exp(logit) over all tokens but the target and S = So + e_target, the margin
m = z_target - log So is all a loss needs: p = sigmoid(m), log p = logsigmoid(m) and
log(1 - p) = logsigmoid(-m), each exact where p is close to 0 or 1.
"""

from ptalign.losses.head import Head, kl_divergence, margins, set_margins
from ptalign.losses.likelihood import margins_of_logits, mle, unlikelihood
from ptalign.losses.preference import dpo, npo

__all__ = [
    "Head",
    "dpo",
    "kl_divergence",
    "margins",
    "margins_of_logits",
    "mle",
    "npo",
    "set_margins",
    "unlikelihood",
]
