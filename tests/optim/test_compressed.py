"""The sign methods against their plain references."""

from __future__ import annotations

import pytest
import torch
from problems import make_problem

from letgo.optim import SignAdam
from letgo.optim import SignSGD as Fast
from reference.optim_first_order import OneBitAdam, SignSGD


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("fast", "plain"), [(Fast, SignSGD), (SignAdam, OneBitAdam)])
def test_sixty_steps_equal_the_reference(fast, plain, dtype) -> None:
    model, loss_of = make_problem(dtype)
    params = [p for p in model.parameters() if p.requires_grad and p.numel()]
    optimizer, reference = fast(model.parameters(), 1e-3), plain(1e-3)
    xs = [p.detach().clone() for p in params]
    for _ in range(60):
        optimizer.zero_grad()
        loss_of().backward()
        xs = reference.step(xs, [p.grad.clone() for p in params])
        optimizer.step()
    for x, p in zip(xs, params, strict=True):
        torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)


def test_weight_decay_is_decoupled() -> None:
    x = torch.nn.Parameter(torch.tensor([2.0]))
    x.grad = torch.tensor([-0.3])
    Fast([x], lr=0.1, weight_decay=0.5).step()
    assert x.item() == pytest.approx(2.0 * (1 - 0.05) + 0.1)
