"""From a tuned sweep to a grid, and from run directories to a result file."""

from __future__ import annotations

import json

import pytest
import yaml

from letgo.core.errors import UserError
from letgo.evidence.collect import collect, passes
from letgo.evidence.settle import read_attacks, settle
from letgo.runs.sweeps import CellState, GroupState, Sweep, TrialState, write_sweep
from letgo.sweep import read_grid
from tests.report import runs

BASE = {"model": "biographies", "benchmark": "biographies", "objective": "npo_gdr", "max_steps": 4}
RATES = {"adamw": 2e-4, "zo_sgd": 1e-5, "sign_adam": 1e-4}


@pytest.fixture
def attacks(tmp_path):
    path = tmp_path / "attacks.yaml"
    path.write_text(
        yaml.safe_dump({"attacks": ["quantize:bits=4"], "held_back": ["quantize:bits=3"]}), encoding="utf-8"
    )
    return path


def config(optimizer, rate):
    return {**BASE, "optimizer": optimizer, "optimizer_args": {}, "learning_rate": rate}


def trial(folder, name, optimizer, rate, verdict, status="finished"):
    directory = folder / "runs" / name
    directory.mkdir(parents=True)
    runs.write(directory, runs.result(config=config(optimizer, rate), status=status, seed=100, attacks=[]))
    return TrialState(changes={"learning_rate": rate}, verdict=verdict, distance=0.1, run=f"runs/{name}")


@pytest.fixture
def tuned(tmp_path):
    folder = tmp_path / "tuned"
    groups = []
    for optimizer, reached in (("adamw", True), ("zo_sgd", False), ("sign_adam", True)):
        rate = RATES[optimizer]
        one = trial(folder, f"{optimizer}-a", optimizer, rate, "reached" if reached else "missed")
        groups.append(
            GroupState(
                name=optimizer,
                axes={"optimizer": optimizer},
                optimizer=optimizer,
                reached=reached,
                chosen={"learning_rate": rate},
                trials=[one],
                cells=[CellState(name=f"{optimizer}-seed100", seed=100, status="finished", run=one.run)],
            )
        )
    values = ["adamw", {"optimizer": "zo_sgd", "max_steps": 8}, "sign_adam"]
    document = {"base": BASE, "grid": {"optimizer": values, "seed": [100]}, "workers": 2}
    write_sweep(
        folder, Sweep(source="tune.yaml", fingerprint="x", document=document, target="t", bound="b", groups=groups)
    )
    return folder


def test_a_settled_grid_names_what_was_chosen_and_runs(tuned, attacks, tmp_path):
    output = tmp_path / "npo.yaml"
    missed = settle(tuned, attacks, seeds=[0, 1], output=output, first=["sign_adam"])
    assert missed == ["zo_sgd"]
    grid = read_grid(output)
    assert [group.optimizer for group in grid.groups] == ["sign_adam", "adamw"]
    assert [cell.settings["learning_rate"] for cell in grid.cells] == [1e-4, 1e-4, 2e-4, 2e-4]
    assert {cell.seed for cell in grid.cells} == {0, 1}
    assert grid.attacks == ("quantize:bits=4", "quantize:bits=3")


def test_tunings_seed_is_no_evidence(tuned, attacks, tmp_path):
    with pytest.raises(UserError, match="seed 100 was tuned on"):
        settle(tuned, attacks, seeds=[0, 100], output=tmp_path / "npo.yaml")


