from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny

RECIPE = str(Path(__file__).parents[2] / "recipes" / "muse-books-npo_gdr.yaml")


@pytest.fixture
def files(tmp_path):
    return {
        "forget": tiny.write_jsonl(tmp_path / "forget.jsonl", tiny.FORGET),
        "retain": tiny.write_jsonl(tmp_path / "retain.jsonl", tiny.RETAIN),
    }


@pytest.mark.parametrize(
    "command",
    [
        "",
        "demo",
        "unlearn",
        "attack",
        "eval",
        "export",
        "attest",
        "verify",
        "requests run",
        "report",
        "list",
        "show-config",
    ],
)
def test_help_is_there_and_quick(command):
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "letgo", *command.split(), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Usage" in done.stdout
    # Loose on purpose: a busy machine is slow. That no torch is imported is tested in test_catalog.
    assert time.perf_counter() - start < 10


def test_unlearn_attack_report_and_their_json(letgo, files, model_directory, tmp_path):
    run = tmp_path / "run"
    code, out, _ = letgo(
        *("unlearn", "--model", model_directory, "--forget", files["forget"], "--retain", files["retain"]),
        *("--objective", "npo_gdr:beta=0.1", "--optimizer", "fozo:zo_lr=1e-3,fo_steps=1,zo_steps=1"),
        *("--lr", "1e-3", "--steps", "4", "--batch-size", "2", "--output", run, "--json", "--set", "use_cpu=true"),
    )
    assert code == 0
    result = json.loads(out)
    assert result["schema"] == 2
    assert result["config"]["objective_args"] == {"beta": 0.1}
    code, out, err = letgo("attack", run, "--attack", "quantize:bits=4", "--attack", "relearn:steps=2")
    assert code == 0
    assert "quantize" in out
    assert "relearn" in out
    assert "measuring after" in err, "progress goes to stderr"
    code, out, _ = letgo("attack", run, "--attack", "quantize:bits=2", "--json", "--quiet")
    assert [a["settings"] for a in json.loads(out)["attacks"]] == [{"bits": 4}, {"steps": 2}, {"bits": 2}]
    code, out, _ = letgo("report", run, "--output", tmp_path / "report.html")
    assert code == 0
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    code, out, _ = letgo("show-config", run / "config.yaml", "--set", "seed=9", "--json")
    assert json.loads(out)["seed"] == 9


def test_eval(letgo, tmp_path):
    out_dir = tmp_path / "scores"
    words = ("eval", "biographies", "--benchmark", "biographies", "--limit", "12")
    code, out, _ = letgo(*words, "--output", out_dir, "--json")
    assert code == 0
    metrics = json.loads(out)["biographies"]["after"]
    assert metrics["forget_accuracy"]["n"] == 12
    assert metrics["forget_accuracy"]["value"] > 0.9
    assert json.loads((out_dir / "result.json").read_text())["after"] == metrics
    code, _, err = letgo(*words, "--output", out_dir)
    assert code == 2
    assert "not empty" in err


def test_export(letgo, tmp_path):
    pytest.importorskip("libgguf", reason="not installed: pip install 'letgo[gguf]'")
    words = (
        "export",
        "biographies",
        "--format",
        "q4_k_m",
        "--original",
        "biographies-retrained",
        "--rounding",
        "stochastic",
    )
    code, out, err = letgo(*words, "--output", tmp_path / "served")
    assert code == 0
    assert str(tmp_path / "served" / "model-Q4_K_M.gguf") in out
    assert re.search(r"\d+ % of the update is left", out)
    assert "Q5_0 instead of Q4_K" in err
    code, out, _ = letgo(*words, "--output", tmp_path / "again", "--json", "--quiet")
    manifest = json.loads(out)
    assert manifest == json.loads((tmp_path / "again" / "export.json").read_text())
    code, _, err = letgo(*words, "--output", tmp_path / "served")
    assert code == 2
    assert "holds an export already" in err


@pytest.mark.parametrize("kind", ["optimizers", "objectives", "attacks", "benchmarks", "metrics", "formats"])
def test_list(letgo, kind):
    code, out, _ = letgo("list", kind)
    assert code == 0
    code, as_json, _ = letgo("list", kind, "--json")
    records = json.loads(as_json)
    assert records
    for record in records:
        assert record["name"] in out
        assert record["source"]
        assert record["faithfulness"] in ("faithful", "variant", "ours", "library")


