"""What a worker process does, on this machine or on a cluster's node.

Imports nothing heavy: what is imported later must find the loggers quiet and the environment as it was asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from letgo.core.fingerprints import Fingerprint

PROBE = ".probe-{}"
"""In a sweep's folder: what a node must be able to read; its answer has the node's name behind it."""

_PACKAGES = ("letgo", "torch", "transformers", "accelerate", "numpy", "safetensors")


def serve(pipe: Connection, threads: int, devices: str | None, parent: int) -> None:
    """Run the tasks that come through a pipe, till None comes or the process that started this one is gone.

    Args:
        pipe: gives `Task.order()`, and takes how each ended.
        threads: of each task.
        devices: the GPUs it may see; None for all.
        parent: number of the process that started it.
    """
    # Ctrl-C goes to every process of a terminal; what becomes of the workers is for the sweep to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _prepare(threads)
    from letgo.sweep.cell import Task, run_task

    with contextlib.suppress(EOFError):
        while (order := pipe.recv()) is not None:
            pipe.send(run_task(Task.of(order)))


def _prepare(threads: int) -> None:
    from letgo.core.progress import quiet_libraries, quiet_loggers

    quiet_loggers()
    quiet_libraries()
    import torch

    torch.set_num_threads(threads)


# -- on a node of a cluster -------------------------------------------------------------------------------------------


def run_on_node(order: Mapping[str, Any]) -> dict[str, str]:
    """Run one task on a node: how it ended, and why; "refused" where the node may not run it.

    Args:
        order: `task` (`Task.order()`), `folder` (the sweep's, absolute), `cwd`, `threads`, `variables` of the
            environment, and of those who may run it: `token`, `here` (`look`'s answer where the sweep runs), `passed`
            (nodes that have been looked at).
    """
    node = node_id()
    os.environ.update(order["variables"])
    inside = _enter(order["cwd"])
    if node not in order["passed"]:
        problem, _ = compare(order["here"], look(order["folder"], order["token"], order["cwd"]))
        if problem:
            return {"how": "refused", "why": problem}
    _prepare(order["threads"])
    from letgo.sweep.cell import Task, run_task

    task = dict(order["task"])
    if not inside:
        runs, name = Path(task["directory"]).parts[-2:]
        task["directory"] = str(Path(order["folder"], runs, name))
    return {"how": run_task(Task.of(task)), "why": ""}


def node_id() -> str:
    """The cluster's name for the node that this process runs on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _enter(folder: str) -> bool:
    """Go where the sweep was started, so that its relative paths hold; False where there is no such folder."""
    try:
        os.chdir(folder)
    except OSError:
        return False
    return True


def look(folder: str, token: str, cwd: str, answer: str = "") -> dict[str, Any]:
    """What a node has: its name, its versions, letgo's code, and what it sees of the sweep's folder.

    Args:
        folder: the sweep's, absolute.
        token: of the file that the sweep wrote there, and has locked.
        cwd: the folder that the sweep was started in.
        answer: written into a file there, for the sweep to find.
    """
    probe = Path(folder) / PROBE.format(token)
    seen = _read(probe) == token
    if seen and answer:
        with contextlib.suppress(OSError):
            probe.with_name(f"{probe.name}-{answer}").write_text(answer, encoding="utf-8")
    return {
        "host": socket.gethostname(),
        "versions": _versions(),
        "code": _code(),
        "seen": seen,
        "locked": seen and _locked(probe),
        "cwd": Path(cwd).is_dir(),
    }


def compare(here: Mapping[str, Any], there: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What keeps a node from running a sweep's tasks ("" for nothing), and what is only to be said of it."""
    host, notes = there["host"], []
    for package in _PACKAGES:
        ours, theirs = here["versions"][package], there["versions"][package]
        public = ours.partition("+")[0] == theirs.partition("+")[0]
        if not public and package in ("letgo", "torch", "transformers"):
            return (
                f"node {host} has {package} {theirs}, and this machine {ours}: the cells of a sweep would not be of "
                f"one kind; install the same there (pip install '{package}=={ours}')"
            ), []
        if ours != theirs:
            notes.append(
                f"node {host} has {package} {theirs}, this machine {ours}: numbers may differ in the last bits"
            )
    if here["code"] != there["code"]:
        return (
            f"node {host} has other code of letgo {there['versions']['letgo']} than this machine: install the same "
            "commit on both, or letgo on storage that all nodes share"
        ), []
    if not there["seen"]:
        return (
            f"node {host} does not see the sweep's folder as this machine does: a sweep on Ray needs its output on "
            "storage that all nodes share, under one path (--output DIR)"
        ), []
    if not there["cwd"]:
        notes.append(f"node {host} has no folder {os.getcwd()}: paths that are not absolute are not found there")
    if not there["locked"]:
        notes.append(f"locks of files do not reach node {host}: see to it that no two sweeps run in one folder")
    return "", notes


def _read(path: Path) -> str | None:
    # Over NFS a new file may take a moment to be seen.
    for pause in (0.0, 0.5, 2.0):
        time.sleep(pause)
        with contextlib.suppress(OSError):
            return path.read_text(encoding="utf-8")
    return None


def _locked(path: Path) -> bool:
    """Whether the lock that the sweep holds on a file is seen here."""
    try:
        with open(path, "a+", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _code() -> str:
    """A digest of letgo's own files: two commits may have one version."""
    found = importlib.util.find_spec("letgo")
    root = Path(found.origin).parent if found and found.origin else Path()
    digest = Fingerprint()
    for path in sorted(root.rglob("*.py")):
        digest.add(f"{path.relative_to(root).as_posix()}\0")
        digest.add(path.read_bytes())
    return digest.hexdigest()
