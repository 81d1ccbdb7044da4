"""Plans of methods that give weights: their stages, what each holds, and how settings change them."""

from __future__ import annotations

import pytest

from letgo.core.errors import UserError
from letgo.objectives import ONE_SHOT
from letgo.planning import plan
from letgo.training.config import make_config
from tests import tiny
from tests.planning.conftest import items

CASES = {
    "task_vector": ({}, ["evaluate", "train", "step"]),
    "whp": ({}, ["evaluate", "reinforce", "reinforce, step", "targets", "train", "step"]),
    "whp, soft": ({"targets": "soft"}, ["evaluate", "reinforce", "reinforce, step", "targets", "train", "step"]),
    "repselect": ({}, ["evaluate", "gradient", "collapse", "search"]),
    "repselect, step": ({"step": 0.1}, ["evaluate", "gradient", "collapse"]),
    "influence": ({}, ["evaluate", "mean gradient", "curvature", "step"]),
    "influence, gnb": ({"hessian": "gnb"}, ["evaluate", "mean gradient", "curvature", "divide"]),
}


@pytest.fixture
def job(tmp_path, shaped):
    return tiny.own_files(tmp_path, shaped)


def made(job, name, **settings):
    return plan(make_config(job | {"objective": name, "objective_args": settings}), flops=1e9)


def test_there_is_a_case_of_every_method():
    assert {name.partition(",")[0] for name in CASES} == set(ONE_SHOT.names())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}, {"trainable": r"layers\.2\.mlp"}], ids=str)
def test_stages(job, name, changes):
    settings, phases = CASES[name]
    if "lora_rank" in changes and not ONE_SHOT.record(name.partition(",")[0]).adapters:
        with pytest.raises(UserError, match="leave lora_rank out"):
            made(job | changes, name.partition(",")[0], **settings)
        return
    found = made(job | changes, name.partition(",")[0], **settings)
    assert [p.name for p in found.phases if p.name != "evaluate after"] == phases
    assert all(value >= 0 for p in found.phases for value in p.items.values())
    assert found.disk["checkpoints, while running"] == found.disk["references, in letgo's cache"] == 0
    assert set(found.flops) == set(found.seconds) >= {"evaluate"}
    assert all(value > 0 for value in found.flops.values())
    trained = 4 * found.model["trained"]
    for phase in found.phases:
        if "optimizer state" in phase.items:
            assert phase.items["optimizer state"] == pytest.approx(2 * trained, rel=0.02), phase.name
            assert phase.items["gradients"] >= trained


def test_copies_are_counted(job):
    bytes_ = made(job, "task_vector").model["bytes"]
    assert items(made(job, "task_vector"), "train")["the weights as they were"] == bytes_
    few = made(job | {"trainable": r"layers\.2\.mlp"}, "task_vector")
    assert items(few, "train")["the weights as they were"] == 4 * 3 * 128 * 256
    whp = made(job, "whp")
    assert items(whp, "reinforce")["copy of the model"] == items(whp, "targets")["copy of the model"] == bytes_
    assert "copy of the model" not in items(whp, "train")
    head = 4 * 64 * 128
    assert items(whp, "train")["output layers of both models"] == 2 * head
    assert items(made(job | {"lora_rank": 2}, "whp"), "train")["output layers of both models"] == head
    held = {n: items(made(job, "influence", held=n, samples=4), "curvature")["vectors"] for n in (1, 3, None)}
    assert held == {1: 3 * bytes_, 3: 5 * bytes_, None: 6 * bytes_}, "all of them, where they are small and few"


def test_settings_change_the_operations(job):
    one, two = (made(job, "task_vector", epochs=n) for n in (1, 2))
    assert two.flops["train"] == 2 * one.flops["train"]
    assert (one.steps, two.steps) == (1, 2)
    whp = made(job, "whp", reinforce_epochs=3, epochs=1)
    assert whp.flops["reinforce"] == pytest.approx(3 * one.flops["train"])
    assert whp.flops["train"] == pytest.approx(one.flops["train"], rel=0.1)
    # Of 4 samples with 1 held: 4 + 3 + 2 + 1 of them for products, 4 for the step; with all held 4 and 4.
    parameters = one.model["trained"]
    single, block = (made(job, "influence", samples=4, held=n).flops["curvature"] - 16 * parameters for n in (1, 4))
    assert single / block == pytest.approx(14 / 8)
    shared = made(job, "influence", retain_share=1.0)
    assert shared.flops["mean gradient"] > 1.5 * made(job, "influence").flops["mean gradient"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective_args": {"alhpa": 1}}, "did you mean 'alpha'"),
        ({"objective": "influence", "retain": None}, "retain"),
    ],
)
def test_mistakes(job, changes, message):
    with pytest.raises(UserError, match=message):
        plan(make_config(job | {"objective": "task_vector"} | changes), flops=1e9)
