"""What a result depends on in addition to its config: package versions, the commit, the memory taken."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import platform
import resource
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from letgo.core.own import code_in_use

_PACKAGES = ("letgo", "torch", "transformers", "accelerate", "numpy", "safetensors")


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Versions of what a result depends on."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {"python": platform.python_version()}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def processor() -> str:
    """What the CPU's arithmetic depends on: the instructions that torch's kernels use here, and the threads."""
    import torch

    threads = torch.get_num_threads()
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {kernels}, {threads} thread{'s' if threads > 1 else ''}"


def device() -> str:
    """What computes: the GPU's name where there is one, else the processor's."""
    import torch

    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"cpu: {' '.join(line.partition(':')[2].split())}"
    return f"cpu: {platform.processor() or platform.machine()}"


def git_revision() -> str | None:
    """The commit of the working directory, "-dirty" where it has changes; None outside a repository.

    The repository is only read: `git describe --dirty` would write its index, and a process that is killed meanwhile
    would leave it locked.
    """

    def said(*words: str) -> str:
        command = ["git", "--no-optional-locks", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit = said("rev-parse", "--short=12", "HEAD")
        return f"{commit}-dirty" if said("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory() -> dict[str, int]:
    """Peak resident memory of this process, and allocated memory of each GPU, in bytes."""
    # Not at the top: a node of a cluster says which versions it has before anything heavy is loaded.
    import torch

    # Linux counts kilobytes, macOS bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    for index in range(torch.cuda.device_count()):
        peaks[f"cuda:{index}"] = torch.cuda.max_memory_allocated(index)
    return peaks


def give_back_memory() -> None:
    """Give memory that is free within the process back to the system (glibc keeps what lies between things in use).

    Worth it between the stages of a run, whose tensors are of different sizes; elsewhere than on Linux it does nothing.
    """
    gc.collect()
    if platform.system() == "Linux":
        # No such function in other C libraries.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def freeze_imports() -> None:
    """Let the garbage collector leave alone what is in memory by now, once: for a process of letgo's own, when it has
    imported its libraries and before it begins its work.

    They live as long as the process and are half a million objects: each full collection, of which a run makes several,
    takes 0.3 s without this.
    """
    gc.collect()
    gc.freeze()


def circumstances() -> dict[str, Any]:
    """The fields of a `Result` that are the same whatever was run: versions and processor, commit, memory, and the code
    that is not letgo's own."""
    installed = versions()
    return {
        "letgo": installed["letgo"],
        "versions": installed | {"processor": processor(), "device": device()},
        "git": git_revision(),
        "peak_memory_bytes": peak_memory(),
        "code": {name: asdict(code) for name, code in code_in_use().items()},
    }
