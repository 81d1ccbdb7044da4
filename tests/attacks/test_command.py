"""`letgo attack` as a user types it."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from letgo.runs.results import read_result


def against(saved):
    return ["--benchmark", saved.benchmark, "--original", saved.original]


def test_a_bare_model_against_its_original(letgo, saved, tmp_path):
    words = ["attack", saved.forms["full"], *against(saved)]
    words += ["--attack", "quantize:bits=4", "--attack", "relearn:steps=4,learning_rate=2e-3,seeds=2", "--limit", 4]
    code, out, err = letgo(*words, "--threshold", "0.9", "--output", tmp_path / "out", "-q")
    assert code == 0, err
    flat = " ".join(out.split())
    assert "no verdict: R (relearning)" in flat
    assert "unlearning had moved them by" in flat
    assert "of the weights fall into the original's bin" in flat
    assert "90 % is asked" in flat
    result = read_result(tmp_path / "out")
    assert [attack.threshold for attack in result.attacks] == [0.9, 0.9]
    # letgo did not make this model, and no page says so.
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# full, audited" in card
    assert "was made to forget" not in card
    assert (result.kind, result.audit.model, result.audit.suite) == ("audit", str(saved.forms["full"]), "")
    assert not (saved.forms["full"] / "result.json").exists(), "a model's directory is left as it is"
    code, out, _ = letgo(*words, "--json")
    assert code == 0
    assert json.loads(out)["attacks"][0]["scores"]["Q"] == result.attacks[0].scores["Q"]


def test_an_adapter_without_its_base(letgo, saved, tmp_path):
    shutil.copytree(saved.forms["adapter"], tmp_path / "adapter")
    base = json.loads((tmp_path / "adapter" / "base.json").read_text())
    (tmp_path / "adapter" / "base.json").write_text(json.dumps(base | {"model": str(tmp_path / "gone")}))
    code, _, err = letgo("attack", tmp_path / "adapter", *against(saved), "--attack", "quantize")
    assert code == 2, err
    assert "no such model" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all", "--attack", "quantize"], "no such model"),
        ([".", "--attack", "quantize"], "is not a run directory"),
        (["biographies", "--attack", "quantize"], "give --benchmark NAME and --original MODEL"),
        (["biographies", "--attack", "quantize", "--benchmark", "biographies"], "give --original MODEL"),
        (["biographies", "--attack", "quantise"], "did you mean 'quantize'"),
        (["biographies", "--attack", "quantize", "--attack", "quantize"], "named twice"),
        (["biographies", "--attack", "quantize", "--threshold", "0"], "above 0"),
        (["biographies", "--attack", "relearn", "--seeds", "0"], "at least 1"),
        (["biographies"], "(?i)missing option"),
    ],
)
def test_mistakes(letgo, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = letgo("attack", *words)
    assert code == 2, err
    assert re.search(message, " ".join(err.split())), err
    assert out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attack", "quantize", "--limit", "0"], "limit must be a whole number of at least 1"),
        (["--attack", "relearn:samples=0", "--limit", "4"], "samples must be a whole number of at least 1"),
        (["--attack", "quantize", "--output", "used"], "not empty"),
        (["--attack", "quantize:bits=1", "--limit", "4"], "bits must be a whole number from 2 to 8, not 1"),
    ],
)
def test_settings_out_of_range_and_a_used_output(letgo, saved, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    code, _, err = letgo("attack", saved.forms["full"], *against(saved), *words)
    assert code == 2
    assert message in err


def test_the_list_names_every_attack_with_its_source(letgo):
    code, out, _ = letgo("list", "attacks")
    assert code == 0
    for name in ("quantize_bnb", "relearn", "in_context", "suffix", "membership", "sample", "external"):
        assert re.search(rf"^{name}\s", out, re.M)
