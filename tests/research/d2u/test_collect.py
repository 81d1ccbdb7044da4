"""From run directories to a result file, and from a finished tuning to the runs of an experiment."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from letgo import UserError
from letgo.runs.sweeps import CellState, GroupState, Sweep, TrialState, write_sweep
from research.d2u import collect as module
from research.d2u.collect import collect, freeze, passes
from research.d2u.experiments import Experiment, read_testbed
from tests.report import runs

BASE = {"model": "biographies", "benchmark": "biographies", "objective": "npo_gdr", "max_steps": 4}
BED = dataclasses.replace(
    read_testbed("biographies"), base=BASE, attacks=["quantize:bits=4"], held_back=["quantize:bits=3"], seeds=(0, 1)
)
RATES = {"AdamW": 2e-4, "ZO-SGD": 1e-5, "SignAdam": 1e-4}
NAMES = {"AdamW": "adamw", "ZO-SGD": "zo_sgd", "SignAdam": "sign_adam"}
TUNED = [{"name": name, "optimizer": NAMES[name], "learning_rate": [rate]} for name, rate in RATES.items()]
RUN = {"name": "AdamW", "optimizer": "adamw", "learning_rate": 2e-4, "seeds": [0, 1, 2, 3]}


@pytest.fixture(autouse=True)
def working_folder(monkeypatch, tmp_path):
    """Sweeps lie below the working folder, experiments' files in one of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "HERE", tmp_path)
    (tmp_path / "biographies").mkdir()
    (tmp_path / "biographies" / "npo.yaml").write_text("base: {objective: npo_gdr}\n")


def experiment(*entries, tuning=()):
    return Experiment(BED, "npo", {}, entries, [{"candidates": list(tuning)}] if tuning else [])


def write_run(sweep, name, optimizer, rate, **changes):
    directory = sweep.folder / "runs" / name
    directory.mkdir(parents=True)
    config = {**BASE, "optimizer": optimizer, "optimizer_args": {}, "learning_rate": rate}
    config["max_steps"] = changes.pop("max_steps", 4)
    runs.write(directory, runs.result(config=config, **changes))
    return f"runs/{name}"


def write_state(sweep, groups):
    sweep.folder.mkdir(parents=True, exist_ok=True)
    goals = {"target": "t", "bound": "b"}
    write_sweep(sweep.folder, Sweep(source="grid.yaml", fingerprint="x", document={}, groups=groups, **goals))


def tune(tuned, **reached):
    """Write the tuning of an experiment: which names reached the target (None: not finished)."""
    for sweep in tuned.tuning_sweeps():
        groups = []
        for entry in sweep.entries:
            name, rate = entry["name"], entry["learning_rate"][0]
            run = write_run(sweep, name, entry["optimizer"], rate, seed=100, status="finished", attacks=[])
            verdict = "reached" if reached.get(name) else "missed"
            trial = TrialState(changes={"learning_rate": rate}, verdict=verdict, distance=0.1, run=run)
            cell = CellState(name=name, seed=100, status="finished", run=run)
            about = {"name": name, "axes": {}, "optimizer": entry["optimizer"], "chosen": {"learning_rate": rate}}
            groups.append(GroupState(**about, reached=reached.get(name), trials=[trial], cells=[cell]))
        write_state(sweep, groups)


def test_freezing_appends_what_was_chosen(tmp_path):
    tuned = experiment(tuning=TUNED)
    tune(tuned, **{"AdamW": True, "ZO-SGD": False, "SignAdam": True})
    assert freeze(tuned) == ["ZO-SGD"]
    document = yaml.safe_load((tmp_path / "biographies" / "npo.yaml").read_text())
    assert [(entry["name"], entry["learning_rate"], entry["seeds"]) for entry in document["runs"]] == [
        ("AdamW", 2e-4, [0, 1]),
        ("SignAdam", 1e-4, [0, 1]),
    ]


def test_freezing_refuses_what_is_no_evidence():
    tuned = experiment(tuning=TUNED)
    with pytest.raises(UserError, match="nothing was run"):
        freeze(tuned)
    tune(tuned, **{"AdamW": None, "ZO-SGD": False, "SignAdam": True})
    with pytest.raises(UserError, match=r"not finished \(AdamW\)"):
        freeze(tuned)
    with pytest.raises(UserError, match="names its runs already"):
        freeze(experiment(RUN, tuning=TUNED))
    same_seed = dataclasses.replace(tuned, testbed=dataclasses.replace(BED, seeds=(0, 100)))
    with pytest.raises(UserError, match="seed 100 was tuned on"):
        freeze(same_seed)


