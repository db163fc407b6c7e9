"""The output head fused with its losses: margins of target tokens and their gradients.

The gradient of the margin m = z_y - log So needs one vector per row,

    dm/dh = s_y W_y - sum_{j != y} (e_j / So) s_j W_j,

with s the slope of the soft-cap (1 without one). It comes out of the same exponentials as m by a
second matrix product, and because log p and log(1 - p) are functions of m alone, the backward pass
of any mixture of losses is one multiplication per row. Logits exist for one chunk of rows at a
time; [tokens, vocabulary] is never held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 48 * 2**20
"""Size of the one logit buffer: larger ones fall out of the caches and gain nothing."""


@dataclass(frozen=True, slots=True)
class Head:
    """A frozen output projection, tied or not.

    Logits are ``cap(scale * (h W^T + b))`` with ``cap(u) = softcap * tanh(u / softcap)``.
    """

    weight: Tensor
    """[vocabulary, hidden], float32."""
    bias: Tensor | None = None
    """[vocabulary]."""
    softcap: float | None = None
    scale: float = 1.0

    @property
    def chunk(self) -> int:
        """Rows whose logits fit in the buffer."""
        return max(16, CHUNK_BYTES // (4 * self.weight.shape[0]))

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits of a few rows.

        Args:
            hidden: [rows, hidden].
            out: Buffer of at least [rows, vocabulary].

        Returns:
            [rows, vocabulary] float32.
        """
        buffer = None if out is None else out[: len(hidden)]
        logits = torch.mm(hidden.float(), self.weight.t(), out=buffer)
        if self.bias is not None:
            logits.add_(self.bias)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def own_logits(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Logits of the target tokens alone, in float64.

        Where a target is saturated, the gradient of its likelihood is exp(-margin): the error of
        this one logit would be its relative error. One row of the head costs nothing.

        Args:
            hidden: [rows, hidden].
            targets: [rows], token ids.

        Returns:
            [rows, 1] float64.
        """
        logits = (hidden.double() * self.weight[targets].double()).sum(1, keepdim=True)
        if self.bias is not None:
            logits = logits + self.bias[targets, None]
        logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def slope(self, logits: Tensor) -> Tensor | None:
        """d logit / d (h W^T), [rows, vocabulary]; None where it is 1 everywhere."""
        if self.softcap is not None:
            return (1 - (logits / self.softcap).square_()).mul_(self.scale)
        return None if self.scale == 1.0 else torch.full_like(logits, self.scale)


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Slices that cover `rows` in pieces of at most `size`."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def margins(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Margin of each target token, differentiable in `hidden`.

    Args:
        hidden: [rows, hidden], the decoder's last hidden states at the rows that carry a loss.
        targets: [rows], token ids.
        head: The frozen head.

    Returns:
        [rows] float32 margins m: log p = logsigmoid(m), log(1 - p) = logsigmoid(-m).
    """
    result: Tensor = _Margins.apply(hidden, targets, head)  # type: ignore[no-untyped-call]
    return result


class _ByDirection(torch.autograd.Function):
    """A number per row whose gradient in the row's state the forward pass has left behind."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (direction,) = ctx.saved_tensors  # [rows, hidden]
        return (grads[0][:, None] * direction).to(ctx.dtype), None, None


Chunk = Callable[[slice, Tensor, bool], tuple[Tensor, Tensor | None]]
"""Rows, logit buffer and whether gradients are wanted -> margins, and their directions if so."""


def _in_chunks(ctx: Any, hidden: Tensor, head: Head, chunk: Chunk) -> Tensor:
    """Margins [rows] of all rows, a chunk at a time in one buffer; leaves their directions."""
    rows, width = hidden.shape
    margin = hidden.new_empty(rows, dtype=torch.float32)
    wanted = ctx.needs_input_grad[0]
    direction = hidden.new_empty((rows, width), dtype=torch.float32) if wanted else None
    size = min(head.chunk, max(rows, 1))
    buffer = hidden.new_empty((size, head.weight.shape[0]), dtype=torch.float32)
    for part in chunks(rows, size):
        margin[part], found = chunk(part, buffer, wanted)
        if direction is not None and found is not None:
            direction[part] = found
    if direction is not None:
        ctx.save_for_backward(direction)
    ctx.dtype = hidden.dtype
    return margin


class _Margins(_ByDirection):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
        return _in_chunks(
            ctx,
            hidden,
            head,
            lambda part, buffer, wanted: _margin_chunk(
                hidden[part], targets[part], head, buffer, wanted
            ),
        )


def _margin_chunk(
    hidden: Tensor, targets: Tensor, head: Head, buffer: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Margins [rows] and, when wanted, d margin / d hidden [rows, hidden] of one chunk."""
    index = targets[:, None]  # [rows, 1]
    logits = head.logits(hidden, buffer)  # [rows, vocabulary]
    slope = head.slope(logits) if wanted else None
    target = head.own_logits(hidden, targets)  # [rows, 1]
    logits.scatter_(1, index, -torch.inf)  # the others
    top = logits.amax(1, keepdim=True)
    others = logits.sub_(top).exp_()
    total = others.sum(1, keepdim=True)  # So, scaled by exp(-top)
    margin = (target - top - total.log()).float()[:, 0]
    if not wanted:
        return margin, None
    own = head.weight[targets]  # [rows, hidden]
    if slope is not None:
        own = own * slope.gather(1, index)
        others.mul_(slope)
    return margin, own - (others @ head.weight) / total


def set_margins(
    hidden: Tensor, targets: Tensor, marked: Tensor, candidates: Tensor, head: Head
) -> Tensor:
    """Margin of a set of tokens against all others, differentiable in `hidden`.

    The set C of a row is the candidates, and its own target where it is marked. With S_C the sum of
    exp(logit) over C and So that over all others, m = log S_C - log So, and P(C) = sigmoid(m).
    The outsiders are summed alone, so that log P(not C) = logsigmoid(-m) is exact where C is
    nearly certain.

    Args:
        hidden: [rows, hidden].
        targets: [rows], token ids.
        marked: [rows] bool, whether the target belongs to the set.
        candidates: [candidates], distinct token ids, at least one.
        head: The frozen head.

    Returns:
        [rows] float32 margins.
    """
    result: Tensor = _SetMargins.apply(  # type: ignore[no-untyped-call]
        hidden, targets, marked, candidates, head
    )
    return result


class _SetMargins(_ByDirection):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, marked: Tensor, candidates: Tensor, head: Head
    ) -> Tensor:
        alone = marked & ~torch.isin(targets, candidates)  # adds to the set
        return _in_chunks(
            ctx,
            hidden,
            head,
            lambda part, buffer, wanted: _set_chunk(
                hidden[part], targets[part], alone[part], candidates, head, buffer, wanted
            ),
        )

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        grad, *_ = _ByDirection.backward(ctx, *grads)
        return grad, None, None, None, None


