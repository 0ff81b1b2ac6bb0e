"""What distillation minimizes, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import kl_div, nll_loss

from edgeprune.recovery.held_out import UNLABELLED
from edgeprune.recovery.losses import state_error, summed_loss


@pytest.mark.parametrize("n", [1, 64, 150])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_and_its_gradient_are_those_of_torch(n: int, weight: float) -> None:
    torch.manual_seed(0)
    taught, start = 3 * torch.randn(n, 97), 3 * torch.randn(n, 97)
    labels = torch.randint(0, 97, (n,))
    which = torch.rand(n) < 0.7
    which[0] = True
    labels[~which] = UNLABELLED
    found, expected = start.clone().requires_grad_(), start.clone().requires_grad_()
    ours = summed_loss(taught, found, labels, weight)
    log_q = expected[which].log_softmax(-1)
    theirs = ((1 - weight) * kl_div(log_q, taught[which].log_softmax(-1), reduction="sum",
                                    log_target=True)
              + weight * nll_loss(log_q, labels[which], reduction="sum"))
    (3 * ours).backward()
    (3 * theirs).backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-5, rtol=1e-4)
    assert found.grad is not None
    assert not found.grad[~which].any()


def test_half_precision_logits_get_half_precision_gradients() -> None:
    taught = torch.randn(9, 50).bfloat16()
    learnt = torch.randn(9, 50).bfloat16().requires_grad_()
    summed_loss(taught, learnt, torch.arange(9), 0.5).backward()
    assert learnt.grad is not None
    assert learnt.grad.dtype == torch.bfloat16


def test_the_error_of_states_is_relative_and_of_those_that_count() -> None:
    taught = [torch.randn(2, 5, 8), 100 * torch.randn(2, 5, 8)]
    which = torch.ones(2, 5, dtype=torch.bool)
    which[1, 3:] = False
    assert float(state_error(taught, taught, which)) == 0
    double = [2 * states for states in taught]
    assert float(state_error(taught, double, which)) == pytest.approx(1)
    for states in double:
        states[~which] = 1e6
    assert float(state_error(taught, double, which)) == pytest.approx(1)


def test_autocast_changes_nothing() -> None:
    taught, learnt = (3 * torch.randn(9, 50) for _ in range(2))
    plain = summed_loss(taught, learnt, torch.arange(9), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(summed_loss(taught, learnt, torch.arange(9), 0.5)) == float(plain)
