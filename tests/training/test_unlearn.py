from __future__ import annotations

import contextlib
import copy
import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import letgo
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.files import read_json_lines
from letgo.core.locks import LOCK_FILE, locked
from letgo.core.progress import Quiet
from letgo.models.load import load_model, weights_fingerprint
from letgo.models.save import save_model
from letgo.runs.results import read_result
from letgo.training.config import dump_config, make_config
from letgo.training.trainer import UnlearnTrainer
from tests import tiny, warm


@contextlib.contextmanager
def locked_directory(path):
    """A directory at which another process is at work: a lock belongs to the file as it was opened."""
    with locked(path / LOCK_FILE) as free:
        assert free
        yield
    (path / LOCK_FILE).unlink()


@pytest.fixture
def job(tmp_path, model_directory):
    """Settings of a small run on the user's own files."""
    return tiny.own_files(tmp_path, model_directory, learning_rate=1e-3, max_steps=6, per_device_train_batch_size=2)


def test_a_run_leaves_everything_the_contract_names(job, tmp_path):
    run = letgo.unlearn(**job, attacks=["quantize:bits=4", "relearn:steps=2,seeds=2"])
    names = {path.name for path in run.directory.iterdir()}
    assert names >= {
        *("model.safetensors", "config.json", "tokenizer.json", "config.yaml", "result.json", "samples.jsonl"),
        *("history.jsonl", "README.md"),
    }
    assert not any(name.startswith("checkpoint-") for name in names), "checkpoints are the run's own affair"
    result = read_result(run.directory)
    assert result == run.result
    assert set(result.before) == set(result.after)
    assert result.before["forget_probability"].n == len(tiny.FORGET)
    assert result.headlines == {"forget_probability": 0.0}
    assert result.seconds["unlearn"] > 0
    assert result.peak_memory_bytes["host"] > 1e7
    quantized, relearned = result.attacks
    assert quantized.metrics["forget_probability"].n == 4
    assert relearned.seeds == [0, 1]
    assert len(relearned.per_seed) == 2
    assert relearned.metrics["forget_probability"].n == 4, "two held-out rows, two seeds"
    assert set(relearned.baseline) == {"before", "after"}
    assert relearned.baseline["before"]["forget_probability"].n == 4, "the same rows, of both seeds"
    assert "seen_probability" in relearned.metrics
    stages = {row["stage"] for row in read_json_lines(run.directory / "samples.jsonl")}
    assert stages == {"before", "after", "attack:quantize:bits=4", "attack:relearn:steps=2"}
    assert [row["step"] for row in read_json_lines(run.directory / "history.jsonl")] == list(range(1, 7))


@pytest.mark.parametrize("optimizer", ["dual_optim", "sam:on=forget"])
def test_an_optimizer_that_takes_the_terms_apart_needs_two(job, optimizer):
    with pytest.raises(UserError, match="has no retain term here: name a retain_loss"):
        letgo.unlearn(**job | {"objective": "ga", "optimizer": optimizer})


def test_the_saved_config_runs_again_to_the_same_bits(job, tmp_path):
    first = letgo.unlearn(**job)
    settings = yaml.safe_load((first.directory / "config.yaml").read_text()) | {"output_dir": str(tmp_path / "again")}
    second = letgo.unlearn(**settings)
    assert weights_fingerprint(first.model) == weights_fingerprint(second.model)
    assert first.result.after == second.result.after
    assert weights_fingerprint(load_model(first.directory)) == weights_fingerprint(first.model)


def test_an_attack_twice_with_one_seed_gives_equal_bits(job):
    run = letgo.unlearn(**job)
    attacks = ["relearn:steps=3,learning_rate=1e-3", "quantize:bits=3"]
    first = letgo.attack(run.directory, attacks).attacks
    second = letgo.attack(run.directory, attacks).attacks
    assert [a.metrics for a in first] == [a.metrics for a in second]
    assert [a.did for a in first] == [a.did for a in second]
    assert len(second) == 2


