"""Parts of a sweep, each in a process of its own, make what one sweep makes; what a cell needs is checked."""

from __future__ import annotations

import fcntl
import os
import time

import pytest

from letgo.core.errors import UserError
from letgo.core.locks import has_locks, holder, locked
from letgo.runs import Index
from letgo.runs.sweeps import read_sweep
from letgo.sweep.execute import sweep
from letgo.sweep.grid import parse_part
from letgo.sweep.local import Processes
from letgo.sweep.resources import Resources, device_slots
from tests.sweep.conftest import Killer, products


def test_every_cell_is_in_one_part_and_tuned_groups_stay_whole(small):
    grid = small("out", grid={"optimizer": ["adamw", "zo_sgd", "sophia"], "seed": [0, 1, 2]})
    parts = [parse_part(f"{number}/4").cells(grid) for number in range(1, 5)]
    assert sorted(name for part in parts for name in part) == sorted(cell.name for cell in grid.cells)
    assert sorted(len(part) for part in parts) == [2, 2, 2, 3]
    tuned = small(
        "tuned",
        grid={"optimizer": ["adamw", "zo_sgd", "sophia"], "seed": [0, 1, 2]},
        tune={"learning_rate": [1e-4], "target": "forget_probability <= 0.5"},
    )
    dealt = [{name.partition("-")[0] for name in parse_part(f"{number}/2").cells(tuned)} for number in (1, 2)]
    assert dealt == [{"adamw", "sophia"}, {"zo_sgd"}]
    assert parse_part("5/5").cells(tuned) == frozenset()


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_a_part_that_is_none_is_said(text):
    with pytest.raises(UserError, match="must be PART/PARTS, such as 3/8"):
        parse_part(text)


def test_parts_make_what_one_sweep_makes_and_the_last_one_the_index(tmp_path, small, heard):
    sweep(small("one"))
    grid = small("parts")
    state = sweep(grid, part=parse_part("2/2"), reporter=heard)
    assert [cell.name for cell in state.cells("finished")] == ["all-seed1"]
    assert [cell.name for cell in state.cells("pending")] == ["all-seed0"]
    with pytest.raises(UserError, match="go on with it by --resume"):
        sweep(grid, part=parse_part("1/2"))
    state = sweep(grid, part=parse_part("1/2"), resume=True)
    assert len(state.cells("finished")) == 2
    assert products(grid.output) == products(tmp_path / "one")
    assert Index(grid.output / "runs").all() == [], "two machines can't write one file of SQLite"
    assert sweep(grid, resume=True) == state == read_sweep(grid.output)
    recorded = Index(grid.output / "runs").all()
    assert {run.path for run in recorded} == {run.path for run in Index(tmp_path / "one" / "runs").all()}
    assert len(recorded) == 2
    assert all(run.own_tags == ("sweep:parts",) for run in recorded)


def test_a_sweep_and_a_part_of_it_do_not_run_at_once_but_two_parts_do(small):
    grid = small("out", steps=1)
    grid.output.mkdir()
    with locked(grid.output / ".sweep.lock", shared=True), pytest.raises(UserError, match="another sweep is at work"):
        sweep(grid)
    with locked(grid.output / ".sweep.lock"), pytest.raises(UserError, match="another sweep is at work"):
        sweep(grid, part=parse_part("1/2"))
    with locked(grid.output / ".sweep.lock", shared=True):
        assert len(sweep(grid, part=parse_part("1/2")).cells("finished")) == 1


