"""A record that names code by a path is read like any other: nothing that reads it imports that code."""

from __future__ import annotations

import json
import sys

import pytest

from letgo.benchmarks import benchmark_of
from letgo.core.errors import UserError
from letgo.report.card import card
from letgo.report.hub_results import eval_results, model_index
from letgo.runs.results import read_result
from letgo.runs.sweeps import read_sweep
from letgo.sweep.table import as_csv, lines
from tests.records import folder
from tests.records.looking import letgo

MODULE = "mine_recorded"


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A folder of runs and a sweep that name a module of the working folder in every place where a name may stand; it
    leaves a mark when it is imported."""
    (tmp_path / f"{MODULE}.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('imported').touch()\ndef Thing(*a, **k): return None\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    root = folder.write(tmp_path / "runs")
    path = f"{MODULE}.Thing"
    for run in ("good", "bad", "sweep/runs/one"):
        record = root / run / "result.json"
        document = json.loads(record.read_text())
        document["config"] |= {
            "optimizer": path,
            "optimizer_args": {"base": path},
            "objective": path,
            "retain_loss": path,
            "benchmark": f"{path}:a=1",
            "metrics": [path],
            "attacks": [f"{MODULE}:Thing:share=0.5"],
        }
        document["attacks"].append(document["attacks"][0] | {"name": path, "settings": {"share": 0.5}})
        document["after"][f"forget_{path}"] = document["after"]["forget_rouge"]
        document["code"] = {path: {"kind": "optimizer", "target": f"{MODULE}:Thing", "sha256": "0" * 64, "package": ""}}
        record.write_text(json.dumps(document))
    sweep = root / "sweep" / "sweep.json"
    document = json.loads(sweep.read_text())
    document["groups"][0] |= {"optimizer": path, "axes": {"objective": path, "optimizer": path}}
    sweep.write_text(json.dumps(document))
    yield root
    assert not (tmp_path / "imported").exists(), "a record was enough to import code"
    assert MODULE not in sys.modules


def test_no_command_that_reads_records_imports_what_they_name(planted, tmp_path):
    for words in (
        ["runs", "rebuild", planted],
        ["runs", "list", "--root", planted, "--sort", "-kept(*)", "--show", "optimizer"],
        ["runs", "list", "--root", planted, "--csv"],
        ["runs", "show", "bad", "--root", planted],
        ["runs", "diff", "good", "sweep/runs/two", "--root", planted],
        ["report", planted, "--output", tmp_path / "report.html"],
        ["brief", planted, "--output", tmp_path / "brief.md"],
    ):
        code, out, err = letgo(*words)
        assert code == 0, (words, err)
        if words[:2] == ["runs", "show"]:
            assert f"{MODULE}.Thing" in out
    assert f"{MODULE}.Thing" in (tmp_path / "report.html").read_text()
    result = read_result(planted / "good")
    assert f"{MODULE}.Thing" in card(result)
    assert model_index(result, "x")
    eval_results(result)
    sweep = read_sweep(planted / "sweep")
    assert f"{MODULE}.Thing" in as_csv(sweep, planted / "sweep")
    assert lines(sweep, planted / "sweep")


def test_what_would_need_the_code_says_so(planted):
    code, _, err = letgo("attack", planted / "good", "--attack", "quantize:bits=4")
    assert code == 2
    assert f"the record names the benchmark '{MODULE}.Thing', which is not letgo's own" in err
    config = read_result(planted / "good").config
    with pytest.raises(UserError, match="the record names the metric"):
        benchmark_of(config | {"benchmark": "capitals"}, recorded=True)
