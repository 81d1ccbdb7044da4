from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import yaml

from letgo.core.errors import UserError
from letgo.core.files import load_settings, parse_settings, settings_text
from letgo.training.config import (
    UnlearnConfig,
    dump_config,
    make_config,
    read_config,
    resolved_settings,
)
from letgo.training.settings import merge_overrides


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
        ("learning_rate: -1.0\n", "learning_rate must be a number of at least 0, but is -1.0"),
        ("per_device_train_batch_size: 0\n", "at least 1, but is 0"),
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
        ("evaluate_every: 0\n", "evaluate_every must be a whole number of at least 1"),
        ("evaluate_every: 5\nstop: soon\n", "stop is 'soon'(.|\n)*known: target"),
        ("evaluate_every: 5\nkeep: first\n", "known: last, best"),
        ("utility_bound: -0.1\n", "utility_bound must be a number of at least 0"),
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
        ("max_steps: 0\n", r"run\.yaml: max_steps must be a whole number from 1 to 1000000000, but is 0"),
        ("max_steps: -2\n", "max_steps must be a whole number from 1"),
        ("epochs: -1\n", "num_train_epochs must be a number above 0"),
        ("epochs: 0\n", "num_train_epochs must be a number above 0"),
        ("epochs: 1e30\n", "at most 1000000, but is 1e"),
        ("save_steps: .nan\n", r"run\.yaml: save_steps: nan is no number to work with"),
        ("save_steps: 2.5\n", r"save_steps must be a whole number of steps, or a share of them below 1, but is 2\.5"),
        ("save_steps: 0\n", "save_steps must be a number above 0"),
        ("max_grad_norm: .nan\n", "max_grad_norm: nan is no number"),
        ("max_grad_norm: -1\n", "max_grad_norm must be a number of at least 0"),
        ("learning_rate: .inf\n", "learning_rate: inf is no number"),
        ("learning_rate: inf\n", "learning_rate must be a number of at least 0, but is inf"),
        ("learning_rate: true\n", "learning_rate is True, which is not a number"),
        ("learning_rate: [1]\n", r"learning_rate is \[1\], which is not a number"),
        ("seed: -1\n", "seed must be a whole number from 0 to 4294967295, but is -1"),
        ("seed: 1e30\n", "seed is 1e[+]30, which is not a whole number"),
        ("seed: true\n", "seed is True, which is not a whole number"),
        ("weight_decay: -0.1\n", "weight_decay must be a number of at least 0"),
        ("forget_weight: -1\n", "forget_weight must be a number of at least 0"),
        ("retain_weight: nan\n", "retain_weight must be a number of at least 0, but is nan"),
        ("dataloader_num_workers: -1\n", "dataloader_num_workers must be a whole number of at least 0"),
        ("save_total_limit: 0\n", "save_total_limit must be a whole number of at least 1"),
        ("target: 1.5\n", "target must be a number above 0 and at most 1"),
        ("optimizer: null\n", "optimizer has no value; leave it out, or give text"),
        ("optimizer: [adamw]\n", r"optimizer is \['adamw'\], which is not text"),
        ("optimizer_args: abc\n", "optimizer_args is 'abc', which is not a mapping"),
        ("attacks: quantize\n", "attacks is 'quantize', which is not a list"),
        ("output: [a]\n", r"output_dir is \['a'\], which is not text"),
        ("output: 3\n", "output_dir is 3, which is not text"),
        ("model: 1e5\n", r"model is 100000\.0, which is not text"),
        ("logging_strategy: [1]\n", r"logging_strategy is \[1\]; known: no, steps, epoch"),
        ("logging_strategy: step\n", "did you mean 'steps'"),
        ("hub_strategy: 3\n", "known: end, every_save"),
        ("log_level: loud\n", "log_level is 'loud'; known: passive"),
        ("report_to: tensorbord\n", "report_to has 'tensorbord'; did you mean 'tensorboard'"),
        ("report_to: {a: b}\n", "which is not text or a list of texts"),
        ("trainable: '('\n", r"trainable: '[(]' is not a regular expression \(missing"),
        ("resume_from_checkpoint: /nonexistent\n", "changes nothing in letgo(.|\n)*--resume"),
        ("optim: adafactor\n", "changes nothing in letgo(.|\n)*optimizer_args"),
        ("adam_beta1: 0.5\n", "changes nothing in letgo"),
        ("label_smoothing_factor: 0.1\n", "changes nothing in letgo"),
        ("bf16_full_eval: true\n", "bf16_full_eval is of transformers' Trainer(.|\n)*dtype"),
        (
            "seed: 3\ndataloader_prefetch_factor: 2\n",
            r"run\.yaml: dataloader_prefetch_factor: transformers can't use it",
        ),
        ("model: a\nseed: 1\nmodel: b\n", r"run\.yaml:3: not YAML \(the key 'model' is given twice\)"),
        ("optimizer_args: {mu: 1, mu: 2}\n", r"run\.yaml:1: not YAML \(the key 'mu' is given twice\)"),
        ("true: 1\nTrue: 2\n", r"run\.yaml:2: not YAML \(the key 'True' is given twice"),
        ("a: &a [*a]\n", r"run\.yaml: a(\[0\])+.*nested more than 50 levels"),
        ("a: " + "[" * 5000, r"run\.yaml:1: not YAML \(nested too deeply\)"),
        ("a: " + "{" * 5000, r"run\.yaml:1: not YAML \(nested too deeply\)"),
        ("- " * 5000, r"run\.yaml: not YAML \(nested too deeply\)"),
        ("a: !!int abc\n", r"run\.yaml:1: not YAML \('abc' is not of the kind 'int'\)"),
        ("a: !!python/object:os.system x\n", r"run\.yaml:1: not YAML"),
        ("a: !!timestamp x\n", r"run\.yaml:1: not YAML"),
        ("model: 'a\0b'\n", r"run\.yaml:1: not YAML"),
        ('model: "\\0"\n', "model: the text has a NUL"),
        ('model: "\\ud800"\n', r"model: the text has half a character in it \(U\+D800\)"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_config(write(tmp_path / "run.yaml", text))


def test_the_config_stays_what_was_given(tmp_path):
    """Also where there is no device to copy to from pinned memory."""
    assert read_config(write(tmp_path / "run.yaml", "dataloader_pin_memory: 1\n")).dataloader_pin_memory == 1


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
    with pytest.raises(UserError, match="config file: no such file"):
        read_config(Path("nowhere.yaml"))


def test_overrides():
    merged = merge_overrides({"a": 1, "m": {"x": 1}}, ["a=2", "m.y=3", 'list=["q", "r"]', "word=some text"])
    assert merged == {"a": 2, "m": {"x": 1, "y": 3}, "list": ["q", "r"], "word": "some text"}
    with pytest.raises(UserError, match="key=value"):
        merge_overrides({}, ["oops"])


def test_words_of_yaml_are_what_they_show(tmp_path):
    path = write(tmp_path / "run.yaml", "save_strategy: no\nlr: 1\n".replace("lr", "learning_rate") + "seed: 010\n")
    config = read_config(path)
    assert (config.save_strategy.value, config.learning_rate, config.seed) == ("no", 1.0, 10)
    settings = load_settings(write(tmp_path / "a.yaml", "a: 1e-4\nb: 1:30\nc: 2024-01-01\nd: 1_000\ne: .5\nf:\n"))
    assert settings == {"a": 1e-4, "b": "1:30", "c": "2024-01-01", "d": 1000, "e": 0.5, "f": None}
    merged = load_settings(write(tmp_path / "m.yaml", "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n"))
    assert merged["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    "text", ["1e-4", "no", "1:30", "0x1F", "true", "~", ".nan", "5", "<<", "1_0", "a: b", "", " x "]
)
def test_a_text_that_looks_like_something_else_stays_text(text):
    settings = {"trainable": text, "objective_args": {text: [text]}}
    assert parse_settings(settings_text(settings), "x") == settings


@pytest.mark.parametrize("reused", ["[*{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}]", "{{<<: [*{0}, *{0}, *{0}]}}"])
def test_what_aliases_repeat_is_bounded(tmp_path, reused):
    names = "abcdefghijklmnopqrstuvwxyz"
    lines = ["a: &a {x: 1}", *(f"{b}: &{b} {reused.format(a)}" for a, b in itertools.pairwise(names))]
    with pytest.raises(UserError, match=r"holds more than 200,000 values|over 1,000 keys"):
        load_settings(write(tmp_path / "bomb.yaml", "\n".join(lines)))


def test_files_that_are_no_files_of_settings(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "16.yaml").write_bytes("seed: 1\n".encode("utf-16"))
    (tmp_path / "bom.yaml").write_bytes("seed: 1\n".encode("utf-8-sig"))
    (tmp_path / "large.yaml").write_text("#" * 2_000_000)
    for name, message in (
        (tmp_path / "pipe.yaml", "is a pipe, a socket or a device; name a file"),
        ("/dev/zero", "is a pipe, a socket or a device"),
        (tmp_path, "is a directory; name a file"),
        (tmp_path / "16.yaml", r"is not UTF-8 text \(byte 0\); save it as UTF-8"),
        (tmp_path / "large.yaml", "at most 1,000,000 bytes"),
        ("x" * 300, "can't be read: File name too long"),
        ("a\0b", "can't be read"),
    ):
        with pytest.raises(UserError, match=message):
            load_settings(Path(name))
    assert load_settings(tmp_path / "bom.yaml") == {"seed": 1}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optimizer_args=[1", "--set optimizer_args:1: not YAML"),
        ("optimizer_args={a: 1, a: 2}", "given twice"),
        ("model.x=1", "--set 'model.x=1': model is 'm', which has no settings inside"),
        ("seed=" + "9" * 5000, "seed is inf"),
        ("learning_rate=nan", "learning_rate is nan"),
        ("optimizer=none", "optimizer has no value"),
    ],
)
def test_bad_assignments(assignment, message):
    with pytest.raises(UserError, match=message):
        make_config(merge_overrides({"model": "m"}, [assignment]))


def test_settings_given_in_python_are_checked_too():
    with pytest.raises(UserError, match="max_steps must be a whole number"):
        UnlearnConfig(max_steps=0)
    with pytest.raises(UserError, match="learning_rate must be a number"):
        UnlearnConfig(learning_rate=float("nan"))
