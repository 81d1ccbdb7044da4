"""The plan of a run on several devices: what each holds, whether it fits, what crosses the wire, how long it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from letgo.core.errors import UserError
from letgo.objectives import Objective
from letgo.planning import scaling, shards
from letgo.planning.combinations import (
    check_combination,
    check_rows,
    check_strategy,
    directions_of,
    evaluations_of,
    share_of,
)
from letgo.planning.estimate import Planned
from letgo.planning.machine import resident_bytes
from letgo.planning.phases import Work
from letgo.planning.report import Phase
from letgo.planning.scaling import REACHED, Machine, StepWork, Strategy, machine_named, step_cost
from letgo.planning.spread import DevicesPlan, Fit, WayOut
from letgo.planning.tracing import Traced
from letgo.training.config import UnlearnConfig

LIVE = 10**9
"""Elements that ZeRO-3 keeps together, and of a bucket in which gradients are sent 5 * 10**8: DeepSpeed's defaults
(`stage3_max_live_parameters`, `reduce_bucket_size`)."""
_BUCKET = 5 * 10**8
_MOST_DEVICES = 1024
FRAGMENTED_TOGETHER = 1.85
"""Resident bytes for each byte alive among activations and gradients of one of several processes on a CPU, where more
threads allocate. Calibrated on two gloo processes, see tests/planning/measured_ranks.py."""
RESERVE = 0.05
"""Of an accelerator's memory: for its driver, its libraries and NCCL, which are not followed."""


def plan_devices(
    config: UnlearnConfig,
    devices: int,
    strategy: str = "ddp",
    *,
    machine: str | None = None,
    memory: int | None = None,
    per_node: int | None = None,
    flops: float | None = None,
    measure: bool = False,
    overlap: float = 0.0,
) -> DevicesPlan:
    """What the run of a config will take of each of several devices. Reads what `letgo.plan` reads.

    Args:
        config: as `letgo.read_config` or `letgo.training.config.make_config` gives it.
        devices: N, a process each.
        strategy: `single`, `ddp`, `fsdp2`, `zero2` or `zero3`.
        machine: of `letgo.planning.scaling.MACHINES`; by default `cpu` or `h100` as this machine has a GPU.
        memory: bytes of a device; the machine's by default.
        per_node: processes of a node; the machine's by default.
        flops: operations a second of a device; the machine's by default, measured here where it has none.
        measure: measure them more closely.
        overlap: the share of what communication can be hidden behind computation that is; see `scaling`.

    Raises:
        UserError: for settings that can't be used, or not together.
    """
    check_strategy(devices, strategy)
    if per_node is not None and per_node < 1:
        raise UserError(f"letgo plan: processes-per-node must be at least 1, not {per_node}")
    if memory is not None and memory <= 0:
        raise UserError(f"letgo plan: device-memory must be above 0, not {memory}")
    if flops is not None and not flops > 0:
        raise UserError(f"letgo plan: flops must be above 0, not {flops}")
    process = resident_bytes()
    check_combination(config, devices, strategy)
    there = machine_named(machine or ("cpu" if config.use_cpu or not torch.cuda.is_available() else "h100"))
    if per_node is not None:
        there = replace(there, per_node=per_node)
    if memory is not None:
        there = replace(there, memory=memory)
    rated = flops is None and not measure and config.dtype in there.flops
    if rated:
        flops = there.flops[config.dtype]
    run = planned(config, process, devices, strategy, there, overlap)  # type: ignore[arg-type]
    if run.objective is not None:
        check_rows(config, devices, strategy, len(run.dataset), run.cost)
    made = run.plan(flops, measure)
    if rated:
        made = replace(made, how=f"of {there.name}, {REACHED:.0%} of its peak")
    fit = fit_of(made.peak.total + (process if there.device == "cpu" else 0), there)
    way_out = None
    if not fit.fits:
        way_out = find_way_out(config, process, there, run)
    # Of all devices at once, on a node.
    together = min(devices, there.per_node)
    host = together * (process + (made.peak.total if there.device == "cpu" else 0))
    work = run.step_work() if run.objective is not None else None
    return DevicesPlan(
        plan=made,
        devices=devices,
        strategy=strategy,
        share=share_of(config),
        machine=there,
        rate=made.speed,
        overlap=overlap,
        fit=fit,
        way_out=way_out,
        rows=config.train_batch_size * config.gradient_accumulation_steps * run.readers,
        host=host,
        work=work,
        wire=scaling.wire_bytes(work, devices, strategy) if work else {},  # type: ignore[arg-type]
    )


# -- what a device holds -----------------------------------------------------------------------------------------------