def test_an_attack_with_its_own_output_leaves_the_run_alone(job, tmp_path):
    run = letgo.unlearn(**job)
    result = letgo.attack(run.directory, ["quantize:bits=4"], output=tmp_path / "attacked")
    assert read_result(run.directory).attacks == []
    assert read_result(tmp_path / "attacked") == result
    more = letgo.attack(run.directory, ["quantize:bits=3"], output=tmp_path / "attacked")
    assert [attack.label for attack in more.attacks] == ["quantize:bits=4", "quantize:bits=3"]
    assert read_result(tmp_path / "attacked") == more
    # Cut off between its samples and its record.
    (tmp_path / "attacked" / "result.json").unlink()
    (tmp_path / "attacked" / "README.md").unlink()
    again = letgo.attack(run.directory, ["quantize:bits=4", "quantize:bits=3"], output=tmp_path / "attacked")
    assert [attack.metrics for attack in again.attacks] == [attack.metrics for attack in more.attacks]
    more = again
    other = letgo.unlearn(**job | {"output_dir": str(tmp_path / "other"), "seed": 9})
    with pytest.raises(UserError, match="holds the attacks on another model"):
        letgo.attack(other.directory, ["quantize:bits=4"], output=tmp_path / "attacked")
    assert read_result(tmp_path / "attacked") == more


def test_a_model_that_has_not_unlearned_keeps_nothing(job):
    knows = job | {"model": "biographies", "benchmark": "biographies", "forget": None, "retain": None, "eval_limit": 60}
    run = letgo.unlearn(**knows | {"learning_rate": 0.0}, attacks=["quantize:bits=8", "relearn:steps=1"])
    assert [attack.kept for attack in run.result.attacks] == [0.0, 0.0]
    assert run.result.judgement.word == "not forgotten"
    assert not any(attack.survived for attack in run.result.attacks)


def test_of_a_model_that_never_knew_it_is_said_before_training(job, monkeypatch):
    events = []
    train = UnlearnTrainer.train
    monkeypatch.setattr(Quiet, "say", lambda self, text: events.append(text))
    monkeypatch.setattr(UnlearnTrainer, "train", lambda self, **how: (events.append("training"), train(self, **how))[1])
    run = letgo.unlearn(**job, attacks=["quantize:bits=8"])
    said = [text for text in events[: events.index("training")] if "nothing to forget" in text]
    assert len(said) == 1
    assert "the original does not know it" in said[0]
    assert run.result.judgement.word == "nothing to forget"
    assert [attack.outcome for attack in run.result.attacks] == ["can't tell"]


def test_a_broken_model_is_called_collapsed_not_forgetful(tmp_path):
    """Gradient ascent without a bound on the tiny biographies model: it forgets everything, and is said to."""
    run = letgo.unlearn(
        model="biographies",
        benchmark="biographies",
        objective="ga",
        optimizer="adamw",
        learning_rate=3e-3,
        max_steps=30,
        save_strategy="no",
        output_dir=str(tmp_path / "run"),
        eval_limit=20,
        attacks=["quantize:bits=8"],
        use_cpu=True,
    )
    assert run.result.status == "collapsed"
    assert any("perplexity" in reason or "degenerate" in reason for reason in run.result.reasons)
    [quantized] = run.result.attacks
    assert quantized.outcome == "not survived"
    assert "broken before the attack" in quantized.why


def test_a_loss_that_is_not_finite_leaves_a_failed_result(job, monkeypatch):
    def broken(model, forget, **settings):
        return torch.tensor(float("nan"), requires_grad=True)

    monkeypatch.setattr("letgo.objectives.npo.npo", broken)
    with pytest.raises(NonFiniteLossError, match="at step 1"):
        letgo.unlearn(**job)
    directory = Path(job["output_dir"])
    result = read_result(directory)
    assert result.status == "failed"
    assert "not finite" in result.reasons[0]
    assert not (directory / "model.safetensors").exists()
    with pytest.raises(UserError, match="the run failed"):
        letgo.attack(directory, ["quantize:bits=4"])


def test_another_run_in_the_output_is_refused(job):
    letgo.unlearn(**job)
    with pytest.raises(UserError, match="holds another run"):
        letgo.unlearn(**job)
    with pytest.raises(UserError, match="nothing to resume"):
        letgo.unlearn(**job, resume=True)


