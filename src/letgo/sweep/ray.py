"""A sweep's tasks on a Ray cluster: one that runs already, or one of the sweep's own on this machine.

Ray places the tasks, sets their environment and reports a process that is lost. `execute.py` decides what is run and
what is tried again, for every backend alike and with a count that outlives the cluster, so Ray retries nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from letgo.core.errors import LetgoError, UserError, first_line
from letgo.core.extras import need
from letgo.core.progress import Reporter
from letgo.core.sizes import size
from letgo.sweep.grid import Grid
from letgo.sweep.resources import processors
from letgo.sweep.worker import compare, look, run_on_node
from letgo.sweep.workers import CellTask, Ending, Workers

ADDRESS = "RAY_ADDRESS"
LOOK_SECONDS = 5.0
"""How often the nodes are looked at while tasks run."""
GRACE_SECONDS = 30.0
"""How long a node may be gone, once there was one that had what a cell needs."""
ANSWER_SECONDS = 120.0
"""How long a node may take to start a process and answer."""
UNLIMITED = 100_000
_STORE_BYTES = 80 * 2**20
"""Ray's least: nothing but a task's settings crosses its object store."""
_PASSED_ON = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM")


class RayWorkers(Workers):
    """Tasks of a Ray cluster. Raises a `UserError` where Ray is not installed, or nothing answers at the address."""

    def __init__(self, grid: Grid, reporter: Reporter) -> None:
        self.grid, self.reporter = grid, reporter
        self.ray: Any = need("ray", "ray", what="a sweep on Ray")
        self.address = grid.ray.address or os.environ.get(ADDRESS) or "local"
        if not self.ray.is_initialized():
            _answers(self.address)
        self.folder = grid.output.resolve()
        self.probe = self.folder / f".probe-{uuid.uuid4().hex}"
        self.running: dict[Any, CellTask] = {}
        self.here: dict[str, Any] = {}
        self.cpus, self.gpus = grid.resources.cpus or 1, grid.resources.gpus or 0
        self.last_fit = self.last_look = 0.0
        passed_on = [name for name in os.environ if name.startswith("LETGO_") or name in _PASSED_ON]
        self.environment = {"env_vars": {name: os.environ[name] for name in passed_on}}
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> RayWorkers:
        with contextlib.ExitStack() as stack:
            # Ray prints its messages on lost workers, and standard output is for results.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            if not self.ray.is_initialized():
                self._connect(stack)
            # Before the cluster is left: what still runs is ended.
            stack.callback(self._cancel)
            self.probe.touch()
            stack.callback(self.probe.unlink, missing_ok=True)
            self.here = look(str(self.probe), os.getcwd())
            self._choose_gpus()
            self._check_nodes()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    # -- the cluster --------------------------------------------------------------------------------------------------

    def _connect(self, stack: contextlib.ExitStack) -> None:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address == "local":
            # Its sockets' names must be short, and all it writes is removed with it.
            base = tempfile.gettempdir() if len(tempfile.gettempdir()) < 20 else "/tmp"
            folder = tempfile.TemporaryDirectory(prefix="letgo-ray-", dir=base, ignore_cleanup_errors=True)
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            settings |= {
                "num_cpus": max(processors(), self.grid.workers or 1),
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                "_temp_dir": stack.enter_context(folder),
            }
        stack.callback(self.ray.shutdown)
        try:
            self.ray.init(address=self.address, **settings)
        except (OSError, RuntimeError, ValueError, ImportError, AssertionError) as error:
            if self.address == "local":
                raise
            raise UserError(_unreachable(self.address, first_line(error))) from error

    def _nodes(self) -> list[Mapping[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _choose_gpus(self) -> None:
        """Where the grid does not mention GPUs: one a cell, if the cluster has any and the cells may use them."""
        on_cpu = all(cell.settings.get("use_cpu") for cell in self.grid.cells)
        if self.grid.resources.gpus is None and not on_cpu:
            self.gpus = 1 if any(node["Resources"].get("GPU") for node in self._nodes()) else 0

    def _needs(self) -> dict[str, float]:
        needs = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.grid.resources.memory or 0}
        return {name: amount for name, amount in needs.items() if amount}

    def _check_fit(self, patience: float) -> list[Mapping[str, Any]]:
        """The nodes that have what a cell needs, free or not; raises where there has been none for so many seconds: Ray
        itself would wait for ever."""
        needs, nodes, now = self._needs(), self._nodes(), time.monotonic()
        fitting = [node for node in nodes if all(node["Resources"].get(name, 0.0) >= needs[name] for name in needs)]
        if fitting or not self.last_fit:
            self.last_fit = now
        if not fitting and now - self.last_fit >= patience:
            nothing = {"CPU": 0.0, "GPU": 0.0, "memory": 0.0}
            have = [f"{node['NodeManagerHostname']} ({_amounts(nothing | node['Resources'])})" for node in nodes]
            more = f" and {len(have) - 8} more" if len(have) > 8 else ""
            raise UserError(
                f"no node of the Ray cluster has what a cell needs ({_amounts(needs, 'resources.')})\n"
                f"  its nodes: {'; '.join(have[:8]) or 'none'}{more}\n"
                "  ask for less in the grid's `resources`, start a node that has it, or let a cluster that grows take "
                "its time by `ray: {wait: SECONDS}`"
            )
        return fitting

    def _check_nodes(self) -> None:
        """Look at every node that could run a cell: same versions, same code, same folder."""
        fitting = self._check_fit(self.grid.ray.wait)
        strategy = need("ray.util.scheduling_strategies", "ray").NodeAffinitySchedulingStrategy
        remote = self.ray.remote(num_cpus=0, max_retries=1, runtime_env=self.environment)(look)
        looks = []
        for node in fitting:
            there = remote.options(scheduling_strategy=strategy(node_id=node["NodeID"], soft=False))
            looks.append((node["NodeManagerHostname"], there.remote(self.here["probe"], self.here["cwd"])))
        notes: dict[str, None] = {}
        for host, reference in looks:
            try:
                problem, differences = compare(self.here, self.ray.get(reference, timeout=ANSWER_SECONDS))
            except self.ray.exceptions.GetTimeoutError as error:
                raise UserError(f"node {host} of the Ray cluster does not answer in {ANSWER_SECONDS:.0f} s") from error
            except self.ray.exceptions.RayError as error:
                raise UserError(f"node {host} of the Ray cluster can't run letgo: {_cause(error)}") from error
            if problem:
                raise UserError(problem)
            notes |= dict.fromkeys(differences)
        where = "of its own on this machine" if self.address == "local" else f"at {self.address}"
        count = f"{len(fitting)} {'node' if len(fitting) == 1 else 'nodes'}"
        self.reporter.say(f"  Ray cluster {where}: {count} for cells of {_amounts(self._needs())} each")
        for note in notes:
            self.reporter.say(f"  {note}")

    # -- tasks --------------------------------------------------------------------------------------------------------

    def free(self) -> int:
        return (self.grid.workers or UNLIMITED) - len(self.running)

    def start(self, task: CellTask) -> None:
        remote = self.ray.remote(run_on_node).options(
            name=f"letgo {task.directory.name}",
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            memory=self.grid.resources.memory,
            max_retries=0,
            runtime_env=self.environment,
        )
        self.running[remote.remote(asdict(task), str(self.folder), self.cpus, self.here)] = task

    def ended(self, timeout: float | None) -> Sequence[Ending]:
        until = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while True:
            step = max(0.0, min(LOOK_SECONDS, until - time.monotonic()))
            done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=step)
            if done:
                done, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
                return [self._ending(reference) for reference in done]
            if time.monotonic() >= until:
                return []
            if time.monotonic() - self.last_look >= LOOK_SECONDS:
                self.last_look = time.monotonic()
                self._check_fit(max(self.grid.ray.wait, GRACE_SECONDS))

    def _ending(self, reference: Any) -> Ending:
        task = self.running.pop(reference)
        errors = self.ray.exceptions
        try:
            how, why = self.ray.get(reference)
        except errors.OutOfMemoryError:
            return Ending(task, "died", "its node ran out of memory")
        except errors.NodeDiedError:
            return Ending(task, "died", "its node is gone")
        except errors.RayTaskError as error:
            # Of a task nothing is raised but what keeps letgo from starting at all.
            raise LetgoError(f"{task.directory.name} could not be started: {_cause(error)}") from error
        except errors.RayError as error:
            return Ending(task, "died", _cause(error))
        if how == "refused":
            raise UserError(why)
        return Ending(task, how)

    def _cancel(self) -> None:
        for reference in self.running:
            with contextlib.suppress(Exception):
                self.ray.cancel(reference, force=True)
        self.running.clear()


def _amounts(resources: Mapping[str, float], prefix: str = "") -> str:
    """Ray's amounts of resources, by the names that a grid has for them."""
    names = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}
    return ", ".join(
        f"{prefix}{name} " + (size(resources[key]) if key == "memory" else f"{resources[key]:g}")
        for key, name in names.items()
        if key in resources
    )


def _cause(error: BaseException) -> str:
    """What is behind an error of Ray's, in a line."""
    cause = getattr(error, "cause", None)
    return f"{type(cause).__name__}: {first_line(cause)}" if isinstance(cause, Exception) else first_line(error)


def _unreachable(address: str, why: str) -> str:
    return (
        f"no Ray cluster answers at {address} ({why})\n"
        "  give its head node's address by --ray-address HOST:PORT, `ray: {address: …}` in the grid, or RAY_ADDRESS; "
        "`ray start --head` prints it, and --ray-address local starts a cluster for this sweep"
    )


def _answers(address: str) -> None:
    """Raise where nothing listens at HOST:PORT: Ray itself would try for a minute. Other forms are for Ray to read."""
    if address in ("local", "auto") or "://" in address:
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UserError(_unreachable(address, "not of the form HOST:PORT"))
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(_unreachable(address, error.strerror or first_line(error))) from error
