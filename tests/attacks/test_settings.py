"""Settings out of range are refused by name, before anything is done."""

from __future__ import annotations

import pytest

from letgo.attacks.engine.run import apply_attack
from letgo.attacks.engine.spec import AttackSpec
from letgo.attacks.jailbreak import in_context, instruct, prefill
from letgo.attacks.quantize import quantize
from letgo.attacks.quantize_with_libraries import external, quantize_autoround, quantize_bnb, quantize_torchao
from letgo.attacks.relearn import relearn
from letgo.attacks.sample import sample
from letgo.attacks.suffix import suffix
from letgo.attacks.weights import interpolate, noise, prune
from letgo.core.errors import UserError


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
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
        (relearn, {"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        (relearn, {"learning_rate": float("nan")}, "learning_rate must be a number above 0"),
        (prune, {"sparsity": 0.0}, "above 0"),
        (prune, {"sparsity": 1.0}, "below 1"),
        (prune, {"scope": "row"}, "one of layer, model"),
        (noise, {"sigma": 0.0}, "above 0"),
        (interpolate, {"share": 1.5}, "at most 1"),
        (quantize, {"bits": 1}, "from 2 to 8, not 1"),
        (quantize, {"bits": 9}, "from 2 to 8, not 9"),
        (quantize, {"bits": 4.5}, "from 2 to 8, not 4.5"),
        (quantize, {"bits": True}, "from 2 to 8"),
        (quantize, {"granularity": "row"}, "one of group, channel, tensor"),
        (quantize, {"group_size": 1}, "at least 2"),
        (quantize_bnb, {"format": "nf5"}, "one of nf4, fp4, int8"),
        (quantize_bnb, {"format": "int8", "double": True}, "int8 has none"),
        (quantize_torchao, {"bits": 16}, "from 2 to 8"),
        (quantize_torchao, {"group_size": 24}, "does not divide"),
        (quantize_autoround, {"bits": 1}, "from 2 to 8"),
        (quantize_autoround, {"samples": 0}, "at least 1"),
        (external, {"path": "nowhere"}, "no such directory"),
        (external, {"path": ".", "family": "none"}, "one of quantization"),
    ],
)
def test_settings_out_of_range(victim, attack, settings, message):
    with pytest.raises(UserError, match=message):
        apply_attack(victim, AttackSpec(attack.__name__, settings, (0,), 0.5), settings, 0)
