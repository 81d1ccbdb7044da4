"""Sweeps on Ray end with the table of a sweep on this machine, through lost workers and changes of the backend."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from letgo.core.errors import UserError
from letgo.runs import Index
from letgo.sweep.execute import sweep
from letgo.sweep.grid import parse_part
from letgo.sweep.worker import compare, look
from tests.sweep.conftest import Killer, products
from tests.warm import HANGS

RAY = {"read": {"backend": "ray"}}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one node with room for two cells, kept between tests: it takes its workers a while to import torch.
    The folder of its own is short, for the names of its sockets must be."""
    ray = pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="letgo-test-", dir="/tmp")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=80 * 2**20,
        _temp_dir=folder,
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def no_cluster(monkeypatch):
    """As in a process that is on no cluster yet."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_ray_that_is_not_installed_is_an_extra_that_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    grid = small("out", **RAY)
    with pytest.raises(UserError, match=r"a sweep on Ray needs ray: pip install .*letgo\[ray\]"):
        sweep(grid)
    assert not grid.output.exists()


def test_an_address_where_nothing_answers_is_said_at_once(small, no_cluster, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        # Bound and not listening: refused.
        grid = small("out", read={"backend": "ray", "ray_address": f"127.0.0.1:{port}"})
        with pytest.raises(UserError, match=rf"no Ray cluster answers at 127.0.0.1:{port} \(Connection refused\)"):
            sweep(grid)
    monkeypatch.setenv("RAY_ADDRESS", "head-node")
    with pytest.raises(UserError, match=r"at head-node \(not of the form HOST:PORT\)\n  give its head node's address"):
        sweep(small("out", **RAY))
    assert not grid.output.exists()


def test_nodes_are_compared_with_where_the_sweep_runs(tmp_path):
    probe = tmp_path / ".probe-0123abcd"
    probe.touch()
    here = look(str(probe), os.getcwd())
    assert compare(here, here) == ("", [])

    def there(**changes):
        return compare(here, {**here, "host": "node7", **changes})

    versions = here["versions"]
    assert there() == ("", [])
    problem, _ = there(versions=versions | {"torch": "9.9.0"})
    assert problem.startswith(f"node node7 has torch 9.9.0, and this machine {versions['torch']}")
    build = versions["torch"].partition("+")[0] + "+cu999"
    problem, notes = there(versions=versions | {"torch": build, "numpy": "0.1"})
    assert problem == ""
    assert [note.split(", this")[0] for note in notes] == [f"node node7 has torch {build}", "node node7 has numpy 0.1"]
    assert "other code of letgo" in there(code="0" * 16)[0]
    assert "does not see the sweep's folder" in there(seen=False)[0]
    assert there(writable=False)[0].startswith(f"node node7 can't write to {tmp_path}: check the permissions")
    assert "paths that are not absolute" in there(inside=False)[1][0]
    elsewhere = look(str(tmp_path / "nowhere" / probe.name), "/no/such/folder")
    assert [elsewhere[key] == here[key] for key in ("versions", "code")] == [True, True]
    assert not elsewhere["seen"]
    assert not elsewhere["inside"]


@pytest.mark.slow
def test_a_sweep_on_ray_with_a_killed_worker_is_the_local_one(small, cluster, tmp_path, heard, capfd):
    how = {"steps": 24, "save_steps": 4, "attacks": ["quantize:bits=4"]}
    local = small("local", **how)
    state = sweep(local)
    grid = small("ray", **how, **RAY)
    with Killer(grid.output) as killer:
        on_ray = sweep(grid, reporter=heard)
    assert len(killer.killed) == 1
    told = [said for said in heard.said if "a worker died with all-seed" in said]
    assert len(told) == 1
    assert told[0].endswith("trying again")
    assert on_ray.groups == state.groups
    assert products(grid.output) == products(local.output)
    runs = Index(grid.output / "runs").all()
    assert sorted(run.path for run in runs) == ["all-seed0", "all-seed1"]
    assert all(run.own_tags == ("sweep:ray",) for run in runs)
    assert not list(grid.output.glob(".probe-*"))
    configs = [(folder / "runs" / "all-seed0" / "config.yaml").read_text() for folder in (local.output, grid.output)]
    assert configs[0].replace(str(local.output), "") == configs[1].replace(str(grid.output), "")
    assert "raylet" not in capfd.readouterr().out, "what Ray says of a lost worker is no result"


@pytest.mark.slow
def test_a_sweep_goes_on_on_another_backend(small, cluster, tmp_path):
    sweep(small("whole"))
    for first, then in (("local", "ray"), ("ray", "local")):
        begun = small(first, read={"backend": first})
        sweep(begun, part=parse_part("1/2"))
        before = (begun.output / "runs" / "all-seed0" / "result.json").read_bytes()
        state = sweep(small(first, read={"backend": then}), resume=True)
        assert len(state.cells("finished")) == 2
        assert (begun.output / "runs" / "all-seed0" / "result.json").read_bytes() == before
        assert products(begun.output) == products(tmp_path / "whole")
        assert len(Index(begun.output / "runs").all()) == 2


@pytest.mark.slow
def test_a_cell_that_fails_on_ray_is_told_as_a_local_one(small, cluster):
    changes = {"grid": {"trainable": ["no_such_layer"], "seed": [0]}}
    local = sweep(small("local", **changes))
    on_ray = sweep(small("ray", **changes, **RAY))
    assert "is found in no parameter's name" in on_ray.cells("failed")[0].reason
    assert on_ray.groups == local.groups


@pytest.mark.slow
def test_what_a_cluster_can_not_do_is_said_and_leaves_no_sweep(small, cluster, monkeypatch, heard):
    start = time.monotonic()
    for resources, wanted in (
        ({"cpus": 640}, "resources.cpus 640"),
        ({"gpus": 3}, "resources.cpus 1, resources.gpus 3"),
        ({"memory": "900TB"}, "resources.memory 900.00 TB"),
    ):
        grid = small("out", resources=resources, **RAY)
        with pytest.raises(UserError, match=rf"no node of the Ray cluster has what a cell needs \(.*{wanted}\)"):
            sweep(grid, reporter=heard)
    assert time.monotonic() - start < 30
    with pytest.raises(UserError, match=r"its nodes: .*cpus 2, gpus 0"):
        sweep(grid)

    def other(here, there):
        return compare(here | {"versions": here["versions"] | {"torch": "1.0.0"}}, there)

    monkeypatch.setattr("letgo.sweep.ray.compare", other)
    with pytest.raises(UserError, match=r"node .* has torch .*, and this machine 1\.0\.0"):
        sweep(small("out", **RAY))
    monkeypatch.undo()
    # The file that nodes look for is never made.
    monkeypatch.setattr(Path, "touch", lambda self: None)
    with pytest.raises(UserError, match="does not see the sweep's folder as this machine does"):
        sweep(small("out", **RAY))
    monkeypatch.undo()
    # Nothing was begun, so nothing is to be resumed.
    assert len(sweep(small("out", **RAY), part=parse_part("1/2")).cells("finished")) == 1


def node(cpus, gpus=0.0):
    return {
        "NodeID": "n",
        "NodeManagerHostname": "node7",
        "Alive": True,
        "Resources": {"CPU": cpus, "GPU": gpus, "memory": 8e9},
    }


def test_a_cell_takes_a_gpu_where_there_is_one_unless_it_says_otherwise(small, no_cluster, heard, monkeypatch):
    from letgo.sweep.ray import RayWorkers

    monkeypatch.setattr(RayWorkers, "_nodes", lambda self: [node(8.0), node(8.0, 4.0)])
    base = small("out").document["base"]

    def needs(use_cpu=False, **resources):
        changes = {"base": base | {"use_cpu": use_cpu}, "resources": resources}
        workers = RayWorkers(small("out", **changes, **RAY), heard)
        workers._choose_gpus()
        return workers._needs()

    assert needs() == {"CPU": 1, "GPU": 1}
    assert needs(use_cpu=True) == {"CPU": 1}
    assert needs(gpus=0) == {"CPU": 1}
    assert needs(gpus=0.5, cpus=4, memory="1GB") == {"CPU": 4, "GPU": 0.5, "memory": 10**9}


def test_a_cluster_that_grows_is_given_its_time_and_one_that_shrank_a_while(small, no_cluster, heard, monkeypatch):
    from letgo.sweep.ray import RayWorkers

    workers = RayWorkers(small("out", resources={"cpus": 4}, **RAY), heard)
    now, nodes = [1000.0], [node(2.0)]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(RayWorkers, "_nodes", lambda self: nodes)
    assert workers._check_fit(60.0) == []
    now[0] += 59.0
    assert workers._check_fit(60.0) == []
    nodes.append(node(4.0))
    assert len(workers._check_fit(60.0)) == 1
    nodes.pop()
    now[0] += 59.0
    assert workers._check_fit(60.0) == []
    now[0] += 1.0
    with pytest.raises(UserError, match=r"\(resources.cpus 4\)\n  its nodes: node7 \(cpus 2, gpus 0, memory 8.00 GB\)"):
        workers._check_fit(60.0)


@pytest.mark.slow
def test_variables_of_letgo_reach_the_cells(small, cluster, monkeypatch, heard):
    from letgo.sweep.ray import RayWorkers

    monkeypatch.setenv("LETGO_REFERENCES", "/shared/references")
    monkeypatch.setenv("UNRELATED", "1")
    workers = RayWorkers(small("out", **RAY), heard)
    ask = cluster.remote(os.getenv).options(runtime_env=workers.environment)
    assert cluster.get([ask.remote("LETGO_REFERENCES"), ask.remote("UNRELATED")]) == ["/shared/references", None]


@pytest.mark.slow
def test_a_node_that_joins_later_is_looked_at_by_its_first_cell(small, cluster, monkeypatch):
    from letgo.sweep.ray import RayWorkers

    monkeypatch.setattr(RayWorkers, "_check_nodes", lambda self: None)
    assert len(sweep(small("same", **RAY), part=parse_part("1/2")).cells("finished")) == 1

    def other(self):
        self.here = self.here | {"code": "0" * 16}

    monkeypatch.setattr(RayWorkers, "_check_nodes", other)
    grid = small("other", **RAY)
    with pytest.raises(UserError, match="other code of letgo"):
        sweep(grid)
    assert not list(grid.output.glob("runs/*"))


@pytest.mark.slow
def test_the_command_is_interrupted_and_goes_on_with_one_document_on_stdout(small, cluster, tmp_path, monkeypatch):
    """Interrupted in a process of its own, with a cluster of its own, of which nothing is left; resumed on another.
    The second cell may end before the signal is heard; the third, only that process could begin."""
    from typer.testing import CliRunner

    from letgo.cli import app

    small("out", steps=24, grid={"seed": [0, 1, 2]})
    temporary = Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp"))
    environment = os.environ | {"TMPDIR": str(temporary), "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1"}
    arguments = ["sweep", "out.yaml", "--backend", "ray", "--workers", "1", "--json"]
    command = [sys.executable, "-m", "letgo", *arguments]
    how = {"env": environment, "cwd": tmp_path, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        # Tests that a shell began in the background ignore the signal, and what they start inherits that.
        heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(command, start_new_session=True, preexec_fn=heeds, **how)
        limit = time.monotonic() + HANGS
        while not list(tmp_path.glob("out/runs/all-seed1/checkpoint-*")) and time.monotonic() < limit:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=HANGS)
        assert process.returncode == 130, err
        assert out == ""
        assert "Ray cluster of its own on this machine: 1 node" in err
        assert "interrupted; what was finished is kept" in err
        assert not _of(temporary)
        assert not [path.name for path in temporary.iterdir() if "ray" in path.name]
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    finished = (tmp_path / "out" / "runs" / "all-seed0" / "result.json").read_bytes()
    assert not (tmp_path / "out" / "runs" / "all-seed2" / "result.json").exists()
    monkeypatch.chdir(tmp_path)
    then = CliRunner().invoke(app, [*arguments, "--resume"], catch_exceptions=False)
    assert then.exit_code == 0
    cells = json.loads(then.stdout)["groups"][0]["cells"]
    assert [cell["status"] for cell in cells] == ["finished"] * 3
    assert (tmp_path / "out" / "runs" / "all-seed0" / "result.json").read_bytes() == finished


def _of(folder):
    """Command lines of processes that name a folder; Ray's are given a moment to end."""
    limit = time.monotonic() + 10
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
        if not found or time.monotonic() > limit:
            return found
        time.sleep(0.2)