def test_what_is_saved_is_checked_against_what_was_trained(tmp_path, tokenizer, monkeypatch):
    model = tiny.make_model()
    save_model(model, tokenizer, tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["model.norm.weight"], model.model.norm.weight)
    original = type(model).save_pretrained

    def careless(self, directory, **more):
        original(tiny.make_model(seed=9), directory, **more)

    monkeypatch.setattr(type(model), "save_pretrained", careless)
    with pytest.raises(letgo.LetgoError, match="was not saved as it was trained"):
        save_model(model, tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nowhere/at/all"}, "no such model"),
        ({"model": "biographie"}, "did you mean 'biographies'"),
        ({"forget": None}, "nothing to forget"),
        ({"retain": None}, "there is no retain set"),
        ({"max_length": 5}, "rows are longer than max_length 5"),
        ({"objective": "nop"}, "did you mean 'npo'"),
        ({"optimizer": "fozoh"}, "did you mean 'fozo'"),
        ({"optimizer": "fozo:zolr=1"}, "did you mean 'zo_lr'"),
        ({"attacks": ["quantise"]}, "did you mean 'quantize'"),
        ({"attacks": ["quantize:bit=4"]}, "did you mean 'bits'"),
        ({"output_dir": None}, "no output directory"),
        ({"output_dir": "/proc/letgo"}, "can't be written to"),
        ({"template": "chat"}, "no chat template"),
        ({"trainable": "mlpp"}, "is found in no parameter's name"),
        ({"optimizer": "bin_floor:grid=own"}, "lies on no grid that is known; take grid: even"),
        ({"objective": "task_vector", "moved_every": 2}, "moved_every measures steps, and task_vector takes none"),
        ({"trainable": "("}, "not a regular expression"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(job, changes, message):
    with pytest.raises(UserError, match=message):
        letgo.unlearn(**job | changes)


def test_shared_and_empty_sets_are_refused(job, tmp_path):
    with pytest.raises(UserError, match="share 4 row"):
        letgo.unlearn(**job | {"retain": job["forget"]})
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="has no rows"):
        letgo.unlearn(**job | {"forget": str(tmp_path / "empty.jsonl")})


@pytest.mark.parametrize("optimizer", ["adamw", "zo_sgd"])
def test_only_what_is_trainable_is_trained(job, optimizer):
    before = load_model(job["model"]).state_dict()
    run = letgo.unlearn(**job | {"trainable": r"layers\.1\.mlp", "optimizer": optimizer})
    after = load_model(run.directory).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "layers.1.mlp" in name}
    assert any("trained: 6,144 of" in note for note in run.result.notes)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["fozo:zo_lr=1e-3,fo_steps=2,zo_steps=2"])  # both kinds of steps
def test_a_run_killed_with_sigkill_resumes_to_the_same_bits(job, tmp_path, optimizer):
    """The whole command, killed as hard as can be, and resumed by its own flag."""
    job |= {"optimizer": optimizer, "max_steps": 60, "save_steps": 4, "eval_limit": 2}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(job))
    command, wrong = ["-m", "letgo", "unlearn", str(config), "--quiet"], tmp_path / "wrong"
    run = tmp_path / "run"
    process = warm.start(command, wrong=wrong)
    deadline = time.monotonic() + 180
    while not list(run.glob("checkpoint-*/letgo_complete")):
        assert process.is_alive(), wrong.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()  # SIGKILL
    process.join()
    assert not (run / "result.json").exists(), "killed before it was done"
    refused = warm.run(command)
    assert refused.returncode == 2
    assert "resume it with --resume" in refused.stderr
    assert warm.run([*command, "--resume"]).returncode == 0
    whole = letgo.unlearn(**job | {"output_dir": str(tmp_path / "whole")})
    assert weights_fingerprint(load_model(run)) == weights_fingerprint(whole.model)
    assert read_json_lines(run / "history.jsonl") == read_json_lines(tmp_path / "whole" / "history.jsonl")
    assert json.loads((run / "result.json").read_text())["status"] == whole.result.status
    assert os.listdir(run)


