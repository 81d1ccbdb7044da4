"""Methods that take no forget loss to train with, from settings to a run directory."""

from __future__ import annotations

import pytest

import letgo
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.models.load import load_model, weights_fingerprint
from letgo.objectives import ONE_SHOT
from letgo.runs.results import read_result
from tests import tiny

CASES = {
    "task_vector": {"lr": 1e-3, "epochs": 1},
    "whp": {"reinforce_lr": 1e-3, "lr": 1e-3, "epochs": 1, "targets": "soft"},
    "influence": {"alpha": 0.1, "damping": 1e-2},
    "influence, gnb": {"hessian": "gnb", "alpha": 0.1, "damping": 1e-2},
    "repselect": {"draw_out_lr": 0.1, "batch_size": 2},
    "ft": {},
    "ft_l1": {"sparsity": 1e-4},
}


@pytest.fixture
def job(tmp_path, model_directory):
    return tiny.own_files(tmp_path, model_directory, learning_rate=1e-3, max_steps=2)


def test_every_one_shot_method_has_a_case():
    assert set(ONE_SHOT.names()) <= {name.partition(",")[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_run_from_its_settings(job, name):
    objective = name.partition(",")[0]
    run = letgo.unlearn(**job, objective=objective, objective_args=CASES[name], trainable=r"layers\.1\.")
    result = read_result(run.directory)
    assert result.status in ("finished", "collapsed")
    assert result.after["forget_probability"].n == len(tiny.FORGET)
    saved, before = load_model(run.directory), load_model(job["model"])
    assert weights_fingerprint(saved) == weights_fingerprint(run.model)
    changed = {n for n, p in saved.named_parameters() if not p.equal(before.get_parameter(n))}
    assert changed
    assert all("layers.1." in n for n in changed), "what is frozen stays"
    history = read_json_lines(run.directory / "history.jsonl")
    if objective in ONE_SHOT:
        assert history == []
        assert any("in one shot" in note for note in result.notes)
        assert any("of the weights' length" in note for note in result.notes) == (objective != "whp")
    else:
        assert [row["step"] for row in history] == [1, 2]
        assert all(row["retain_loss"] > 0 for row in history)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "task_vector", "objective_args": {"alhpa": 1}}, "did you mean 'alpha'"),
        ({"objective": "influence", "retain": None}, "needs a retain set"),
        ({"objective": "repselect", "lora_rank": 2}, "not adapters: leave lora_rank out"),
        ({"objective": "ft", "retain": None}, "there is no retain set"),
        ({"objective": "whp", "objective_args": {"targets": "warm"}}, "targets must be one of hard, soft"),
    ],
)
def test_mistakes(job, changes, message):
    with pytest.raises(UserError, match=message):
        letgo.unlearn(**{key: value for key, value in (job | changes).items() if value is not None})