def test_list_by_pattern(letgo):
    _, out, _ = letgo("list", "optimizers", "*zo*", "--json")
    assert {r["name"] for r in json.loads(out)} >= {"zo_sgd", "ada_zo", "fozo"}
    assert all("zo" in r["name"] for r in json.loads(out))


def test_show_config(letgo, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nbenchmark: biographies\noptimizer: fozo:mu=1e-3\n")
    code, out, _ = letgo("show-config", path)
    assert code == 0
    assert "optimizer: fozo" in out
    assert "mu: 0.001" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unlearn", "--model", "m"], "nothing to forget|no output directory"),
        (["unlearn", "--model", "m", "--evaluate", "e.jsonl", "--output", "o"], "nothing to forget: give 'forget'"),
        (["unlearn", "nowhere.yaml"], "config file: no such file"),
        (["unlearn", "--optimizer", "x:=3", "--output", "o"], "has no key"),
        (["unlearn", "--set", "learnin_rate=3"], "did you mean 'learning_rate'"),
        (["unlearn", "--set", "nonsense"], "key=value"),
        (["unlearn", "--nonsense"], "(?i)no such option"),
        (["unlearn", "--steps", "many"], "(?i)invalid|not a valid"),
        (["atack"], "(?i)no such command"),
        (["attack", ".", "--attack", "quantize"], "is not a run directory"),
        (["attack", "."], "(?i)missing option"),
        (["eval", "biographies", "--benchmark", "biographie"], "did you mean 'biographies'"),
        (["export", "biographies", "-f", "iq4xs", "-o", "out"], "did you mean 'iq4_xs'"),
        (
            ["export", "biographies", "-f", "fp8", "--rounding", "up", "-o", "out"],
            "nearest, stochastic, error_feedback",
        ),
        (["export", "biographies", "-f", "fp8", "-o", __file__], "is a file; name a directory"),
        (["eval", "biographies", "--benchmark", "biographies:sead=1"], "did you mean 'seed'"),
        (["eval", "biographies", "--benchmark", "biographies", "--limit", "0"], "at least 1"),
        (["eval", "biographies", "--benchmark", "biographies", "--output", __file__], "is a file; name a directory"),
        (["attack", ".", "--attack", "quantize", "--limit", "0"], "limit must be a whole number of at least 1, not 0"),
        (["attack", ".", "--attack", "quantize", "--threshold", "nan"], "threshold must be a number above 0"),
        (["plan", RECIPE, "--devices", "0"], "devices must be at least 1, not 0"),
        (["plan", RECIPE, "--flops", "inf"], "flops must be above 0 and finite, not inf"),
        (["show-config", RECIPE, "--set", "optimizer_args=[1"], "--set optimizer_args:1: not YAML"),
        (["list", "optimisers"], "did you mean 'optimizers'"),
        (["report", "."], "no run"),
        (["show-config", "nowhere.yaml"], "config file: no such file"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_2(letgo, words, message, tmp_path, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    code, out, err = letgo(*words)
    assert code == 2, err
    assert re.search(message, " ".join(err.split())), err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize("command", ["unlearn", "plan", "show-config", "sweep"])
@pytest.mark.parametrize(
    ("text", "message"), [(None, "config file: no such file"), ("model: [\n", "run.yaml:2: not YAML")]
)
def test_an_unreadable_yaml_is_said_before_the_libraries_are_loaded(command, text, message, tmp_path):
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    code = f"""
import sys
from letgo.cli import main
sys.argv = ["letgo", {command!r}, "run.yaml"]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bad_data_by_the_whole_command(files, model_directory, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "q", "answer": "a"}\n{"question": }\n')
    command = [sys.executable, "-m", "letgo", "unlearn", "--model", model_directory, "--forget", bad]
    done = subprocess.run([*command, "--output", tmp_path / "o"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "bad.jsonl:2: not JSON" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3


def test_ctrl_c_exits_130(letgo, monkeypatch, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("letgo.training.config.read_config", interrupted)
    (tmp_path / "run.yaml").write_text("model: m\n")
    code, _, err = letgo("show-config", tmp_path / "run.yaml")
    assert code == 130
    assert "what was finished is kept" in err