class OnDevices(Planned):
    """A run on N devices with whole weights on each: DDP, and what the others have in common with it."""

    strategy: Strategy = "ddp"

    def __init__(
        self, args: UnlearnConfig, process: int, ranks: int, machine: Machine, overlap: float, device: torch.device
    ) -> None:
        readers = ranks if share_of(args) == "data" else 1
        super().__init__(args, process, device=device, readers=readers)
        self.ranks, self.machine, self.overlap = ranks, machine, overlap

    def use(self, ranks: int) -> None:
        """As many devices; what was traced stays."""
        self.ranks = ranks

    def training(self, objective: Objective) -> Work:
        work = super().training(objective)
        return replace(work, phases=tuple(self.on_device(phase) for phase in work.phases))

    def fragmented(self) -> float:
        alone = super().fragmented()
        return max(alone, FRAGMENTED_TOGETHER) if self.device.type == "cpu" and self.ranks > 1 else alone

    def on_device(self, phase: Phase) -> Phase:
        """A phase of the step, with what the strategy adds."""
        first, _ = self.passes
        # Replicas of which no gradient is ever taken are not wrapped.
        if self.ranks == 1 or not first or not phase.name.startswith(("train", "step")):
            return phase
        return Phase(phase.name, {**phase.items, "buffers of DDP": self.trained_bytes})

    # -- work and time -------------------------------------------------------------------------------------------------

    def step_work(self) -> StepWork:
        """Of one device alone."""
        first, zeroth = self.passes
        cost, windows = self.cost, self.args.gradient_accumulation_steps
        q, _ = directions_of(self.args)
        units = shards.units_of(self.model)
        return StepWork(
            evaluations=cost.forwards,
            evaluation_flops=windows * zeroth.flops if zeroth else 0.0,
            directions=q * cost.forwards / evaluations_of(self.args) if cost.forwards else 0.0,
            backwards=cost.backwards,
            backward_flops=windows * first.flops if first else 0.0,
            windows=windows,
            weights=self.weights,
            kept=sum(unit.size for unit in units if unit.stays),
            trained=self.trained_bytes,
            elements=sum(p.numel() for p in self.trained),
            state=cost.state,
            units=len(units),
        )

    def seconds(self, flops: Mapping[str, float], rate: float, steps: int) -> dict[str, float]:
        """Evaluations split their samples over replicas; shards are gathered by all devices, which then do the same.
        The reference is taken by one device of each node, or by all at once."""
        found = super().seconds(flops, rate, steps)
        if self.objective is None or self.ranks == 1:
            return found
        if self.strategy in scaling.SHARDED:
            times = flops["evaluate"] / max(1.0, self.scored.tokens * self.scored.flops)
            work = self.step_work()
            passes = times * self.scored.passes
            found["evaluate"] += scaling.all_gather(
                passes * work.weights, self.ranks, self.machine, passes * work.units
            )
        else:
            found["evaluate"] /= self.ranks
        found["train"] = steps * self.step(rate).seconds
        return found

    def step(self, rate: float) -> scaling.StepCost:
        return step_cost(
            self.step_work(),
            self.ranks,
            self.strategy,
            self.machine,
            rate,
            share=share_of(self.args),  # type: ignore[arg-type]
            overlap=self.overlap,
        )


class InShards(OnDevices):
    """FSDP2: parameters, gradients and state in shards (adapters are trained on replicas: `check_combination`)."""

    strategy = "fsdp2"

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


class InZero(OnDevices):
    """DeepSpeed's ZeRO: the optimizer works on a part of the weights in float32, and in stage 3 the weights themselves
    lie in parts. From DeepSpeed's description and defaults."""

    def __init__(self, *args: Any, stage: int) -> None:
        super().__init__(*args)
        self.stage = stage
        self.strategy = "zero3" if stage == 3 else "zero2"
        self.use(self.ranks)

    def use(self, ranks: int) -> None:
        self.ranks = ranks
        if self.stage == 3:
            self.held = {"weights": -(-self.weights // ranks)}
            self.held["gathered layers"] = min(self.weights, LIVE * self.dtype.itemsize)

    def on_device(self, phase: Phase) -> Phase:
        if phase.name not in ("train", "step"):
            return phase
        elements = sum(p.numel() for p in self.trained)
        size = self.trained[0].element_size()
        part = 4 * -(-elements // self.ranks)
        items = dict(phase.items)
        items["weights in float32, a part"] = part
        items["optimizer state"] = int(self.cost.state * part)
        items["gradients"] = -(-elements // self.ranks) * size
        if phase.name == "train":
            items["buffer of gradients"] = min(elements, _BUCKET) * size
        else:
            items["within the optimizer's step"] = items.get("within the optimizer's step", 0) // self.ranks
        return Phase(phase.name, items)


def planned(
    config: UnlearnConfig, process: int, devices: int, strategy: Strategy, machine: Machine, overlap: float = 0.0
) -> OnDevices:
    """The run on its devices; one device is `Planned` itself, whatever the strategy."""
    common = (config, process, devices, machine, overlap, torch.device(machine.device))
    if devices == 1 or strategy in ("single", "ddp"):
        return OnDevices(*common)
    if strategy == "fsdp2":
        return InShards(*common)
    return InZero(*common, stage=int(strategy[-1]))


# -- whether it fits ---------------------------------------------------------------------------------------------------


def fit_of(needed: int, machine: Machine) -> Fit:
    reserve = RESERVE if machine.device != "cpu" else 0.0
    usable = None if machine.memory is None else int((1 - reserve) * machine.memory)
    return Fit(needed, machine.memory, usable)


def find_way_out(config: UnlearnConfig, process: int, machine: Machine, run: OnDevices) -> WayOut | None:
    """The fewest devices that the run fits on, on replicas where one device would do, else in shards; None if there is
    no such number up to 1024."""
    objective = run.objective
    if objective is None:
        return None
    tried: list[tuple[Strategy, OnDevices]] = []
    alone = run if run.strategy == "ddp" else planned(config, process, 1, "single", machine)
    alone.use(1)
    tried.append(("single", alone))
    try:
        check_combination(config, 2, "fsdp2")
    except UserError:
        pass
    else:
        sharded = run if isinstance(run, InShards) else planned(config, process, 2, "fsdp2", machine)
        tried.append(("fsdp2", sharded))
    for strategy, one in tried:
        counts = [1] if strategy == "single" else [2**power for power in range(1, int(math.log2(_MOST_DEVICES)) + 1)]
        scored = one.scored if hasattr(one, "scored") else one.scoring()
        for count in counts:
            if count > 1 and share_of(config) == "data" and count > len(one.dataset):
                break
            one.use(count)
            phases = (*one.evaluating(scored), *one.training(objective).phases)
            most = max(phase.total for phase in phases) + (process if machine.device == "cpu" else 0)
            if fit_of(most, machine).fits:
                return WayOut(strategy, count, most)
    return None
