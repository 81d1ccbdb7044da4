"""The plan of a run on several devices: what each holds, and whether it fits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.sizes import size
from letgo.objectives import Objective
from letgo.planning.estimate import Planned, Work
from letgo.planning.machine import Speed, resident_bytes
from letgo.planning.make import check_flops, make_plan
from letgo.planning.report import Phase, Plan
from letgo.planning.shards import ShardedPass, as_traced, shard_bytes, trace_sharded
from letgo.planning.tracing import Traced
from letgo.training.config import UnlearnConfig
from letgo.training.run_plan import check_shards

STRATEGIES = ("single", "ddp", "fsdp2")
DEVICES = ("cpu", "cuda")
MOST_DEVICES = 1024
"""As far as a number of devices is looked for on which a run fits."""
FRAGMENTED_TOGETHER = 1.85
"""Resident bytes for each byte alive among activations and gradients of one of several processes on a CPU, where more
threads allocate. Calibrated on two gloo processes, see tests/planning/measured_ranks.py."""
RESERVE = 0.05
"""Of an accelerator's memory: for its driver, its libraries and NCCL, which are not followed."""


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
            return f"a device needs {size(self.needed)}; give --device-memory to be told"
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
    check_flops(flops)
    _check(devices, strategy, device, memory)
    if devices > 1 and (flops is not None or measure):
        raise UserError("letgo plan: times are told of one device alone; leave flops and measure away")
    if devices > 1 and strategy == "fsdp2":
        check_shards(config)
    run = planned(config, resident_bytes(), devices, strategy, None if device is None else torch.device(device))
    run.notes += run.idle()
    plan = make_plan(run, flops, measure)
    needed, usable = run.needed(plan.peak.total), run.usable(memory)
    return DevicesPlan(
        plan=plan,
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


# -- what a device holds -----------------------------------------------------------------------------------------------


class OnDevices(Planned):
    """A run on N devices with whole weights on each: DDP, and what the others have in common with it."""

    def __init__(self, args: UnlearnConfig, process: int, ranks: int, device: torch.device | None) -> None:
        super().__init__(args, process, device=device, readers=ranks if args.share == "data" else 1)
        self.ranks = ranks

    def use(self, ranks: int) -> None:
        """As many devices; what was traced stays."""
        self.ranks = ranks

    def needed(self, peak: int) -> int:
        """Bytes of a device at this peak: on a CPU the process itself lies there too."""
        return peak + (self.process if self.device.type == "cpu" else 0)

    def usable(self, memory: int | None) -> int | None:
        """Bytes of a device's memory that a run can use."""
        reserve = RESERVE if self.device.type != "cpu" else 0.0
        return None if memory is None else int((1 - reserve) * memory)

    def idle(self) -> list[str]:
        """A note where some devices have no work of their own."""
        if self.ranks == 1:
            return []
        if self.objective is None:
            return [f"every device does the whole of {self.args.objective}: it takes no steps that devices could share"]
        work, unit = len(self.dataset), "rows in the forget set"
        if self.args.share == "directions":
            if self.cost.backwards:
                return []
            work, unit = round(self.cost.forwards), "evaluations in a step"
        if self.ranks <= work:
            return []
        return [f"{self.ranks} devices, but {work} {unit}: {self.ranks - work} have nothing of their own to do"]

    def training(self, objective: Objective) -> Work:
        work = super().training(objective)
        return replace(work, phases=tuple(self.on_device(phase) for phase in work.phases))

    def fragmented(self) -> float:
        alone = super().fragmented()
        return max(alone, FRAGMENTED_TOGETHER) if self.device.type == "cpu" and self.ranks > 1 else alone

    def speed(self, flops: float | None, measure: bool, shape: torch.Size) -> Speed | None:
        """None, for a plan without times, of several devices and of a kind that this machine does not have."""
        missing = self.device.type == "cuda" and not torch.cuda.is_available()
        return None if self.ranks > 1 or (flops is None and missing) else super().speed(flops, measure, shape)

    def on_device(self, phase: Phase) -> Phase:
        """A phase of the step, with what the strategy adds."""
        first, _ = self.passes
        # Replicas of which no gradient is ever taken are not wrapped.
        if self.ranks == 1 or not first or not phase.name.startswith(("train", "step")):
            return phase
        return Phase(phase.name, {**phase.items, "buffers of DDP": self.trained_bytes})


class InShards(OnDevices):
    """FSDP2: parameters, gradients and state in shards (adapters are trained on replicas: `check_shards`)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
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
) -> OnDevices:
    """The run on its devices; one device is `Planned` itself, whatever the strategy."""
    kind = InShards if devices > 1 and strategy == "fsdp2" else OnDevices
    return kind(config, process, devices, device)


def find_way_out(run: OnDevices, usable: int) -> WayOut | None:
    """The fewest devices that the run fits on, on replicas where one device would do, else in shards; None if there is
    no such number up to `MOST_DEVICES`."""
    objective, config = run.objective, run.args
    if objective is None:
        return None
    alone = planned(config, run.process, 1, "single", run.device) if isinstance(run, InShards) else run
    ways: list[tuple[str, OnDevices, list[int]]] = [("single", alone, [1])]
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
