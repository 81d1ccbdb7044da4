"""Looks during training: they change nothing, and a run stops and keeps weights by what they find."""

from __future__ import annotations

import random
from contextlib import contextmanager
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback

import letgo
from letgo.benchmarks.engine.base import Benchmark
from letgo.benchmarks.user_rows import user_rows
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.core.progress import Quiet
from letgo.models.load import weights_fingerprint
from letgo.optim.averaging import WeightAveraging
from letgo.report import write_report
from letgo.training.config import UnlearnConfig
from letgo.training.looks import Looks, most_looks
from tests import tiny
from tests.training.test_trainer import Stop, make_trainer

FORGETS = {"objective": "graddiff", "learning_rate": 3e-3, "max_steps": 10}
"""A run of the tiny model that forgets all along; by its rate it loses usefulness too."""
AVERAGED = {"optimizer": "weight_averaging", "optimizer_args": {"base": "adamw", "start": 2, "every": 1}}
GRADES = {
    "first order": {},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
    "zeroth order": {"grade": "adaptive zeroth order"},
    "hybrid": {"grade": "hybrid"},
    "averaged": AVERAGED,
    "sam": {"optimizer": "sam", "optimizer_args": {"base": "adamw"}},
    "dropout": {"disable_dropout": False},
}


def trained(folder, tokenizer, **settings):
    dropout = {"model": tiny.make_model(attention_dropout=0.3)} if settings.get("disable_dropout") is False else {}
    trainer = make_trainer(folder, tokenizer, **(FORGETS | dropout | settings))
    trainer.train()
    return trainer


def looks_of_run(trainer):
    return [row for row in trainer.history if "forgotten" in row]


def bits(trainer):
    return weights_fingerprint(trainer.model)


# -- what they leave alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grade", GRADES)
def test_a_run_with_looks_takes_the_steps_of_one_without(tmp_path, tokenizer, grade):
    plain = trained(tmp_path / "plain", tokenizer, **GRADES[grade])
    looking = trained(tmp_path / "looking", tokenizer, evaluate_every=3, **GRADES[grade])
    assert bits(looking) == bits(plain)
    assert [row for row in looking.history if "forgotten" not in row] == plain.history
    last = plain.state.max_steps
    assert [row["step"] for row in looks_of_run(looking)] == [*range(0, last, 3), last]
    assert len(looks_of_run(looking)) == most_looks(looking.args, last)


def test_a_look_draws_nothing_from_the_global_generators(tmp_path, tokenizer, monkeypatch):
    trainer = make_trainer(tmp_path, tokenizer, evaluate_every=2, **FORGETS)
    trainer.create_optimizer()

    def greedy(*args, **kwargs):
        torch.rand(3)  # a benchmark of somebody else's
        return summarise(*args, **kwargs)

    summarise = trainer.looks.benchmark.summarise
    object.__setattr__(trainer.looks.benchmark, "summarise", greedy)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


# -- what they measure -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, AVERAGED], ids=["plain", "averaged"])
def test_a_look_is_what_a_run_of_so_many_steps_would_end_with(tmp_path, tokenizer, settings):
    """The reference: end the run there, score the same items, and take F and the loss by hand."""
    looking = trained(tmp_path / "looking", tokenizer, evaluate_every=2, **settings)
    few = user_rows(forget=tiny.FORGET, retain=tiny.RETAIN).few()
    headlines = {h.metric: h.floor for h in few.headlines}

    def scored(model):
        return {name: metric.value for name, metric in few.summarise(few.samples(model, tokenizer)).items()}

    original = scored(tiny.make_model())
    for look in looks_of_run(looking)[1:4]:
        ended = trained(tmp_path / str(look["step"]), tokenizer, **settings | {"max_steps": look["step"]})
        now = scored(ended.model)
        shares = [(original[m] - now[m]) / (original[m] - floor) for m, floor in headlines.items() if m in now]
        losses = [
            1 - now[m] / original[m]
            for m in now
            if m.startswith("retain_") and m.replace("retain", "forget") in headlines
        ]
        losses.append(now["general_perplexity"] / original["general_perplexity"] - 1)
        assert look["forgotten"] == min(shares)
        assert look["utility_loss"] == pytest.approx(max(0.0, *losses))
        assert {m: look[m] for m in headlines if m in now} == {m: now[m] for m in headlines if m in now}
    assert looks_of_run(looking)[0]["forgotten"] == looks_of_run(looking)[0]["utility_loss"] == 0.0