class Killed(BaseException):
    """As a kill: nothing of the run handles it."""


def cut_off(job, monkeypatch, stage="save"):
    """A run that was killed when it came to a stage after its training."""

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(f"letgo.training.unlearn.{stage}", killed)
        with pytest.raises(Killed):
            letgo.unlearn(**job)


@pytest.mark.parametrize("stage", ["save", "judge_run", "record"])
@pytest.mark.parametrize(
    "optimizer", ["adamw", "weight_averaging:start=2,every=1", "fozo:fo_steps=2,zo_steps=3,zo_lr=1e-3"]
)
def test_a_run_killed_after_its_last_step_resumes_to_the_same_bits(job, tmp_path, monkeypatch, optimizer, stage):
    """Five steps of an epoch of two: the last one ends within an epoch."""
    job |= {"optimizer": optimizer, "max_steps": 5, "save_steps": 2, "eval_limit": 2, "per_device_train_batch_size": 2}
    whole = letgo.unlearn(**job | {"output_dir": str(tmp_path / "whole")})
    cut_off(job, monkeypatch, stage)
    resumed = letgo.unlearn(resume=True, **job)
    assert weights_fingerprint(load_model(resumed.directory)) == weights_fingerprint(whole.model)
    assert read_json_lines(tmp_path / "run" / "history.jsonl") == read_json_lines(tmp_path / "whole" / "history.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 2e-3}, "learning_rate 0.001 .now 0.002."),
        ({"seed": 7, "objective": "ga"}, "seed 42 .now 7., objective 'npo_gdr' .now 'ga'."),
        ({"optimizer_args": {"eps": 1e-6}}, "optimizer_args None .now {'eps': 1e-06}"),
        ({"max_steps": 9}, "max_steps 6 .now 9."),
        ({"warmup_steps": 1}, "warmup_steps by default .now 1"),
    ],
)
def test_a_run_goes_on_with_the_settings_it_was_begun_with_or_not_at_all(job, monkeypatch, changes, message):
    cut_off(job | {"save_steps": 2}, monkeypatch)
    with pytest.raises(UserError, match=f"begun with other settings: {message}.*\n.*run/config.yaml --resume"):
        letgo.unlearn(**job | {"save_steps": 2} | changes, resume=True)


def test_what_leaves_the_trajectory_alone_may_change_on_the_way(job, monkeypatch):
    cut_off(job | {"save_steps": 2}, monkeypatch)
    run = letgo.unlearn(**job, resume=True, attacks=["quantize:bits=4"], save_steps=3)
    assert [attack.name for attack in run.result.attacks] == ["quantize"]


def test_two_processes_do_not_write_to_one_directory(job, tmp_path):
    (tmp_path / "run").mkdir()
    busy = rf"another process \({socket.gethostname()} {os.getpid()}\) is at work in .*run"
    with locked_directory(tmp_path / "run"), pytest.raises(UserError, match=busy):
        letgo.unlearn(**job)
    run = letgo.unlearn(**job, attacks=["quantize:bits=4"])
    with locked_directory(run.directory), pytest.raises(UserError, match=busy):
        letgo.attack(run.directory, ["quantize:bits=3"])
    assert [attack.label for attack in letgo.attack(run.directory, ["quantize:bits=3"]).attacks] == [
        "quantize:bits=4",
        "quantize:bits=3",
    ]


@pytest.mark.parametrize("objective", ["npo_gdr", "task_vector"])
def test_the_config_is_as_it_was_given_after_the_run(job, objective):
    """What a run derives (steps lengthened to a whole zeroth-order round, say) is not written into it."""
    settings = {"objective": objective, "optimizer": "fozo:fo_steps=2,zo_steps=2", "max_steps": 5, "eval_limit": 2}
    config = make_config(job | settings)
    given = copy.deepcopy(config)
    text = dump_config(config)
    run = letgo.unlearn(config)
    assert config == given
    assert config.max_steps == 5
    assert (run.directory / "config.yaml").read_text(encoding="utf-8") == text
    assert run.result.config["max_steps"] == 5
    if objective == "npo_gdr":
        assert any("5 steps lengthened to 8" in note for note in run.result.notes)
