"""How far along the true gradient a step went: closed forms, and that measuring changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from problems import closure_of, make_problem, same_bits, snapshot
from torch import nn

from letgo.optim import create_optimizer
from letgo.optim.engine.moved import Gauge, Moved

D = 2000
SLOPE = torch.randn(D, generator=torch.Generator().manual_seed(0)).double()


def measured(name: str, steps: int, **settings) -> list[Moved]:
    """On a loss whose gradient is the same everywhere, in two parameters."""
    x, y = nn.Parameter(torch.zeros(D // 2).double()), nn.Parameter(torch.zeros(D // 2).double())
    optimizer = create_optimizer(name, [x, y], lr=1e-3, **settings)
    gauge, found = Gauge(optimizer), []

    def closure(part: str | None = None) -> torch.Tensor:
        optimizer.zero_grad()
        loss = SLOPE[: D // 2] @ x + SLOPE[D // 2 :] @ y
        if loss.requires_grad:
            loss.backward()
        return loss

    for _ in range(steps):
        gauge.before(closure)
        optimizer.step(closure)
        found.append(gauge.moved)
    return found


def test_of_the_gradient_and_of_its_sign() -> None:
    (step,) = measured("sgd", 1)
    assert step.cosine == pytest.approx(1.0)
    assert step.size == pytest.approx(1e-3 * float(SLOPE.square().mean().sqrt()))
    (step,) = measured("sign_sgd", 1)
    assert step.cosine == pytest.approx(float(SLOPE.abs().sum()) / (math.sqrt(D) * float(SLOPE.norm())))
    assert step.size == pytest.approx(1e-3)


@pytest.mark.parametrize("q", [1, 8, 64])
def test_an_estimate_of_q_directions_is_as_near_as_is_known(q: int) -> None:
    cosines = torch.tensor([step.cosine for step in measured("zo_sgd", 200, num_directions=q)])
    assert bool((cosines > 0).all()), "it descends, however little"
    assert float(cosines.square().mean()) == pytest.approx(q / (q + D), rel=0.35 / math.sqrt(q))


def test_a_random_walk_goes_along_it_as_often_as_against_it() -> None:
    cosines = torch.tensor([step.cosine for step in measured("random_walk", 200)])
    assert float(cosines.square().mean()) == pytest.approx(1 / D, rel=0.35)
    assert 70 < int((cosines > 0).sum()) < 130
    assert abs(float(cosines.mean())) < 4 / math.sqrt(200 * D)


@pytest.mark.parametrize("name", ["adamw", "ada_zo", "fozo", "sam"])
def test_measuring_changes_nothing(name: str) -> None:
    """Weights, state and what the closure draws from the global generator (dropout)."""
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        model, loss_of = make_problem()
        optimizer = create_optimizer(name, model.parameters(), lr=1e-3)
        gauge = Gauge(optimizer)

        def noisy(loss_of=loss_of) -> torch.Tensor:
            return loss_of() * nn.functional.dropout(torch.ones(8), 0.5).mean()

        closure = closure_of(optimizer, noisy)
        for _ in range(6):
            if watched:
                gauge.before(closure)
            optimizer.step(closure)
            if watched:
                assert math.isfinite(gauge.moved.cosine)
        ends.append(snapshot(model))
    assert same_bits(*ends)


def test_a_step_from_grad_and_one_that_moves_nothing() -> None:
    model, loss_of = make_problem()
    optimizer = create_optimizer("sgd", model.parameters(), lr=0.0)
    gauge = Gauge(optimizer)
    loss_of().backward()
    gauge.before()
    optimizer.step()
    nothing = gauge.moved
    assert gauge.logged() == {"step_size": 0}
    assert gauge.logged() == {}
    assert nothing.size == 0
    assert math.isnan(nothing.cosine)
    optimizer.param_groups[0]["lr"] = 0.1
    gauge.before()
    optimizer.step()
    assert gauge.moved.cosine == pytest.approx(1.0, abs=1e-4)
