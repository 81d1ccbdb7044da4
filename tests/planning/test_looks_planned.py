"""What a plan says of looks during training is what a run takes: counted in tokens, not by the clock."""

from __future__ import annotations

import json

import pytest

import letgo
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.planning import plan
from letgo.planning.devices import plan_devices
from letgo.training.config import make_config
from letgo.training.looks import Looks
from tests.planning.conftest import items

FLOPS = 1e9


def made(job, **changes):
    return plan(make_config(job | changes), flops=FLOPS)


@pytest.mark.parametrize("every", [1, 3, 4, 10])
def test_looks_are_counted_and_take_time(job, every):
    found, plain = made(job, evaluate_every=every), made(job)
    assert plain.looks == {}
    assert "looks" not in plain.flops
    looks = found.looks
    assert looks["count"] == {1: 5, 3: 3, 4: 2, 10: 2}[every]
    assert found.flops["looks"] == looks["count"] * looks["flops"]
    assert looks["seconds"] == looks["flops"] / FLOPS
    assert found.seconds["looks"] == pytest.approx(looks["count"] * looks["seconds"])
    assert {name: found.flops[name] for name in plain.flops} == plain.flops
    assert json.loads(json.dumps(found.as_dict()))["looks"] == looks
    assert f"({looks['count']} of " in found.text()
    assert any(
        note.startswith(f"looks during training: {looks['count']}, {looks['tokens']:,} tokens") for note in found.notes
    )


def test_a_look_lies_beside_the_optimizers_state_and_is_cheaper_than_an_evaluation(job):
    found = made(job, evaluate_every=2)
    assert items(found, "look")["optimizer state"] == items(found, "train")["optimizer state"]
    generated = "keys and values of generated answers"
    assert items(found, "look")[generated] < items(found, "evaluate")[generated]
    assert "best weights, while running" not in found.disk
    best = made(job, evaluate_every=2, keep="best")
    assert best.disk["best weights, while running"] == 3 * found.model["bytes"]
    assert (
        plan_devices(make_config(job | {"evaluate_every": 2}), 2, "fsdp2", device="cpu").plan.looks["seconds"] is None
    )


def test_a_hybrids_looks_at_the_ends_of_rounds_are_counted_where_it_may_stop(job):
    rounds = {
        "optimizer": "fozo",
        "optimizer_args": {"fo_steps": 2, "zo_steps": 2},
        "max_steps": 12,
        "evaluate_every": 5,
    }
    assert made(job, **rounds).looks["count"] == len({0, 5, 10, 12})
    stopping = made(job, **rounds, stop="target")
    assert stopping.looks["count"] == len({0, 5, 10, 12, 4, 8})
    assert any("fewer where the target is reached before" in note for note in stopping.notes)


def test_one_shot_methods_are_refused_as_a_run_refuses_them(job):
    with pytest.raises(UserError, match="leave evaluate_every out"):
        made(job, objective="task_vector", evaluate_every=2)


@pytest.mark.parametrize("benchmark", [None, "biographies"])
def test_a_run_takes_what_the_plan_says(job, monkeypatch, benchmark):
    """Tokens that went through the model's first layer during looks."""
    settings = dict(job, max_steps=4, evaluate_every=2, eval_limit=30)
    if benchmark:
        settings |= {"benchmark": benchmark, "model": benchmark, "forget": None, "retain": None}
    planned, seen = made(settings), []
    take = Looks._metrics

    def counted(self, model):
        # What a model gives up front: embeddings of the ids.
        handle = model.get_input_embeddings().register_forward_hook(
            lambda _, inputs, __: seen.append(inputs[0].numel())
        )
        try:
            return take(self, model)
        finally:
            handle.remove()

    monkeypatch.setattr(Looks, "_metrics", counted)
    run = letgo.unlearn(**settings)
    rows = [row for row in read_json_lines(run.directory / "history.jsonl") if "forgotten" in row]
    assert len(rows) == planned.looks["count"]
    share = sum(seen) / (planned.looks["count"] * planned.looks["tokens"])
    # Shared prefixes and answers that end early take less.
    assert 0.5 < share <= 1.0, share
