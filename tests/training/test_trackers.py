"""What trackers get of a run: what training logged, then the last figures and the card, in one record."""

from __future__ import annotations

import json

import pytest
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from letgo import unlearn
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.runs.results import HISTORY_FILE, SAMPLES_FILE
from letgo.training import trackers
from letgo.training.config import make_config
from letgo.training.trackers import TRACKERS, Trackers, figures_of
from tests.report import runs as made

JOB = {
    "model": "biographies",
    "benchmark": "biographies",
    "max_steps": 2,
    "eval_limit": 10,
    "attacks": ["quantize:bits=4"],
}


class Stub(TrainerCallback):
    """In a tracker's place: keeps what it is told, in order."""

    def __init__(self):
        EVENTS.append(("made", None))

    def on_train_begin(self, args, state, control, **kwargs):
        EVENTS.append(("begin", args.to_dict()))

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert state.is_world_process_zero
        EVENTS.append(("log", dict(logs)))

    def on_train_end(self, args, state, control, **kwargs):
        EVENTS.append(("end", None))


class Broken(Stub):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if any(key.startswith("eval_after") for key in logs):
            raise ConnectionError("the server is away\nmore")


EVENTS: list = []


@pytest.fixture
def stub(monkeypatch):
    EVENTS.clear()
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Stub)
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["tensorboard"])
    return EVENTS


def test_the_last_figures_follow_the_attacks_in_the_record_of_training(stub, tmp_path):
    run = unlearn(**JOB, output_dir=str(tmp_path / "run"), report_to="tensorboard", hub_model_id="someone/x")
    kinds = [kind for kind, _ in stub]
    assert kinds[:2] == ["made", "begin"]
    assert kinds[-1] == "end"
    assert kinds.count("made") == kinds.count("begin") == kinds.count("end") == 1, "one record, ended once"
    logs = [logs for kind, logs in stub if kind == "log"]
    assert sum("loss" in log for log in logs) == 2, "each step of training"
    figures, card = logs[-2:]
    assert figures == figures_of(run.result)
    assert figures["eval_after/forget_accuracy"] == run.result.after["forget_accuracy"].value
    [attack] = run.result.attacks
    kept = [value for key, value in figures.items() if key.startswith("eval_kept/quantize-bits-4")]
    assert kept == ([] if attack.kept is None else [attack.kept])
    assert any(key.startswith("eval_attacked/quantize-bits-4") for key in figures)
    assert card["eval_letgo/card"].startswith("---\nlibrary_name")
    # No samples, and nobody's name.
    told = json.dumps(logs)
    for row in read_json_lines(tmp_path / "run" / SAMPLES_FILE):
        assert row["group"] not in told
        assert not row.get("question") or row["question"] not in told
    assert not any("eval_after/forget_accuracy" in row for row in read_json_lines(tmp_path / "run" / HISTORY_FILE))


def test_a_run_that_was_not_trained_here_has_its_record_opened_first(stub, tmp_path):
    config = make_config({**JOB, "report_to": ["tensorboard"], "output_dir": str(tmp_path)})
    told = Trackers(config, print)
    told.tell(made.result())
    told.close()
    assert [kind for kind, _ in stub] == ["made", "begin", "log", "log", "end"]
    stub.clear()
    nobody = Trackers(make_config({**JOB, "output_dir": str(tmp_path)}), print)
    nobody.tell(made.result())
    nobody.close()
    assert not stub


def test_a_tracker_that_is_away_fails_no_run(stub, monkeypatch, tmp_path):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Broken)
    said: list[str] = []
    told = Trackers(make_config({**JOB, "report_to": ["tensorboard"], "output_dir": str(tmp_path)}), said.append)
    told.tell(made.result())
    told.close()
    assert said == ["  tensorboard did not take the last figures: the server is away"]
    assert stub[-1][0] == "end"


def test_a_tracker_that_is_not_installed_is_refused_before_anything_begins(stub, tmp_path):
    with pytest.raises(UserError, match="report_to: wandb, but its package is not installed: pip install wandb"):
        unlearn(**JOB, output_dir=str(tmp_path / "run"), report_to=["tensorboard", "wandb"])
    assert not stub
    assert not (tmp_path / "run").exists()


def test_names_are_those_that_trackers_allow():
    figures = figures_of(made.result(attacks=[made.quantize(kept=0.9)]))
    assert figures["eval_kept/quantize-bits-4-granularity-group-group_size-64"] == 0.9
    assert figures["eval_before/forget_accuracy"] == 1.0
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./ ")
    assert all(set(name) <= allowed for name in figures)
    assert set(TRACKERS) <= set(INTEGRATION_TO_CALLBACK)


def test_tensorboard_has_one_run_with_all_of_it(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    run = unlearn(**JOB, output_dir=str(tmp_path / "run"), report_to="tensorboard")
    assert len(list((tmp_path / "logs").iterdir())) == 1, "one file of events"
    read = EventAccumulator(str(tmp_path / "logs"))
    read.Reload()
    assert len(read.Scalars("train/loss")) == 2
    [after] = read.Scalars("eval/after/forget_accuracy")
    assert after.value == pytest.approx(run.result.after["forget_accuracy"].value)
    assert "eval/letgo/card/text_summary" in read.Tags()["tensors"]
