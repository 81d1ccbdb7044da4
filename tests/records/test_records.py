"""Damaged records: every command shows them or names them, and shows the others all the same."""

from __future__ import annotations

import json
import os
import random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from letgo.core.errors import UserError
from letgo.core.files import read_json
from letgo.core.values import DEEPEST
from letgo.runs.results import read_result
from letgo.runs.sweeps import read_sweep
from tests.records import folder
from tests.records.damage import Damage, damages
from tests.records.looking import letgo, look, views


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return folder.write(tmp_path_factory.mktemp("records") / "runs")


@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(damages, min_size=1, max_size=2))
@example([])
@example([Damage("bad/result.json", "truncate", 0.5, "")])
@example([Damage("bad/samples.jsonl", "not UTF-8", 0.5, ""), Damage("sweep/sweep.json", "empty", 0.0, "")])
def test_a_damaged_record_is_shown_or_named_and_the_others_are_there(template, done):
    look(done, template)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"result\.json:1: not JSON \(Expecting value, column 1\)"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"schema": 2, "seed": NaN}', "NaN is no finite number"),
        (b'{"schema": 2, "seed": 1e999}', "1e999 is no finite number"),
        (b'{"schema": 2, "seed": ' + b"9" * 5000 + b"}", "a whole number of over 1,000 digits"),
        (b'{"schema": 2, "schema": 2}', "'schema' is given twice"),
        (b'{"schema": 2, "run_id": "\\ud800"}', "half a character"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "nested more than 50 levels deep"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema": "2"}', "schema '2', but this letgo reads schema 2"),
    ],
)
def test_each_way_to_be_no_record_is_named(tmp_path, content, message):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_result(tmp_path)


def test_what_json_can_say_is_read(tmp_path):
    deep = json.loads("[" * DEEPEST + "]" * DEEPEST)
    for value in ("\N{GRINNING FACE} \\ud800", 10**300, -1e308, deep, {"": {"": None}}):
        for ascii_alone in (True, False):
            (tmp_path / "x.json").write_text(json.dumps(value, ensure_ascii=ascii_alone))
            assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("kind", ["directory", "pipe", "link to itself", "link to nothing"])
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path, kind):
    folder.write(tmp_path / "runs")
    for name in ("bad/result.json", "bad/tags.json", "sweep/sweep.json", "runs.sqlite"):
        Damage(name, kind, 0.0, "").do(tmp_path / "runs")
    code, _, message = letgo("runs", "list", "--root", tmp_path / "runs")
    assert code == 2
    assert "runs.sqlite" in message
    os.rename(tmp_path / "runs/runs.sqlite", tmp_path / "away")
    code, out, _ = letgo("runs", "rebuild", tmp_path / "runs", "--json")
    assert (code, json.loads(out)["runs"], len(json.loads(out)["problems"])) == (0, 3, 1)


def test_a_run_that_no_index_has_is_read_or_named(tmp_path):
    folder.write(tmp_path / "runs")
    Damage("bad/result.json", "truncate", 0.5, "").do(tmp_path / "runs")
    assert letgo("runs", "rebuild", tmp_path / "runs")[0] == 0
    code, _, message = letgo("runs", "show", "bad", "--root", tmp_path / "runs")
    assert code == 2
    assert "bad/result.json" in message


def test_a_damaged_index_is_named_with_the_way_out(tmp_path):
    folder.write(tmp_path / "runs")
    whole, numbers, codes = (tmp_path / "runs/runs.sqlite").read_bytes(), random.Random(0), []
    for _ in range(60):
        at, length = numbers.randrange(len(whole)), numbers.choice([1, 8, 500])
        cut = whole[:at], bytes(numbers.randrange(256) for _ in range(length)), whole[at + length :]
        for rest in (tmp_path / "runs").glob("runs.sqlite*"):
            rest.unlink()
        (tmp_path / "runs/runs.sqlite").write_bytes(cut[0] if numbers.random() < 0.2 else b"".join(cut))
        code, out, message = letgo("runs", "list", "--root", tmp_path / "runs", "--json")
        codes.append(code)
        assert "rebuild" in message or "upgrade letgo" in message if code else "good" in out
    assert set(codes) == {0, 2}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    folder.write(tmp_path / "runs")
    listed = type(tmp_path).iterdir

    def refuse(path):
        if path.name == "sweep":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    code, out, _ = letgo("runs", "rebuild", tmp_path / "runs", "--json")
    assert (code, json.loads(out)["runs"]) == (0, 2)
    assert json.loads(out)["problems"] == [f"{tmp_path / 'runs/sweep'} can't be listed (Permission denied)"]
    code, _, message = letgo("report", tmp_path / "runs", "--output", tmp_path / "r.html")
    assert (code, message.count("can't be listed")) == (0, 1)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    folder.write(tmp_path / "runs")
    read = type(tmp_path).read_text

    def refuse(path, *args, **options):
        if path.parent.name == "bad" and path.name == "result.json":
            raise PermissionError(13, "Permission denied")
        return read(path, *args, **options)

    monkeypatch.setattr(type(tmp_path), "read_text", refuse)
    code, out, _ = letgo("runs", "rebuild", tmp_path / "runs", "--json")
    assert (code, json.loads(out)["runs"]) == (0, 3)
    assert "bad/result.json can't be read: Permission denied" in json.loads(out)["problems"][0]


@pytest.mark.parametrize("run", ["/etc", "../x", "a\0b"])
def test_a_sweep_names_runs_of_its_own_folder_alone(tmp_path, run):
    path = folder.write(tmp_path / "runs") / "sweep" / "sweep.json"
    document = json.loads(path.read_text())
    document["groups"][0]["cells"][0]["run"] = run
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="no path below the sweep's folder"):
        read_sweep(path.parent)


def test_a_folder_whose_name_is_no_text_is_named(tmp_path):
    folder.write(tmp_path / "runs")
    os.rename(tmp_path / "runs/bad", os.fsencode(tmp_path / "runs") + b"/b\xff")
    code, out, _ = letgo("runs", "rebuild", tmp_path / "runs", "--json")
    assert (code, json.loads(out)["runs"]) == (0, 3)
    assert "its name is not UTF-8" in json.loads(out)["problems"][0]


def test_the_folder_is_whole_as_it_is_made(template):
    views(template / "bad")
