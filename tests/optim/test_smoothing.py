"""SAM, randomized smoothing and weight averaging against plain references, on the loss and on its forget term."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import closure_of, make_problem, same_bits, snapshot
from torch import Tensor, nn

from letgo.optim import FOZO, SAM, RandomizedSmoothing, StraightThrough, WeightAveraging
from reference.optim_smoothing import sam_gradient, smoothed_gradient, straight_through_gradient

MATRIX = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def forget(x: Tensor) -> Tensor:
    return -torch.log1p((MATRIX @ x).square().sum())


def retain(x: Tensor) -> Tensor:
    return 0.3 * (x - 1).pow(4).sum()


def parts_closure(optimizer: torch.optim.Optimizer, x: Tensor, calls: list[str | None]):
    def closure(part: str | None = None) -> Tensor:
        calls.append(part)
        optimizer.zero_grad()
        loss = {"forget": forget, "retain": retain, None: lambda x: forget(x) + retain(x)}[part](x)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("on", ["loss", "forget"])
@pytest.mark.parametrize("kind", ["sam", "rs"])
def test_sixty_steps_equal_the_reference(kind: str, on: str) -> None:
    x = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
    y = x.detach().clone()
    options = {"base": "sgd", "on": on}
    optimizer = (
        SAM([x], 0.02, rho=0.1, **options) if kind == "sam" else RandomizedSmoothing([x], 0.02, sigma=0.1, **options)
    )
    calls: list[str | None] = []
    closure = parts_closure(optimizer, x, calls)
    smooth, rest = (forget, retain) if on == "forget" else (lambda x: forget(x) + retain(x), None)
    for _ in range(60):
        if kind == "sam":
            g = sam_gradient(smooth, rest, y, 0.1)
        else:
            us = [optimizer.direction(i, [x]).tensor(0) for i in range(3)]
            g = smoothed_gradient(smooth, rest, y, 0.1, us)
        loss = optimizer.step(closure)
        if kind == "sam":
            assert float(loss) == pytest.approx(float(forget(y) + retain(y)))
        y = y - 0.02 * g
        torch.testing.assert_close(x.detach(), y, rtol=1e-11, atol=1e-12)
    count = 2 if kind == "sam" else 3
    assert calls[: count + 1] == ([None] * (count + 1) if on == "loss" else ["forget"] * count + ["retain"])


@pytest.mark.parametrize("on", ["loss", "forget"])
def test_straight_through_equals_the_reference(on: str) -> None:
    """A matrix, whose rows are rounded to 3 bits; two steps without it, then three in which its weight grows."""
    x = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).contiguous())
    y = x.detach().clone()
    optimizer = StraightThrough([x], 0.02, base="sgd", alpha=0.8, warmup=2, ramp=3, bits=3, on=on)
    calls: list[str | None] = []

    def flat(f):
        return lambda x: f(x.flatten())

    def closure(part: str | None = None) -> Tensor:
        calls.append(part)
        optimizer.zero_grad()
        loss = {"forget": forget, "retain": retain, None: lambda x: forget(x) + retain(x)}[part](x.flatten())
        loss.backward()
        return loss

    smooth, rest = (flat(forget), flat(retain)) if on == "forget" else (flat(lambda x: forget(x) + retain(x)), None)
    for step, alpha in enumerate([0.0, 0.0, 0.8 / 3, 1.6 / 3, 0.8, 0.8, 0.8] * 3):
        alpha = alpha if step < 7 else 0.8
        g = straight_through_gradient(smooth, rest, y, alpha, 3)
        loss = optimizer.step(closure)
        assert float(loss) == pytest.approx(float(forget(y.flatten()) + retain(y.flatten())))
        y = y - 0.02 * g
        # The scale of a row is found in float32.
        torch.testing.assert_close(x.detach(), y, rtol=1e-5, atol=1e-6)
    assert calls[:3] == (["forget", "retain", "forget"] if on == "forget" else [None, None, None])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: StraightThrough(p, 0.0, on="loss"),
        lambda p: SAM(p, 0.0, rho=0.1),
        lambda p: RandomizedSmoothing(p, 0.0, sigma=0.1),
    ],
)
def test_the_weights_come_back_bit_for_bit(make) -> None:
    model, loss_of = make_problem(torch.bfloat16)
    before = snapshot(model)
    optimizer = make(model.parameters())
    for _ in range(20):
        optimizer.step(closure_of(optimizer, loss_of))
    assert same_bits(before, snapshot(model))


def test_the_forget_term_needs_a_closure_that_can_be_asked_for_it() -> None:
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="part='forget'"):
        SAM([x], on="forget").step(lambda: x.sum())
    with pytest.raises(ValueError, match="needs a closure"):
        RandomizedSmoothing([x]).step()
    with pytest.raises(ValueError, match="steps from gradients"):
        SAM([x], base="zo_sgd")


@pytest.mark.parametrize("kind", ["mean", "ema"])
def test_averages_are_those_of_the_weights_passed_through(kind: str) -> None:
    model, loss_of = make_problem(torch.float64)
    optimizer = WeightAveraging(model.parameters(), 0.05, base="adamw", start=4, every=3, kind=kind, decay=0.8)
    passed = []
    for step in range(1, 15):
        optimizer.step(closure_of(optimizer, loss_of))
        if step in (4, 7, 10, 13):
            passed.append(copy.deepcopy(snapshot(model)))
    expected = passed[0]
    for number, weights in enumerate(passed[1:], 2):
        share = 1 / number if kind == "mean" else 0.2
        expected = {k: (1 - share) * expected[k] + share * weights[k] for k in expected}
    last = snapshot(model)
    with optimizer.finished():
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name])
    assert same_bits(last, snapshot(model))
    optimizer.finish()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])


def test_averaging_goes_around_a_hybrid_and_tells_its_phase() -> None:
    model, loss_of = make_problem()
    optimizer = WeightAveraging(
        model.parameters(), 1e-2, base="fozo", base_options={"fo_steps": 2, "zo_steps": 3}, start=1
    )
    assert isinstance(optimizer.base, FOZO)
    assert optimizer.fit_total_steps(7) == 10
    phases = []
    for _ in range(5):
        phases.append(optimizer.needs_closure)
        optimizer.step(closure_of(optimizer, loss_of))
    assert phases == [False, False, True, True, True]


def test_nothing_averaged_yet_changes_nothing() -> None:
    model, loss_of = make_problem()
    optimizer = WeightAveraging(model.parameters(), 0.05)
    optimizer.step(closure_of(optimizer, loss_of))
    before = snapshot(model)
    with optimizer.finished():
        assert same_bits(before, snapshot(model))
    optimizer.finish()
    assert same_bits(before, snapshot(model))
