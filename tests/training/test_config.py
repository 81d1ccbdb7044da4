from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from letgo.core.errors import UserError
from letgo.training.config import (
    UnlearnConfig,
    dump_config,
    make_config,
    merge_overrides,
    read_config,
    resolved_settings,
)


def write(path, text):
    path.write_text(text)
    return path


def test_file_then_flags_then_set(tmp_path):
    path = write(tmp_path / "run.yaml", "model: m\noptimizer: adamw\nlearning_rate: 1e-4\noutput: out\nseed: 3\n")
    config = read_config(path, ["seed=5", "optimizer_args.mu=1e-3"], optimizer="fozo", model=None)
    assert config.model == "m"
    assert config.optimizer == "fozo"
    assert config.learning_rate == 1e-4, "YAML reads 1e-4 as text; it is a number here"
    assert config.seed == 5
    assert config.output_dir == "out"
    assert config.optimizer_args == {"mu": 1e-3}


def test_inline_settings_of_objective_and_optimizer():
    config = make_config({"objective": "npo:beta=0.2", "optimizer": "fozo:mu=1e-3,fo_steps=4"})
    assert (config.objective, config.objective_args) == ("npo", {"beta": 0.2})
    assert (config.optimizer, config.optimizer_args) == ("fozo", {"mu": 1e-3, "fo_steps": 4})


def test_what_is_dumped_makes_the_same_config_again():
    config = make_config(
        {
            "model": "m",
            "benchmark": "biographies",
            "optimizer": "fozo",
            "optimizer_args": {"mu": 1e-3},
            "learning_rate": 3e-5,
            "lr_scheduler_type": "linear",
            "warmup_steps": 4,
            "bf16": False,
            "attacks": ["quantize:bits=4"],
            "output_dir": "x",
        }
    )
    text = dump_config(config)
    again = make_config(yaml.safe_load(text))
    assert resolved_settings(again) == resolved_settings(config)
    assert dump_config(again) == text
    assert again.warmup_steps == 4
    assert "hub_token" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnin_rate: 1\n", r"run\.yaml: unknown key 'learnin_rate'; did you mean 'learning_rate'"),
        ("learning_rate: fast\n", r"run\.yaml: learning_rate is 'fast', which is not a number"),
        ("max_steps: 1.5\n", "not a whole number"),
        ("learning_rate: -1.0\n", "must not be negative"),
        ("per_device_train_batch_size: 0\n", "at least 1"),
        ("long_rows: drp\n", "did you mean 'drop'"),
        ("dtype: float8\n", "known: float32"),
        ("- a\n- b\n", "must be a mapping"),
        ("a: [1\n", r"run\.yaml:2: not YAML"),
        ("benchmark: biographies\nforget: x.jsonl\n", "'forget', not both"),
        ("benchmark: biographies\nevaluate: x.jsonl\n", r"run\.yaml: give either .* or 'evaluate', not both"),
        ("benchmark: biographies\ncontrol: x.jsonl\n", r"run\.yaml: give either .* or 'control', not both"),
        ("forget: f.jsonl\ncontrol: 3\n", r"run\.yaml: control is 3, which is not"),
        ("output: a\noutput_dir: b\n", "a second time"),
        ("lr_scheduler_type: wobbly\n", "wobbly"),
        ("stop: target\n", "stop: target goes by looks at the model: give evaluate_every: N"),
        ("keep: best\n", "keep: best goes by looks at the model: give evaluate_every: N"),
        ("evaluate_every: 0\n", "evaluate_every must be at least 1"),
        ("evaluate_every: 5\nstop: soon\n", "stop is 'soon'(.|\n)*known: target"),
        ("evaluate_every: 5\nkeep: first\n", "known: last, best"),
        ("utility_bound: -0.1\n", "utility_bound must not be negative"),
        ("eval_strategy: steps\n", r"run\.yaml: eval_strategy is of transformers' own(.|\n)*evaluate_every: N"),
        ("eval_strategy: epoch\n", "evaluate_every: N"),
        ("eval_steps: 10\n", "evaluate_every: N"),
        ("eval_on_start: true\n", "evaluate_every: N"),
        ("do_eval: true\n", "evaluate_every: N"),
        ("load_best_model_at_end: true\n", "load_best_model_at_end is of transformers' own(.|\n)*keep: best"),
        ("metric_for_best_model: loss\n", "keep: best"),
        ("greater_is_better: true\n", "keep: best"),
        ("save_strategy: best\n", "keep: best"),
        ("early_stopping_patience: 3\n", "no setting 'early_stopping_patience': give stop: target"),
        ("lr_scheduler_type: reduce_lr_on_plateau\n", "take another schedule"),
        ("lr_scheduler_type: greedy\n", "take another schedule"),
        ("deepspeed: z2.json\n", r"run\.yaml: deepspeed: z2.json asks for DeepSpeed, which(.|\n)*strategy: fsdp2"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_config(write(tmp_path / "run.yaml", text))


def test_a_launcher_that_asks_for_deepspeed_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="the launcher asks for DeepSpeed, which letgo does not use") as refused:
        make_config({"optimizer": "adamw"})
    assert "strategy: fsdp2" in str(refused.value)
    assert "recipes/launch/fsdp2.yaml" in str(refused.value)


def test_settings_of_transformers_evaluations_may_be_named_as_they_are_by_default():
    config = make_config({"eval_strategy": "no", "eval_delay": 0, "load_best_model_at_end": False, "do_eval": False})
    assert config.evaluate_every is None
    with pytest.raises(UserError, match="evaluate_every"):
        UnlearnConfig(stop="target")


def test_missing_file():
    with pytest.raises(UserError, match="no such config file"):
        read_config(Path("nowhere.yaml"))


def test_overrides():
    merged = merge_overrides({"a": 1, "m": {"x": 1}}, ["a=2", "m.y=3", 'list=["q", "r"]', "word=some text"])
    assert merged == {"a": 2, "m": {"x": 1, "y": 3}, "list": ["q", "r"], "word": "some text"}
    with pytest.raises(UserError, match="key=value"):
        merge_overrides({}, ["oops"])
