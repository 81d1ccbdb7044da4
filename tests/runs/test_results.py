from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from letgo.core.errors import UserError
from letgo.core.files import read_json_lines, remove_abandoned, write_json_lines, write_text, written_whole
from letgo.core.locks import locked
from letgo.models.save import save_model
from letgo.runs import Index
from letgo.runs.results import RESULT_FILE, Metric, read_result, write_result
from letgo.training.reference_store import ReferenceKey, ReferenceStore
from tests import tiny
from tests.report import runs as made

METRIC = Metric(value=0.5, n=4, ci95=(0.1, 0.9))


def test_round_trip_and_the_contracts_names(tmp_path):
    result = made.result(before={"forget_accuracy": METRIC}, attacks=[made.quantize()])
    write_result(tmp_path, result)
    raw = json.loads((tmp_path / RESULT_FILE).read_text())
    assert raw["schema"] == 2
    assert set(raw) >= {
        *("schema", "run_id", "created", "letgo", "versions", "git", "seed", "config", "status", "before", "after"),
        *("attacks", "judgement", "seconds", "peak_memory_bytes"),
    }
    assert raw["before"]["forget_accuracy"] == {"value": 0.5, "n": 4, "ci95": [0.1, 0.9]}
    assert set(raw["attacks"][0]) >= {"name", "settings", "seeds", "metrics", "kept", "bound", "survived", "why"}
    assert set(raw["judgement"]) == {"word", "why", "target", "shares", "subjects"}
    assert read_result(tmp_path) == result


def test_the_same_attack_again_takes_the_older_ones_place():
    older, other = made.quantize(kept=0.5), made.quantize(settings={"bits": 3}, kept=0.6)
    result = made.result(attacks=[older]).with_attacks([made.quantize(kept=0.25), other])
    assert [(a.label, a.kept) for a in result.attacks] == [(older.label, 0.25), ("quantize:bits=3", 0.6)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"result\.json:1: not JSON"),
        ('{"schema": 3}', "schema 3, but this letgo reads schema 2; it was written by a newer letgo"),
        ('{"schema": 1}', "it was written by an older letgo, whose figures mean something else: run it again"),
        ("[]", "schema None"),
        ('{"schema": 2, "run_id": 3}', "field"),
    ],
)
def test_broken_and_newer_results_are_refused(tmp_path, content, message):
    (tmp_path / RESULT_FILE).write_text(content)
    with pytest.raises(UserError, match=message):
        read_result(tmp_path)


def test_not_a_run(tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        read_result(tmp_path)


def test_a_write_cut_off_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def cut_off():
        with written_whole(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_lines_round_trip_and_refuse_nan(tmp_path):
    rows = [{"a": 1.5}, {"b": "ü\n"}]
    write_json_lines(tmp_path / "x.jsonl", rows)
    assert read_json_lines(tmp_path / "x.jsonl") == rows
    with pytest.raises(ValueError, match="JSON"):
        write_json_lines(tmp_path / "x.jsonl", [{"a": float("nan")}])
    assert read_json_lines(tmp_path / "x.jsonl") == rows


@pytest.mark.parametrize("kept", [-0.1, 1.1])
def test_kept_is_a_share(kept):
    with pytest.raises(ValueError, match="kept"):
        made.quantize(kept=kept)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_who_may_read_a_file_is_for_the_umask_to_say(tmp_path, umask):
    """Of every file that a run makes: records, the index, locks, weights."""
    before = os.umask(umask)
    try:
        write_result(tmp_path / "run", made.result())
        Index(tmp_path).rebuild()
        with locked(tmp_path / "lock"):
            pass
        save_model(tiny.make_model(), tiny.make_tokenizer(), tmp_path / "run")
        with ReferenceStore(tmp_path / "store").writer(ReferenceKey("m", "d", "t", "p", 8, "f", "logps")) as writer:
            writer.append(torch.ones(()))
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".sqlite", "", ".safetensors"}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: oct(0o666 & ~umask) for path in files
    }


def killed_while_writing(path):
    """Leaves what a killed writer leaves."""
    if (child := os.fork()) == 0:
        with written_whole(path) as temporary:
            temporary.write_text("half")
            os._exit(1)
    os.waitpid(child, 0)
    [left] = [rest for rest in path.parent.iterdir() if rest.name.startswith(f".{path.name}.")]
    return left


def test_what_killed_writers_left_is_removed_by_the_next_and_what_living_ones_write_is_not(tmp_path):
    old, new = killed_while_writing(tmp_path / "a.txt"), killed_while_writing(tmp_path / "b.txt")
    other = tmp_path / ".a.txt.of-somebody-else"
    other.touch()
    with written_whole(tmp_path / "c.txt") as living:
        for path in (old, living, other):
            os.utime(path, (0, 0))
        write_text(tmp_path / "d.txt", "x")
        assert [path.exists() for path in (old, new, living, other)] == [False, True, True, True]
        remove_abandoned(tmp_path, older_than=0)
        assert [path.exists() for path in (new, living, other)] == [False, True, True]
    assert {path.name for path in tmp_path.iterdir()} == {"c.txt", "d.txt", other.name}


def test_the_reference_store_removes_what_a_killed_run_left(tmp_path):
    key = ReferenceKey("m", "d", "t", "p", 8, "f", "logps")
    left = killed_while_writing(tmp_path / "logps-x.safetensors")
    os.utime(left, (0, 0))
    with ReferenceStore(tmp_path).writer(key) as writer:
        writer.append(torch.ones(()))
    assert [path.name for path in tmp_path.iterdir()] == [key.file]


def test_a_file_that_safetensors_puts_in_place_is_as_the_umask_says(tmp_path):
    with written_whole(tmp_path / "x.safetensors") as temporary:
        save_file({"w": torch.ones(2)}, temporary)
    assert oct((tmp_path / "x.safetensors").stat().st_mode & 0o777) == oct(0o666 & ~0o022)


def test_the_time_of_a_run_has_its_attacks_in_it_once():
    attacked = made.result(attacks=[made.relearn(seconds=45.0)])
    assert attacked.model_copy(update={"seconds": {"load": 4.0, "unlearn": 10.0}}).total_seconds == 59.0
    audited = attacked.model_copy(update={"seconds": {"measure": 4.0, "attacks": 45.0}})
    assert audited.total_seconds == 49.0
