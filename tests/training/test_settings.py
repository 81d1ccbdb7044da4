"""What is told of a run's settings before torch is loaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from letgo.attacks import ATTACKS
from letgo.benchmarks import BENCHMARKS
from letgo.core.catalog import settings_of
from letgo.core.errors import UserError
from letgo.core.signatures import dataclass_fields, keywords
from letgo.core.values import annotations_of
from letgo.objectives import METHODS, RETAIN_TERMS
from letgo.optim import OPTIMIZERS
from letgo.training.config import UnlearnConfig, field_types, read_config
from letgo.training.settings import _fields, check_attacks_early, check_early, check_grid_early

ROOT = Path(__file__).parents[2]
WRONG = {
    "lerning_rate=3": "did you mean 'learning_rate'",
    "learning_rate=inf": "learning_rate is inf",
    "seed=-1": "seed must be a whole number from 0",
    "max_steps=0": "max_steps must be a whole number from 1",
    "epochs=1e30": "num_train_epochs must be",
    "dtype=float31": "did you mean 'float32'",
    "optimizer=fozoh": "did you mean 'fozo'",
    "optimizer=fozo:zolr=1": "did you mean 'zo_lr'",
    "optimizer=fozo:fo_steps=1.5": "fo_steps must be a whole number",
    "objective=nop": "did you mean 'npo'",
    "objective=npo:beta=abc": "beta must be a number above 0",
    "objective=npo_gdr:bta=1": "did you mean 'beta'",
    "objective=whp:targets=warm": "targets must be one of hard, soft",
    "benchmark=tofuu": "did you mean 'tofu'",
    "benchmark=tofu:nosuch=1": "has no setting 'nosuch'",
    "attacks=[quantise]": "did you mean 'quantize'",
    "attacks=['quantize:bits=99']": "bits must be a whole number from 2 to 8",
    "attacks=['relearn:seeds=0']": "seeds must be a whole number from 1",
    "save_merged=true": "lora_rank turns on",
}


@pytest.mark.parametrize(("assignment", "message"), WRONG.items())
def test_a_mistake_is_told_from_the_texts_alone(assignment, message):
    with pytest.raises(UserError, match=message):
        check_early(None, [assignment])


def test_it_is_told_in_a_grid_too(tmp_path):
    (tmp_path / "grid.yaml").write_text("base: {learning_rate: -1}\n")
    with pytest.raises(UserError, match="base: learning_rate must be a number of at least 0"):
        check_grid_early(tmp_path / "grid.yaml")
    (tmp_path / "grid.yaml").write_text("attacks: [quantise]\n")
    with pytest.raises(UserError, match="did you mean 'quantize'"):
        check_grid_early(tmp_path / "grid.yaml")


def test_no_right_setting_is_refused():
    """Every value that a run's default or a catalog's default is."""
    for path in [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "docs").rglob("*.yaml")]:
        if "launch" in path.parts or "quantize" in path.parts:
            continue
        if "sweeps" in path.parts:
            check_grid_early(path)
        else:
            check_early(path)
            read_config(path)
    check_attacks_early(record.name for record in ATTACKS)
    check_attacks_early(["relearn:seeds=3,search,bound=0.1", "quantize:bits=4,search=6,threshold=0.8,reference=false"])
    for field in dataclasses.fields(UnlearnConfig):
        if field.name in field_types() and isinstance(field.default, int | float):
            check_early(None, [f"{field.name}={field.default}"])


def test_the_texts_tell_the_fields_that_the_class_has():
    told, fields = _fields(), field_types()
    assert set(told) == set(fields)
    for name, kind in told.items():
        assert kind is Any or kind == fields[name], name
    assert sum(kind is Any for kind in told.values()) < 10


@pytest.mark.parametrize("catalog", [OPTIMIZERS, ATTACKS, BENCHMARKS, METHODS, RETAIN_TERMS])
def test_the_texts_tell_the_settings_that_the_targets_have(catalog):
    told = 0
    for record in catalog:
        kinds = keywords(record.target)
        if kinds is None:
            continue
        told += 1
        target = catalog.load(record.name)
        assert set(settings_of(target)) == set(kinds) - {"self", "params"}, record.name
        annotations = annotations_of(target)
        for name in settings_of(target):
            assert kinds[name] is Any or kinds[name] == annotations[name], (record.name, name)
    assert told > len(catalog) // 2


def test_what_a_text_does_not_tell_is_left_alone(tmp_path):
    assert keywords("torch.optim:AdamW") is None
    assert keywords("letgo.optim.hybrid:Nothing") is None
    assert keywords("letgo.nowhere:Nothing") is None
    assert dataclass_fields(tmp_path / "nothing.py", "X") is None
    (tmp_path / "broken.py").write_text("class X(:")
    assert dataclass_fields(tmp_path / "broken.py", "X") is None


def test_torch_is_not_loaded_for_a_mistake(tmp_path):
    program = (
        "import sys; from letgo.cli import _run; code = _run(sys.argv[1:]); "
        "print(code, [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    (tmp_path / "run.yaml").write_text("model: m\noptimizer: fozoh\n")
    (tmp_path / "grid.yaml").write_text("base: {optimizer: fozoh}\n")
    for words in (
        ["unlearn", tmp_path / "run.yaml"],
        ["plan", tmp_path / "run.yaml"],
        ["show-config", tmp_path / "run.yaml"],
        ["sweep", tmp_path / "grid.yaml"],
        ["attack", tmp_path, "--attack", "quantise"],
        ["attack", tmp_path, "--attack", "quantize", "--benchmark", "tofu:splt=forget10"],
        ["eval", tmp_path, "--benchmark", "tofu:splt=forget10"],
        ["audit", "--model", tmp_path, "--benchmark", "tofu:splt=forget10", "--output", tmp_path / "audit"],
        ["analyze", "depth", tmp_path, "--benchmark", "tofu:splt=forget10"],
    ):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "2 []", words
        assert "did you mean" in done.stderr
