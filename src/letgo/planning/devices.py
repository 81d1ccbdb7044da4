"""The plan of a run, from its stages, on one device or on several, and whether it fits there."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.sizes import size
from letgo.models.files import remote_code
from letgo.planning.estimate import Planned, RunWork
from letgo.planning.machine import Speed, resident_bytes
from letgo.planning.one_shot import one_shot_work
from letgo.planning.report import Phase, Plan
from letgo.planning.shards import ShardedPass, as_traced, shard_bytes, trace_sharded
from letgo.planning.tracing import Traced
from letgo.training.config import UnlearnConfig
from letgo.training.run_plan import check_shards

STRATEGIES = ("single", "ddp", "fsdp2")
DEVICES = ("cpu", "cuda")
MOST_DEVICES = 1024
"""The largest number of devices in the search for one on which a run fits."""


@dataclass(frozen=True)
class WayOut:
    """A strategy and a number of devices that a run fits on, and the bytes that it then needs of each."""

    strategy: str
    devices: int
    needed: int


@dataclass(frozen=True)
class DevicesPlan:
    """What a run will take of each of several devices.

    Attributes:
        plan: of one of them; without times where there are several.
        devices, strategy, share: as asked for; `share` is what zeroth-order steps share.
        needed: bytes that a device must have.
        memory, usable: bytes that it has, and those of them that a run can use; None where that is not known.
        way_out: where the run does not fit: the fewest devices on which it would; None if there are none.
        rows: forget rows of a step, of all devices.
    """

    plan: Plan
    devices: int
    strategy: str
    share: str
    needed: int
    memory: int | None
    usable: int | None
    way_out: WayOut | None
    rows: int

    @property
    def fits(self) -> bool | None:
        """None where the device's memory is not known."""
        return None if self.usable is None else self.needed <= self.usable

    @property
    def short(self) -> int:
        return 0 if self.usable is None else max(0, self.needed - self.usable)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the plan of a device, and `devices` with the rest."""
        several = {
            "count": self.devices,
            "strategy": self.strategy,
            "share": self.share,
            "needed": self.needed,
            "memory": self.memory,
            "usable": self.usable,
            "fits": self.fits,
            "short": self.short,
            "way_out": asdict(self.way_out) if self.way_out else None,
            "rows_a_step": self.rows,
        }
        return self.plan.as_dict() | {"devices": several}

    def text(self) -> str:
        """For a terminal."""
        zeroth = any(phase.name == "train, zeroth" for phase in self.plan.phases)
        shared = f", {self.share} shared in zeroth-order steps" if zeroth else ""
        return (
            f"{_count(self.devices, 'device')}, {self.strategy}{shared}; each has the following, steps of "
            f"{_count(self.rows, 'forget row')}\n\n{self.plan.text()}\n\ndoes it fit?  {self._verdict()}"
        )

    def _verdict(self) -> str:
        if self.usable is None or self.memory is None:
            return f"a device needs {size(self.needed)}; give --device-memory to see whether it fits"
        part = f"{size(self.needed)} of {size(self.usable)}"
        if self.fits:
            return f"yes: {part} ({size(self.memory)} a device, less what it keeps)"
        verdict = f"no: {size(self.short)} short, {part} ({self.plan.peak.name})"
        if self.way_out is None:
            return verdict + "; nor on any number of devices: adapters (lora_rank), zo_sgd or bfloat16 need less"
        way = self.way_out
        return f"{verdict}; {_count(way.devices, 'device')} with {way.strategy} would do ({size(way.needed)} each)"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def plan(config: UnlearnConfig, *, flops: float | None = None, measure: bool = False) -> Plan:
    """What the run of a config will take. Reads the data, the tokenizer and the model's config; no weights.

    Args:
        config: as `letgo.read_config` or `letgo.training.config.make_config` gives it.
        flops: floating-point operations a second to take times with; by default measured (0.3 s of matrix products).
        measure: measure more closely: two layers of the architecture, forward and backward.

    Raises:
        UserError: for settings or data that can't be used.
    """
    _check_flops(flops)
    with remote_code(config.trust_remote_code):
        return _make_plan(Planned(config, resident_bytes()), flops, measure)


def _check_flops(flops: float | None) -> None:
    if flops is not None and not 0 < flops < math.inf:
        raise UserError(f"letgo plan: flops must be above 0 and finite, not {flops}")


def _make_plan(run: Planned, flops: float | None, measure: bool) -> Plan:
    work = run.training(run.objective) if run.objective else one_shot_work(run)
    operations = {"evaluate": run.evaluation_flops(), **work.flops}
    speed = run.speed(flops, measure, work.batch)
    return Plan(
        model={
            "name": run.args.model,
            "parameters": run.parameters,
            "trained": sum(p.numel() for p in run.trained),
            "bytes": run.weights,
            "dtype": run.args.base_quantization or run.args.dtype,
        },
        device=str(run.device),
        phases=(*run.evaluating(), *work.phases),
        process=run.process,
        disk=run.disk(work),
        steps=work.steps,
        flops=operations,
        speed=speed.flops if speed else None,
        how=speed.how if speed else "",
        seconds={name: count / speed.flops for name, count in operations.items()} if speed else {},
        notes=tuple(run.notes),
        looks=_looks(work, operations, speed),
    )


def _looks(work: RunWork, operations: Mapping[str, float], speed: Speed | None) -> dict[str, Any]:
    if work.looks is None:
        return {}
    each = operations["looks"] / work.looks.count
    return asdict(work.looks) | {"flops": each, "seconds": each / speed.flops if speed else None}


def plan_devices(
    config: UnlearnConfig,
    devices: int,
    strategy: str | None = None,
    *,
    device: str | None = None,
    memory: int | None = None,
    flops: float | None = None,
    measure: bool = False,
) -> DevicesPlan:
    """What the run of a config will take of each of several devices. Reads what `letgo.plan` reads.

    Args:
        config: as `letgo.read_config` or `letgo.training.config.make_config` gives it.
        devices: N, a process each.
        strategy: `single`, `ddp` or `fsdp2`; by default as the config says.
        device: `cpu` or `cuda`; by default what this machine has.
        memory: bytes of a device.
        flops, measure: as in `letgo.plan`; for one device alone, as a plan has no times of several.

    Raises:
        UserError: for settings that can't be used, or not together.
    """
    if strategy is None:
        several = "fsdp2" if config.strategy == "fsdp2" else "ddp"
        strategy = several if devices > 1 else "single"
    _check_flops(flops)
    _check(devices, strategy, device, memory)
    if devices > 1 and (flops is not None or measure):
        raise UserError("letgo plan: a plan has times for one device alone; leave flops and measure out")
    if devices > 1 and strategy == "fsdp2":
        check_shards(config)
    with remote_code(config.trust_remote_code):
        run = planned(config, resident_bytes(), devices, strategy, None if device is None else torch.device(device))
    run.note_idle_devices()
    made = _make_plan(run, flops, measure)
    needed, usable = run.needed(made.peak.total), run.usable(memory)
    return DevicesPlan(
        plan=made,
        devices=devices,
        strategy=strategy,
        share=config.share,
        needed=needed,
        memory=memory,
        usable=usable,
        way_out=find_way_out(run, usable) if usable is not None and needed > usable else None,
        rows=config.train_batch_size * config.gradient_accumulation_steps * run.readers,
    )


def _check(devices: int, strategy: str, device: str | None, memory: int | None) -> None:
    for what, given, known in (("strategy", strategy, STRATEGIES), ("device", device, DEVICES)):
        if given is not None and given not in known:
            raise UserError(f"letgo plan: no {what} {given!r}{did_you_mean(given, known)} ({', '.join(known)})")
    if devices < 1:
        raise UserError(f"letgo plan: devices must be at least 1, not {devices}")
    if strategy == "single" and devices > 1:
        raise UserError(f"letgo plan: strategy single is one device, not {devices}; give --strategy ddp or fsdp2")
    if memory is not None and memory <= 0:
        raise UserError(f"letgo plan: device-memory must be above 0, not {memory}")


class InShards(Planned):
    """FSDP2: parameters, gradients and state in shards (adapters are trained on replicas: `check_shards`)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._passes: dict[str, tuple[Traced, ShardedPass]] = {}
        self.use(self.ranks)

    def use(self, ranks: int) -> None:
        self.ranks = ranks
        self.held = {"weights": sum(shard_bytes(p, ranks) for p in self.model.parameters())}
        self.trained_here = sum(shard_bytes(p, ranks) for p in self.trained)
        self.largest = max(shard_bytes(p, ranks) for p in self.trained)
        # Weights that lie in shards can't be packed.
        self.packed = 0

    def trace_training(self, loss: Callable[[], Tensor], windows: int) -> Traced:
        if "training" not in self._passes:
            whole = super().trace_training(loss, windows)
            self._passes["training"] = whole, trace_sharded(self.model, loss, self.ranks, windows=windows)
        return as_traced(*self._passes["training"], self.trained_here)

    def trace_forward(self, name: str, function: Callable[[], Any]) -> Traced:
        if name not in self._passes:
            whole = super().trace_forward(name, function)
            self._passes[name] = whole, trace_sharded(self.model, function, self.ranks, backward=False)
        return as_traced(*self._passes[name], 0)

    def on_device(self, phase: Phase) -> Phase:
        if phase.name != "train, zeroth":
            return phase
        # Shards are perturbed in place, and put back from a copy.
        return Phase(phase.name, {**phase.items, "kept copy of the shards": self.trained_here})


def planned(
    config: UnlearnConfig, process: int, devices: int, strategy: str, device: torch.device | None = None
) -> Planned:
    kind = InShards if devices > 1 and strategy == "fsdp2" else Planned
    return kind(config, process, ranks=devices, device=device)


def find_way_out(run: Planned, usable: int) -> WayOut | None:
    """The fewest devices that the run fits on, on replicas where one device would do, else in shards; None if there is
    no such number up to `MOST_DEVICES`."""
    objective, config = run.objective, run.args
    if objective is None:
        return None
    alone = planned(config, run.process, 1, "single", run.device) if isinstance(run, InShards) else run
    ways: list[tuple[str, Planned, list[int]]] = [("single", alone, [1])]
    with contextlib.suppress(UserError):
        check_shards(config)
        sharded = run if isinstance(run, InShards) else planned(config, run.process, 2, "fsdp2", run.device)
        ways.append(("fsdp2", sharded, [2**power for power in range(1, MOST_DEVICES.bit_length())]))
    for strategy, other, counts in ways:
        for count in counts:
            other.use(count)
            phases = (*other.evaluating(), *other.training(objective).phases)
            needed = other.needed(max(phase.total for phase in phases))
            if needed <= usable:
                return WayOut(strategy, count, needed)
    return None
