"""The losses that distillation minimizes. Pure functions of tensors.

In: logits or hidden states of the unpruned model and of the pruned one. Out: a loss, whose gradient
goes into the pruned one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeprune.recovery.held_out import UNLABELLED

_ROWS = 64  # predictions whose probabilities are held at a time, in float32


def summed_loss(taught: Tensor, learnt: Tensor, labels: Tensor, text_weight: float) -> Tensor:
    """Return what distillation minimizes, summed over predictions, nats.

    (1 - w) KL(taught || learnt) + w CE(label, learnt), arXiv:1503.02531, section 2, at temperature
    1, with KL for their cross entropy: both differ by what the pruned model has no part in.

    Args:
        taught: Logits of the unpruned model, `(n, vocab_size)`.
        learnt: Of the pruned one; the gradient goes into these.
        labels: The tokens that do follow, `(n,)`; rows of `UNLABELLED` do not count.
        text_weight: w, from 0 to 1.
    """
    found: Tensor = _SummedLoss.apply(  # type: ignore[no-untyped-call]
        taught, learnt, labels, text_weight)
    return found


class _SummedLoss(torch.autograd.Function):
    """The sum of `summed_loss`; its gradient is softmax(learnt) less the mean of what it learns.

    The gradient is made in the forward pass, some rows at a time: no float32 copy of all logits is
    held, and it takes a third of the time of autograd's own (SmolLM2, 2 CPUs).
    """

    @staticmethod
    def forward(
        ctx: Any, taught: Tensor, learnt: Tensor, labels: Tensor, text_weight: float
    ) -> Tensor:
        """Return the sum, `()`."""
        gradient = torch.empty_like(learnt)
        total = torch.zeros((), dtype=torch.float32, device=learnt.device)
        for theirs, ours, following, slope in zip(
            *(x.split(_ROWS) for x in (taught, learnt, labels, gradient)), strict=True
        ):
            counts, tokens = following != UNLABELLED, following.clamp(min=0)[:, None]
            log_p, log_q = theirs.float().log_softmax(-1), ours.float().log_softmax(-1)
            text = -log_q.gather(1, tokens)[:, 0]
            p = log_p.exp()
            # not vecdot, which autocast does in bfloat16
            divergence = (p * log_p.sub_(log_q)).sum(-1)
            total += torch.lerp(divergence, text, text_weight)[counts].sum()
            p.mul_(1 - text_weight).scatter_add_(1, tokens, torch.full_like(
                tokens, text_weight, dtype=p.dtype))
            slope.copy_(log_q.exp_().sub_(p).mul_(counts[:, None]))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None]:
        """Return the gradient of the pruned model's logits."""
        (gradient,) = ctx.saved_tensors
        return None, gradient * gradients[0], None, None


def state_error(taught: Sequence[Tensor], learnt: Sequence[Tensor], which: Tensor) -> Tensor:
    """Return the relative square error of hidden states, the mean over tokens and layers.

    Each token's is relative to its own square: the first token's states are many times the others'.

    Args:
        taught: Of each layer that stayed, of the unpruned model, `(b, t, hidden_size)`.
        learnt: Of the pruned one, likewise.
        which: Tokens that count, `(b, t)`.
    """
    errors = [(ours.float() - theirs.float()).pow(2).sum(-1) / theirs.float().pow(2).sum(-1)
              for theirs, ours in zip(taught, learnt, strict=True)]
    return torch.stack(errors).mean(0)[which].mean()
