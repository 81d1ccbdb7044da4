"""DualOptim and DualOptim+ against plain references; one term alone is AdamW."""

from __future__ import annotations

import pytest
import torch
from problems import closure_of, make_problem, same_bits, snapshot
from torch import Tensor, nn

from letgo.core.errors import UserError
from letgo.optim import DualOptim, DualOptimPlus, create_optimizer
from reference.optim_dual import Dual

MATRIX = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LOSSES = {
    "forget": lambda x: -torch.log1p((MATRIX @ x).square().sum()),
    "retain": lambda x: 0.3 * (x - 1).pow(4).sum(),
}


def closure_with_parts(optimizer: torch.optim.Optimizer, x: Tensor, calls: list[str | None]):
    def closure(part: str | None = None) -> Tensor:
        calls.append(part)
        optimizer.zero_grad()
        loss = LOSSES[part](x)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("plus", [False, True])
def test_sixty_steps_equal_the_reference(plus: bool) -> None:
    x = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
    y = x.detach().clone()
    options = {"retain_rate": 0.5, "forget_steps": 2, "retain_steps": 3}
    optimizer = DualOptimPlus([x], 0.01, base_betas=(0.8, 0.97), **options) if plus else DualOptim([x], 0.01, **options)
    reference = Dual(0.01, plus)
    calls: list[str | None] = []
    closure = closure_with_parts(optimizer, x, calls)
    for step in range(60):
        term = "forget" if step % 5 < 2 else "retain"
        assert optimizer.term == term
        z = y.clone().requires_grad_()
        expected = LOSSES[term](z)
        (g,) = torch.autograd.grad(expected, z)
        y = reference.step(y, g, term, 1.0 if term == "forget" else 0.5)
        loss = optimizer.step(closure)
        assert loss.item() == pytest.approx(expected.item())
        assert optimizer.last_losses == [pytest.approx(expected.item())]
        torch.testing.assert_close(x.detach(), y, rtol=1e-7, atol=1e-9)
    assert calls == (["forget"] * 2 + ["retain"] * 3) * 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alone", ["forget", "retain"])
def test_one_term_alone_is_adamw(alone: str, dtype: torch.dtype) -> None:
    model, loss_of = make_problem(dtype)
    plain, plain_loss = make_problem(dtype)
    steps = {"forget_steps": 1, "retain_steps": 0} if alone == "forget" else {"forget_steps": 0, "retain_steps": 1}
    optimizer = DualOptim(model.parameters(), 0.01, betas=(0.9, 0.999), **steps)
    adamw = torch.optim.AdamW(plain.parameters(), 0.01, weight_decay=0.01)
    for _ in range(60):
        optimizer.step(closure_of(optimizer, loss_of))
        adamw.step(closure_of(adamw, plain_loss))
    assert same_bits(snapshot(model), snapshot(plain))


def test_the_terms_moments_do_not_mix() -> None:
    """Two AdamW on the same weights, each called for its own term: the same bits."""
    x, y = (nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64)) for _ in range(2))
    optimizer = DualOptim([x], 0.01, retain_rate=0.3)
    forget, retain = (torch.optim.AdamW([y], rate, betas=(0.9, 0.95), weight_decay=0.01) for rate in (0.01, 0.003))
    for step in range(60):
        optimizer.step(closure_with_parts(optimizer, x, []))
        y.grad = None
        LOSSES["forget" if step % 6 == 0 else "retain"](y).backward()
        (forget if step % 6 == 0 else retain).step()
        assert torch.equal(x, y)


def test_the_first_step_with_a_base_is_adamws() -> None:
    """The base knows nothing yet."""
    x, y = (nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64)) for _ in range(2))
    optimizer = DualOptimPlus([x], 0.01)
    optimizer.step(closure_with_parts(optimizer, x, []))
    LOSSES["forget"](y).backward()
    torch.optim.AdamW([y], 0.01, betas=(0.9, 0.95), weight_decay=0.01).step()
    torch.testing.assert_close(x, y, rtol=1e-14, atol=1e-14)


def test_a_plan_ends_on_whole_rounds() -> None:
    optimizer = DualOptim([nn.Parameter(torch.ones(2))])
    assert [optimizer.fit_total_steps(n) for n in (1, 6, 7)] == [6, 6, 12]


def test_mistakes_are_named() -> None:
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="part='forget'"):
        DualOptim([x]).step(lambda: x.sum())
    with pytest.raises(ValueError, match="needs a closure"):
        DualOptimPlus([x]).step()
    with pytest.raises(UserError, match="both 0"):
        create_optimizer("dual_optim", [x], forget_steps=0, retain_steps=0)
    with pytest.raises(UserError, match=r"base_betas\[1\]"):
        create_optimizer("dual_optim_plus", [x], base_betas=(0.9, 1.0))
