"""A plan, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from letgo.core.sizes import size


@dataclass(frozen=True)
class Phase:
    """One stage of a run: the bytes that are alive in it at once, by what they are."""

    name: str
    items: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.items.values())


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        model: parameters and which of them are trained; bytes of the weights.
        device: where the model lies.
        phases: of a run, in order, with the bytes alive in each.
        process: bytes of the process itself, Python and its libraries, before anything is loaded.
        disk: bytes by what they are; `peak` is the most at once in the run directory, references lie in the cache.
        steps: optimizer steps; 0 for a method that makes none.
        flops: floating-point operations by stage.
        speed: FLOP/s behind the times, and `how` it was obtained; None in a plan without times.
        seconds: by stage.
        notes: what the figures rest on.
        looks: at the model during training: their number (`count`) and, of each, `tokens`, `flops` and, in a plan with
            times, `seconds`. Empty for none.
    """

    model: Mapping[str, Any]
    device: str
    phases: tuple[Phase, ...]
    process: int
    disk: Mapping[str, int]
    steps: int
    flops: Mapping[str, float]
    speed: float | None
    how: str
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = field(default=())
    looks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def peak(self) -> Phase:
        """The stage with the most bytes alive."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def memory(self) -> dict[str, int]:
        """Most bytes at once on each device; the process itself counts on the host."""
        if self.device == "cpu":
            return {"cpu": self.process + self.peak.total}
        return {self.device: self.peak.total, "cpu": self.process}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = asdict(self) | {"memory": self.memory, "peak": self.peak.name}
        plain["phases"] = [{"name": p.name, "total": p.total, "items": dict(p.items)} for p in self.phases]
        plain["notes"] = list(self.notes)
        return plain

    def text(self) -> str:
        """For a terminal."""
        lines = [
            f"{self.model['name']}: {self.model['parameters']:,} parameters, {self.model['trained']:,} trained, "
            f"{size(self.model['bytes'])} of weights ({self.model['dtype']})",
            "",
            f"memory on {self.device}",
        ]
        for phase in self.phases:
            mark = "  <- peak" if phase is self.peak else ""
            lines.append(f"  {phase.name:<14} {size(phase.total):>9}{mark}")
            lines += [f"    {name:<38} {size(count):>9}" for name, count in phase.items.items() if count]
        where = " + the process itself" if self.device == "cpu" else "; host: the process itself"
        lines.append(f"  {size(self.peak.total)} at the peak{where}, {size(self.process)}")
        if self.device == "cpu":
            lines.append(f"  = {size(self.memory['cpu'])} of main memory")
        lines += ["", "disk"]
        lines += [f"  {name:<40} {size(count):>9}" for name, count in self.disk.items() if count]
        if self.speed is not None:
            steps = f", {self.steps} steps" if self.steps else ""
            width = max(14, *map(len, self.seconds))
            lines += ["", f"time{steps}, at {self.speed:.3g} FLOP/s ({self.how})"]
            each = f"  ({self.looks['count']} of {duration(self.looks['seconds'])})" if self.looks else ""
            lines += [
                f"  {name:<{width}} {duration(value):>9}{each if name == 'looks' else ''}"
                for name, value in self.seconds.items()
            ]
            lines.append(f"  {'in all':<{width}} {duration(sum(self.seconds.values())):>9}")
        lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time that is expected: two digits, for a plan knows no more (measured ones: `report.numbers`)."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