def test_a_cell_that_another_process_is_at_work_on_is_waited_for(small, heard):
    """The other process ends without having done it, as one that is killed does."""
    grid = small("out", steps=1)
    claims = grid.output / ".claims"
    claims.mkdir(parents=True)
    with open(claims / "all-seed0", "a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("node7 123\n")
        other.flush()

        def say(text):
            heard.said.append(text)
            if "at work elsewhere" in text:
                fcntl.flock(other, fcntl.LOCK_UN)

        heard.say = say
        state = sweep(grid, part=parse_part("1/2"), reporter=heard)
    assert "  all-seed0 is at work elsewhere (node7 123): waiting for it" in heard.said
    assert [cell.name for cell in state.cells("finished")] == ["all-seed0"]


def test_a_lock_is_had_once_and_says_by_whom(tmp_path):
    path = tmp_path / "new" / "lock"
    with locked(path) as mine:
        assert mine
        assert holder(path).split()[1] == str(os.getpid())
        with locked(path) as again:
            assert not again
    with locked(path, shared=True) as one, locked(path, shared=True) as two, locked(path) as alone:
        assert (one, two, alone) == (True, True, False)
    assert holder(tmp_path / "none") == ""
    assert has_locks(tmp_path)
    assert [child.name for child in tmp_path.iterdir()] == ["new"]


def test_a_file_system_without_locks_is_told_and_not_mistaken_for_another_sweep(tmp_path, monkeypatch, small, heard):
    def refused(handle, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert not has_locks(tmp_path)
    state = sweep(small("out", steps=1), part=parse_part("1/2"), reporter=heard)
    assert len(state.cells("finished")) == 1
    assert any("has no locks" in said for said in heard.said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "rai"}, "backend 'rai': unknown; did you mean 'ray'"),
        ({"resources": {"cpu": 2}}, "resources: unknown key 'cpu'; did you mean 'cpus'"),
        ({"resources": {"cpus": 0}}, "resources.cpus must be a whole number from 1 to 100000, not 0"),
        ({"resources": {"gpus": 1.5}}, "resources.gpus must be a whole number, or a share from 0.01 to 1, not 1.5"),
        ({"resources": {"memory": "much"}}, "resources.memory must be a size such as 40GB or 512MiB, not 'much'"),
        ({"resources": 3}, "resources must be a mapping of cpus, gpus, memory, not 3"),
        ({"retries": -1}, "retries must be a whole number from 0 to 100000, not -1"),
        ({"ray": {"adress": "x"}}, "ray: unknown key 'adress'; did you mean 'address'"),
        ({"ray": {"wait": "long"}}, "ray.wait must be a number of at least 0"),
        ({"read": {"backend": "loca"}}, "--backend loca: unknown; did you mean 'local'"),
        ({"read": {"ray_address": "a:1"}}, "--ray-address a:1 is of no use to backend 'local'"),
    ],
)
def test_a_mistake_in_where_it_is_run_is_said(small, changes, message):
    with pytest.raises(UserError, match=message):
        small("out", **changes)


def test_where_it_is_run_decides_nothing(small):
    changes = {"workers": 3, "backend": "ray", "retries": 5, "resources": {"cpus": 2, "memory": "2GiB"}}
    elsewhere = small("there", **changes, ray={"address": "10.0.0.1:6379", "wait": 5})
    assert elsewhere.fingerprint == small("here").fingerprint
    assert elsewhere.resources == Resources(2, None, 2 * 2**30)
    assert (elsewhere.workers, elsewhere.backend, elsewhere.retries) == (3, "ray", 5)
    assert (elsewhere.ray.address, elsewhere.ray.wait) == ("10.0.0.1:6379", 5.0)


def test_cells_side_by_side_share_this_machines_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    assert device_slots(Resources(), 2) == [None, None]
    assert device_slots(Resources(gpus=1), 8) == ["2", "3", "5"]
    assert device_slots(Resources(gpus=2), 8) == ["2,3"]
    assert device_slots(Resources(gpus=0.5), 4) == ["2", "2", "3", "3"]
    assert device_slots(Resources(gpus=0), 2) == ["", ""]
    with pytest.raises(UserError, match=r"asks for 4 GPUs \(resources.gpus\), and this machine has 3"):
        device_slots(Resources(gpus=4), 1)
    with pytest.raises(UserError, match=r"1,000.00 TB of memory"):
        device_slots(Resources(memory=10**15), 1)


@pytest.mark.slow
def test_a_killed_worker_costs_its_own_cell_alone(small, heard):
    grid = small("out", steps=24, save_steps=4, workers=2, retries=0, resources={"cpus": 1})
    with Killer(grid.output) as killer:
        state = sweep(grid, reporter=heard)
    assert len(killer.killed) == 1
    (lost,) = state.cells("failed")
    assert lost.reason == "its process was lost once (killed by signal 9), perhaps for want of memory"
    assert len(state.cells("finished")) == 1
    assert sweep(grid, resume=True) == state, "not tried again unless asked"


@pytest.mark.slow
def test_workers_end_with_what_they_were_at(small, tmp_path):
    """As on Ctrl-C: the context is left while a cell runs."""
    from letgo.sweep.workers import CellTask

    grid = small("out", steps=10**6, save_steps=5)
    task = CellTask(grid.output / "runs" / "cell", {**grid.cells[0].settings}, (), ())
    with Processes([None], threads=1) as workers:
        assert workers.free() == 1
        workers.start(task)
        assert workers.free() == 0
        limit = time.monotonic() + 100
        while not list(task.directory.glob("checkpoint-*")) and time.monotonic() < limit:
            assert workers.ended(0.05) == []
        process = workers.workers[0].process
    assert process.exitcode == -9
    assert list(task.directory.glob("checkpoint-*"))
    with locked(task.claim) as free:
        assert free