def test_unfinished_tuning_and_other_axes_are_refused(tuned, attacks, tmp_path):
    document = json.loads((tuned / "sweep.json").read_text())
    document["groups"][0]["reached"] = None
    (tuned / "sweep.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"not finished \(adamw\)"):
        settle(tuned, attacks, seeds=[0], output=tmp_path / "npo.yaml")
    document["groups"][0]["reached"] = True
    document["document"]["grid"]["max_steps"] = [4]
    (tuned / "sweep.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="axes optimizer and seed"):
        settle(tuned, attacks, seeds=[0], output=tmp_path / "npo.yaml")


def test_attacks_must_be_a_list(tmp_path):
    with pytest.raises(UserError, match="must be a YAML with 'attacks'"):
        read_attacks(tmp_path / "missing.yaml")


def test_tuning_is_kept_with_its_misses(tuned):
    record = collect(tuned)
    assert record.kind == "tuning"
    assert [group.name for group in record.groups] == ["AdamW", "ZO-SGD", "SignAdam"]
    missed = record.group("ZO-SGD")
    assert (missed.reached, missed.verdicts, missed.cells) == (False, ["missed"], [])
    assert missed.trials[0].learning_rate == 1e-5
    assert missed.trials[0].after["forget_accuracy"] == 0.5


@pytest.fixture
def ladder(tmp_path):
    folder = tmp_path / "ladder"
    cells = []
    held_back = runs.quantize(settings={"bits": 3}, kept=0.1, scores={"Q": 0.1})
    made = [
        runs.quantize(settings={"bits": 4}, kept=0.9, scores={"Q": 0.9}),
        held_back,
        runs.relearn(settings={"steps": 20}, kept=0.3, scores={"R": 0.6, "R_worst": 0.6}),
        runs.relearn(settings={"data": "benign"}, kept=0.2, scores={"R": 0.2, "R_worst": 0.2, "R_by_kept": 1.0}),
    ]
    for seed, status in ((0, "finished"), (1, "collapsed")):
        directory = folder / "runs" / f"adamw-{seed}"
        directory.mkdir(parents=True)
        found = runs.result(
            config=config("adamw", 2e-4), seed=seed, status=status, attacks=made if status == "finished" else []
        )
        runs.write(directory, found)
        cells.append(CellState(name=f"adamw-{seed}", seed=seed, status=status, run=f"runs/adamw-{seed}"))
    cells.append(CellState(name="adamw-2", seed=2, status="failed", reason="no memory"))
    cells.append(CellState(name="adamw-3", seed=3, status="pending"))
    groups = [GroupState(name="adamw", axes={}, optimizer="adamw", cells=cells)]
    write_sweep(folder, Sweep(source="npo.yaml", fingerprint="x", document={}, groups=groups))
    return folder


def test_a_ladder_is_collected_with_what_failed(ladder, attacks):
    record = collect(ladder, attacks=attacks)
    assert (record.kind, record.held_back) == ("ladder", ["quantize:bits=3"])
    [group] = record.groups
    assert [(cell.seed, cell.status) for cell in group.cells] == [(0, "finished"), (1, "collapsed"), (2, "failed")]
    cell = group.cells[0]
    # The held-back attack is no part of Q, and R is of those alone that the retrained model is the measure of.
    assert cell.robustness == pytest.approx({"R": 0.6, "Q": 0.9, "harmonic_mean": 0.72})
    assert cell.attacks["quantize:bits=3"].kept == 0.1
    assert cell.attacks["relearn:data=benign"].R is None
    assert group.values("harmonic_mean") == pytest.approx({0: 0.72, 1: 0.0, 2: 0.0})


def test_a_control_is_told_by_its_rate(ladder, attacks):
    record = collect(ladder, attacks=attacks, controls=["adamw@0.0002"])
    assert [group.name for group in record.groups] == ["AdamW at 0.0002"]
    assert [group.name for group in collect(ladder, attacks=attacks).groups] == ["AdamW"]


def test_nothing_run_is_said(tmp_path):
    cells = [CellState(name="a", seed=0, status="pending")]
    groups = [GroupState(name="a", axes={}, optimizer="adamw", cells=cells)]
    write_sweep(tmp_path, Sweep(source="npo.yaml", fingerprint="x", document={}, groups=groups))
    with pytest.raises(UserError, match="nothing of this sweep has been run"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("optimizer", "settings", "forward", "backward"),
    [
        ("adamw", {}, 48, 48),
        ("sam", {}, 96, 96),
        ("sam", {"on": "forget"}, 72, 72),
        ("zo_sgd", {}, 96, 0),
        ("fozo", {"fo_steps": 12, "zo_steps": 12}, 72, 24),
    ],
)
def test_passes_are_counted(optimizer, settings, forward, backward):
    assert passes(optimizer, settings, 48) == {"forward": forward, "backward": backward}


@pytest.mark.parametrize(("usual", "name"), [(4, "Muon"), (6, "Muon (steps=4)"), (None, "Muon")])
def test_a_group_with_other_steps_than_its_sweep_says_so(tmp_path, usual, name):
    folder = tmp_path / "swept"
    (folder / "runs" / "one").mkdir(parents=True)
    runs.write(folder / "runs" / "one", runs.result(config=config("muon", 1e-3), seed=0, attacks=[]))
    cell = CellState(name="muon-seed0", seed=0, status="finished", run="runs/one")
    group = GroupState(name="muon", axes={"optimizer": "muon"}, optimizer="muon", cells=[cell])
    document = {"base": {key: one for key, one in (BASE | {"max_steps": usual}).items() if one is not None}}
    write_sweep(folder, Sweep(source="grid.yaml", fingerprint="x", document=document, groups=[group]))
    [found] = collect(folder).groups
    assert (found.name, found.steps, found.name_for_as_many_steps) == (name, 4, "Muon")
    assert found.plain == (name == "Muon")
