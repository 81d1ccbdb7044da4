"""What the repository keeps: grids that can be run, attacks that claims name, and a page of these files."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from collections import Counter

import pytest
import yaml

import letgo
from letgo import UserError, plan_attack, read_config, read_grid
from letgo.training.run_plan import optimizer_settings
from research.d2u import run
from research.d2u.__main__ import app
from research.d2u.collect import result_file
from research.d2u.experiments import HERE, TESTBEDS, experiments, read_experiment, read_testbed
from research.d2u.page import write_page
from research.d2u.records import read_record

ROOT = HERE.parents[1]
WITH_RUNS = [name for name in experiments() if read_experiment(name).runs]


@pytest.mark.parametrize("name", experiments())
def test_grids_can_be_run(name, tmp_path):
    experiment = read_experiment(name)
    bed = experiment.testbed
    for sweep in [*experiment.run_sweeps(), *experiment.tuning_sweeps()]:
        path = tmp_path / f"{sweep.name}.yaml"
        path.write_text(yaml.safe_dump(sweep.document))
        grid = read_grid(path)
        tuning = sweep.name.startswith("tuning-")
        assert (grid.tune is not None) == tuning
        assert ({cell.seed for cell in grid.cells} == {100}) == tuning, "tuning and evidence share no seed"
        assert list(grid.attacks) == ([] if tuning else [*bed.attacks, *bed.held_back]), "all are attacked alike"
        assert len(grid.groups) == len(sweep.entries), "groups stand in the order of the entries"


def test_a_name_with_several_lists_of_rates_is_tuned_in_several_sweeps():
    experiment = read_experiment("biographies/graddiff")
    candidates = [entry for block in experiment.tuning for entry in block["candidates"]]
    swept = [entry for sweep in experiment.tuning_sweeps() for entry in sweep.entries]
    assert Counter(map(str, swept)) == Counter(map(str, candidates))
    for sweep in experiment.tuning_sweeps():
        rates = sweep.document["tune"]["learning_rate"]
        assert all(rates[entry["optimizer"].partition(":")[0]] == entry["learning_rate"] for entry in sweep.entries)


@pytest.mark.parametrize("name", TESTBEDS)
def test_claims_name_attacks_of_the_testbed(name):
    bed = read_testbed(name)
    labels = [plan_attack(spec).label for spec in bed.attacks]
    held_back = [plan_attack(spec).label for spec in bed.held_back]
    assert {bed.half, bed.everything} <= set(labels)
    assert held_back
    assert not set(held_back) & set(labels)


def test_the_testbeds_models_are_made_by_configs_that_can_be_read(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    commands = []
    monkeypatch.setattr(run, "call_letgo", lambda *words: commands.append(words))
    for name in ("tofu/npo", "tofu-forget10/npo"):
        run.make_models(read_experiment(name))
        base = read_experiment(name).settings
        made = [read_config(tmp_path / words[1]) for words in commands if words[0] == "unlearn"]
        assert [config.objective for config in made] == ["ft", "ft"]
        retrained = made[1].output_dir
        assert base["model"] == made[0].output_dir
        assert base["benchmark"].endswith(f"retain={retrained}-scores,retrained={retrained}")
        assert commands[-1][:2] == ("eval", retrained)
        assert commands[-1][-1] == f"{retrained}-scores"
        commands.clear()


@pytest.mark.parametrize("name", WITH_RUNS)
def test_a_result_file_holds_the_runs_that_the_experiment_names(name):
    experiment, record = read_experiment(name), read_record(result_file(name))
    assert record.name == name
    named = [(entry["name"], entry["optimizer"], entry["learning_rate"], entry["seeds"]) for entry in experiment.runs]
    held = [(s.name, s.optimizer, s.learning_rate, [run.seed for run in s.runs]) for s in record.settings]
    assert held == named
    candidates = {
        (entry["name"], entry["optimizer"], float(rate))
        for block in experiment.tuning
        for entry in block["candidates"]
        for rate in entry["learning_rate"]
    }
    tried = {(t.name, t.optimizer, trial.learning_rate) for t in record.tuning for trial in t.trials}
    assert tried <= candidates
    assert record.held_back == [plan_attack(spec).label for spec in experiment.testbed.held_back]


def test_the_page_is_what_the_result_files_say(tmp_path):
    write_page(HERE / "results", tmp_path / "evidence.md")
    text = (tmp_path / "evidence.md").read_text(encoding="utf-8")
    assert text == (HERE / "evidence.md").read_text(encoding="utf-8"), "make the page again"
    drawings = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "evidence").iterdir()}
    assert drawings == {path.name: path.read_text(encoding="utf-8") for path in (HERE / "evidence").iterdir()}
    assert sum(path.stat().st_size for path in (HERE / "results").iterdir()) < 2_000_000


def test_the_results_say_what_made_each_run():
    for name in WITH_RUNS:
        record = read_record(result_file(name))
        runs = [run for setting in record.settings for run in [*setting.runs, *setting.repeats]]
        runs += [trial for tuning in record.tuning for trial in tuning.trials]
        made = [run for run in runs if run.status != "failed"]
        assert all(run.run_id and run.git for run in made)
        assert len({run.run_id for run in made}) == len(made)


def test_a_run_makes_models_tunes_attacks_and_collects(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    commands, written = [], []
    monkeypatch.setattr(run, "call_letgo", lambda *words: commands.append(words))
    monkeypatch.setattr(run, "collect", lambda experiment: experiment.name)
    monkeypatch.setattr(run, "write_record", lambda path, record: written.append((path.name, record)))
    run.run("tofu/npo")
    grids = [words[1] for words in commands if words[0] == "sweep"]
    experiment = read_experiment("tofu/npo")
    sweeps = [*experiment.tuning_sweeps(), *experiment.run_sweeps()]
    assert grids == [str(sweep.path) for sweep in sweeps]
    assert all(yaml.safe_load((tmp_path / sweep.path).read_text()) == sweep.document for sweep in sweeps)
    assert written == [("tofu-npo.json", "tofu/npo")]


def test_the_analyses_look_at_the_grades_on_seed_0(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"nothing of biographies/npo has been run yet"):
        run.analyse(tmp_path)
    commands = []
    monkeypatch.setattr(run, "call_letgo", lambda *words: commands.append(words))
    for sweep in read_experiment("biographies/npo").run_sweeps():
        groups = [
            {"name": str(index), "axes": {}, "optimizer": "adamw", "cells": [
                {"name": str(index), "seed": 0, "status": "finished", "run": f"runs/{entry['name']}"}]}
            for index, entry in enumerate(sweep.entries)
        ]  # fmt: skip
        sweep.folder.mkdir(parents=True)
        document = {"schema": 1, "source": "grid.yaml", "fingerprint": "x", "document": {}, "groups": groups}
        (sweep.folder / "sweep.json").write_text(json.dumps(document))
    run.analyse(tmp_path)
    connectivity, *certificates = commands
    models = [word.rpartition("/")[2] for word in connectivity[2:] if "/runs/" in word]
    assert sorted(models) == sorted(run.ANALYSED)
    assert [words[2].rpartition("/")[2] for words in certificates] == models


def test_an_experiment_that_is_not_there_is_refused():
    for name in ("biographies/ga", "nowhere/npo", "../d2u/npo"):
        with pytest.raises(UserError, match=f"no experiment '{name}'; there are biographies/npo"):
            read_experiment(name)


@pytest.mark.parametrize(
    ("names", "commands"), [(["tofu/npo"], ["run tofu/npo", "page"]), ([], ["run", "analyse", "page"])]
)
def test_the_script_calls_commands_that_there_are(names, commands):
    environment = {**os.environ, "PYTHON": "echo"}
    done = subprocess.run(["sh", HERE / "run.sh", *names], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == [*(f"-m research.d2u {command}" for command in commands), ""]
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {command.split()[0] for command in commands} <= known


def test_the_laboratory_uses_public_names_and_the_library_knows_nothing_of_it():
    for path in HERE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("letgo"):
                assert node.module == "letgo", f"{path.name}: from {node.module}"
                assert {name.name for name in node.names} <= set(letgo.__all__)
            if isinstance(node, ast.Import):
                assert not any(name.name.startswith("letgo") for name in node.names), path.name
    for path in (ROOT / "src" / "letgo").rglob("*.py"):
        assert not re.search(r"research[./]d2u|letgo\.evidence", path.read_text(encoding="utf-8")), path


def test_the_recommended_recipe_is_the_idea_that_was_run():
    config = read_config(ROOT / "recipes" / "recommended" / "muon-hybrid-capitals.yaml")
    [entry] = [entry for entry in read_experiment("capitals/npo").runs if entry["name"] == "FOZO (fo=muon)"]
    setting = read_record(result_file("capitals/npo")).setting("FOZO (fo=muon)")
    assert (config.learning_rate, config.max_steps) == (setting.learning_rate, setting.steps)
    assert f"{config.optimizer}:" == entry["optimizer"][:5]
    settings = dict(pair.split("=") for pair in entry["optimizer"].partition(":")[2].split(","))
    held = optimizer_settings(config)
    assert {key: type(held[key])(value) for key, value in settings.items()}.items() <= held.items()
    for attack in config.attacks:
        plan_attack(attack)
