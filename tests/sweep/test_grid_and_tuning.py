"""Grids are checked before anything runs, and tuned to matched forgetting."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from letgo.core.errors import UserError
from letgo.runs.sweeps import TrialState
from letgo.sweep.grid import read_grid
from letgo.sweep.tuning import choose, judge, read_tune
from tests.report import runs as made

BASE = {"model": "biographies", "benchmark": "biographies", "max_steps": 4}


def write(tmp_path, **document):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "out"), "base": BASE, **document}))
    return path


def test_every_combination_is_a_cell_and_seeds_make_a_group(tmp_path):
    path = write(
        tmp_path,
        grid={
            "objective": ["npo_gdr:beta=0.2", "graddiff"],
            "optimizer": ["adamw", {"optimizer": "ada_zo", "max_steps": 9}],
            "optimizer_args.weight_decay": [0.0],
            "seed": [0, 1, 2],
        },
    )
    grid = read_grid(path)
    assert len(grid.cells) == 12
    assert [len(group.cells) for group in grid.groups] == [3] * 4
    assert [group.optimizer for group in grid.groups] == ["adamw", "ada_zo"] * 2
    assert len({cell.name for cell in grid.cells}) == 12
    assert grid.groups[1].cells[2].settings == BASE | {
        "objective": "npo_gdr:beta=0.2",
        "optimizer": "ada_zo",
        "max_steps": 9,
        "optimizer_args": {"weight_decay": 0.0},
        "seed": 2,
    }


def test_the_fingerprint_is_of_what_decides(tmp_path):
    one = read_grid(write(tmp_path, grid={"seed": [0]}))
    assert read_grid(write(tmp_path, grid={"seed": [0]}, workers=2)).fingerprint == one.fingerprint
    assert read_grid(write(tmp_path, grid={"seed": [1]})).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "'grid' names no axis"),
        ({"grid": {"seed": 3}}, "grid.seed must be a list"),
        ({"grid": {"seed": [0]}, "attack": []}, "unknown key 'attack'; did you mean 'attacks'"),
        ({"grid": {"optimiser": ["adamw"]}}, "unknown key 'optimiser'; did you mean"),
        ({"grid": {"optimizer": ["adamv"]}}, "cell adamv-seed42.*unknown optimizer 'adamv'; did you mean"),
        ({"grid": {"optimizer": ["fozo:zo_rl=1"]}}, "no setting 'zo_rl'; did you mean 'zo_lr'"),
        ({"grid": {"objective": ["npo:bta=1"]}}, "no setting 'bta'"),
        ({"grid": {"seed": [0]}, "attacks": ["quantise"]}, "unknown attack 'quantise'"),
        ({"grid": {"seed": [0, 0]}}, "two cells are the same"),
        ({"grid": {"seed": [0]}, "workers": 0}, "workers must be a whole number"),
        ({"grid": {"seed": [0]}, "base": {**BASE, "output_dir": "x"}}, "base.output_dir belongs beside"),
        ({"grid": {"seed": [0]}, "tune": {"learning_rate": [1.0]}}, "no 'target'"),
        ({"grid": {"seed": [0]}, "tune": {"target": "forget_accuracy<=0.3"}}, "names nothing to tune"),
        (
            {"grid": {"seed": [0]}, "tune": {"target": "forget_accuracy<=0.3", "learning_rate": {"low": 1, "high": 2}}},
            "needs 'trials'",
        ),
        (
            {"grid": {"seed": [0]}, "tune": {"target": "survived(relearn)", "learning_rate": [1]}},
            "must compare a metric",
        ),
    ],
)
def test_a_mistake_in_a_grid_is_said_before_anything_runs(tmp_path, document, message):
    with pytest.raises(UserError, match=message):
        read_grid(write(tmp_path, **document))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("memory", "size"), [("80G", 80 * 10**9), ("512 MiB", 2**29), (4 * 10**10, 4 * 10**10)])
def test_memory_is_read_as_letgo_plan_reads_it(tmp_path, memory, size):
    grid = read_grid(write(tmp_path, grid={"seed": [0]}, resources={"memory": memory}))
    assert grid.resources.memory == size


def test_a_grid_takes_whatever_a_run_takes(tmp_path):
    """Methods that change the weights in one shot too, and every setting is tried as the run would try it."""
    grid = read_grid(write(tmp_path, grid={"objective": ["npo_gdr", "task_vector:alpha=0.5", "tv"]}))
    assert [cell.settings["objective"] for cell in grid.cells] == ["npo_gdr", "task_vector:alpha=0.5", "tv"]
    with pytest.raises(UserError, match=r"cell task_vector_alpa_1.*no setting 'alpa'; did you mean 'alpha'"):
        read_grid(write(tmp_path, grid={"objective": ["task_vector:alpa=1"]}))
    with pytest.raises(UserError, match="unknown retain weight schedule 'linaer'"):
        read_grid(write(tmp_path, grid={"retain_weight_schedule": ["linaer"]}))


def test_runs_of_a_grid_may_stop_at_equal_depth(tmp_path):
    from letgo.sweep.cost import cost

    path = Path(__file__).parents[2] / "recipes" / "sweeps" / "equal-depth.yaml"
    grid = read_grid(path)
    assert {cell.settings["stop"] for cell in grid.cells} == {"target"}
    assert len(grid.groups) == len(grid.cells) == 4
    assert {cell.settings["evaluate_every"] for cell in grid.cells} == {6}
    assert all(row["seconds"] > 0 for row in cost(grid))
    with pytest.raises(UserError, match=r"stop: target goes by looks at the model: give evaluate_every"):
        read_grid(write(tmp_path, grid={"stop": ["target"]}))


TUNE = read_tune(
    {
        "learning_rate": {"*": [3e-4, 1e-4, 1e-3], "ada_zo": [1e-5]},
        "target": "forget_accuracy <= 0.4",
        "bound": "retain_accuracy >= 0.9*before",
    },
    "grid",
)


def trial(rate, accuracy, retain=0.95, **changes):
    result = made.result(before=made.BEFORE, after=made.metrics(accuracy, 0.1, retain, 14.0), **changes)
    return judge(TUNE, {"learning_rate": rate}, f"run-{rate}", result)


def test_candidates_come_in_ascending_order_and_by_optimizer():
    done = []
    for expected in (1e-4, 3e-4, 1e-3):
        assert TUNE.next("adamw", done) == {"learning_rate": expected}
        done.append(trial(expected, 0.5))
    assert TUNE.next("adamw", done) is None
    assert TUNE.next("ada_zo", []) == {"learning_rate": 1e-5}


def test_larger_rates_than_one_that_collapsed_are_passed_over():
    broken = trial(1e-4, 0.0, status="collapsed")
    assert broken.verdict == "collapsed"
    assert TUNE.next("adamw", [broken]) is None


def test_the_nearest_to_the_target_of_those_that_reached_it_is_taken():
    trials = [trial(1e-4, 0.5), trial(3e-4, 0.38), trial(1e-3, 0.05), trial(2e-3, 0.39, retain=0.5)]
    assert [one.verdict for one in trials] == ["missed", "reached", "reached", "missed"]
    assert choose(trials).changes == {"learning_rate": 3e-4}, "0.05 forgets more than was asked of the others"


def test_where_none_reached_it_the_nearest_that_keeps_the_bound_is_taken():
    trials = [trial(1e-4, 0.9), trial(3e-4, 0.6), trial(1e-3, 0.1, retain=0.3), trial(2e-3, 0.0, status="collapsed")]
    chosen = choose(trials)
    assert (chosen.changes, chosen.verdict) == ({"learning_rate": 3e-4}, "missed")
    with pytest.raises(UserError, match="no candidate"):
        choose([])


def test_a_range_is_drawn_from_by_optuna_and_drawn_again_the_same():
    pytest.importorskip("optuna")
    tune = read_tune(
        {
            "learning_rate": {"low": 1e-5, "high": 1e-3},
            "retain_weight": [1.0, 2.0],
            "target": "forget_accuracy<=0.4",
            "trials": 4,
        },
        "grid",
    )

    def draw():
        done = []
        while (candidate := tune.next("adamw", done)) is not None:
            distance = abs(candidate["learning_rate"] - 1e-4)
            done.append(TrialState(changes=candidate, verdict="missed", distance=distance, run="run"))
        return [one.changes for one in done]

    drawn = draw()
    assert len(drawn) == 4
    assert drawn == draw()
    assert all(1e-5 <= one["learning_rate"] <= 1e-3 and one["retain_weight"] in (1.0, 2.0) for one in drawn)
    assert len({one["learning_rate"] for one in drawn}) == 4


def test_a_dry_run_lists_every_cell_with_its_cost(tmp_path, capsys):
    from letgo.cli.sweeping import _list_cells

    tune = {"learning_rate": [1e-4, 1e-3], "target": "forget_accuracy <= 0.4"}
    grid = read_grid(write(tmp_path, grid={"optimizer": ["adamw", "zo_sgd"], "seed": [0, 1]}, tune=tune, workers=2))
    _list_cells(grid, {cell.name for cell in grid.cells}, as_json=False)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 5
    assert told[0].split()[:3] == ["adamw-seed0", "2", "runs"]
    assert "4 cells, 6 runs, 2 at a time" in told[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"grid": {f"optimizer_args.a{n}": list(range(100)) for n in range(5)}},
            "'grid' has 10,000,000,000 comb",
        ),
        ({"grid": {"model.x": [1]}}, "model.x: model is 'biographies', which has no settings inside"),
        ({"attacks": [3]}, "'attacks' must be a list of texts; 3 is none"),
        ({"attacks": ["quantize:bits=99"]}, "attacks: attack 'quantize': bits must be a whole number from 2 to 8"),
        ({"output_dir": [1]}, r"output_dir must be text, not \[1\]"),
        ({"workers": 10**30}, "workers must be a whole number from 1 to 100000"),
        ({"resources": {"gpus": 1e-300}}, "resources.gpus must be a whole number, or a share from 0.01 to 1"),
        ({"grid": {"objective_args.beta": ["abc"]}}, "beta must be a number above 0, not 'abc'"),
        (
            {"tune": {"target": "forget_accuracy<=0.3", "learning_rate": [1e-4, -1]}},
            "rate must be a number of at",
        ),
        (
            {"tune": {"target": "forget_accuracy<=0.3", "learning_rate": [1e-4], "seed": "x"}},
            "tune.seed must be a",
        ),
        ({"tune": {"target": "forget_accuracy<=", "learning_rate": [1e-4]}}, "tune: "),
        ({"tune": {"target": "forget_accuracy<=0.3", "sampler": "tpe"}}, "tune.sampler must be a list of values"),
    ],
)
def test_a_grid_that_means_nothing_is_refused_with_its_place(tmp_path, changes, message):
    document = {
        "output_dir": "out",
        "base": {"model": "biographies", "benchmark": "biographies", "max_steps": 4},
        "grid": {"seed": [0]},
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(document | changes))
    with pytest.raises(UserError, match=message) as refused:
        read_grid(path)
    assert "grid.yaml" in str(refused.value)
