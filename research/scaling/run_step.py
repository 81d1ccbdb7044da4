"""A step of a run on N devices, by the cost model, from the run's own objective and optimizer; no weights are read.

python -m research.scaling.run_step run.yaml [--set key=value] [--devices 8] [--strategy fsdp2] [--machine h100]
                                             [--overlap 0.5] [--scale-to 1000]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from letgo.core.catalog import settings_of
from letgo.core.errors import UserError
from letgo.core.sizes import size
from letgo.optim import OPTIMIZERS
from letgo.planning.estimate import Planned
from letgo.planning.report import duration
from letgo.planning.shards import units_of
from letgo.training.config import UnlearnConfig, read_config
from letgo.training.run_plan import optimizer_settings
from research.scaling.scaling import (
    MACHINES,
    Machine,
    StepWork,
    Strategy,
    doublings,
    efficiency,
    step_cost,
    wire_bytes,
)


def step_work(config: UnlearnConfig) -> StepWork:
    """What a step of the run asks of one device alone.

    Raises:
        UserError: its method takes no steps.
    """
    run = Planned(config, 0, device=torch.device("cpu"))
    if run.objective is None:
        raise UserError(f"{config.objective} changes the weights in one shot: it takes no steps that devices share")
    run.training(run.objective)
    first, zeroth = run.passes
    cost, windows, units = run.cost, config.gradient_accumulation_steps, units_of(run.model)
    q, evaluations = evaluations_of(config)
    return StepWork(
        evaluations=cost.forwards,
        evaluation_flops=windows * zeroth.flops if zeroth else 0.0,
        directions=q * cost.forwards / evaluations if cost.forwards else 0.0,
        backwards=cost.backwards,
        backward_flops=windows * first.flops if first else 0.0,
        windows=windows,
        weights=run.weights,
        kept=sum(unit.size for unit in units if unit.stays),
        trained=run.trained_bytes,
        elements=sum(p.numel() for p in run.trained),
        state=cost.state,
        units=len(units),
    )


def evaluations_of(config: UnlearnConfig) -> tuple[int, int]:
    """q of a zeroth-order step (of a hybrid, of those that are), and its evaluations: as set, at any depth, or by the
    optimizer's default."""
    settings = optimizer_settings(config)
    known = settings_of(OPTIMIZERS.load(config.optimizer))

    def setting(name: str, default: Any) -> Any:
        value = _inside(settings, name)
        usual = known.get(name)
        return value if value is not None else usual if isinstance(usual, type(default)) else default

    q = int(setting("num_directions", 1))
    return q, q + 1 if setting("difference", "central") == "forward" else 2 * q


def _inside(settings: Any, name: str) -> Any:
    if not isinstance(settings, Mapping):
        return None
    if name in settings:
        return settings[name]
    return next((value for inner in settings.values() if (value := _inside(inner, name)) is not None), None)


def scaled(
    work: StepWork, most: int, strategy: Strategy, machine: Machine, rate: float, **how: Any
) -> list[dict[str, float]]:
    """A row for each number of devices up to `most`: seconds of a step and what they go into, bytes, efficiency."""
    alone = step_cost(work, 1, strategy, machine, rate, **how)
    rows = []
    for count in doublings(most):
        cost = step_cost(work, count, strategy, machine, rate, **how)
        rows.append(
            {
                "devices": count,
                "seconds": cost.seconds,
                "passes": cost.passes,
                "traffic": cost.traffic,
                "wire": cost.wire - cost.hidden,
                "bytes": cost.sent,
                "efficiency": efficiency(cost, alone),
            }
        )
    return rows


def table(rows: list[dict[str, float]]) -> list[str]:
    """Rows of `scaled`, as lines."""
    lines = ["devices    a step    passes    memory      wire   a device sends  efficiency"]
    for row in rows:
        times = "  ".join(f"{short(row[key]):>8}" for key in ("seconds", "passes", "traffic", "wire"))
        lines.append(f"{row['devices']:>7.0f}  {times}  {size(row['bytes']):>15}  {row['efficiency']:>10.2f}")
    return lines


def short(seconds: float) -> str:
    """A time of any size in few characters."""
    if seconds == 0:
        return "0"
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return duration(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--strategy", choices=get_args(Strategy), default="ddp")
    parser.add_argument("--machine", choices=list(MACHINES), default="h100")
    parser.add_argument("--flops", type=float, help="operations a second of a device; by default the machine's")
    parser.add_argument("--overlap", type=float, default=0.0, help="share of communication hidden where it can be")
    parser.add_argument("--scale-to", type=int, help="a table of steps on up to so many devices")
    given = parser.parse_args()
    config, machine = read_config(given.config, given.assignments), MACHINES[given.machine]
    rate = given.flops or machine.flops.get(config.dtype)
    if rate is None:
        parser.error(f"no rate of {given.machine} in {config.dtype} is known: give --flops")
    work = step_work(config)
    how: dict[str, Any] = {"share": config.share, "overlap": given.overlap}
    cost = step_cost(work, given.devices, given.strategy, machine, rate, **how)
    print(
        f"a step on {given.devices:,} devices, {given.strategy}: {short(cost.seconds)}, of which passes "
        f"{short(cost.passes)}, memory {short(cost.traffic)}, waiting for the wire {short(cost.wire - cost.hidden)}"
    )
    for name, count in wire_bytes(work, given.devices, given.strategy).items():
        print(f"  {name:<40} {size(count):>9}")
    print(f"{machine.name}: {machine.source}")
    if given.scale_to:
        print("\n".join(["", *table(scaled(work, given.scale_to, given.strategy, machine, rate, **how))]))


if __name__ == "__main__":
    main()
