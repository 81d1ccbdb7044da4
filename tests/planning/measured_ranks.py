"""A run in two processes, each one's peak of resident memory measured, and what the plan said of a device.

python -m tests.planning.measured_ranks NAME [NAME …]     measure cases, one line each
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from letgo.planning import plan_devices
from letgo.training.config import make_config
from tests.planning.measured import LLAMA, ROOT, SCRIPT, make_directory, settings_in

RANKS: dict[str, tuple[dict[str, Any], str]] = {
    # Seen while the plan was calibrated.
    "ddp": ({"optimizer": "adamw"}, "ddp"),
    "ddp, zeroth": ({"optimizer": "zo_sgd"}, "ddp"),
    "fsdp2": ({"optimizer": "adamw", "strategy": "fsdp2"}, "fsdp2"),
    # Held out: looked at once the plan was as it is.
    "ddp, sgd": ({"optimizer": "sgd", "objective": "graddiff"}, "ddp"),
    "fsdp2, zeroth": ({"optimizer": "zo_sgd", "strategy": "fsdp2"}, "fsdp2"),
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_ranks(name: str, folder: Path, count: int = 2) -> tuple[list[int], dict[str, Any]]:
    """Measured bytes of each process beyond itself, and the plan's account of a device."""
    changes, strategy = RANKS[name]
    make_directory(LLAMA, "float32", folder / "model")
    settings = settings_in(folder, changes)
    script = SCRIPT.format(kind=LLAMA["kind"])
    common = {**os.environ, "LETGO_REFERENCES": str(folder / "references"), "OMP_NUM_THREADS": "1"}
    port = str(free_port())
    processes = []
    for rank in range(count):
        here = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        environment = {**common, **here, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", script, json.dumps(settings)]
        processes.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
            )
        )
    # By far longer than it takes, for a process that hangs.
    said = [process.communicate(timeout=900) for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError(errors)
    peaks = [json.loads(out.splitlines()[-1])["peak"] for out, _ in said]
    planned = plan_devices(make_config(settings), count, strategy, device="cpu")
    return peaks, planned.as_dict()


def main() -> None:
    for name in sys.argv[1:] or RANKS:
        with tempfile.TemporaryDirectory() as folder:
            peaks, planned = run_ranks(name, Path(folder))
        phases = {phase["name"]: round(phase["total"] / 1e6) for phase in planned["phases"]}
        print(f"{name:14} measured {[round(p / 1e6) for p in peaks]} MB, planned {max(phases.values())} MB", phases)
        print({p["name"]: {k: round(v / 1e6) for k, v in p["items"].items()} for p in planned["phases"]}, flush=True)


if __name__ == "__main__":
    main()
