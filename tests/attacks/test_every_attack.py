"""Every attack, on every saved form, twice; on a model that forgot nothing, on the retrained one, on a broken one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import letgo
from letgo.attacks import ATTACKS
from letgo.attacks.engine.outcome import robustness
from letgo.attacks.engine.run import run_attack
from letgo.attacks.engine.spec import plan_attack
from letgo.attacks.engine.target import measured, open_target
from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.items import Text, few_of
from letgo.core.files import read_json_lines
from letgo.core.fingerprints import file_digest
from letgo.core.progress import Quiet
from letgo.models.load import load_model, load_tokenizer
from letgo.runs.results import read_result
from tests import tiny
from tests.attacks.conftest import translations

SPECS = [
    "quantize:bits=4",
    "quantize:search=4,bound=100",
    "quantize_gguf:type=q4_0",
    "quantize_gguf:type=mxfp4,rounding=stochastic",
    "quantize_packed:format=nf4,rounding=error_feedback",
    "quantize_bnb:format=nf4",
    "quantize_bnb:format=fp4,double",
    "quantize_bnb:format=int8",
    "quantize_bnb:format=int8,packed",
    "quantize_torchao:bits=3,group_size=16",
    "quantize_autoround:bits=4,group_size=32,iterations=1,samples=2,length=16",
    "external:path=ORIGINAL",
    "relearn:steps=4,learning_rate=2e-3,seeds=2",
    "relearn:data=retain,epochs=1,lora=2,schedule=linear,warmup=0.5,seeds=1",
    "relearn:data=benign,steps=1,batch_size=1,seeds=1",
    "distill:steps=2,batch_size=1,evaluations=1",
    "prune:sparsity=0.2",
    "noise:sigma=0.01,seeds=2",
    "interpolate:share=0.5",
    "merge:partner=ORIGINAL,weight=0.5,method=soup",
    "merge:partner=ORIGINAL,method=ties,weight=1",
    "merge:partner=ORIGINAL,method=dare,density=0.5",
    "ablate_direction",
    "ablate_direction:direction=contrast,layer=1",
    "ablate_direction:direction=random,seed=1",
    "logit_lens:layer=0",
    "skip_layers:first=0",
    "in_context:seeds=1",
    "prefill",
    "paraphrase",
    "translate:path=TRANSLATED",
    "instruct",
    "multi_turn",
    "sample:k=2,samples=4",
    "suffix:length=2,steps=2,candidates=2,items=1",
    "membership",
    "noise:sigma=0.005,seeds=1 then quantize:bits=4",
    "relearn:steps=2,learning_rate=1e-3,lora=2,seeds=1 then prefill",
    "quantize:bits=8 then membership",
]
FORMS = ("full", "sharded", "adapter")
ELSEWHERE = {"requantize", "exported", "perturb_latent", "perturb_embedding"}
"""Attacks on models that came in a quantized format, or were exported to one: test_quantize_served.py; and those that
need what no model knew: test_perturb_latent.py, test_perturb_embedding.py."""
MODULES = {"gguf": "libgguf", "bitsandbytes": "bitsandbytes", "torchao": "torchao", "autoround": "auto_round"}


def with_holdout(spec):
    """The rows with what membership inference needs: texts that were trained on, and others as like them as can be."""
    made, cities = create_benchmark(spec), [row["answer"] for row in tiny.FORGET]
    texts = [
        Text(name, f"{name}-{row['group']}", row["group"], f"Question: {row['question']}\nAnswer: {city}")
        for name, turned in (("forget", cities), ("holdout", cities[1:] + cities[:1]))
        for row, city in zip(tiny.FORGET, turned, strict=True)
    ]
    return replace(made, texts=[*made.texts[:2], *texts])


@pytest.fixture(scope="module")
def attacked(saved, tmp_path_factory):
    """What an attack finds on a saved form, and the rows of its samples. Each form is measured once; no attack is
    noted in it, so that each finds it as the first one did."""
    subjects, found = {}, {}

    in_words = translations(tmp_path_factory.mktemp("translated"), create_benchmark(saved.benchmark))

    def run(form, spec):
        plan = plan_attack(spec.replace("ORIGINAL", str(saved.original)).replace("TRANSLATED", in_words))
        for extra in filter(None, (ATTACKS.record(name).extra for name, _ in plan.links)):
            pytest.importorskip(MODULES[extra], reason=f"not installed: pip install 'letgo[{extra}]'")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("letgo.attacks.engine.target.create_benchmark", with_holdout)
            if form not in subjects:
                asked = {"benchmark": saved.benchmark, "original": str(saved.original), "limit": 4, "dtype": None}
                subjects[form] = measured(open_target(saved.forms[form], **asked, reporter=Quiet()))
                before, after = subjects[form].result.before, subjects[form].result.after
                assert subjects[form].result.status == "finished"
                assert before["forget_probability"].value > 0.95
                assert after["forget_probability"].value < 0.4
        if (form, spec) not in found:
            outcome, rows = run_attack(subjects[form], plan)
            found[form, spec] = outcome, rows
        return found[form, spec]

    return run


def test_the_table_has_every_attack():
    alone = {plan.name for plan in map(plan_attack, SPECS) if len(plan.links) == 1}
    assert alone | ELSEWHERE == {record.name for record in ATTACKS}


@pytest.mark.parametrize("spec", SPECS)
def test_every_attack_on_every_saved_form_to_the_same_bits(attacked, quick_collections, spec):
    """The full model's weights are the shards': attacked twice with one seed, from two forms, they give equal bits. The
    adapter's, merged when they are loaded, are the same but for rounding."""
    (full, rows), (sharded, rows_again), (adapter, _) = (attacked(form, spec) for form in FORMS)
    assert full.model_dump(exclude={"seconds"}) == sharded.model_dump(exclude={"seconds"})
    assert rows == rows_again != []
    assert (adapter.kept is None) == (full.kept is None)
    assert full.kept is None or adapter.kept == pytest.approx(full.kept, abs=1e-4)
    assert adapter.metrics.keys() == full.metrics.keys()
    for name, metric in full.metrics.items():
        assert adapter.metrics[name].value == pytest.approx(metric.value, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("spec", SPECS)
def test_what_every_result_says(attacked, spec):
    attack, _ = attacked("full", spec)
    assert all(metric.n > 0 for metric in attack.metrics.values())
    if attack.kept is None:
        # An attack may break a model so small.
        assert attack.outcome == ("collapsed" if attack.reasons else "can't tell")
        # The shares are of all seeds together; under one of them the original may no longer know.
        assert not any(share.known for share in attack.shares) or None in [s.get("kept") for s in attack.per_seed]
    else:
        low, high = attack.kept_ci95
        assert 0 <= low <= attack.kept <= high <= 1
        assert attack.bound <= attack.kept
    assert attack.why
    assert len(attack.per_seed) == len(attack.seeds)
    assert attack.utility["before"].keys() == attack.utility["after"].keys() != set()
    assert attack.utility_loss >= 0
    first = attack.name.partition(":")[0]
    if ATTACKS.record(first).means == "weights" or first == "quantize_autoround" or attack.links:
        assert attack.did["displacement"] > 0
        assert attack.did["unlearning_displacement"] > 0
        assert attack.layers


def test_what_attacks_say_of_their_own(attacked):
    rounded, _ = attacked("full", "quantize:bits=4")
    assert rounded.scores.keys() == {"Q"}
    assert 0 < rounded.did["undone"] < 1
    relearned, _ = attacked("full", "relearn:steps=4,learning_rate=2e-3,seeds=2")
    assert not relearned.collapsed, "the attack is gentle enough for this model on any processor"
    assert relearned.scores.keys() == {"R", "R_worst", "R_by_kept"}
    assert len(relearned.curves) == 2
    assert relearned.did["learning_rate"] == 2e-3
    searched, _ = attacked("full", "quantize:search=4,bound=100")
    assert len(searched.trials) == 4
    assert searched.did["kept_strongest"] == min(t["kept"] for t in searched.trials if t["within_bound"])
    assert searched.kept == searched.did["kept_strongest"]
    asked, _ = attacked("full", "prefill")
    assert len(asked.ways) == 3
    known = [way["kept"] for way in asked.ways if way["kept"] is not None]
    assert asked.kept == min(known, default=None)
    told, _ = attacked("full", "membership")
    assert told.did["rows"] == 8
    assert told.did["scores"]["loss"]["before"] > told.did["scores"]["loss"]["after"]


def test_going_all_the_way_back_brings_everything_back(attacked):
    back, _ = attacked("full", "external:path=ORIGINAL")
    assert back.kept < 0.05
    weights = Path(back.did["path"]) / "model.safetensors"
    assert back.did["files"] == {weights.name: {"bytes": weights.stat().st_size, "sha256": file_digest(weights)}}
    assert not back.survived
    relearned, _ = attacked("full", "relearn:steps=4,learning_rate=2e-3,seeds=2")
    found = robustness([back, attacked("full", "quantize:bits=4")[0], relearned])
    assert found["Q"] == back.scores["Q"]
    r, q = found["R"], found["Q"]
    assert found["harmonic_mean"] == pytest.approx(2 * r * q / (r + q) if r * q else 0.0)


BIOGRAPHIES = [
    "quantize:bits=4,group_size=32",
    "quantize_bnb",
    "relearn:steps=8,learning_rate=5e-4,batch_size=16,seeds=1,evaluations=1",
    "noise:sigma=0.005,seeds=1",
    "distill:steps=10,evaluations=1",
    "prune:sparsity=0.1",
    "merge:partner=biographies,weight=0.2,method=soup",
    "merge:partner=biographies-retrained,weight=0.1",
    "merge:partner=biographies-retrained,weight=0.1,method=dare,density=0.9",
    "merge:partner=biographies,weight=1.0,method=ties,density=0.9",
    "ablate_direction",
    "logit_lens:layer=-1",
    "perturb_latent:steps=4",
    "perturb_embedding:tokens=4,steps=4",
    "in_context:seeds=1",
    "prefill",
    "paraphrase",
    "translate:path=TRANSLATED",
    "instruct",
    "multi_turn",
    "sample:k=4",
    "membership",
    "suffix:length=4,steps=3,candidates=8,items=4",
    "relearn:steps=4,learning_rate=5e-4,batch_size=16,seeds=1 then quantize:bits=4,group_size=32",
    "noise:sigma=0.003,seeds=1 then paraphrase",
    "quantize:bits=8 then sample:k=2",
    "prune:sparsity=0.05 then membership",
]


@pytest.fixture
def few(monkeypatch, tmp_path):
    """The biographies with two questions about each person: a part of all people, rather than all of two. Gives every
    attack on them."""

    def made(spec):
        benchmark = create_benchmark(spec)
        return replace(benchmark, items=few_of(benchmark.items, 40), texts=few_of(benchmark.texts, 12))

    monkeypatch.setattr("letgo.attacks.engine.target.create_benchmark", made)
    in_words = translations(tmp_path, made("biographies"))
    return [spec.replace("TRANSLATED", in_words) for spec in BIOGRAPHIES]


def test_a_model_that_has_not_unlearned_keeps_nothing(few):
    result = letgo.attack("biographies", few, benchmark="biographies", original="biographies")
    for attack in result.attacks:
        assert attack.kept == 0.0, attack.label
        assert not attack.survived, attack.label
    assert result.robustness["Q"] == 0.0
    assert result.robustness["harmonic_mean"] == 0.0


def test_the_retrained_model_survives_everything(few, tmp_path):
    attacks = [*few, "relearn:steps=30,learning_rate=1e-3,batch_size=16,holdout=0,seeds=1,evaluations=1"]
    output = tmp_path / "out"
    result = letgo.attack(
        "biographies-retrained", attacks, benchmark="biographies", original="biographies", output=output
    )
    *others, everything = result.attacks
    for attack in others:
        assert attack.survived, (attack.label, attack.kept)
        assert attack.kept == 1.0, attack.label
    assert result.robustness["R"] > 0.9, "attacked alike, the retrained model regains what the retrained model regains"
    assert everything.metrics["forget_probability"].value > 2 * result.after["forget_probability"].value
    assert everything.outcome == "can't tell", "an attacker who teaches any model everything shows nothing of this one"
    assert read_result(output) == result
    stages = {row["stage"] for row in read_json_lines(output / "samples.jsonl")}
    assert stages >= {"before", "after", "reference:retrained", "attack:membership"}


def test_a_forgetting_smaller_than_half_a_bin_is_gone_at_4_bits(few, fragile):
    result = letgo.attack(
        fragile.unlearned,
        ["quantize:bits=4,group_size=32", "quantize:bits=8,granularity=channel"],
        benchmark="biographies",
        original=str(fragile.original),
    )
    four, eight = result.attacks
    assert result.status == "finished"
    assert result.before["forget_probability"].value > 0.9
    assert result.after["forget_probability"].value < 0.3
    assert four.kept < 0.05
    assert not four.survived
    assert four.did["undone"] == 1.0
    assert four.did["same_bin"] == 1.0
    assert four.did["displacement"] == pytest.approx(four.did["unlearning_displacement"], rel=1e-4)
    # Of the 29 questions that are no longer answered, a few come back.
    assert eight.kept > 0.8
    assert eight.survived
    assert eight.did["undone"] < 0.5


def test_a_broken_model_is_collapsed_not_robust(tmp_path):
    model = load_model("biographies")
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            parameter.add_(parameter.std() * noise)
    model.save_pretrained(tmp_path / "broken")
    load_tokenizer("biographies").save_pretrained(tmp_path / "broken")
    result = letgo.attack(
        tmp_path / "broken",
        ["quantize:bits=8", "relearn:steps=2,seeds=1"],
        benchmark="biographies",
        original="biographies",
        limit=16,
    )
    assert result.status == "collapsed"
    for attack in result.attacks:
        assert attack.outcome == "not survived"
        assert attack.why == "the model was broken before the attack, which is not forgetting"
    assert result.robustness == {"R": 0.0, "Q": 0.0, "harmonic_mean": 0.0}


def test_an_attack_that_breaks_the_model_proves_nothing():
    result = letgo.attack(
        "biographies-retrained", ["noise:sigma=1,seeds=1"], benchmark="biographies", original="biographies", limit=10
    )
    [noise] = result.attacks
    assert noise.collapsed
    assert not noise.survived
    assert json.loads(result.model_dump_json(by_alias=True))["attacks"][0]["reasons"]
