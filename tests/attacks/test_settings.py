"""Settings out of range are refused by name, before anything is done: also before there is a model to attack."""

from __future__ import annotations

from dataclasses import replace

import pytest

from letgo.attacks import ATTACKS
from letgo.attacks.distill import distill
from letgo.attacks.engine.base import Victim
from letgo.attacks.engine.spec import AttackSpec, apply_attack, check_attacks, plan_attack, plan_attacks
from letgo.attacks.jailbreak import in_context, instruct, prefill
from letgo.attacks.quantize import quantize
from letgo.attacks.quantize_with_libraries import external, quantize_autoround, quantize_bnb, quantize_torchao
from letgo.attacks.relearn import relearn
from letgo.attacks.residual import ablate_direction, logit_lens, skip_layers
from letgo.attacks.sample import sample
from letgo.attacks.suffix import suffix
from letgo.attacks.weights import interpolate, merge, noise, prune
from letgo.benchmarks import create_benchmark
from letgo.core import extras
from letgo.core.errors import UserError
from tests import tiny

OUT_OF_RANGE = [
    (in_context, {"shots": 0}, "at least 1"),
    (in_context, {"shots": 9}, "no forget item"),
    (in_context, {"data": "both"}, "one of retain, forget, not 'both'"),
    (prefill, {"words": -1}, "at least 0"),
    (prefill, {"words": 1, "text": "x"}, "either text or words"),
    (instruct, {"template": "say it"}, "must have {q}"),
    (suffix, {"length": 0}, "at least 1"),
    (suffix, {"holdout": 0.0}, "above 0"),
    (suffix, {"place": "middle"}, "one of auto, suffix, prefix"),
    (sample, {"k": 0}, "at least 1"),
    (sample, {"k": 4, "samples": 2}, "at least k"),
    (sample, {"temperature": 0.0}, "temperature must be a number above 0"),
    (relearn, {"steps": 0}, "at least 1"),
    (relearn, {"holdout": 1.0}, "below 1"),
    (relearn, {"holdout": 0.05}, "holds out none"),
    (relearn, {"holdout": 0.95}, "leaves the attacker nothing"),
    (relearn, {"optimizer": "adamm"}, "unknown optimizer"),
    (relearn, {"steps": 3, "epochs": 1}, "either steps or epochs"),
    (relearn, {"epochs": 0}, "epochs must be a number above 0"),
    (relearn, {"samples": 0}, "samples must be a whole number of at least 1"),
    (relearn, {"schedule": "sqrt"}, "one of constant, linear, cosine"),
    (relearn, {"warmup": 1.0}, "warmup must be a number of at least 0 and below 1"),
    (relearn, {"lora": -1}, "at least 0"),
    (relearn, {"evaluations": -1}, "at least 0"),
    (relearn, {"data": "retain", "holdout": 0.5}, "holdout is of the forget set"),
    (relearn, {"data": "nowhere.jsonl"}, "no such file"),
    (relearn, {"optimizer": "sgd:momentun=0.9"}, "did you mean 'momentum'"),
    (relearn, {"optimizer": "sgd:lr=0.1"}, "give learning_rate=0.1 beside the optimizer"),
    (relearn, {"optimizer": "dual_optim"}, "the attacker has one loss"),
    (distill, {"alpha": 1.0}, "alpha must be a number of at least 0 and below 1"),
    (distill, {"data": "forget"}, "must not be taught on the forget set"),
    (relearn, {"learning_rate": 0.0}, "learning_rate must be a number above 0"),
    (relearn, {"learning_rate": float("nan")}, "learning_rate must be a number above 0"),
    (prune, {"sparsity": 0.0}, "above 0"),
    (prune, {"sparsity": 1.0}, "below 1"),
    (prune, {"scope": "row"}, "one of layer, model"),
    (noise, {"sigma": 0.0}, "above 0"),
    (interpolate, {"share": 1.5}, "at most 1"),
    (merge, {"partner": "nowhere"}, "no such model"),
    (merge, {"partner": "biographies", "weight": 0.0}, "above 0"),
    (merge, {"partner": "biographies", "density": 0.5}, "density is of the methods ties and dare; add"),
    (ablate_direction, {"direction": "down"}, "one of unlearning, contrast, random"),
    (ablate_direction, {"tokens": 0}, "at least 1"),
    (skip_layers, {"count": 0}, "at least 1"),
    (quantize, {"bits": 1}, "from 2 to 8, not 1"),
    (quantize, {"bits": 9}, "from 2 to 8, not 9"),
    (quantize, {"bits": 4.5}, "from 2 to 8, not 4.5"),
    (quantize, {"bits": True}, "from 2 to 8"),
    (quantize, {"granularity": "row"}, "one of group, channel, tensor"),
    (quantize, {"group_size": 1}, "at least 2"),
    (quantize_bnb, {"format": "nf5"}, "one of nf4, fp4, int8"),
    (quantize_bnb, {"format": "int8", "double": True}, "int8 has none"),
    (quantize_torchao, {"bits": 16}, "from 2 to 8"),
    (quantize_autoround, {"bits": 1}, "from 2 to 8"),
    (quantize_autoround, {"samples": 0}, "at least 1"),
    (external, {"path": "nowhere"}, "no such directory"),
    (external, {"path": ".", "family": "none"}, "one of quantization"),
]
OF_LAYERS = [
    (quantize_torchao, {"group_size": 24}, "does not divide"),
    (ablate_direction, {"layer": 2}, "its blocks are 0 to 1"),
    (logit_lens, {"layer": -3}, "its blocks are 0 to 1"),
    (skip_layers, {"first": 1, "count": 2}, "from block 1 on there are 1 blocks, not 2"),
]
"""What can't be known before the model's layers are."""


