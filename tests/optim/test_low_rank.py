"""Low-rank noise, and the engine that runs all evaluations at once: the same losses, weights untouched."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from problems import make_problem, same_bits, snapshot
from torch import nn
from torch.nn import functional as F

from letgo.optim import ZOSGD, AdaZO, ReplayLog, ZOAdam, ZOMuon, ZOSignSGD, replay
from letgo.optim.engine.low_rank import LowRankDirection
from letgo.optim.zeroth_order_subspace import matrix_sign
from reference.optim_zeroth_order import zo_muon_step


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_low_rank_noise_is_of_that_rank_and_of_unit_covariance(noise) -> None:
    tensors = [nn.Parameter(torch.zeros(4, 3, dtype=torch.float64)), nn.Parameter(torch.zeros(5, dtype=torch.float64))]
    draws = []
    for step in range(6000):
        direction = LowRankDirection(noise, (1, step), tensors, rank=2)
        draws.append(torch.cat([direction.tensor(0).flatten(), direction.tensor(1)]))
        if step < 20:
            assert int(torch.linalg.matrix_rank(direction.tensor(0))) <= 2
            u, v = direction.factors(0)
            torch.testing.assert_close(u @ v.t(), direction.tensor(0))
    stacked = torch.stack(draws)
    products = stacked[:, :, None] * stacked[:, None, :]
    error = products.std(0).clamp_min(1e-9) / math.sqrt(len(draws))
    off = (products.mean(0) - torch.eye(17, dtype=torch.float64)).abs()
    assert bool((off <= 5 * error + 1e-9).all())


@pytest.mark.parametrize("difference", ["central", "forward"])
@pytest.mark.parametrize("cls", [ZOSGD, AdaZO, ZOAdam, ZOSignSGD, ZOMuon])
def test_both_engines_take_the_same_steps(cls, difference: str) -> None:
    models = []
    for engine in ("in_place", "batched"):
        model, loss_of = make_problem(torch.float64)
        optimizer = cls(
            model.parameters(), 1e-3, num_directions=3, rank=2, engine=engine, mu=1e-2, difference=difference
        )
        evaluated = []
        for _ in range(15):
            optimizer.step(loss_of)
            evaluated.append(optimizer.last_losses)
        models.append((snapshot(model), torch.tensor(evaluated)))
    (one, losses), (two, other_losses) = models
    torch.testing.assert_close(losses, other_losses, rtol=1e-9, atol=1e-10)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("at_once", [None, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_batched_engine_touches_no_weight(dtype: torch.dtype, at_once: int | None) -> None:
    model, loss_of = make_problem(dtype)
    before = snapshot(model)
    optimizer = ZOSGD(
        model.parameters(), 0.0, rank=1, engine="batched", num_directions=2, mu=1e-2, evaluations_at_once=at_once
    )
    for _ in range(1000 if dtype == torch.float16 and at_once else 100):
        optimizer.step(loss_of)
    assert same_bits(before, snapshot(model))
    assert len(set(optimizer.last_losses)) > 1


class Attends(nn.Module):
    """Two layers of attention whose keys and values have fewer heads than the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 8)
        self.layers = nn.ModuleList([nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)]) for _ in "ab"])
        self.double()

    def forward(self, ids: torch.Tensor, **how: object) -> torch.Tensor:
        x = self.embedding(ids)
        for wq, wk, wv in self.layers:
            q, k, v = (w(x).unflatten(-1, (-1, 2)).transpose(1, 2) for w in (wq, wk, wv))
            x = x + F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **how).transpose(1, 2).flatten(-2)
        return x @ self.embedding.weight.t()


@pytest.mark.parametrize("how", ["causal", "mask", "rows", "positional", "dropout"])
def test_attention_of_all_evaluations_at_once_is_that_of_each(how: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 13, (3, 6), generator=generator)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    padded = causal & (torch.arange(6) < torch.tensor([6, 4, 5])[:, None])[:, None, None]
    settings = {
        "causal": {"is_causal": True},
        "mask": {"attn_mask": causal},
        "rows": {"attn_mask": padded},
        "positional": {"attn_mask": torch.randn(3, 4, 6, 6, dtype=torch.float64, generator=generator)},
        "dropout": {"is_causal": True, "dropout_p": 0.3},
    }[how]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Attends()
    losses = []
    for at_once in (1, None):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            optimizer = ZOSGD(
                model.parameters(), 0.0, rank=1, engine="batched", num_directions=3, mu=0.1, evaluations_at_once=at_once
            )
            optimizer.step(lambda: F.cross_entropy(model(ids, **settings).flatten(0, 1), ids.flatten()))
        losses.append(optimizer.last_losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    assert len(set(losses[0])) == 6


def test_with_one_evaluation_at_once_any_closure_will_do() -> None:
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)
    seen: list[float] = []

    def closure() -> float:
        total = torch.zeros(())
        total += layer(x).square().mean()
        seen.append(float(total))
        return seen[-1]

    optimizer = ZOSGD(layer.parameters(), 0.1, rank=1, engine="batched", num_directions=2, evaluations_at_once=1)
    optimizer.step(closure)
    assert optimizer.last_losses == seen
    with pytest.raises(RuntimeError):
        ZOSGD(layer.parameters(), 0.1, rank=1, engine="batched").step(closure)


