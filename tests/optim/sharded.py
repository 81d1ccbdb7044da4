"""What the processes of test_shards.py run: optimizers of the catalog on a small model, whole or cut by `fully_shard`.

python sharded.py FOLDER        runs every case and writes FOLDER/RANK.pt; $RANK is one of two
"""

from __future__ import annotations

import copy
import faulthandler
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from letgo.core import processes
from letgo.core.errors import UserError
from letgo.optim import OPTIMIZERS, ReplayLog, create_optimizer, gnb_loss
from letgo.optim.engine import perturbation
from letgo.optim.engine.ranks import Ranks, RanksDifferError
from letgo.optim.engine.shards import cut_state, is_sharded, whole_state

STEPS, SAVED_AT = 5, 3

# Products of weights of so many elements are taken another way without gradients (letgo.optim.engine.perturbation).
LARGE, PIECE = 1 << 16, 1 << 14

Case = tuple[str, dict[str, Any]]
# Rates at which each of them descends: where weights grow into the thousands a change of 1e-3 is rounded away.
CASES: dict[str, Case] = {
    "zo_sgd": ("zo_sgd", {"lr": 3e-4, "num_directions": 2}),
    "zo_sgd saved": ("zo_sgd", {"lr": 1e-4, "engine": "saved"}),
    "zo_sgd momentum": ("zo_sgd", {"lr": 1e-4, "momentum": 0.5, "noise": "gaussian", "weight_decay": 0.1}),
    "zo_sgd sphere": ("zo_sgd", {"lr": 3e-4, "noise": "sphere", "difference": "forward", "num_directions": 2}),
    "zo_sgd rank 1": ("zo_sgd", {"lr": 3e-4, "rank": 1, "num_directions": 2}),
    "zo_sgd rank 3": ("zo_sgd", {"lr": 3e-4, "rank": 3, "num_directions": 2, "noise": "gaussian"}),
    "ada_zo": ("ada_zo", {"lr": 6e-4, "num_directions": 2}),
    "ada_zo rank 2": ("ada_zo", {"lr": 2e-4, "num_directions": 2, "rank": 2}),
    "zo_adam": ("zo_adam", {"lr": 0.01, "num_directions": 2}),
    "zo_sign_sgd": ("zo_sign_sgd", {"lr": 0.005}),
    "zo_muon": ("zo_muon", {"lr": 0.05, "rank": 2, "period": 3}),
    "zo_muon momentum": ("zo_muon", {"lr": 0.05, "rank": 2, "period": 3, "momentum": 0.5}),
    "zo_subspace": ("zo_subspace", {"lr": 1e-4, "rank": 2, "period": 2, "momentum": 0.5}),
    "zo_svrg": ("zo_svrg", {"lr": 1e-4, "period": 3, "anchor_directions": 4}),
    "fzoo": ("fzoo", {"lr": 3e-9, "num_directions": 3}),
    "auto_rate": ("auto_rate", {"lr": 1e-4, "num_directions": 4, "steps": 2}),
    "random_walk": ("random_walk", {"lr": 1e-6, "base": "ada_zo"}),
    "sign_sgd": ("sign_sgd", {"lr": 3e-4, "weight_decay": 0.1}),
    "sign_adam": ("sign_adam", {"lr": 3e-4}),
    "compressed": ("compressed", {"lr": 6e-4, "bits": 4, "error_feedback": True}),
    "compressed by rows": ("compressed", {"lr": 6e-4, "bits": 8, "block": 4, "base": "sgd"}),
    "compressed to signs": ("compressed", {"lr": 6e-4, "bits": 1, "error_feedback": True, "base": "sgd"}),
    "adamw_8bit": ("adamw_8bit", {"lr": 6e-4}),
    "sgd": ("sgd", {"lr": 5e-4, "momentum": 0.9}),
    "adamw": ("adamw", {"lr": 6e-4}),
    "dual_optim": ("dual_optim", {"lr": 6e-4, "retain_steps": 2}),
    "dual_optim_plus": ("dual_optim_plus", {"lr": 3e-4, "retain_steps": 2}),
    "muon": ("muon", {"lr": 0.02}),
    "sophia": ("sophia", {"lr": 3e-3}),
    "sophia gnb": ("sophia", {"lr": 3e-4, "hessian": "gnb", "hessian_every": 2, "batch_size": 24}),
    "sophia hutchinson": ("sophia", {"lr": 3e-4, "hessian": "hutchinson"}),
    "sam": ("sam", {"lr": 2e-4, "rho": 0.05}),
    "straight_through": ("straight_through", {"lr": 2e-4, "alpha": 0.5, "on": "loss"}),
    "randomized_smoothing": ("randomized_smoothing", {"lr": 6e-4, "sigma": 0.01}),
    "weight_averaging": ("weight_averaging", {"lr": 6e-4, "start": 2, "every": 2}),
    "sift": ("sift", {"lr": 0.02, "rank": 3}),
    "sure": ("sure", {"lr": 6e-4, "keep": 0.5}),
    "bin_floor": ("bin_floor", {"lr": 6e-4, "keep": 0.2, "group_size": 4}),
    "fozo": ("fozo", {"lr": 6e-4, "zo_lr": 6e-5, "fo_steps": 2, "zo_steps": 1, "num_directions": 2}),
    "batched": ("zo_sgd", {"lr": 3e-4, "rank": 1, "engine": "batched"}),
}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 11)
        self.down = nn.Linear(11, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Small(nn.Module):
    """Tied weights, rows that two ranks cannot share evenly, a parameter of one row, a frozen one, one of many rows."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.Linear(width, 13, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.full((1, width), 0.7))
        self.frozen = nn.Parameter(torch.linspace(-1, 1, 3 * width).view(3, width), requires_grad=False)
        self.wide = nn.Linear(width, 9001)
        self.narrow = nn.Linear(9001, width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) * self.scale + self.frozen.sum(0)
        for block in self.blocks:
            x = block(x)
        return self.head(x + self.narrow(torch.tanh(self.wide(x))))


def make_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small().to(dtype)


def shard(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def data() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 13, (4, 7), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1], ids[:, 1:]


def make_optimizer(case: str, model: nn.Module) -> torch.optim.Optimizer:
    name, settings = CASES[case]
    optimizer = create_optimizer(name, model.parameters(), **settings)
    if settings.get("hessian") == "gnb":
        inputs, targets = data()

        def sampled(_: torch.Generator) -> tuple[Tensor, int]:
            # Ranks are given generators of their own; here they have the same rows and must draw the same labels.
            return gnb_loss(model(inputs), targets, torch.Generator().manual_seed(optimizer.steps_taken))

        optimizer.hessian_closure = sampled
    return optimizer


def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    inputs, targets = data()

    def closure(part: str | None = None) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())
        if loss.requires_grad:
            loss.backward()
        return loss

    return closure


def take(steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[float]]:
    losses = []
    for _ in range(steps):
        loss = optimizer.step(closure_of(model, optimizer))
        losses.append(getattr(optimizer, "last_losses", []) or [float(loss.detach())])
    return losses


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in whole_state(model.state_dict()).items()}


def loss_now(model: nn.Module) -> float:
    inputs, targets = data()
    with torch.no_grad():
        return float(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()))


def straight(case: str, model: nn.Module) -> dict[str, Any]:
    """A run and what it leaves: also what the model then computes, which must be with the weights that it has then."""
    optimizer = make_optimizer(case, model)
    try:
        losses = take(STEPS, model, optimizer)
    except (ValueError, UserError, RanksDifferError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    done = {"losses": losses, "weights": whole(model), "loss": loss_now(model)}
    ranks = getattr(optimizer, "ranks", None)
    if ranks is not None:
        done["ranks"] = ranks.describe()
    if hasattr(optimizer, "finish"):
        optimizer.finish()
        done["finished"], done["finished loss"] = whole(model), loss_now(model)
    return done


def saved(case: str, model: nn.Module) -> dict[str, Any]:
    """The first steps of a run, as a checkpoint that knows nothing of ranks."""
    optimizer = make_optimizer(case, model)
    take(SAVED_AT, model, optimizer)
    return copy.deepcopy({"model": whole(model), "optimizer": whole_state(optimizer.state_dict())})


def resumed(case: str, checkpoint: dict[str, Any], sharded: bool) -> dict[str, Tensor]:
    """The other steps, on as many ranks as there are now."""
    model = make_model(seed=1)
    model.load_state_dict(checkpoint["model"])
    if sharded:
        shard(model)
    optimizer = make_optimizer(case, model)
    optimizer.load_state_dict(cut_state(copy.deepcopy(checkpoint["optimizer"]), optimizer))
    take(STEPS - SAVED_AT, model, optimizer)
    return whole(model)


def swapped(case: str) -> dict[str, Tensor]:
    """As accelerate does it: the optimizer is made first, and given the shards afterwards."""
    model = make_model()
    optimizer = make_optimizer(case, model)
    names = {p: name for name, p in model.named_parameters()}
    order = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    shard(model)
    now = dict(model.named_parameters())
    for group, wanted in zip(optimizer.param_groups, order, strict=True):
        group["params"] = [now[name] for name in wanted]
    optimizer.load_state_dict(optimizer.state_dict())
    take(STEPS, model, optimizer)
    return whole(model)


def installed(case: str) -> bool:
    package = OPTIMIZERS.record(CASES[case][0]).target.split(":")[0].split(".")[0]
    return importlib.util.find_spec(package) is not None


SWAPPED = ("zo_sgd", "compressed", "sam", "weight_averaging", "fozo")


def all_cases(folder: Path) -> dict[str, Any]:
    done: dict[str, Any] = {}
    for case in filter(installed, CASES):
        done[case] = straight(case, shard(make_model()))
        if "error" not in done[case]:
            done[f"{case}, saved"] = saved(case, shard(make_model()))
            done[f"{case}, resumed"] = resumed(case, done[f"{case}, saved"], sharded=True)
            checkpoint = torch.load(folder / f"{case}.pt", weights_only=True)
            done[f"{case}, from one"] = resumed(case, checkpoint, sharded=True)
    done["bf16"] = straight("zo_sgd momentum", shard(make_model(torch.bfloat16)))
    for case in SWAPPED:
        done[f"{case}, swapped"] = swapped(case)
    return done | others(folder)


def others(folder: Path) -> dict[str, Any]:
    done: dict[str, Any] = {}
    model = shard(make_model())
    optimizer = make_optimizer("ada_zo rank 2", model)
    log = ReplayLog.attach(optimizer)
    take(STEPS, model, optimizer)
    if torch.distributed.get_rank() == 0:
        log.save(folder / "replay.json")
    done["logged"] = whole(model)

    model = shard(make_model())
    done["pieces"] = [tuple(p.to_local().shape) for p in model.parameters()]
    optimizer = make_optimizer("zo_sgd", model)
    optimizer.ranks = Ranks("directions")
    try:
        optimizer.step(closure_of(model, optimizer))
    except ValueError as error:
        done["directions"] = str(error)

    # What is whole is compared over the ranks, shards are not.
    model = make_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), ignored_params={model.scale})
    optimizer = make_optimizer("zo_sgd", model)
    optimizer.ranks = Ranks("data", check_every=2)
    done["mixed"] = [is_sharded(p) for p in model.parameters()]
    take(2, model, optimizer)
    done["mixed weights"] = whole(model)
    done["mixed bytes"] = optimizer.ranks.bytes_exchanged
    with torch.no_grad():
        model.scale.add_(torch.distributed.get_rank() * 1e-3)
    try:
        take(2, model, optimizer)
    except RanksDifferError as error:
        done["tampered"] = str(error)

    # Two replicas of a model in one shard each: placed like shards, but every rank has all rows.
    model = make_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards")))
    optimizer = make_optimizer("zo_sgd", model)
    optimizer.ranks = Ranks("data", check_every=1)
    take(STEPS, model, optimizer)
    done["replicas"] = whole(model)
    with torch.no_grad():
        model.scale.to_local().add_(torch.distributed.get_rank() * 1e-3)
    try:
        take(1, model, optimizer)
    except RanksDifferError as error:
        done["replicas tampered"] = str(error)
    return done


def main() -> None:
    faulthandler.enable()  # a crash in native code tells where it was
    perturbation.LARGE_ELEMENTS, perturbation.PIECE_ELEMENTS = LARGE, PIECE
    rank, folder = processes.number(), Path(sys.argv[1])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    torch.save(all_cases(folder), folder / f"{rank}.pt")


if __name__ == "__main__":
    main()
    processes.end()
