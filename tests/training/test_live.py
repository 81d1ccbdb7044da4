"""While a run trains, its history lies in its directory for those who look on; at its end it is the history alone."""

from __future__ import annotations

from letgo.core.files import read_json_lines
from letgo.report.viewer import read_live
from letgo.runs.results import HISTORY_FILE, LIVE_FILE
from letgo.training import unlearn as main_job
from tests import tiny

SETTINGS = {
    "objective": "graddiff",
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "save_strategy": "no",
}


def test_the_live_history_is_the_history_and_is_gone_at_the_end(model_directory, tmp_path, monkeypatch):
    seen = []
    settle = main_job.settle

    def looking(opened):
        seen.extend(read_live(opened.directory / LIVE_FILE))
        settle(opened)

    monkeypatch.setattr(main_job, "settle", looking)
    run = main_job.unlearn(**tiny.own_files(tmp_path, model_directory, **SETTINGS))
    history = read_json_lines(run.directory / HISTORY_FILE)
    assert [{k: v for k, v in row.items() if k not in ("of", "at")} for row in seen] == history
    assert [row["step"] for row in seen] == [1, 2, 3, 4]
    assert {row["of"] for row in seen} == {4}
    assert [row["at"] for row in seen] == sorted(row["at"] for row in seen)
    assert not (run.directory / LIVE_FILE).exists()


def test_that_it_can_not_be_written_is_no_reason_to_fail(model_directory, tmp_path, monkeypatch):
    def fails(path, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("letgo.training.bookkeeping.append_json_line", fails)
    run = main_job.unlearn(**tiny.own_files(tmp_path, model_directory, **SETTINGS | {"max_steps": 2}))
    assert len(read_json_lines(run.directory / HISTORY_FILE)) == 2