@pytest.mark.parametrize("at_once", [None, 1])
def test_one_evaluation_that_is_not_finite_skips_the_step(at_once: int | None) -> None:
    model, loss_of = make_problem()
    before = snapshot(model)
    calls = itertools.count()
    optimizer = AdaZO(model.parameters(), 0.1, rank=1, engine="batched", nonfinite="skip", evaluations_at_once=at_once)
    optimizer.step(lambda: loss_of() + (torch.nan if next(calls) % 2 == 0 else 0.0))
    assert same_bits(before, snapshot(model))
    assert not optimizer.state
    optimizer.step(loss_of)
    assert not same_bits(before, snapshot(model))


def test_a_closure_under_autocast_gets_branches_of_its_dtype() -> None:
    model, loss_of = make_problem()
    optimizer = ZOSGD(model.parameters(), 0.0, rank=1, engine="batched", num_directions=2, mu=0.1)
    alone = ZOSGD(model.parameters(), 0.0, rank=1, engine="in_place", num_directions=2, mu=0.1)

    def closure() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of()

    optimizer.step(closure)
    alone.step(closure)
    assert optimizer.last_losses == pytest.approx(alone.last_losses, rel=2e-2)


@pytest.mark.parametrize("at_once", [1, 4])
def test_fewer_evaluations_at_once_give_the_same_losses(at_once: int) -> None:
    losses = []
    for limit in (None, at_once):
        model, loss_of = make_problem(torch.float64)
        optimizer = ZOSGD(
            model.parameters(), 0.01, rank=2, engine="batched", num_directions=3, evaluations_at_once=limit
        )
        for _ in range(5):
            optimizer.step(loss_of)
        losses.append(torch.tensor(optimizer.last_losses))
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-10)


def test_a_batched_run_is_replayed_bit_for_bit() -> None:
    model, loss_of = make_problem()
    optimizer = AdaZO(model.parameters(), 1e-3, rank=2, engine="batched", num_directions=2)
    log = ReplayLog.attach(optimizer)
    for _ in range(10):
        optimizer.step(loss_of)
    fresh, _ = make_problem()
    replay(fresh, log)
    assert same_bits(snapshot(model), snapshot(fresh))


def test_dropout_is_shared_by_all_evaluations() -> None:
    layer, dropout = nn.Linear(8, 8), nn.Dropout(0.5)
    x = torch.randn(4, 8)
    optimizer = ZOSGD(layer.parameters(), 0.0, rank=1, engine="batched", mu=1e-12, num_directions=3)
    optimizer.step(lambda: dropout(layer(x)).square().sum())
    assert max(optimizer.last_losses) - min(optimizer.last_losses) < 1e-4
    one = optimizer.last_losses
    optimizer.step(lambda: dropout(layer(x)).square().sum())
    assert abs(one[0] - optimizer.last_losses[0]) > 1e-3


def test_what_the_engine_cannot_do_is_said() -> None:
    used, unused = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="give a rank"):
        ZOSGD([used], engine="batched")
    with pytest.raises(ValueError, match="rank=0"):
        ZOSGD([used], rank=1, noise="sphere")
    with pytest.raises(ValueError, match="parameter number 1"):
        ZOSGD([used, unused], rank=1, engine="batched").step(lambda: used.sum())


def test_fifty_steps_of_zo_muon_equal_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(7, 9, dtype=torch.float64, generator=generator))
    bias = nn.Parameter(torch.randn(7, dtype=torch.float64, generator=generator))
    x = torch.randn(20, 9, dtype=torch.float64, generator=generator)
    y = torch.randn(20, 7, dtype=torch.float64, generator=generator)

    def f(w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (x @ w.t() + b - y).square().mean()

    optimizer = ZOMuon([weight, bias], 0.02, rank=3, period=7, num_directions=4, seed=2)
    w, b = weight.detach().clone(), bias.detach().clone()
    bases, start = [], float(f(w, b))
    for _ in range(50):
        drawn = optimizer.directions([weight, bias])
        p, psis = drawn[0].projection(0), [d.factors(0)[1].t() for d in drawn]
        bases.append(p)
        torch.testing.assert_close(p.t() @ p, torch.eye(3, dtype=torch.float64))
        w, b = zo_muon_step(f, w, b, p, psis, [d.tensor(1) for d in drawn], 1e-3, 0.02)
        optimizer.step(lambda: f(weight, bias))
        torch.testing.assert_close(weight.detach(), w, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(bias.detach(), b, rtol=1e-6, atol=1e-7)
    changed = [not torch.equal(one, other) for one, other in itertools.pairwise(bases)]
    assert changed == [(step + 1) % 7 == 0 for step in range(49)]
    assert float(f(w, b)) < start - 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_matrix_sign_has_singular_values_of_one(dtype: torch.dtype) -> None:
    s = torch.randn(5, 12, dtype=dtype, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(s, full_matrices=False)
    torch.testing.assert_close(matrix_sign(s), u @ vh)
    assert torch.equal(matrix_sign(torch.zeros(2, 3)), torch.zeros(2, 3))
