"""The plan of a run on several devices: what each holds, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.sizes import size
from letgo.objectives import Objective
from letgo.planning import shards
from letgo.planning.estimate import Planned, check_flops
from letgo.planning.machine import Speed, resident_bytes
from letgo.planning.phases import Work
from letgo.planning.report import Phase, Plan
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
class Fit:
    """Bytes that a device must have, those that it has, and those of them that a run can use."""

    needed: int
    memory: int | None
    usable: int | None

    @property
    def fits(self) -> bool:
        """True also where the device's memory is not known."""
        return self.usable is None or self.needed <= self.usable

    @property
    def short(self) -> int:
        return 0 if self.usable is None else max(0, self.needed - self.usable)


@dataclass(frozen=True)
class WayOut:
    """A strategy and a number of devices that a run fits on, and what it then takes of each."""

    strategy: str
    devices: int
    needed: int


@dataclass(frozen=True)
class DevicesPlan:
    """What a run will take of each of several devices.

    Attributes:
        plan: of one of them; without times where there are several.
        devices, strategy, share: as asked for; `share` is what zeroth-order steps share.
        fit: whether it fits.
        way_out: where it does not: the fewest devices on which it would; None if there are none.
        rows: forget rows of a step, of all devices.
    """

    plan: Plan
    devices: int
    strategy: str
    share: str
    fit: Fit
    way_out: WayOut | None
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the plan of a device, and `devices`, which says the rest."""
        several = {
            "count": self.devices,
            "strategy": self.strategy,
            "share": self.share,
            "needed": self.fit.needed,
            "memory": self.fit.memory,
            "usable": self.fit.usable,
            "fits": self.fit.fits if self.fit.usable is not None else None,
            "short": self.fit.short,
            "way_out": asdict(self.way_out) if self.way_out else None,
            "rows_a_step": self.rows,
        }
        return self.plan.as_dict() | {"devices": several}

    def text(self) -> str:
        """For a terminal."""
        zeroth = any(phase.name == "train, zeroth" for phase in self.plan.phases)
        shared = f", {self.share} shared in zeroth-order steps" if zeroth else ""
        lines = [
            f"{_count(self.devices, 'device')}, {self.strategy}{shared}; each has the following, steps of "
            f"{_count(self.rows, 'forget row')}",
            "",
            self.plan.text(),
            "",
            f"does it fit?  {self._verdict()}",
        ]
        return "\n".join(lines)

    def _verdict(self) -> str:
        fit = self.fit
        if fit.usable is None or fit.memory is None:
            return f"a device needs {size(fit.needed)}; give --device-memory to be told"
        if fit.fits:
            return f"yes: {size(fit.needed)} of {size(fit.usable)} ({size(fit.memory)} a device, less what it keeps)"
        verdict = f"no: {size(fit.short)} short, {size(fit.needed)} of {size(fit.usable)} ({self.plan.peak.name})"
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
        flops, measure: as in `letgo.plan`; of one device alone, for no times are told of several.

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
    made = run.plan(flops, measure)
    fit = fit_of(run.needed(made.peak.total), run.device, memory)
    return DevicesPlan(
        plan=made,
        devices=devices,
        strategy=strategy,
        share=config.share,
        fit=fit,
        way_out=None if fit.fits else find_way_out(run, memory),
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

    def idle(self) -> list[str]:
        """What is to be said where not every device has something of its own to do."""
        if self.ranks == 1:
            return []
        if self.objective is None:
            return [f"every device does the whole of {self.args.objective}: it takes no steps that devices could share"]
        work, things = len(self.dataset), "rows in the forget set"
        if self.args.share == "directions":
            if self.cost.backwards:
                return []
            work, things = round(self.cost.forwards), "evaluations in a step"
        if self.ranks <= work:
            return []
        return [f"{self.ranks} devices, but {work} {things}: {self.ranks - work} have nothing of their own to do"]

    def training(self, objective: Objective) -> Work:
        work = super().training(objective)
        return replace(work, phases=tuple(self.on_device(phase) for phase in work.phases))

    def fragmented(self) -> float:
        alone = super().fragmented()
        return max(alone, FRAGMENTED_TOGETHER) if self.device.type == "cpu" and self.ranks > 1 else alone

    def speed(self, flops: float | None, measure: bool, shape: torch.Size) -> Speed | None:
        """None, so that no times are told: of several devices, and of a kind that this machine has not to measure."""
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
        self._kept: dict[str, tuple[int, int, float, Traced]] = {}
        self.use(self.ranks)

    def use(self, ranks: int) -> None:
        self.ranks = ranks
        self.held = {"weights": sum(shards.shard_bytes(p, ranks) for p in self.model.parameters())}
        self.trained_here = sum(shards.shard_bytes(p, ranks) for p in self.trained)
        self.largest = max(shards.shard_bytes(p, ranks) for p in self.trained)
        # Weights that lie in shards can't be packed.
        self.packed = 0

    def trace_training(self, loss: Callable[[], Tensor], windows: int) -> Traced:
        if "training" not in self._kept:
            whole = super().trace_training(loss, windows)
            peak, gradients, _, flops = shards.trace_sharded(self.model, loss, self.ranks, windows=windows)
            self._kept["training"] = peak, gradients, flops, whole
        peak, gradients, flops, whole = self._kept["training"]
        now = self.trained_here
        return shards.as_traced(peak - gradients + now, now, flops, whole)

    def trace_forward(self, name: str, function: Callable[[], Any]) -> Traced:
        if name not in self._kept:
            whole = super().trace_forward(name, function)
            peak, _, flops = shards.trace_sharded_forward(self.model, function, self.ranks)
            self._kept[name] = peak, 0, flops, whole
        peak, _, flops, whole = self._kept[name]
        return shards.as_traced(peak, 0, flops, whole)

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


# -- whether it fits ---------------------------------------------------------------------------------------------------


def fit_of(needed: int, device: torch.device, memory: int | None) -> Fit:
    reserve = RESERVE if device.type != "cpu" else 0.0
    return Fit(needed, memory, None if memory is None else int((1 - reserve) * memory))


def find_way_out(run: OnDevices, memory: int | None) -> WayOut | None:
    """The fewest devices that the run fits on, on replicas where one device would do, else in shards; None if there is
    no such number up to `MOST_DEVICES`."""
    objective, config = run.objective, run.args
    if objective is None:
        return None
    alone = planned(config, run.process, 1, "single", run.device) if isinstance(run, InShards) else run
    tried: list[tuple[str, OnDevices, list[int]]] = [("single", alone, [1])]
    try:
        check_shards(config)
    except UserError:
        pass
    else:
        sharded = run if isinstance(run, InShards) else planned(config, run.process, 2, "fsdp2", run.device)
        tried.append(("fsdp2", sharded, [2**power for power in range(1, MOST_DEVICES.bit_length())]))
    for strategy, other, counts in tried:
        scored = other.scored if hasattr(other, "scored") else other.scoring()
        for count in counts:
            other.use(count)
            phases = (*other.evaluating(scored), *other.training(objective).phases)
            needed = other.needed(max(phase.total for phase in phases))
            if fit_of(needed, run.device, memory).fits:
                return WayOut(strategy, count, needed)
    return None
