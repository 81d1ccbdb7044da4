from __future__ import annotations

import os
from functools import partial

import pytest

from letgo.core.errors import UserError
from letgo.scoring.resume_log import ResumeLog, content_key


def test_keeps_values_over_processes(tmp_path):
    path = tmp_path / "deep" / "scores.jsonl"
    with ResumeLog(path, {"weights": "a", "size": 2}) as log:
        assert "x" not in log
        log.put({"x": [1.5, -0.1], "y": "é\n\u2028"})
        log.put({"x": "a second value is not taken"})
    with ResumeLog(path, {"size": 2, "weights": "a"}) as log:
        assert len(log) == 2
        assert log.get("x") == [1.5, -0.1]
        assert log.get("y") == "é\n\u2028"


def test_half_a_line_is_forgotten(tmp_path):
    path = tmp_path / "scores.jsonl"
    with ResumeLog(path, {}) as log:
        log.put({"x": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "y", "val')
    with ResumeLog(path, {}) as log:
        assert "x" in log
        assert "y" not in log
        log.put({"z": 3})
    with ResumeLog(path, {}) as log:
        assert log.get("z") == 3
    path.write_bytes(b'{"letgo_sc')
    with ResumeLog(path, {}) as log:
        log.put({"x": 1})
    with ResumeLog(path, {}) as log:
        assert len(log) == 1


def test_another_evaluation_is_refused(tmp_path):
    path = tmp_path / "scores.jsonl"
    ResumeLog(path, {"weights": "a", "size": 2}).close()
    with pytest.raises(UserError, match=r"differs in 'weights'.*delete it"):
        ResumeLog(path, {"weights": "b", "size": 2})


HEAD = b'{"letgo_scores": 1, "identity": {}}\n'


@pytest.mark.parametrize(
    "text",
    [
        *(b"hello\n", b"hello", b'{"a": 1}\n', b"[1]\n", b"\xff\n", b"[" * 100_000 + b"\n"),
        *(b'{"letgo_scores": 1}\n', b'{"letgo_scores": 1, "identity": []}\n'),
        *(HEAD + rest for rest in (b'{"k": 1}\n', b'{"key": [], "value": 1}\n', b"\xff\n", b"null\n")),
    ],
)
def test_other_files_are_refused(tmp_path, text):
    for name in ("scores.jsonl", "scores.jsonl.1"):
        path = tmp_path / name
        path.write_bytes(text + b"\n")
        with pytest.raises(UserError, match=rf"{name} is not a log of finished results"):
            ResumeLog(tmp_path / "scores.jsonl", {})
        path.unlink()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "scores.jsonl")
    with pytest.raises(UserError, match="not a regular file"):
        ResumeLog(tmp_path / "scores.jsonl", {})


def test_a_killed_analysis_goes_on_to_the_same_values(tmp_path):
    path, made = tmp_path / "log.jsonl", []

    def measure(number):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(number)
        return {"loss": 1 / (number + 3), "broken": None}

    def run(log):
        return [log.value(str(number), partial(measure, number)) for number in range(5)]

    with pytest.raises(KeyboardInterrupt), ResumeLog(path, {"seed": 0}) as log:
        run(log)
    with path.open("a") as file:
        file.write('{"key": "3", "val')  # cut short by the kill
    made.clear()
    with ResumeLog(path, {"seed": 0}) as log:
        values = run(log)
    assert made == [3, 4], "what was finished is not made again, and the torn line is"
    assert values == [{"loss": 1 / (number + 3), "broken": None} for number in range(5)]
    assert len(path.read_text().splitlines()) == 6, "the torn line is gone from the file"
    ResumeLog.remove(path)
    assert not path.exists()


def test_without_a_file_it_remembers_all_the_same(tmp_path):
    with ResumeLog(None, {}) as log:
        assert log.value("x", lambda: None) is None
        assert log.value("x", lambda: 1) is None, "that nothing came out is a result too"
        assert len(log) == 1


def test_keys_are_of_the_content():
    assert content_key("score", [1, 2], [[3]]) == content_key("score", [1, 2], [[3]])
    assert content_key("score", [1], [[2, 3]]) != content_key("score", [1, 2], [[3]])