def test_freezing_where_nothing_reached_the_target_is_refused():
    tuned = experiment(tuning=TUNED)
    tune(tuned, **dict.fromkeys(RATES, False))
    with pytest.raises(UserError, match="no candidate of biographies/npo reached the target"):
        freeze(tuned)


def test_tuning_is_kept_with_its_misses():
    tuned = experiment(tuning=TUNED)
    tune(tuned, **{"AdamW": True, "ZO-SGD": False, "SignAdam": True})
    record = collect(tuned)
    assert [tuning.name for tuning in record.tuning] == ["AdamW", "ZO-SGD", "SignAdam"]
    assert record.settings == []
    missed = record.tuning[1]
    assert (missed.reached, record.missed("ZO-SGD")) == (False, True)
    [trial] = missed.trials
    assert (trial.verdict, trial.learning_rate, trial.chosen) == ("missed", 1e-5, False)
    assert trial.after["forget_accuracy"] == 0.5
    assert record.tuning[0].trials[0].chosen


@pytest.fixture
def attacked():
    attacked = experiment(RUN)
    [sweep] = attacked.run_sweeps()
    made = [
        runs.quantize(settings={"bits": 4}, kept=0.9, scores={"Q": 0.9}),
        runs.quantize(settings={"bits": 3}, kept=0.1, scores={"Q": 0.1}),
        runs.relearn(settings={"steps": 20}, kept=0.3, scores={"R": 0.6, "R_worst": 0.6}),
        runs.relearn(settings={"data": "benign"}, kept=0.2, scores={"R": 0.2, "R_worst": 0.2, "R_by_kept": 1.0}),
    ]
    cells = []
    for seed, status in ((0, "finished"), (1, "collapsed")):
        attacks = made if status == "finished" else []
        run = write_run(sweep, f"adamw-{seed}", "adamw", 2e-4, seed=seed, status=status, attacks=attacks)
        cells.append(CellState(name=f"adamw-{seed}", seed=seed, status=status, run=run))
    cells.append(CellState(name="adamw-2", seed=2, status="failed", reason="no memory"))
    cells.append(CellState(name="adamw-3", seed=3, status="pending"))
    write_state(sweep, [GroupState(name="adamw", axes={}, optimizer="adamw", cells=cells)])
    return attacked


def test_runs_are_collected_with_what_failed(attacked):
    record = collect(attacked)
    assert record.held_back == ["quantize:bits=3"]
    [setting] = record.settings
    assert [(run.seed, run.status) for run in setting.runs] == [(0, "finished"), (1, "collapsed"), (2, "failed")]
    assert setting.runs[2].reason == "no memory"
    run = setting.runs[0]
    # The held-back attack is no part of Q, and R is that of the attacks that were made on the retrained model too.
    assert run.robustness == pytest.approx({"R": 0.6, "Q": 0.9, "harmonic_mean": 0.72})
    assert run.attacks["quantize:bits=3"].kept == 0.1
    assert run.attacks["relearn:data=benign"].R is None
    assert setting.values("harmonic_mean") == pytest.approx({0: 0.72, 1: 0.0, 2: 0.0})
    assert (setting.label, setting.steps, setting.passes) == ("AdamW", 4, {"forward": 4.0, "backward": 4.0})


@pytest.mark.parametrize("role", ["control", "superseded"])
def test_another_rate_of_a_name_says_its_rate(attacked, role):
    [setting] = collect(dataclasses.replace(attacked, runs=[{**RUN, role: True}])).settings
    assert (setting.label, setting.is_grade) == ("AdamW at 0.0002", role == "superseded")


def test_steps_and_passes_are_those_that_were_run():
    entry = {"name": "Muon (steps=6)", "optimizer": "muon", "learning_rate": 1e-3, "max_steps": 6, "seeds": [0]}
    [sweep] = experiment(entry).run_sweeps()
    run = write_run(sweep, "one", "muon", 1e-3, seed=0, attacks=[], max_steps=6)
    cell = CellState(name="muon", seed=0, status="finished", run=run)
    write_state(sweep, [GroupState(name="muon", axes={}, optimizer="muon", cells=[cell])])
    [setting] = collect(experiment(entry)).settings
    assert (setting.steps, setting.passes["backward"], setting.is_grade) == (6, 6.0, False)


def test_nothing_run_is_refused():
    with pytest.raises(UserError, match="nothing of biographies/npo has been run yet"):
        collect(experiment(RUN, tuning=TUNED))


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