def _set_chunk(
    hidden: Tensor,
    targets: Tensor,
    alone: Tensor,
    candidates: Tensor,
    head: Head,
    buffer: Tensor,
    wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    """Margins [rows] and, when wanted, d margin / d hidden [rows, hidden] of one chunk."""
    index = targets[:, None]  # [rows, 1]
    logits = head.logits(hidden, buffer)  # [rows, vocabulary]
    slope = head.slope(logits) if wanted else None
    own = logits.gather(1, index)
    inside = torch.cat(
        (logits[:, candidates], own.masked_fill(~alone[:, None], -torch.inf)), 1
    )  # [rows, candidates + 1]
    logits.scatter_(1, index, own.masked_fill(alone[:, None], -torch.inf))
    logits.index_fill_(1, candidates, -torch.inf)  # the others
    top = logits.amax(1, keepdim=True)
    others = logits.sub_(top).exp_()
    total = others.sum(1, keepdim=True)  # So, scaled by exp(-top)
    margin = inside.logsumexp(1, keepdim=True) - top - total.log()
    if not wanted:
        return margin[:, 0], None
    share = inside.softmax(1)
    if slope is not None:
        others.mul_(slope)
        share[:, :-1] *= slope[:, candidates]
        share[:, -1:] *= slope.gather(1, index)
    toward = share[:, :-1] @ head.weight[candidates] + share[:, -1:] * head.weight[targets]
    return margin[:, 0], toward - (others @ head.weight) / total


def kl_divergence(base: Tensor, other: Tensor, head: Head) -> Tensor:
    """KL(base || other) of next-token distributions, in chunks; differentiable in `other`.

    The gradient in h of KL(p || q) is sum_j (q_j - p_j) s_j W_j, with s the slope of the soft-cap:
    it comes out of the forward pass, as that of the margins does.

    Args:
        base: [rows, hidden], hidden states of the bare model.
        other: [rows, hidden], hidden states of the same rows with the adapter on.
        head: The frozen head of both.

    Returns:
        [rows] float32, nats.
    """
    result: Tensor = _Divergence.apply(other, base, head)  # type: ignore[no-untyped-call]
    return result


class _Divergence(_ByDirection):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, base: Tensor, head: Head) -> Tensor:
        result = hidden.new_empty(len(hidden), dtype=torch.float32)
        wanted = ctx.needs_input_grad[0]
        direction = hidden.new_empty(hidden.shape, dtype=torch.float32) if wanted else None
        for part in chunks(len(hidden), head.chunk):
            log_p = head.logits(base[part]).log_softmax(1)  # [rows, vocabulary]
            logits = head.logits(hidden[part])
            log_q, p = logits.log_softmax(1), log_p.exp()
            result[part] = (p * log_p.sub_(log_q)).sum(1)
            if direction is not None:
                difference, slope = log_q.exp_().sub_(p), head.slope(logits)
                if slope is not None:
                    difference.mul_(slope)
                direction[part] = difference @ head.weight
        if direction is not None:
            ctx.save_for_backward(direction)
        ctx.dtype = hidden.dtype
        return result
