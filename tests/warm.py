"""Processes that begin with letgo imported, which takes several seconds: forked from one that has imported it and has
done nothing else. Otherwise they are like `python WORDS`."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HANGS = 1200.0
"""Seconds after which a process hangs, however loaded the machine is."""


@functools.cache
def _context() -> Any:
    """The process that others are forked from, one for each test worker."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm_imports"])
    with contextlib.chdir(ROOT):
        forkserver.ensure_running()
    return context


def stop() -> None:
    """End the process that others are forked from, if there is one."""
    forkserver._forkserver._stop()


def start(words: list[str], *, cwd: Any = ROOT, said: Any = os.devnull, wrong: Any = os.devnull, **more: str) -> Any:
    """Begin `python WORDS`, its stdout and stderr in two files and some environment variables set. Whoever begins
    it ends it."""
    arguments = ([str(word) for word in words], str(cwd), str(said), str(wrong), {**os.environ, **more})
    process = _context().Process(target=_become, args=arguments)
    process.start()
    return process


def _become(words: list[str], cwd: str, said: str, wrong: str, environment: dict[str, str]) -> None:
    for number, name in ((1, said), (2, wrong)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    # What these were before could be sought in, or not.
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    # Ignored where the tests themselves were begun in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, cwd)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def run(words: list[str], *, ranks: int = 1, timeout: float = HANGS, **more: Any) -> CompletedProcess[str]:
    """`python WORDS`, or several of it as a launcher begins them; what they printed together, and the first exit status
    that is not 0."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"said": Path(folder) / "said", "wrong": Path(folder) / "wrong"}
        processes = [start(words, **files, **more, **place) for place in (places(ranks) if ranks > 1 else [{}])]
        try:
            for process in processes:
                process.join(timeout)
                if process.exitcode is None:
                    raise TimeoutExpired(words, timeout, stderr=files["wrong"].read_text())
        finally:
            for process in processes:
                process.kill()
        code = next((process.exitcode for process in processes if process.exitcode), 0)
        return CompletedProcess(words, code, *(file.read_text() for file in files.values()))


_ports: list[socket.socket] = []


def places(ranks: int) -> list[dict[str, str]]:
    """What `torchrun` tells each of several processes on this machine."""
    # Bound here till the end, and not listening: nobody else is given the port, and the first process can have it.
    _ports.append(socket.socket())
    _ports[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _ports[-1].bind(("127.0.0.1", 0))
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_ports[-1].getsockname()[1])}
    ranked = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    return [meeting | ranked | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
