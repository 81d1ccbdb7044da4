"""The rate that is found: closed forms on parabolas, and that looking for it leaves no trace."""

from __future__ import annotations

import math

import pytest
import torch
from problems import closure_of, make_problem, same_bits, snapshot
from torch import Tensor, nn

from letgo.core.errors import UserError
from letgo.optim import FOZO, AutoRate, ReplayLog, create_optimizer, replay
from letgo.optim.auto_rate import largest

D = 400
# To within 2^(1/4), below.
NEAR = 2 ** (-1 / 4)


def found(curvature: float, **settings) -> float:
    x = nn.Parameter(torch.ones(D, dtype=torch.float64))
    optimizer = AutoRate([x], steps=1, **settings)
    optimizer.prepare(lambda: 0.5 * curvature * x.square().sum())
    return optimizer.scale * optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("curvature", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("lr", [1e-9, 1.0])
def test_of_zo_sgd_on_a_round_bowl_it_is_one_over_the_curvatures_sum(curvature: float, lr: float) -> None:
    """Along c v the loss is a parabola that is lowest at the rate 1 / (curvature d), whatever v of signs."""
    rate = found(curvature, lr=lr) * curvature * D
    assert NEAR * 0.999 <= rate <= 1.001


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_smaller_share_allows_a_larger_rate(share: float) -> None:
    """Of a parabola's slope a step at t times the best rate gets the share 1 - t / 2."""
    assert NEAR * 0.999 <= found(1.0, share=share, lr=1e-5) * D / (2 * (1 - share)) <= 1.001


@pytest.mark.parametrize("base", ["ada_zo", "zo_muon", "zo_svrg"])
def test_the_run_descends_at_the_rate_found_whatever_lr_was(base: str) -> None:
    rates = []
    for lr in (1e-8, 1e-1):
        model, loss_of = make_problem(torch.float64)
        optimizer = AutoRate(model.parameters(), lr, base=base, seed=4, steps=3, num_directions=16)
        start = float(loss_of().detach())
        for _ in range(10):
            optimizer.step(closure_of(optimizer, loss_of))
        assert float(loss_of().detach()) < start - 0.01
        rates.append(optimizer.scale * lr)
    assert math.log2(rates[0] / rates[1]) == pytest.approx(0, abs=1.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_looking_leaves_no_trace(dtype: torch.dtype) -> None:
    """Afterwards it is the base at that rate, to the bit, its log included; dropout draws what it would have."""
    # What bf16 rounds off is as large as what one small perturbation changes.
    many = {"num_directions": 8, "mu": 1e-3 if dtype == torch.float32 else 1e-2}
    ends, logs, draws = [], [], []
    for automatic in (True, False):
        torch.manual_seed(0)
        model, loss_of = make_problem(dtype)
        if automatic:
            optimizer = AutoRate(model.parameters(), 1e-3, base="ada_zo", steps=3, **many)
            base = optimizer.base
        else:
            optimizer = base = create_optimizer("ada_zo", model.parameters(), lr=logs[0].steps[0][0][0], **many)
        logs.append(ReplayLog.attach(base))

        def noisy(loss_of=loss_of) -> Tensor:
            return loss_of() * nn.functional.dropout(torch.ones(8), 0.5).mean()

        before = snapshot(model)
        if automatic:
            optimizer.prepare(noisy)
            assert same_bits(before, snapshot(model))
            assert not base.state
            assert base.steps_taken == 0
        for _ in range(6):
            optimizer.step(closure_of(optimizer, noisy))
        ends.append(snapshot(model))
        draws.append(torch.rand(3))
    assert same_bits(*ends)
    assert torch.equal(*draws)
    assert logs[0].steps == logs[1].steps
    again, _ = make_problem(dtype)
    replay(again, logs[0])
    assert same_bits(ends[0], snapshot(again))


def test_a_hybrid_looks_when_its_zeroth_order_phase_begins() -> None:
    model, loss_of = make_problem()
    hybrid = FOZO(model.parameters(), 1e-2, zo="auto_rate", zo_lr=1e-7, fo_steps=2, zo_steps=2, num_directions=4)
    for step in range(4):
        assert hybrid.zo.found == (step == 3)
        hybrid.step(closure_of(hybrid, loss_of))
    assert hybrid.zo.scale > 10
    (note,) = hybrid.notes()
    assert note.startswith("auto_rate: ZOSGD stepped at")


def test_rates_of_groups_keep_their_relation_and_warm_ups_do_not_matter() -> None:
    model, loss_of = make_problem(torch.float64)
    parameters = list(model.parameters())
    optimizer = AutoRate([{"params": parameters[:1], "lr": 1e-4}, {"params": parameters[1:]}], 1e-5, num_directions=4)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 10)
    optimizer.step(closure_of(optimizer, loss_of))
    one, other = (group["lr"] for group in optimizer.base.param_groups)
    assert one / other == pytest.approx(10)
    assert other == pytest.approx(optimizer.scale * 1e-6)


def test_what_no_rate_lowers_is_said() -> None:
    x = nn.Parameter(torch.ones(5, dtype=torch.float64))
    for loss, words in (
        (lambda: torch.tensor(3.0), "the loss is the same everywhere"),
        (lambda: x.sum() * torch.nan, "not finite"),
        (lambda: x.sum(), "as promised at every rate"),
    ):
        with pytest.raises(UserError, match=words):
            AutoRate([x], 1e-3, steps=1).step(loss)
        assert torch.equal(x, torch.ones_like(x))
    with pytest.raises(UserError, match="is not"):
        create_optimizer("auto_rate", [x], base="random_walk", base_options={"base": "zo_sgd"})


def test_the_largest_that_holds() -> None:
    for edge in (1e-6, 0.9, 1.0, 3e5):
        assert edge * NEAR <= largest(lambda a, edge=edge: a <= edge, 1.0) <= edge
    with pytest.raises(UserError, match="at no rate"):
        largest(lambda a: False, 1.0)