@pytest.fixture
def data():
    return create_benchmark("rows", forget=tiny.FORGET, retain=tiny.RETAIN)


@pytest.mark.parametrize(("attack", "settings", "message"), OUT_OF_RANGE + OF_LAYERS)
def test_settings_out_of_range(victim, attack, settings, message):
    with pytest.raises(UserError, match=message):
        apply_attack(victim, AttackSpec(attack.__name__, settings, (0,), 0.5), settings, 0)


@pytest.mark.parametrize(("attack", "settings", "message"), OUT_OF_RANGE)
def test_they_are_refused_before_there_is_a_model(data, attack, settings, message):
    plan = AttackSpec(attack.__name__, settings, (0,), 0.5)
    with pytest.raises(UserError, match=message):
        check_attacks([plan], Victim("", data))


@pytest.mark.parametrize("name", [record.name for record in ATTACKS])
def test_every_attack_can_be_checked_without_a_model(data, tmp_path, name):
    if name == "quantize_autoround":
        pytest.importorskip("auto_round")
    words = tiny.write_jsonl(tmp_path / "words.jsonl", [{"id": "forget-0", **tiny.FORGET[0]}])
    needed = {"external": f":path={tmp_path}", "merge": ":partner=biographies", "translate": f":path={words}"}
    plan = plan_attack(name + needed.get(name, ""))
    check_attacks([plan])
    if name not in (
        "membership",
        "perturb_latent",
        "perturb_embedding",
    ):  # the rows have no holdout texts, and no controls
        check_attacks([plan], Victim("", data))


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["quantize:bits=99"], "bits must be a whole number from 2 to 8, not 99"),
        (["nosuch"], "unknown attack 'nosuch'"),
        (["relearn:holdout=2"], "holdout must be a number of at least 0 and below 1, not 2"),
        (["relearn:optimizer=adamm"], "unknown optimizer 'adamm'; did you mean"),
        (["quantize", "quantize"], "named twice"),
        (["quantize:bits=4,granularity=group,symmetric=true,search=3"], "every setting that search goes over is given"),
        (["translate:path=nowhere.jsonl"], "translations: no such file"),
        (["external:path=nowhere"], r"no such directory or \.gguf file: nowhere"),
        (["sample:k=x"], "sample"),
    ],
)
def test_texts_are_checked_before_there_is_a_model_or_data(specs, message):
    with pytest.raises(UserError, match=message):
        plan_attacks(specs)


def test_a_library_that_is_missing_is_named_before_there_is_a_model(monkeypatch):
    real = extras.importlib.import_module

    def missing(module, *more):
        if module == "bitsandbytes":
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(module, *more)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    check_attacks([plan_attack("quantize")])
    with pytest.raises(UserError, match=r"needs bitsandbytes: pip install .*letgo\[bitsandbytes\]"):
        check_attacks([plan_attack("quantize_bnb")])


@pytest.mark.parametrize(
    ("spec", "changes", "limit", "message"),
    [
        ("relearn:holdout=0.05", {}, None, "holds out none"),
        ("relearn:holdout=0.25,seeds=4", {}, 1, r"seed 1 the attacker has all 1 group\(s\) .* scored(.|\n)*eval_limit"),
        ("relearn:data=retain", {"retain": ()}, None, "there is no retain data"),
        ("suffix", {"items": ()}, None, "no forget item"),
        ("sample", {"items": ()}, None, "no forget item asks a question"),
        ("in_context:shots=9", {}, None, "no forget item"),
        ("in_context:data=retain", {"retain": ()}, None, "no forget item"),
        ("paraphrase", {"items": ()}, None, "no forget item"),
        ("ablate_direction", {"items": ()}, None, "no forget item"),
        ("perturb_latent", {}, None, "has no controls"),
        ("perturb_embedding", {}, None, "has no controls"),
        ("perturb_latent:holdout=0.05", {"control": tiny.RETAIN}, None, "holds out none"),
        ("membership", {}, None, "no forget and holdout texts"),
    ],
)
def test_an_attack_without_anything_to_score_is_refused_before_there_is_a_model(data, spec, changes, limit, message):
    with pytest.raises(UserError, match=message):
        check_attacks([plan_attack(spec)], Victim("", replace(data, **changes), limit=limit))
