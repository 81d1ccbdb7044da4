"""One attack, asked of every place that shows it: each gives the record's figures."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from rich.console import Console

import letgo as library
from letgo.report.attacks import print_attacks
from letgo.report.card import CARD_FILE
from letgo.report.numbers import percent
from letgo.report.terminal import print_result
from letgo.runs.results import read_result
from letgo.runs.sweeps import CellState, GroupState, Sweep
from letgo.sweep.table import as_csv

ATTACK = "relearn:steps=10,learning_rate=5e-4,batch_size=16,holdout=0.5,seeds=2"
RUN = {
    "model": "biographies",
    "benchmark": "biographies",
    "objective": "npo_gdr",
    "objective_args": {"beta": 0.1},
    "optimizer": "adamw",
    "learning_rate": 7e-4,
    "per_device_train_batch_size": 16,
    "max_steps": 12,
    "save_strategy": "no",
    "eval_limit": 60,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run in a folder of runs, attacked by the library's call alone."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LETGO_RUNS", str(folder))
        library.unlearn(**RUN, output_dir=str(folder / "run"))
        library.attack(folder / "run", [ATTACK])
    return folder


@pytest.fixture(scope="module")
def attack(folder):
    """The record of the attack: one that leaves something between nothing and all, or this would show little."""
    [attack] = read_result(folder / "run").attacks
    assert 0.02 < attack.kept < 0.98
    assert attack.label == "relearn:steps=10,learning_rate=0.0005,batch_size=16,holdout=0.5"
    return attack


def shown_by(folder, letgo):
    """What each place says of the run: its text, by the place's name."""
    console = Console(file=io.StringIO(), width=200)
    print_result(read_result(folder / "run"), console)
    print_attacks(read_result(folder / "run"), {a.label for a in read_result(folder / "run").attacks}, console)
    code, _, err = letgo("report", folder / "run", "--output", folder / "report.html")
    assert code == 0, err
    code, _, err = letgo("brief", folder / "run", "--output", folder / "brief.md")
    assert code == 0, err
    code, listed, err = letgo("runs", "list", "--root", folder)
    assert code == 0, err
    page = re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text())
    texts = {
        "terminal": console.file.getvalue(),
        "report": page,
        "brief": (folder / "brief.md").read_text(),
        "brief as a page": re.sub(r"<[^>]+>", " ", (folder / "brief.html").read_text()),
        "card": (folder / "run" / CARD_FILE).read_text(),
        "runs list": listed,
    }
    return {place: " ".join(text.split()) for place, text in texts.items()}


def test_every_place_has_the_records_figures(folder, attack, letgo):
    judgement = read_result(folder / "run").judgement
    for place, text in shown_by(folder, letgo).items():
        assert percent(attack.kept) in text, place
        assert judgement.word in text.lower() or place == "runs list", place
        if place not in ("brief", "brief as a page", "runs list"):
            assert attack.outcome in text, place
            assert percent(attack.bound) in text, place
            revealed = f"{len(judgement.subjects.worst)} of {judgement.subjects.of} subjects are revealed"
            assert revealed in text, place
        if place.startswith("brief"):
            assert f"{len(judgement.subjects.worst)} of {judgement.subjects.of}" in text, place


def test_the_json_and_the_table_have_them_too(folder, attack, letgo):
    code, out, err = letgo("runs", "list", "--root", folder, "--json")
    assert code == 0, err
    [listed] = json.loads(out)
    assert listed[f"kept({attack.label})"] == attack.kept
    assert listed["verdict"] == read_result(folder / "run").judgement.word
    cell = CellState(name="run", seed=42, status="finished", run="run")
    group = GroupState(name="adamw", axes={}, optimizer="adamw", cells=[cell])
    [row] = csv.DictReader(io.StringIO(as_csv(Sweep(source="x", fingerprint="x", document={}, groups=[group]), folder)))
    assert float(row[f"kept({attack.label})"]) == attack.kept
    assert float(row[f"bound({attack.label})"]) == attack.bound
    assert row[f"outcome({attack.label})"] == attack.outcome
    assert row["verdict"] == listed["verdict"]


def test_an_alias_is_the_same_setting():
    from letgo.attacks.engine.spec import plan_attack
    from letgo.training.config import make_config

    for key, alias, name in (("optimizer", "mezo", "zo_sgd"), ("objective", "gradient_difference", "graddiff")):
        config = make_config({"output_dir": "x", "forget": "f.jsonl", key: alias})
        assert getattr(config, key) == getattr(make_config({"output_dir": "x", "forget": "f.jsonl", key: name}), key)
    assert plan_attack("bnb:format=nf4").label == plan_attack("quantize_bnb:format=nf4").label
