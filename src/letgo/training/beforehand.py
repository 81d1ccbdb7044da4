"""What is known of a run from its config, its data and its files' headers, before its model is loaded: whether its
attacks can be made, and whether the disk has room for it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from letgo.attacks.engine.base import Victim
from letgo.attacks.engine.spec import check_attacks, plan_attacks
from letgo.core import processes
from letgo.core.errors import UserError
from letgo.core.sizes import size
from letgo.core.values import compiled
from letgo.models.adapters import is_adapter, read_base
from letgo.models.files import tensors_of, weight_files
from letgo.models.formats import export_settings
from letgo.models.load import DTYPES, resolve_model
from letgo.optim.base import state_bytes
from letgo.training.config import UnlearnConfig
from letgo.training.run_plan import objective_of, planned_steps, trial_optimizer, trial_step

if TYPE_CHECKING:
    from letgo.benchmarks.engine.base import Benchmark

_SIDE = 128


def check_beforehand(args: UnlearnConfig, benchmark: Benchmark) -> None:
    """Raise a `UserError` where a run could not be finished, or an attack on it not be made."""
    check_attacks_of(args, benchmark)
    # By all processes: some optimizers' step is one that they take together.
    needed = needed_bytes(args, len(benchmark.forget))
    processes.first_does(lambda: check_room(args, needed | export_bytes(args)))


def check_attacks_of(args: UnlearnConfig, benchmark: Benchmark) -> None:
    """Raise a `UserError` where an attack of a run can't be made on its data and its model."""
    template: Any = args.template
    victim = Victim("", benchmark, template=template, limit=args.eval_limit, original=args.model)
    check_attacks(plan_attacks(args.attacks_made), victim)


def check_room(args: UnlearnConfig, needed: Mapping[str, int]) -> None:
    """Raise a `UserError` unless the output's file system has room for what a run writes there (`needed_bytes`). What
    the folder holds already counts as free: a run that goes on writes over it."""
    folder = Path(str(args.output_dir)).resolve()
    exists = next(path for path in (folder, *folder.parents) if path.is_dir())
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if exists == folder else 0
    free, total = shutil.disk_usage(exists).free + held, sum(needed.values())
    if total <= free:
        return
    shown = ", ".join(f"{name} {size(count)}" for name, count in needed.items() if count)
    fewer = "save_strategy: no writes no checkpoints; or " if needed["checkpoints"] else ""
    raise UserError(
        f"output {args.output_dir}: the run needs {size(total)} there at least ({shown}), and {size(free)} are free\n"
        f"  {fewer}name a folder on another disk, or make room"
    )


def needed_bytes(args: UnlearnConfig, rows: int) -> dict[str, int]:
    """The least bytes of a run's directory while it runs, by what they are of; 0 for what can't be told from headers of
    files that are here (a model that is still on the hub, adapters).

    Args:
        rows: of the forget set.
    """
    _, shapes = _base(args)
    width, objective = DTYPES[args.dtype].itemsize, objective_of(args)
    model = width * sum(map(math.prod, shapes.values()))
    if args.lora_rank:
        return {"model": model if args.save_merged else 0, "checkpoints": 0, "best weights": 0}
    pattern = compiled("trainable", args.trainable or "")
    trained = width * sum(math.prod(shape) for key, shape in shapes.items() if pattern.search(key))
    if objective is None:
        return {"model": model, "checkpoints": 0, "best weights": 0}
    if objective.record.trainable is not None and not args.trainable:
        # What it trains it asks of the model.
        trained = 0
    kept = checkpoints_kept(args, *planned_steps(args, rows))
    return {
        "model": model,
        "checkpoints": kept * (model + int(_state_share(args) * trained)) if kept else 0,
        "best weights": 3 * trained if args.keep == "best" else 0,
    }


def export_bytes(args: UnlearnConfig) -> dict[str, int]:
    """The same of what the run's `export:` writes.

    Raises:
        UserError: the format can't hold the model.
    """
    if not args.export:
        return {}
    from letgo.models.export import check_export

    name, shapes = _base(args)
    return {"export": check_export(name, shapes, export_settings(args.export).format) if shapes else 0}


def _base(args: UnlearnConfig) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The run's model, or that below its adapters, and the shapes of its tensors; none where no file is here."""
    name = resolve_model(args.model)
    while is_adapter(name):
        name = resolve_model(read_base(name).model)
    return name, {
        key: tuple(shape) for path in weight_files(Path(name)) for key, (_, shape) in tensors_of(path).items()
    }


def checkpoints_kept(args: UnlearnConfig, steps: int, epochs: int) -> int:
    """The most checkpoints that are there at once: a new one is whole before an old one goes."""
    made = 0
    if args.save_strategy == "steps":
        made = steps // max(1, int(args.save_steps)) + bool(steps % max(1, int(args.save_steps)))
    elif args.save_strategy == "epoch":
        made = epochs
    return min(made, (args.save_total_limit or made) + 1)


def _state_share(args: UnlearnConfig) -> float:
    """Bytes of the optimizer's state for each byte of what it trains, after a first step on a small tensor."""
    tensor = torch.ones(_SIDE, _SIDE, dtype=DTYPES[args.dtype])
    optimizer = trial_optimizer(args, tensor)
    trial_step(optimizer)
    return state_bytes(optimizer) / tensor.nbytes
