"""What the estimates estimate: means and variances with their exact values, for each noise; and ranks in step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from letgo.optim import ZOSGD
from tests import warm

DRAWS = 2500
NOISES = ["rademacher", "gaussian", "sphere"]


def estimates(f, x: nn.Parameter, noise: str, mu: float) -> Tensor:
    """(draws, d) estimates at x, through the optimizer's own step: with rate 1 it moves by minus the estimate."""
    optimizer = ZOSGD([x], lr=1.0, mu=mu, noise=noise, seed=11)
    start, drawn = x.detach().clone(), []
    for _ in range(DRAWS):
        optimizer.step(lambda: f(x))
        drawn.append(start - x.detach())
        x.data.copy_(start)
    return torch.stack(drawn)


@pytest.mark.parametrize("noise", NOISES)
def test_on_a_quadratic_the_mean_is_the_gradient_and_the_variance_is_known(noise: str) -> None:
    generator = torch.Generator().manual_seed(0)
    root, b = torch.randn(5, 5, dtype=torch.float64, generator=generator), torch.linspace(-2, 2, 5, dtype=torch.float64)
    x = nn.Parameter(torch.randn(5, dtype=torch.float64, generator=generator))
    g = (root @ root.t() @ x + b).detach()
    drawn = estimates(lambda x: 0.5 * x @ root @ root.t() @ x + b @ x, x, noise, mu=0.01)
    total, d = g.square().sum(), 5
    variance = {
        "rademacher": total - g.square(),
        "gaussian": total + g.square(),
        "sphere": d / (d + 2) * (total + 2 * g.square()) - g.square(),
    }[noise]
    assert bool(((drawn.mean(0) - g).abs() < 4.5 * (variance / DRAWS).sqrt()).all())
    assert float((drawn.var(0) / variance).log().abs().max()) < 0.25


@pytest.mark.parametrize("noise", NOISES)
def test_with_a_large_mu_the_mean_is_the_gradient_of_the_smoothed_loss(noise: str) -> None:
    mu, d = 0.7, 3
    x = nn.Parameter(torch.tensor([1.0, -0.4, 0.2], dtype=torch.float64))
    drawn = estimates(lambda x: x.pow(4).sum(), x, noise, mu)
    # E f(x + mu v) for f = sum x^4; on the ball of radius mu sqrt(d) a coordinate's variance is mu^2 d / (d + 2).
    smoothing = {"rademacher": 4 * mu**2, "gaussian": 12 * mu**2, "sphere": 12 * mu**2 * d / (d + 2)}[noise]
    exact = (4 * x.pow(3) + smoothing * x).detach()
    error = drawn.std(0) / math.sqrt(DRAWS)
    assert bool(((drawn.mean(0) - exact).abs() < 4.5 * error).all())
    assert float((exact - 4 * x.detach().pow(3)).abs().max()) > 10 * float(error.max())


RANK = """
import sys, torch
from torch import nn
from letgo.core import processes
from letgo.optim import ZOSGD
from tests import warm
rank, store, out, engine = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
if rank >= 0:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.rand(rank + 2)
weight = nn.Parameter(torch.linspace(-1, 1, 12).view(4, 3))
data = torch.arange(40.0).view(2, 5, 4).sin()
mine = data.flatten(0, 1) if rank < 0 else data[rank]
optimizer = ZOSGD([weight], lr=0.05, num_directions=2, seed=3, engine=engine, rank=int(engine == "batched"))
for _ in range(10):
    optimizer.step(lambda: (mine @ weight).square().mean())
torch.save((weight.detach(), optimizer.last_losses), out)
processes.end()
"""


@pytest.mark.parametrize("engine", ["in_place", "batched"])
def test_two_ranks_take_the_same_step_which_is_that_of_the_whole_batch(engine: str, tmp_path: Path) -> None:
    outs = [tmp_path / f"{rank}.pt" for rank in (0, 1, -1)]
    (script := tmp_path / "rank.py").write_text(RANK)
    started = [
        warm.start([script, rank, tmp_path / "store", out, engine]) for rank, out in zip((0, 1, -1), outs, strict=True)
    ]
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0, 0]
    (one, losses), (two, other_losses), (whole, _) = [torch.load(out, weights_only=True) for out in outs]
    assert torch.equal(one, two)
    assert losses == other_losses
    torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, torch.linspace(-1, 1, 12).view(4, 3), atol=1e-2)
