"""What a cell needs of the machine that it runs on, and what this machine has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.sizes import read_size, size
from letgo.core.values import Weight, Within, shown, wanted


@dataclass(frozen=True)
class Resources:
    """What one cell is given; None where the grid does not mention it."""

    cpus: int | None = None
    """Threads of a cell's process."""
    gpus: float | None = None
    """Whole ones, or a share of one (0.5: two cells on a GPU)."""
    memory: int | None = None
    """Bytes of main memory. A cell that takes more is not stopped; it is how many are started side by side."""

    def __str__(self) -> str:
        parts = [f"cpus {self.cpus}"] if self.cpus is not None else []
        parts += [f"gpus {self.gpus:g}"] if self.gpus else []
        parts += [f"memory {size(self.memory)}"] if self.memory else []
        return ", ".join(parts) or "nothing"


@dataclass(frozen=True)
class RayCluster:
    """Which Ray cluster runs a sweep."""

    address: str | None = None
    """HOST:PORT, "auto" for the one that runs on this machine, "local" for one of the sweep's own; by default
    RAY_ADDRESS, else "local"."""
    wait: float = 0.0
    """Seconds to wait for a node that has what a cell needs, where a cluster starts its nodes on demand."""


def read_resources(given: Any, where: str) -> Resources:
    """Check a grid's `resources`."""
    values = mapping(given, f"{where}: resources", ("cpus", "gpus", "memory"))
    cpus = whole_number(values.get("cpus"), f"{where}: resources.cpus", least=1)
    gpus, memory = values.get("gpus"), values.get("memory")
    if gpus is not None and (
        wanted(gpus, Annotated[float, Within(0, 1000)]) or 0 < gpus < 0.01 or (gpus > 1 and gpus != int(gpus))
    ):
        raise UserError(f"{where}: resources.gpus must be a whole number, or a share from 0.01 to 1, not {shown(gpus)}")
    return Resources(cpus, gpus, None if memory is None else read_size(memory, f"{where}: resources.memory"))


def read_cluster(given: Any, where: str) -> RayCluster:
    """Check a grid's `ray`."""
    values = mapping(given, f"{where}: ray", ("address", "wait"))
    address, wait = values.get("address"), values.get("wait", 0.0)
    if address is not None and not isinstance(address, str):
        raise UserError(f"{where}: ray.address must be HOST:PORT, auto or local, not {address!r}")
    if problem := wanted(wait, Weight):
        raise UserError(f"{where}: ray.wait must be {problem} (seconds), not {shown(wait)}")
    return RayCluster(address, float(wait))


def mapping(given: Any, what: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Check a mapping of a grid, with these keys if any are named; empty where it is missing."""
    if given is not None and not isinstance(given, dict):
        of = f" of {', '.join(keys)}" if keys else ""
        raise UserError(f"{what} must be a mapping{of}, not {given!r}")
    values = {str(key): value for key, value in (given or {}).items()}
    for key in values:
        if keys and key not in keys:
            raise UserError(f"{what}: unknown key {key!r}{did_you_mean(key, keys)}; known: {', '.join(keys)}")
    return values


def whole_number(value: Any, what: str, *, least: int) -> int | None:
    """Check a whole number of a grid; None where it is missing."""
    problem = wanted(value, Annotated[int, Within(least, 100_000)])
    if value is not None and problem:
        raise UserError(f"{what} must be {problem}, not {shown(value)}")
    return value


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_slots(resources: Resources, workers: int) -> list[str | None]:
    """The slots of cells that run side by side on this machine: for each the GPUs it may see, as CUDA_VISIBLE_DEVICES
    has them; None where the grid does not mention GPUs. Fewer than `workers` where the machine has not enough for all;
    a `UserError` where it has not enough for one."""
    if resources.memory is not None:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if resources.memory > total:
            raise UserError(
                f"a cell asks for {size(resources.memory)} of memory (resources.memory), and this machine has "
                f"{size(total)}"
            )
        workers = min(workers, total // resources.memory)
    if not resources.gpus:
        return [None if resources.gpus is None else ""] * workers
    devices = _devices()
    if resources.gpus < 1:
        slots = [device for device in devices for _ in range(int(1 / resources.gpus + 1e-9))]
    else:
        each = int(resources.gpus)
        slots = [",".join(devices[at : at + each]) for at in range(0, len(devices) - each + 1, each)]
    if not slots:
        raise UserError(
            f"a cell asks for {resources.gpus:g} GPUs (resources.gpus), and this machine has {len(devices)} to give"
        )
    return list(slots[:workers])


def _devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