# -- stop: target ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grade", ["first order", "accumulated", "zeroth order", "averaged"])
def test_a_run_stops_at_the_first_look_that_finds_the_target_reached(tmp_path, tokenizer, grade):
    settings = GRADES[grade]
    looks = looks_of_run(trained(tmp_path / "all", tokenizer, evaluate_every=1, **settings))
    target = max(look["forgotten"] for look in looks[:6])
    first = next(look["step"] for look in looks if look["forgotten"] >= target)
    assert 0 < first < 10
    stopped = trained(tmp_path / "stopped", tokenizer, evaluate_every=1, stop="target", target=target, **settings)
    assert looks_of_run(stopped) == looks[: first + 1]
    assert stopped.state.global_step == first
    assert any(note.startswith(f"stopped at step {first} of 10: forgotten") for note in stopped.notes)
    # The schedule is constant, so that this is the beginning of the longer run; averages are put in place all the same.
    short = trained(tmp_path / "short", tokenizer, **settings | {"max_steps": first})
    assert bits(stopped) == bits(short)


def test_a_hybrid_stops_at_the_end_of_a_round(tmp_path, tokenizer):
    """Rounds of four steps, looks every three: a target reached within a round is looked for again at its end."""
    settings = {"grade": "hybrid", "learning_rate": 1e-2, "max_steps": 16}
    found = [
        look["forgotten"] for look in looks_of_run(trained(tmp_path / "all", tokenizer, evaluate_every=1, **settings))
    ]
    reached = next(step for step in range(3, 16, 3) if found[step] >= 0.5)
    end = -(-reached // 4) * 4
    assert reached < end < 16
    assert found[end] >= 0.5
    stopped = trained(tmp_path / "stopped", tokenizer, evaluate_every=3, stop="target", target=0.5, **settings)
    assert [look["step"] for look in looks_of_run(stopped)] == [*range(0, reached + 1, 3), end]
    assert len(looks_of_run(stopped)) <= most_looks(stopped.args, 16)
    assert stopped.state.global_step == end
    assert stopped.history[-2]["phase"] == "zeroth_order"
    assert bits(stopped) == bits(trained(tmp_path / "short", tokenizer, **settings | {"max_steps": end}))


def test_a_target_that_is_not_reached_is_said(tmp_path, tokenizer):
    trainer = trained(tmp_path, tokenizer, evaluate_every=5, stop="target", learning_rate=1e-6)
    assert trainer.state.global_step == 10
    assert any("the target of 75 % was not reached" in note for note in trainer.notes)


def test_a_schedule_is_that_of_the_whole_run(tmp_path, tokenizer):
    settings = {"lr_scheduler_type": "linear", "evaluate_every": 1}
    whole = trained(tmp_path / "whole", tokenizer, **settings)
    target = looks_of_run(whole)[4]["forgotten"]
    stopped = trained(tmp_path / "stopped", tokenizer, stop="target", target=target, **settings)
    assert stopped.history == whole.history[: len(stopped.history)]


# -- keep: best --------------------------------------------------------------------------------------------------------


def best_by_hand(looks, bound):
    within = [look for look in looks[1:] if look["utility_loss"] <= bound]
    most = max(look["forgotten"] for look in within)
    return next(look["step"] for look in within if look["forgotten"] == most)


@pytest.mark.parametrize("grade", ["first order", "averaged"])
def test_the_best_weights_are_those_of_a_run_of_so_many_steps(tmp_path, tokenizer, grade):
    settings = GRADES[grade]
    looks = looks_of_run(trained(tmp_path / "all", tokenizer, evaluate_every=1, **settings))
    bound = sorted(look["utility_loss"] for look in looks)[len(looks) // 2]
    step = best_by_hand(looks, bound)
    assert 0 < step < 10
    kept = trained(tmp_path / "kept", tokenizer, evaluate_every=1, keep="best", utility_bound=bound, **settings)
    assert looks_of_run(kept) == looks
    assert any(note.startswith(f"kept the weights of step {step}, the best look") for note in kept.notes)
    assert bits(kept) == bits(trained(tmp_path / "short", tokenizer, **settings | {"max_steps": step}))
    assert bits(kept) != bits(trained(tmp_path / "last", tokenizer, **settings))


def test_a_hybrid_keeps_weights_of_a_rounds_end(tmp_path, tokenizer):
    settings = {"grade": "hybrid", "max_steps": 12, "evaluate_every": 1, "keep": "best", "utility_bound": 100.0}
    trainer = trained(tmp_path, tokenizer, **settings)
    looks = [look for look in looks_of_run(trainer) if look["step"] % 4 == 0]
    assert any(f"kept the weights of step {best_by_hand(looks, 100.0)}," in note for note in trainer.notes)


def test_the_last_weights_are_kept_where_no_look_is_within_the_bound(tmp_path, tokenizer):
    trainer = trained(tmp_path / "none", tokenizer, evaluate_every=5, keep="best", utility_bound=0.0)
    assert any("no look was within the utility bound of 0 %" in note for note in trainer.notes)
    assert bits(trainer) == bits(trained(tmp_path / "plain", tokenizer))


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [2, 4, 5, 6])
@pytest.mark.parametrize(
    "also", [{"keep": "best", "utility_bound": 0.105}, {"stop": "target", "target": 0.15}], ids=str
)
def test_a_run_killed_between_looks_goes_on_to_the_same_bits_and_rows(tmp_path, tokenizer, killed, also):
    settings = FORGETS | {"evaluate_every": 2, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2} | also
    whole = make_trainer(tmp_path / "whole", tokenizer, **settings)
    whole.train()
    cut = make_trainer(tmp_path / "cut", tokenizer, callbacks=[Stop(killed)], **settings)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = make_trainer(tmp_path / "cut", tokenizer, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3") if killed > 3 else None)
    assert bits(resumed) == bits(whole)
    assert resumed.history == whole.history
    assert resumed.notes == whole.notes
    left = {path.name for path in (tmp_path / "cut").glob("best-*")}
    assert left == {path.name for path in (tmp_path / "whole").glob("best-*")}


def test_a_run_that_stopped_and_was_killed_afterwards_takes_no_more_steps(tmp_path, tokenizer):
    settings = {"evaluate_every": 2, "stop": "target", "target": 0.15, "save_strategy": "steps", "save_steps": 2}
    stopped = trained(tmp_path, tokenizer, **settings)
    step = stopped.state.global_step
    assert 0 < step < 10
    resumed = make_trainer(tmp_path, tokenizer, **(FORGETS | settings))
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert resumed.state.global_step == step
    assert (bits(resumed), resumed.history, resumed.notes) == (bits(stopped), stopped.history, stopped.notes)


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path, model_directory):
    changes = FORGETS | {"per_device_train_batch_size": 2, "evaluate_every": 3}
    return tiny.own_files(tmp_path, model_directory, **changes)


@pytest.mark.parametrize("more", [{}, {"lora_rank": 2, "lora_targets": "q_proj|v_proj"}], ids=["whole", "lora"])
def test_a_run_records_its_looks_and_leaves_no_weights_beside_the_model(job, tmp_path, more):
    run = letgo.unlearn(**job, keep="best", utility_bound=10.0, **more)
    rows = read_json_lines(run.directory / "history.jsonl")
    looks = [row for row in rows if "forgotten" in row]
    assert [row["step"] for row in looks] == [0, 3, 6, 9, 10]
    assert {"forget_probability", "general_perplexity", "utility_loss"} <= looks[0].keys()
    assert looks[-1]["forgotten"] > 0.01
    assert not list(run.directory.glob("best-*"))
    step = best_by_hand(looks, 10.0)
    assert any(f"kept the weights of step {step}," in note for note in run.result.notes)
    short = letgo.unlearn(**job | more | {"max_steps": step, "output_dir": str(tmp_path / "short")})
    assert weights_fingerprint(run.model) == weights_fingerprint(short.model)
    page = write_report([run.directory], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Looks during training" in page


def test_a_model_that_never_knew_has_no_target(job, monkeypatch):
    from letgo.training import looks

    monkeypatch.setattr(looks, "plain_share", lambda *_: None)
    with pytest.raises(UserError, match="stop: target needs something to forget"):
        letgo.unlearn(**job, stop="target")


def test_a_benchmark_without_a_measure_of_forgetting_has_no_target(tmp_path, tokenizer):
    args = UnlearnConfig(output_dir=str(tmp_path), evaluate_every=2, keep="best")
    nameless = Benchmark("mine", forget=[], items=[])
    with pytest.raises(UserError, match="keep: best needs a measure of forgetting, and benchmark 'mine' has none"):
        Looks(args, nameless, tokenizer)


def test_the_line_of_progress_shows_the_latest_look(tmp_path, tokenizer):
    class Told(Quiet):
        lines: ClassVar[list[str]] = []

        @contextmanager
        def task(self, name, total):
            yield SimpleNamespace(advance=lambda *_: None, describe=self.lines.append)

    trainer = make_trainer(tmp_path, tokenizer, evaluate_every=4, **FORGETS)
    trainer.reporter = Told()
    trainer.train()
    first, last = Told.lines[0], Told.lines[-1]
    assert first.endswith("; forgotten 0 %, utility lost 0 % at step 0")
    assert last.endswith(f"; {Looks.text(looks_of_run(trainer)[2])} at step 8")


def test_without_looks_there_is_nothing_to_evaluate(tmp_path, tokenizer):
    with pytest.raises(UserError, match="give evaluate_every"):
        make_trainer(tmp_path, tokenizer).evaluate()


def test_one_shot_methods_have_nothing_to_look_at(job):
    with pytest.raises(UserError, match="task_vector changes the weights in one shot: leave evaluate_every out"):
        letgo.unlearn(**job | {"objective": "task_vector"})


def test_early_stopping_of_transformers_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="give stop: target instead"):
        make_trainer(tmp_path, tokenizer, callbacks=[EarlyStoppingCallback()])


def test_averages_are_what_the_run_would_end_with():
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = WeightAveraging([parameter], 1.0, base="sgd", start=1, every=1)
    for _ in range(3):
        parameter.grad = torch.ones(3)
        optimizer.step()
    with optimizer.finished():
        assert torch.equal(parameter, torch.full((3,), -2.0))
    assert torch.equal(parameter, torch.full((3,), -3.0))
