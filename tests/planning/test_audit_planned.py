"""What an audit is planned to take, against counts made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from letgo.attacks.engine.spec import plan_attack
from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.requests import most_tokens
from letgo.core.errors import UserError
from letgo.core.sizes import read_duration
from letgo.models.load import best_device, load_model, load_tokenizer
from letgo.models.running import most_generation_budget, scoring_budget
from letgo.planning.audit import MEASURE, plan_audit

SETTINGS = {"model": "biographies", "benchmark": "biographies", "eval_limit": 3}
ATTACKS = (
    "quantize",
    "paraphrase",
    "relearn:steps=10,seeds=2",
    "noise:seeds=2",
    "sample:k=4",
    "relearn:search=3,seeds=1",
)


def tokens_asked(benchmark, sets):
    """The most tokens of all prompts and answers about some sets."""
    model, tokenizer = load_model("biographies"), load_tokenizer("biographies")
    items = [item for item in benchmark.items if item.set in sets]
    work = replace(benchmark, items=items, texts=benchmark.texts if len(sets) > 2 else ()).work(
        model, tokenizer, limit=3, template="auto"
    )
    device = best_device()
    return most_tokens(work, scoring_budget(device), most_generation_budget(device))


def test_each_attack_is_made_on_the_three_models():
    benchmark = create_benchmark("biographies")
    plans = [plan_attack(text) for text in ATTACKS]
    plan = plan_audit(SETTINGS, plans, benchmark, original="biographies", flops=1e9)
    alone = plan_audit(SETTINGS, plans, benchmark, original=None, flops=1e9)
    whole = tokens_asked(benchmark, {item.set for item in benchmark.items} | {"general", "holdout"})
    part = tokens_asked(benchmark, {"forget", "control"})
    each = plan.flops[MEASURE] / (3 * whole)
    items = 3  # of the forget set; there are no controls
    # Training on 4 rows a step, of which a backward pass takes twice a forward one.
    trained = 3 * 10 * 4 / items * part
    searched = 3 * 20 * 4 / items * part
    expected = {
        "quantize": whole + 2 * part,
        "paraphrase": 4 * part * 3,
        "relearn:steps=10": 2 * (trained * 3 + whole + 2 * part),
        "noise": 2 * (whole + 2 * part),
        "sample:k=4": 4 * part * 3,
        "relearn:search=3": 4 * (searched * 3 + whole + 2 * part),
    }
    assert {label: plan.flops[label] / each for label in expected} == pytest.approx(expected, rel=1e-6)
    assert alone.flops[MEASURE] == pytest.approx(plan.flops[MEASURE] * 2 / 3)
    assert alone.flops["quantize"] / each == pytest.approx(whole + part)
    assert plan.seconds == pytest.approx({label: flops / 1e9 for label, flops in plan.flops.items()})
    # A first-order attacker needs gradients and an optimizer's state; quantizing does not.
    assert any(phase.name == "step" for phase in plan.phases)
    few = plan_audit(SETTINGS, plans[:1], benchmark, original=None, flops=1e9)
    assert not any(phase.name in ("train", "step") for phase in few.phases)
    assert "samples and record" in plan.text()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5 h", 5400), ("2d", 172800), (45, 45), ("45", 45)],
)
def test_times_are_read_as_people_write_them(text, seconds):
    assert read_duration(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["soon", "", "30x", "h", "0m", "-5m", "1h and 5m", "1e3s", None, "nan"])
def test_what_is_no_time_is_told(text):
    with pytest.raises(UserError, match="--budget must be a time such as 90s, 30m"):
        read_duration(text, "--budget")
