"""Sweeps end with the same table however often they are killed; failed cells are recorded, the rest goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from letgo.core.errors import UserError
from letgo.report.card import card_of
from letgo.runs import Index
from letgo.runs.results import read_result
from letgo.runs.sweeps import read_sweep
from letgo.sweep.cell import SCORES
from letgo.sweep.execute import sweep
from letgo.sweep.grid import read_grid
from letgo.sweep.table import TABLE_FILE, lines
from letgo.training.run_directory import BEGUN
from tests.warm import HANGS

TUNED = {
    "grid": {"optimizer": ["adamw", "zo_sgd"], "seed": [0, 1]},
    "attacks": ["quantize:bits=4"],
    "tune": {
        "learning_rate": {"adamw": [1e-4, 1e-2], "*": [1e-6]},
        "target": "forget_probability <= 0.9*before",
        "bound": "retain_probability >= 0.2*before",
    },
}


def test_a_sweep_tunes_runs_attacks_and_tells(small):
    grid = small("sweep", **TUNED)
    state = sweep(grid)
    assert state == read_sweep(grid.output)
    assert len(state.cells("finished")) == 4
    adamw, zo = state.groups
    assert [t.verdict for t in zo.trials] == ["missed"], "six steps of 1e-6 forget nothing"
    assert zo.reached is False
    assert [g.name for g in state.unreached()] == ["zo_sgd"]
    assert len(adamw.trials) == 2
    assert adamw.reached == (adamw.trials[1].verdict == "reached")
    rows = lines(state, grid.output)
    assert [[attack.label for attack in line.attacks] for line in rows] == [["quantize:bits=4"] * 2] * 2
    runs = Index(grid.output / "runs").all()
    assert len(runs) == 5, "two seeds each, and one trial that was not chosen"
    assert all(f"sweep:{grid.output.name}" in run.tags for run in runs)
    table = (grid.output / TABLE_FILE).read_text()
    assert table.count("\n") == 5
    [common] = (grid.output / SCORES).glob("*.jsonl")
    assert len(common.read_text().splitlines()) > 1, "the model before is measured once, by the first run of all"
    assert len(list((grid.output / SCORES).glob("attacked-*.json"))) == 1, "and attacked once"

    with pytest.raises(UserError, match="go on with it by --resume"):
        sweep(grid)
    times = {path: path.stat().st_mtime_ns for path in grid.output.glob("runs/*/result.json")}
    assert sweep(grid, resume=True) == state
    assert times == {path: path.stat().st_mtime_ns for path in grid.output.glob("runs/*/result.json")}
    with pytest.raises(UserError, match="a sweep of another grid"):
        sweep(small("sweep", **TUNED | {"attacks": []}), resume=True)


def test_a_failed_cell_is_recorded_and_the_rest_goes_on(small):
    grid = small("sweep", grid={"trainable": ["mlp", "no_such_layer"], "seed": [0]}, attacks=TUNED["attacks"])
    state = sweep(grid)
    (failed,) = state.cells("failed")
    assert failed.name.startswith("no_such_layer")
    assert "is found in no parameter's name" in failed.reason
    assert len(state.cells("finished")) == 1
    assert sweep(grid, resume=True) == state, "not tried again unless asked"
    assert sweep(grid, resume=True, retry_failed=True) == state


@pytest.mark.parametrize("damage", ["{", "directory", '{"schema": 99}'])
def test_a_damaged_cell_is_named_and_the_rest_goes_on(small, damage):
    grid = small("sweep")
    whole = sweep(grid)
    first, second = (cell.run for cell in whole.groups[0].cells)
    table = (grid.output / TABLE_FILE).read_text()
    path = grid.output / first / "result.json"
    path.unlink()
    path.mkdir() if damage == "directory" else path.write_text(damage)
    state = sweep(grid, resume=True)
    [failed], [finished] = state.cells("failed"), state.cells("finished")
    assert (failed.run, finished.run) == (None, second)
    assert f"{first}/result.json" in failed.reason
    assert len((grid.output / TABLE_FILE).read_text().splitlines()) == 3
    assert sweep(grid, resume=True, retry_failed=True) == whole
    assert (grid.output / TABLE_FILE).read_text() == table
    assert os.path.lexists(path.with_name("result.json.unreadable")), "nothing is thrown away"


def test_what_follows_a_record_is_finished_too(small):
    """Killed after the record of a run, or of an attack: its remains are there, its card is old."""
    grid = small("out", attacks=["quantize:bits=4"])
    sweep(grid)
    first, second = (grid.output / "runs" / f"all-seed{seed}" for seed in (0, 1))
    whole = {path: path.read_bytes() for run in (first, second) for path in run.iterdir() if path.is_file()}
    (first / "README.md").write_text("of before the attack")
    (second / BEGUN).write_text("{}")
    assert len(sweep(grid, resume=True).cells("finished")) == 2
    assert {path: path.read_bytes() for run in (first, second) for path in run.iterdir() if path.is_file()} == whole


def test_an_old_card_is_written_anew_without_the_model(small, monkeypatch):
    """Also of a run whose settings another letgo would no longer go on with."""
    grid = small("out", attacks=["quantize:bits=4"])
    sweep(grid)
    run = grid.output / "runs" / "all-seed0"
    (run / "README.md").write_text("of before the attack")
    (run / "config.yaml").unlink()
    monkeypatch.setattr("letgo.sweep.cell.unlearn", lambda *_, **__: pytest.fail("nothing is to be unlearned"))
    assert len(sweep(grid, resume=True).cells("finished")) == 2
    assert (run / "README.md").read_text() == card_of(run, read_result(run))


def test_a_folder_of_other_things_is_refused(small):
    grid = small("sweep")
    grid.output.mkdir()
    (grid.output / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty, and holds no sweep"):
        sweep(grid)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_table_of_an_unbroken_sweep(tmp_path, small):
    small("sweep", workers=2, **TUNED)
    path = tmp_path / "sweep.yaml"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(folder, *more):
        command = [sys.executable, "-m", "letgo", "sweep", path, "--output", folder, "--quiet", *more]
        return subprocess.Popen(
            [str(word) for word in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    sweep(read_grid(path, output=tmp_path / "unbroken", workers=1))
    kills, folder, draw = 0, tmp_path / "broken", random.Random(7)
    while True:
        process = start(folder, "--resume")
        seen = len(list(folder.glob("runs/*/*")))
        limit = time.monotonic() + 120
        # Killed soon after it has done something new, so that every kill falls into its work.
        while kills < 2 and process.poll() is None and time.monotonic() < limit:
            if len(list(folder.glob("runs/*/*"))) > seen:
                time.sleep(draw.uniform(0, 1.5))
                break
            time.sleep(0.05)
        if kills == 2 or process.poll() is not None:
            out, err = process.communicate(timeout=HANGS)
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    assert process.returncode == 0, err
    assert kills == 2
    assert (folder / TABLE_FILE).read_text() == (tmp_path / "unbroken" / TABLE_FILE).read_text()
    assert "quantize:bits" in out
    assert "adamw" in out
