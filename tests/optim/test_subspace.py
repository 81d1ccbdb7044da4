"""Descent in a subspace that stays for a while: against its plain reference, and where it equals another method."""

from __future__ import annotations

import pytest
import torch
from problems import closure_of, make_problem, same_bits, snapshot
from torch import Tensor, nn

from letgo.optim import FOZO, ZOSGD, ReplayLog, ZOMuon, ZOSubspace, replay
from reference.optim_zeroth_order import Subspace

GENERATOR = torch.Generator().manual_seed(0)
X, Y, START = (torch.randn(n, m, generator=GENERATOR).double() for n, m in ((20, 9), (20, 7), (7, 9)))


def f(w: Tensor) -> Tensor:
    return (X @ w.t() - Y).square().mean()


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@torch.no_grad()
def test_sixty_steps_equal_the_reference(momentum: float) -> None:
    w = nn.Parameter(START.clone())
    optimizer = ZOSubspace([w], 0.02, rank=3, period=7, momentum=momentum, num_directions=3, seed=2)
    reference, xs = Subspace(0.02, momentum), START.clone()
    for _ in range(60):
        drawn = optimizer.directions([w])
        xs, _ = reference.step(f, xs, drawn[0].projection(0), [d.factors(0)[1].t() for d in drawn], 1e-3)
        optimizer.step(lambda: f(w))
        torch.testing.assert_close(w.detach(), xs, rtol=1e-7, atol=1e-9)
    assert float(f(w)) < float(f(START)) - 0.1


@torch.no_grad()
def test_zo_muons_momentum_is_the_sign_of_the_references() -> None:
    w = nn.Parameter(START.clone())
    optimizer = ZOMuon([w], 0.01, rank=3, period=7, momentum=0.8, num_directions=3, seed=2, difference="central")
    reference = Subspace(0.01, 0.8)
    for _ in range(60):
        before, drawn = w.detach().clone(), optimizer.directions([w])
        p = drawn[0].projection(0)
        _, m = reference.step(f, before, p, [d.factors(0)[1].t() for d in drawn], 1e-3)
        left, _, right = torch.linalg.svd(p.t() @ m, full_matrices=False)
        optimizer.step(lambda: f(w))
        torch.testing.assert_close(w.detach(), before - 0.01 * p @ (left @ right), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_where_no_matrix_has_a_subspace_it_is_zo_sgd(momentum: float) -> None:
    ends = []
    for make, settings in ((ZOSubspace, {"rank": 19}), (ZOSGD, {"noise": "gaussian"})):
        model, loss_of = make_problem()
        optimizer = make(model.parameters(), 1e-3, momentum=momentum, num_directions=2, **settings)
        for _ in range(12):
            optimizer.step(closure_of(optimizer, loss_of))
        ends.append(snapshot(model))
    assert same_bits(*ends)


def test_averaged_over_subspaces_the_estimate_is_the_gradient() -> None:
    slope = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()
    w = nn.Parameter(torch.zeros(6, 5, dtype=torch.float64))
    optimizer = ZOSubspace([w], 1.0, rank=2, period=1, momentum=0.0, num_directions=16)
    for _ in range(500):
        optimizer.step(lambda: (slope * w).sum())
    mean = w.detach() / -500
    assert float((mean - slope).norm() / slope.norm()) < 0.2
    assert float((mean * slope).sum() / slope.square().sum()) == pytest.approx(1, abs=0.08)


def test_momentum_is_as_small_as_the_subspace_and_is_carried_over() -> None:
    w = nn.Parameter(START.clone())
    optimizer = ZOSubspace([w], 0.02, rank=2, period=3, momentum=0.9)
    for _ in range(3):
        optimizer.step(lambda: f(w))
    assert optimizer.state[w]["momentum_buffer"].shape == (2, 9)
    before = optimizer.state[w]["momentum_buffer"].clone()
    p_before = optimizer.directions([w])  # of the fourth step: a new subspace
    optimizer.step(lambda: f(w))
    after = optimizer.state[w]["momentum_buffer"]
    (direction,) = p_before
    new = direction.projection(0)
    old = ZOSubspace([w], rank=2, period=3).directions([w])[0].projection(0)
    slope = (optimizer.last_losses[0] - optimizer.last_losses[1]) / 2e-3
    expected = 0.9 * new.t() @ old @ before + slope * direction.factors(0)[1].t()
    torch.testing.assert_close(after, expected, rtol=1e-7, atol=1e-9)


def test_it_is_replayed_batched_and_a_phase_of_the_hybrid() -> None:
    model, loss_of = make_problem()
    optimizer = ZOSubspace(model.parameters(), 1e-2, rank=2, period=3, momentum=0.7)
    log = ReplayLog.attach(optimizer)
    for _ in range(10):
        optimizer.step(closure_of(optimizer, loss_of))
    again, _ = make_problem()
    replay(again, log)
    assert same_bits(snapshot(model), snapshot(again))
    ends = []
    for engine in ("in_place", "batched"):
        model, loss_of = make_problem(torch.float64)
        optimizer = ZOSubspace(model.parameters(), 1e-3, rank=2, period=3, num_directions=24, engine=engine)
        for _ in range(5):
            optimizer.step(loss_of)
        ends.append(snapshot(model))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-6, atol=1e-8)
    assert isinstance(FOZO(model.parameters(), zo="zo_subspace", zo_options={"rank": 4}).zo, ZOSubspace)
