"""A plan of several devices, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from letgo.planning.report import Plan, duration
from letgo.planning.scaling import Machine, StepCost, StepWork, doublings, efficiency, step_cost
from letgo.report.numbers import size


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
        plan: of one of them.
        devices, strategy, share: as asked for; `share` is what zeroth-order steps share.
        machine, rate, overlap: what times are taken with.
        fit: whether it fits.
        way_out: where it does not: the fewest devices on which it would; None if there are none.
        rows: forget rows of a step, of all devices.
        host: bytes of a node's main memory, all its processes.
        work: of a step of a device alone; None for a method that takes no steps.
        wire: bytes that a device sends in a step, by what they are.
    """

    plan: Plan
    devices: int
    strategy: str
    share: str
    machine: Machine
    rate: float
    overlap: float
    fit: Fit
    way_out: WayOut | None
    rows: int
    host: int
    work: StepWork | None
    wire: Mapping[str, float]

    def cost(self, devices: int) -> StepCost:
        """Of a step on another number of devices, each with as many rows."""
        if self.work is None:
            raise ValueError("a method that takes no steps has no cost of a step")
        return step_cost(
            self.work,
            devices,
            self.strategy,  # type: ignore[arg-type]
            self.machine,
            self.rate,
            share=self.share,  # type: ignore[arg-type]
            overlap=self.overlap,
        )

    def scaled(self, most: int) -> list[dict[str, float]]:
        """A row for each number of devices up to `most`: seconds of a step and what they go into, bytes, efficiency."""
        alone = self.cost(1)
        rows = []
        for count in doublings(most):
            cost = self.cost(count)
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

    def as_dict(self, scale_to: int | None = None) -> dict[str, Any]:
        """For JSON: the plan of a device, and `devices`, which says the rest."""
        machine = {key: value for key, value in asdict(self.machine).items() if value != float("inf")}
        told: dict[str, Any] = {
            "count": self.devices,
            "strategy": self.strategy,
            "share": self.share,
            "machine": machine,
            "overlap": self.overlap,
            "needed": self.fit.needed,
            "memory": self.fit.memory,
            "usable": self.fit.usable,
            "fits": self.fit.fits if self.fit.usable is not None else None,
            "short": self.fit.short,
            "way_out": asdict(self.way_out) if self.way_out else None,
            "rows_a_step": self.rows,
            "bytes_a_step": dict(self.wire),
            "host": self.host,
        }
        if self.work is not None:
            told["step"] = asdict(self.cost(self.devices)) | {"seconds": self.cost(self.devices).seconds}
            if scale_to is not None:
                told["scaling"] = self.scaled(scale_to)
        return self.plan.as_dict() | {"devices": told}

    def text(self, scale_to: int | None = None) -> str:
        """For a terminal."""
        nodes = -(-self.devices // self.machine.per_node)
        shared = f", {self.share} shared in zeroth-order steps" if self.work and self.work.evaluations else ""
        lines = [
            f"{_count(self.devices, 'device')} on {_count(nodes, 'node')}, {self.strategy}{shared}; "
            f"each has the following, steps of {_count(self.rows, 'forget row')}",
            "",
            self.plan.text(),
            "",
            f"does it fit?  {self._verdict()}",
        ]
        if self.machine.device != "cpu" or self.machine.per_node > 1:
            lines.append(
                f"  main memory of a node: {size(self.host)}, {min(self.devices, self.machine.per_node)} processes"
            )
        if self.wire:
            lines += ["", f"a device sends in a step: {size(sum(self.wire.values()))}"]
            lines += [f"  {name:<40} {size(count):>9}" for name, count in self.wire.items()]
        if self.work is not None:
            cost = self.cost(self.devices)
            lines += [
                "",
                f"a step: {short(cost.seconds)}, of which passes {short(cost.passes)}, memory {short(cost.traffic)}, "
                f"waiting for the wire {short(cost.wire - cost.hidden)}",
                f"  {self.machine.name}: {self.machine.source}",
            ]
            if scale_to is not None:
                lines += ["", *table(self.scaled(scale_to))]
        return "\n".join(lines)

    def _verdict(self) -> str:
        fit = self.fit
        if fit.usable is None or fit.memory is None:
            return f"a device needs {size(fit.needed)}; give --device-memory to be told"
        if fit.fits:
            return f"yes: {size(fit.needed)} of {size(fit.usable)} ({size(fit.memory)} a device, less what it keeps)"
        said = f"no: {size(fit.short)} short, {size(fit.needed)} of {size(fit.usable)} ({self.plan.peak.name})"
        if self.way_out is None:
            return said + "; nor on any number of devices: adapters (lora_rank), zo_sgd or bfloat16 need less"
        way = self.way_out
        return f"{said}; {_count(way.devices, 'device')} with {way.strategy} would do ({size(way.needed)} each)"


def table(rows: list[dict[str, float]]) -> list[str]:
    """Rows of `DevicesPlan.scaled`, as lines."""
    lines = ["devices    a step    passes    memory      wire   a device sends  efficiency"]
    for row in rows:
        times = "  ".join(f"{short(row[key]):>8}" for key in ("seconds", "passes", "traffic", "wire"))
        lines.append(f"{row['devices']:>7.0f}  {times}  {size(row['bytes']):>15}  {row['efficiency']:>10.2f}")
    return lines


def short(seconds: float) -> str:
    """A time of any size in few characters."""
    if seconds == 0:
        return "0"
    for unit, one in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * one:
            return f"{seconds / one:.3g} {unit}"
    return duration(seconds)


def _count(number: int, what: str) -> str:
    more = "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{more if number != 1 else ''}"
