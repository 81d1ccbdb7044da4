"""What the processes of test_ranks.py run: steps that two ranks share.

python ranked.py FOLDER               runs every case and writes FOLDER/RANK.pt
python ranked.py FOLDER differ        rank 1 changes a weight after its sixth step
python ranked.py FOLDER end|hang      rank 1 ends, or hangs, before its fourth step
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from letgo.core import processes
from letgo.core.errors import LetgoError
from letgo.optim import OPTIMIZERS, ReplayLog, Sophia
from letgo.optim.engine.ranks import Ranks

STEPS, CHECK_EVERY = 12, 4
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "three directions": ("zo_sgd", {"num_directions": 3}),
    "momentum": ("zo_sgd", {"num_directions": 1, "momentum": 0.5, "noise": "gaussian"}),
    "forward differences": ("zo_sgd", {"num_directions": 2, "difference": "forward", "noise": "sphere"}),
    "low rank": ("zo_sgd", {"num_directions": 3, "rank": 2}),
    "ada_zo": ("ada_zo", {"num_directions": 2}),
    "zo_muon": ("zo_muon", {"num_directions": 3, "rank": 1, "period": 5}),
    "zo_subspace": ("zo_subspace", {"num_directions": 3, "rank": 1, "period": 5}),
    "zo_svrg": ("zo_svrg", {"num_directions": 1, "anchor_directions": 2, "period": 2}),
    "batched": ("zo_sgd", {"num_directions": 3, "engine": "batched", "rank": 1}),
}


def problem(width: int = 3) -> list[nn.Parameter]:
    return [nn.Parameter(torch.linspace(-1, 1, 4 * width).view(4, width)), nn.Parameter(torch.zeros(width))]


def run(
    case: str,
    ranks: Ranks,
    rows: slice = slice(None),
    width: int = 3,
    differ_at: int = -1,
    log: Path | None = None,
    steps: int = STEPS,
    begun: Any = None,
) -> dict[str, Any]:
    """Steps on the rows of a small least-squares problem: a new run's, or more of an optimizer's that has `begun`."""
    torch.rand(ranks.rank + 2)  # the global generators are in another state on each rank, which is not to matter
    name, settings = CASES[case]
    optimizer = begun or OPTIMIZERS.load(name)(problem(width), lr=0.02, seed=3, **settings)
    weight, bias = optimizer.param_groups[0]["params"]
    data = torch.arange(24.0).view(6, 4).sin()[rows]
    optimizer.ranks = ranks
    written = ReplayLog.attach(optimizer) if log else None
    losses = []
    for step in range(steps):
        if step == differ_at:
            with torch.no_grad():
                weight[0, 0] += 1e-6
        optimizer.step(lambda: (data @ weight + bias).square().mean())
        losses.append(optimizer.last_losses)
    if log and written and ranks.rank == 0:
        written.save(log)
    weights = [weight.detach(), bias.detach()]
    return {"weights": weights, "losses": losses, "described": ranks.describe()}


def sophia(hessian: str, rank: int) -> dict[str, Any]:
    """Sophia under DDP on this rank's half of eight rows; rank -1: one process with all of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
        x, y = torch.randn(8, 4).double(), torch.randint(0, 5, (8,))
    called = nn.parallel.DistributedDataParallel(model) if rank >= 0 else model
    mine = slice(None) if rank < 0 else slice(4 * rank, 4 * rank + 4)
    optimizer = Sophia(model.parameters(), lr=0.01, hessian=hessian, hessian_every=2, rho=0.3)  # type: ignore[arg-type]
    seeds = []

    def sampled(generator: torch.Generator) -> tuple[Tensor, int]:
        seeds.append(generator.initial_seed())
        drawn = torch.arange(8) * 7 % 5  # the labels of the rows, on whichever rank they are
        return F.cross_entropy(model(x[mine]), drawn[mine]), len(drawn[mine])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(called(x[mine]), y[mine])
        loss.backward()
        return loss

    optimizer.hessian_closure = sampled
    for _ in range(6):
        optimizer.step(closure)
    curvature = [optimizer.state[p]["hessian"] for p in model.parameters()]
    return {"weights": [p.detach() for p in model.parameters()], "hessian": curvature, "seeds": seeds}


def all_cases(rank: int, folder: Path) -> dict[str, Any]:
    done: dict[str, Any] = {
        case: run(case, Ranks("directions", CHECK_EVERY), log=folder / f"{case}.json") for case in CASES
    }
    done["data"] = run("three directions", Ranks("data"), slice(3 * rank, 3 * rank + 3))
    done["wide"] = run("three directions", Ranks("directions", CHECK_EVERY), width=3000)
    return done | {hessian: sophia(hessian, rank) for hessian in ("hutchinson", "gnb")}


def lose(rank: int, how: str) -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = OPTIMIZERS.load("zo_sgd")([weight], lr=0.01)
    optimizer.ranks = Ranks("data", check_every=1)
    for step in range(6):
        if rank == 1 and step == 3:
            time.sleep(60 if how == "hang" else 0)
            os._exit(9)
        try:
            optimizer.step(lambda: weight.square().sum())
        except LetgoError as error:
            print(f"step {step}, {type(error).__name__}: {error}", flush=True)
            os._exit(3)


def main() -> None:
    rank, folder, what = processes.number(), Path(sys.argv[1]), (sys.argv[2:] or ["all"])[0]
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    if what == "hang":
        # Short once both have joined: on a busy machine they may come minutes apart.
        torch.distributed.barrier()
        torch.distributed.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=5), torch.distributed.group.WORLD)
    if what == "all":
        torch.save(all_cases(rank, folder), folder / f"{rank}.pt")
    elif what == "differ":
        run("three directions", Ranks("directions", CHECK_EVERY), differ_at=6 if rank == 1 else -1)
    else:
        lose(rank, what)


if __name__ == "__main__":
    main()
    processes.end()
