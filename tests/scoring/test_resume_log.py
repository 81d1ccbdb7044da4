from __future__ import annotations

import pytest

from letgo.core.errors import UserError
from letgo.scoring.resume_log import ScoreLog, content_key


def test_keeps_values_over_processes(tmp_path):
    path = tmp_path / "deep" / "scores.jsonl"
    with ScoreLog(path, {"weights": "a", "size": 2}) as log:
        assert "x" not in log
        log.put({"x": [1.5, -0.1], "y": "é\n\u2028"})
        log.put({"x": "a second value is not taken"})
    with ScoreLog(path, {"size": 2, "weights": "a"}) as log:
        assert len(log) == 2
        assert log.get("x") == [1.5, -0.1]
        assert log.get("y") == "é\n\u2028"


def test_half_a_line_is_forgotten(tmp_path):
    path = tmp_path / "scores.jsonl"
    with ScoreLog(path, {}) as log:
        log.put({"x": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "y", "val')
    with ScoreLog(path, {}) as log:
        assert "x" in log
        assert "y" not in log
        log.put({"z": 3})
    with ScoreLog(path, {}) as log:
        assert log.get("z") == 3
    path.write_bytes(b'{"letgo_sc')
    with ScoreLog(path, {}) as log:
        log.put({"x": 1})
    with ScoreLog(path, {}) as log:
        assert len(log) == 1


def test_another_evaluation_is_refused(tmp_path):
    path = tmp_path / "scores.jsonl"
    ScoreLog(path, {"weights": "a", "size": 2}).close()
    with pytest.raises(UserError, match=r"differs in 'weights'.*delete it"):
        ScoreLog(path, {"weights": "b", "size": 2})


@pytest.mark.parametrize(
    "text", ["hello\n", "hello", '{"a": 1}\n', "[1]\n", '{"letgo_scores": 1, "identity": {}}\n{"k": 1}\n']
)
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "scores.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match="not a log of scores"):
        ScoreLog(path, {})


def test_keys_are_of_the_content():
    assert content_key("score", [1, 2], [[3]]) == content_key("score", [1, 2], [[3]])
    assert content_key("score", [1], [[2, 3]]) != content_key("score", [1, 2], [[3]])
