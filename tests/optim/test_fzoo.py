"""FZOO against its plain reference; what size its steps have."""

from __future__ import annotations

import math

import pytest
import torch
from problems import closure_of, make_problem, same_bits, snapshot
from torch import nn

from letgo.core.errors import UserError
from letgo.optim import FOZO, FZOO, ZOSGD, ReplayLog, create_optimizer, replay
from reference.optim_zeroth_order import FZOO as Plain

SLOPES = torch.linspace(-1, 1, 12, dtype=torch.float64)


def bowl(x: torch.Tensor) -> torch.Tensor:
    return ((x - SLOPES).square() * (1 + SLOPES.square())).sum()


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@torch.no_grad()
def test_sixty_steps_equal_the_reference(noise: str) -> None:
    x = nn.Parameter(torch.full((12,), 2.0, dtype=torch.float64))
    optimizer, reference = FZOO([x], 2e-5, num_directions=5, noise=noise, seed=3), Plain(2e-5, 1e-3)
    xs = [x.detach().clone()]
    for _ in range(60):
        vs = [[d.tensor(0)] for d in optimizer.directions([x])]
        xs = reference.step(lambda xs: bowl(xs[0]), xs, vs)
        optimizer.step(lambda: bowl(x))
        torch.testing.assert_close(x.detach(), xs[0], rtol=1e-8, atol=1e-9)
    assert float(bowl(x)) < 0.75 * float(bowl(torch.full((12,), 2.0, dtype=torch.float64)))


@torch.no_grad()
def test_where_the_spread_is_one_it_is_forward_differences() -> None:
    """Rates that undo the division, step by step."""
    x, y = (nn.Parameter(torch.full((12,), 2.0, dtype=torch.float64)) for _ in range(2))
    fzoo = FZOO([x], 0.0, num_directions=4)
    plain = ZOSGD([y], 1e-3, num_directions=4, difference="forward")
    for _ in range(50):
        plain.step(lambda: bowl(y))
        fzoo.param_groups[0]["lr"] = 1e-3 * float(torch.tensor(plain.last_losses[1:], dtype=torch.float64).std())
        fzoo.step(lambda: bowl(x))
        assert fzoo.last_losses == pytest.approx(plain.last_losses, rel=1e-9)
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
@torch.no_grad()
def test_a_step_is_of_a_known_size_whatever_the_loss(scale: float) -> None:
    slope = torch.randn(4000, generator=torch.Generator().manual_seed(0)).double() * scale
    x = nn.Parameter(torch.zeros(4000, dtype=torch.float64))
    optimizer = FZOO([x], 1e-7, num_directions=16)
    sizes = []
    for _ in range(40):
        before = x.detach().clone()
        optimizer.step(lambda: slope @ x)
        sizes.append(float((x - before).square().mean().sqrt()))
    assert sum(sizes) / 40 == pytest.approx(1e-7 / (1e-3 * math.sqrt(16)), rel=0.1)


def test_a_loss_that_is_the_same_everywhere_moves_nothing() -> None:
    x = nn.Parameter(torch.ones(5))
    FZOO([x], 1.0).step(lambda: torch.tensor(3.0))
    assert torch.equal(x, torch.ones(5))


def test_it_is_replayed_batched_and_a_phase_of_the_hybrid() -> None:
    model, loss_of = make_problem()
    optimizer = FZOO(model.parameters(), 1e-6)
    log = ReplayLog.attach(optimizer)
    for _ in range(5):
        optimizer.step(closure_of(optimizer, loss_of))
    again, _ = make_problem()
    replay(again, log)
    assert same_bits(snapshot(model), snapshot(again))

    ends = []
    for engine in ("in_place", "batched"):
        model, loss_of = make_problem(torch.float64)
        optimizer = FZOO(model.parameters(), 1e-6, rank=2, engine=engine, num_directions=24)
        for _ in range(3):
            optimizer.step(loss_of)
        ends.append(snapshot(model))
        assert len(optimizer.last_losses) == 25
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-6, atol=1e-8)

    hybrid = FOZO(model.parameters(), zo="fzoo", zo_lr=1e-7, num_directions=4)
    assert isinstance(hybrid.zo, FZOO)


def test_one_direction_has_no_spread() -> None:
    with pytest.raises(UserError, match="num_directions must be"):
        create_optimizer("fzoo", [nn.Parameter(torch.ones(2))], num_directions=1)
