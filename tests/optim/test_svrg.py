"""Variance-reduced zeroth order: against its plain reference, its limit, and what it is for."""

from __future__ import annotations

import pytest
import torch
from problems import closure_of, make_problem, same_bits, snapshot
from torch import Tensor, nn

from letgo.core.errors import NonFiniteLossError
from letgo.optim import ZOSGD, ZOSVRG, ReplayLog, replay
from reference.optim_zeroth_order import SVRG

SLOPES = torch.linspace(-1, 1, 12, dtype=torch.float64)


def bowl(x: Tensor, row: int = 0) -> Tensor:
    return ((x - SLOPES.roll(row)).square() * (1 + SLOPES.square())).sum()


@pytest.mark.parametrize("difference", ["central", "forward"])
@torch.no_grad()
def test_sixty_steps_equal_the_reference(difference: str) -> None:
    """On another loss in each step, as on another batch."""
    x = nn.Parameter(torch.full((12,), 2.0, dtype=torch.float64))
    optimizer = ZOSVRG([x], 0.01, period=4, anchor_directions=6, num_directions=2, difference=difference, seed=3)
    reference, xs = SVRG(0.01, 1e-3, difference), [x.detach().clone()]
    for step in range(60):
        vs = [[d.tensor(0)] for d in optimizer.directions([x])]
        assert len(vs) == (2 if step % 4 else 6)
        xs = reference.step(lambda xs, row=step % 5: bowl(xs[0], row), xs, vs, step % 4 == 0)
        optimizer.step(lambda row=step % 5: bowl(x, row))
        torch.testing.assert_close(x.detach(), xs[0], rtol=1e-7, atol=1e-9)
    assert float(bowl(x)) < 0.5 * float(bowl(torch.full((12,), 2.0, dtype=torch.float64)))


def test_with_an_anchor_at_every_step_it_is_zo_sgd() -> None:
    ends = []
    for make, settings in ((ZOSVRG, {"period": 1, "anchor_directions": 3}), (ZOSGD, {"num_directions": 3})):
        model, loss_of = make_problem()
        optimizer = make(model.parameters(), 1e-3, weight_decay=0.1, **settings)
        for _ in range(10):
            optimizer.step(closure_of(optimizer, loss_of))
        ends.append(snapshot(model))
        assert not optimizer.state
    assert same_bits(*ends)


@torch.no_grad()
def test_near_the_anchor_an_estimate_varies_less_than_a_plain_one() -> None:
    """The variance over directions goes with the square of a gradient: here of the difference of two."""
    generator = torch.Generator().manual_seed(0)
    place = torch.randn(12, generator=generator).double()
    near = place + 0.05 * torch.randn(12, generator=generator).double()
    x = nn.Parameter(place.clone())
    steps: dict[str, list[Tensor]] = {"svrg": [], "plain": []}
    for seed in range(300):
        x.copy_(place)
        optimizer = ZOSVRG([x], 1.0, period=1000, anchor_directions=1, seed=seed)
        optimizer.step(lambda: bowl(x))
        estimate = optimizer.state[x]["anchor_estimate"].clone()
        x.copy_(near)
        optimizer.step(lambda: bowl(x))
        steps["svrg"].append(near - x - estimate)
        x.copy_(near)
        ZOSGD([x], 1.0, seed=seed + 1000).step(lambda: bowl(x))
        steps["plain"].append(near - x)
    spread = {name: float(torch.stack(found).var(0).sum()) for name, found in steps.items()}
    weights = 2 * (1 + SLOPES.square())
    gradient, change = weights * (near - SLOPES), weights * (near - place)
    expected = float(change.square().sum() / gradient.square().sum())
    assert spread["svrg"] / spread["plain"] == pytest.approx(expected, rel=0.25)
    assert expected < 0.02


def test_dropout_is_the_same_at_both_places_and_moves_the_generators_as_one_pass_does() -> None:
    torch.manual_seed(0)
    x = nn.Parameter(torch.ones(50))
    optimizer, masks = ZOSVRG([x], 1e-6, period=5, anchor_directions=1), []

    def noisy() -> Tensor:
        mask = nn.functional.dropout(torch.ones(50), 0.5)
        masks.append(mask)
        return (x * mask).sum()

    for _ in range(3):
        optimizer.step(noisy)
    assert [len(masks[:2]), len(masks[2:6]), len(masks[6:])] == [2, 4, 4]
    assert all(torch.equal(m, masks[2]) for m in masks[2:6])
    assert all(torch.equal(m, masks[6]) for m in masks[6:])
    torch.manual_seed(0)
    for _ in range(3):
        last = nn.functional.dropout(torch.ones(50), 0.5)
    assert torch.equal(last, masks[-1])


def test_a_closure_that_fails_at_the_anchor_leaves_the_weights_as_they_were() -> None:
    x = nn.Parameter(torch.ones(6))
    optimizer = ZOSVRG([x], 1e-2, anchor_directions=2)
    optimizer.step(lambda: x.square().sum())
    before, anchor, calls = x.detach().clone(), optimizer.state[x]["anchor"].clone(), []

    def failing() -> Tensor:
        calls.append(x.detach().clone())
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return x.square().sum()

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(failing)
    # Perturbed by mu there.
    torch.testing.assert_close(calls[2], anchor, rtol=0, atol=1.01e-3)
    assert float((before - anchor).abs().max()) > 5e-3
    assert torch.equal(x, before)
    assert torch.equal(optimizer.state[x]["anchor"], anchor)
    with pytest.raises(NonFiniteLossError):
        optimizer.step(lambda: x.sum() * torch.nan)
    assert torch.equal(x, before)


def test_a_first_step_that_was_skipped_is_made_up_for() -> None:
    x = nn.Parameter(torch.ones(6))
    optimizer = ZOSVRG([x], 1e-2, period=4, anchor_directions=3, nonfinite="skip")
    log = ReplayLog.attach(optimizer)
    optimizer.step(lambda: x.sum() * torch.nan)
    assert torch.equal(x, torch.ones(6))
    for _ in range(5):
        optimizer.step(lambda: x.square().sum())
    assert [len(coefficients) for _, coefficients in log.steps] == [0, 3, 1, 1, 3, 1]
    again = nn.Parameter(torch.ones(6))
    replay([again], log)
    assert torch.equal(x, again)
