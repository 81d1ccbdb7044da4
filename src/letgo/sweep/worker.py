"""What a worker process does, on this machine or on a cluster's node. Imports nothing heavy: what is imported later
must find the loggers quiet and the environment as it was asked for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from letgo.core.errors import WorldError
from letgo.sweep.workers import CellTask


def serve(pipe: Connection, threads: int, devices: str | None, parent: int) -> None:
    """Run the tasks that come through a pipe, and send back how each ended, till None comes or the process `parent`
    that started this one is gone. `devices` are the GPUs that it may see; None for all."""
    # Ctrl-C goes to every process of a terminal; the sweep decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    run_task = _prepare(threads)
    with contextlib.suppress(EOFError):
        while (task := pipe.recv()) is not None:
            try:
                pipe.send(run_task(task))
            except WorldError as error:
                pipe.send(error)


def _prepare(threads: int) -> Callable[[CellTask], Literal["over", "busy"]]:
    """Make this process ready for tasks; returns what runs one."""
    from letgo.core.environment import freeze_imports
    from letgo.core.progress import quiet_libraries, quiet_loggers

    quiet_loggers()
    quiet_libraries()
    import torch

    from letgo.sweep.cell import run_task

    torch.set_num_threads(threads)
    freeze_imports()
    return run_task


# -- on a node of a cluster -------------------------------------------------------------------------------------------


def run_on_node(order: Mapping[str, Any], folder: str, threads: int, here: Mapping[str, Any]) -> tuple[str, str]:
    """Run one task on a node: how it ended, and why; "refused" where the node may not run it.

    Args:
        order: the task's fields; plain, so that a node with another letgo can read them, and refuse.
        folder: the sweep's, absolute.
        threads: of the task.
        here: what `look` gives where the sweep runs.
    """
    problem, _ = compare(here, look(here["probe"], here["cwd"]))
    if problem:
        return "refused", problem
    run_task = _prepare(threads)
    task = CellTask(**order)
    try:
        # Relative paths hold where there is the folder that the sweep was started in.
        os.chdir(here["cwd"])
    except OSError:
        task = replace(task, directory=Path(folder, *task.directory.parts[-2:]))
    return run_task(task), ""


def look(probe: str, cwd: str) -> dict[str, Any]:
    """What a machine has of letgo, and what it can do with two paths: `probe`, a file that the sweep made in its
    folder, and `cwd`, where the sweep was started."""
    from letgo.core.environment import versions
    from letgo.core.fingerprints import digest_of

    root = Path(__file__).parents[1]
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        # Two commits may have one version.
        "code": digest_of({str(path.relative_to(root)): path.read_text("utf-8") for path in root.rglob("*.py")}),
        "probe": probe,
        "seen": _appears(Path(probe)),
        "writable": os.access(Path(probe).parent, os.W_OK),
        "cwd": cwd,
        "inside": Path(cwd).is_dir(),
    }


def compare(here: Mapping[str, Any], there: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What keeps a node from running a sweep's tasks ("" for nothing), and notes on lesser differences."""
    host, notes, problems = there["host"], [], []
    for package, ours in here["versions"].items():
        theirs = there["versions"][package]
        if package in ("letgo", "torch", "transformers") and ours.partition("+")[0] != theirs.partition("+")[0]:
            problems.append(
                f"node {host} has {package} {theirs}, and this machine {ours}: the cells of a sweep would not be of "
                f"one kind; install the same there (pip install '{package}=={ours}')"
            )
        elif ours != theirs:
            notes.append(f"node {host} has {package} {theirs}, this machine {ours}: numbers may differ in the last bit")
    if here["code"] != there["code"]:
        problems.append(
            f"node {host} has other code of letgo {there['versions']['letgo']} than this machine: install the same "
            "commit on both, or letgo on storage that all nodes share"
        )
    if not there["seen"]:
        problems.append(
            f"node {host} does not see the sweep's folder as this machine does: a sweep on Ray needs its output on "
            "storage that all nodes share, under one path (--output DIR)"
        )
    if not there["writable"]:
        folder = Path(here["probe"]).parent
        problems.append(f"node {host} can't write to {folder}: check the permissions of whoever runs Ray there")
    if not there["inside"]:
        notes.append(f"node {host} has no folder {here['cwd']}: paths that are not absolute are not found there")
    return (problems[0], []) if problems else ("", notes)


def _appears(path: Path) -> bool:
    """Whether there is a file; over NFS a new one may take a moment to be seen."""
    for pause in (0.0, 0.5, 2.0):
        time.sleep(pause)
        if path.is_file():
            return True
    return False
