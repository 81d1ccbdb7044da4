"""The record of runs: written by many at once, rebuilt from the directories alone, asked in a small language."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import time

import pytest

from letgo.core.errors import UserError
from letgo.runs import Index, index_for, root_of
from letgo.runs.index import INDEX_FILE
from letgo.runs.query import parse_query
from letgo.runs.record import attack_matches, difference
from letgo.runs.results import RESULT_FILE, read_result
from tests.report import runs as made


@pytest.fixture
def folder(tmp_path):
    """Three runs: a robust one, a fragile one, and one that was never attacked."""
    config = made.result().config
    robust = made.result(run_id="r1", created="2026-01-01T00:00:00+00:00", attacks=[made.quantize()])
    fragile = made.result(
        run_id="r2",
        created="2026-01-02T00:00:00+00:00",
        config=config | {"optimizer": "adamw", "learning_rate": 2e-5, "optimizer_args": {}},
        attacks=[made.quantize(kept=0.1, survived=False), made.relearn()],
        seed=7,
    )
    bare = made.result(
        run_id="r3",
        created="2026-01-03T00:00:00+00:00",
        config=config | {"optimizer": "sophia", "optimizer_args": {"rho": 0.04}},
        attacks=[],
        after=made.metrics(0.9, 0.2, 0.5, 15.0),
    )
    for name, result in (("robust", robust), ("fragile", fragile), ("sweep/bare", bare)):
        made.write(tmp_path / name, result)
    index = Index(tmp_path)
    index.rebuild()
    return index


def names(records):
    return [record.name for record in records]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("optimizer=fozo", ["robust"]),
        ("optimizer=fozo and survived(quantize4)", ["robust"]),
        ("survived(quantize)", ["robust"]),
        ("survived(quantize:bits=4)", ["robust"]),
        ("survived(quantize8)", []),
        ("attacked(relearn)", ["fragile"]),
        ("not attacked(relearn)", ["robust", "bare"]),
        ("tag(robustness-test)", ["robust", "fragile"]),
        ("tag(failed:relearn*)", ["fragile"]),
        ("kept(quantize4) < 0.5", ["fragile"]),
        ("kept(*) >= 0.31", ["robust"]),
        ("forget_accuracy <= 0.5", ["robust", "fragile"]),
        ("after.forget_accuracy > 0.5", ["bare"]),
        ("retain_accuracy >= 0.9*before", ["robust", "fragile"]),
        ("before.retain_accuracy >= 0.9 and grade=second", ["bare"]),
        ("optimizer ~ '*a*'", ["fragile", "bare"]),
        ("(optimizer ~ *a*) and seed=7", ["fragile"]),
        ("(optimizer=fozo or optimizer=adamw) and not seed=7", ["robust"]),
        ("optimizer_args.rho > 0 and path ~ 'sweep/*'", ["bare"]),
        ("learning_rate = 2e-5 and seed != 0", ["fragile"]),
    ],
)
def test_picking_runs(folder, where, expected):
    assert names(folder.select(where)) == expected


def test_sorting_puts_runs_without_the_field_last(folder):
    assert names(folder.select(sort="-kept(quantize4)")) == ["robust", "fragile", "bare"]
    assert names(folder.select(sort="kept(quantize4)")) == ["fragile", "robust", "bare"]
    assert names(folder.select(sort="optimizer,-created")) == ["fragile", "robust", "bare"]


def test_attack_patterns():
    attack = made.quantize()
    assert attack_matches(attack, "quantize")
    assert attack_matches(attack, "quantize4")
    assert attack_matches(attack, "*")
    assert attack_matches(attack, attack.label)
    assert not attack_matches(attack, "quantize3")
    assert not attack_matches(attack, "quantize:bits=8")
    assert not attack_matches(attack, "relearn")


def dump(index):
    with sqlite3.connect(index.file) as connection:
        return dict(connection.execute("SELECT path, record FROM runs").fetchall())


def test_rebuilt_from_the_directories_it_is_equal_to_what_was_recorded(folder, tmp_path):
    for name in ("robust", "fragile", "sweep/bare"):
        folder.record(tmp_path / name)
    folder.tag("robust", ["kept-for-paper", "seed:0"])
    folder.tag("robust", remove=["seed:0"])
    before = dump(folder)
    rows = {path: json.loads(record) for path, record in before.items()}
    assert rows["robust"]["own_tags"] == ["kept-for-paper"]
    assert rows["robust"]["stages"]["after"]["forget_accuracy"] == 0.5
    assert sum(len(row["attacks"]) for row in rows.values()) == 3
    (tmp_path / INDEX_FILE).unlink()
    assert folder.rebuild() == (3, [])
    assert dump(folder) == before
    assert folder.find("robust").own_tags == ("kept-for-paper",)


def test_the_folder_can_be_moved(folder, tmp_path):
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    shutil.move(tmp_path, moved)
    index = Index(moved)
    assert names(index.all()) == ["robust", "fragile", "bare"]
    assert index.find("r2").path == "fragile"
    assert read_result(moved / index.find("sweep/bare").path).run_id == "r3"


def test_runs_that_are_gone_are_told_apart(folder, tmp_path):
    shutil.rmtree(tmp_path / "fragile")
    assert names(folder.all()) == ["robust", "bare"]
    assert folder.gone() == ["fragile"]
    folder.rebuild()
    assert folder.gone() == []


def test_a_new_attack_takes_its_place_in_the_record(folder, tmp_path):
    result = read_result(tmp_path / "sweep/bare").with_attacks([made.relearn(survived=True)])
    made.write(tmp_path / "sweep/bare", result)
    folder.record(tmp_path / "sweep/bare")
    assert names(folder.select("survived(relearn)")) == ["bare"]


def test_an_ambiguous_or_unknown_name_is_said(folder):
    with pytest.raises(UserError, match="means 3 runs"):
        folder.find("r")
    with pytest.raises(UserError, match="no run 'nothing'"):
        folder.find("nothing")
    with pytest.raises(UserError, match="no tag 'x' that could be removed"):
        folder.tag("robust", remove=["x"])
    with pytest.raises(UserError, match="a tag is one word"):
        folder.tag("robust", ["two words"])


def test_newer_schemas_are_refused(folder, tmp_path):
    path = tmp_path / "robust" / RESULT_FILE
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"schema": 3}))
    count, problems = folder.rebuild()
    assert count == 2
    assert "newer letgo: upgrade" in problems[0]


def test_an_index_of_a_newer_version_is_refused_and_an_older_one_made_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("letgo.runs.index.INDEX_VERSION", 4)
    before = names(folder.all())
    with sqlite3.connect(folder.file) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (4,)
    assert before == ["robust", "fragile", "bare"]
    monkeypatch.setattr("letgo.runs.index.INDEX_VERSION", 3)
    with pytest.raises(UserError, match="of version 4, this letgo's is 3"):
        folder.all()


_FIRST_TABLES = """
CREATE TABLE runs (path TEXT PRIMARY KEY, run_id TEXT NOT NULL, kind TEXT NOT NULL, result TEXT NOT NULL);
CREATE TABLE metrics (path TEXT NOT NULL, stage TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL);
CREATE TABLE attacks (path TEXT NOT NULL, label TEXT NOT NULL, kept REAL NOT NULL);
CREATE TABLE tags (path TEXT NOT NULL, tag TEXT NOT NULL, own INTEGER NOT NULL, PRIMARY KEY (path, tag));
CREATE INDEX runs_by_id ON runs (run_id);
"""
"""The tables of version 1, by their names and some of their columns."""


@pytest.mark.parametrize("first", ["all", "select", "record", "rebuild"])
def test_an_index_of_the_first_version_is_made_again_from_the_directories(folder, tmp_path, first):
    """Runs that lie outside of the index's folder have no other trace there, and are kept."""
    outside = tmp_path.with_name(f"{tmp_path.name}-outside") / "far"
    made.write(outside, made.result(run_id="far", created="2026-02-01T00:00:00+00:00"))
    folder.record(outside)
    expected = dump(folder)
    folder.file.unlink()
    with sqlite3.connect(folder.file) as connection:
        connection.executescript(_FIRST_TABLES)
        connection.executemany(
            "INSERT INTO runs VALUES (?, 'r', 'unlearn', '{}')", [(path,) for path in ("gone", *expected)]
        )
        connection.execute("INSERT INTO tags VALUES ('gone', 'x', 1)")
        connection.execute("PRAGMA user_version=1")
    connection.close()
    calls = {
        "all": folder.all,
        "select": lambda: folder.select("optimizer=fozo"),
        "record": lambda: folder.record(tmp_path / "robust"),
        "rebuild": folder.rebuild,
    }
    calls[first]()
    assert dump(folder) == expected
    assert names(folder.all()) == ["robust", "fragile", "bare", "far"]
    with sqlite3.connect(folder.file) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'index')").fetchall()
    assert {name for (name,) in tables if not name.startswith("sqlite_")} == {"runs"}


def test_expressions_and_lists_are_answered_without_opening_a_result(folder, tmp_path, monkeypatch):
    for name in ("robust", "fragile", "sweep/bare"):
        (tmp_path / name / RESULT_FILE).write_text("broken")
    where = "retain_accuracy >= 0.9*before and optimizer_args.rho >= 0 or survived(quantize4) or seed=7"
    records = folder.select(where, sort="-kept(quantize4)")
    assert names(records) == ["robust", "fragile"]
    assert records[0].fields["optimizer"] == "fozo"
    assert [attack.label for attack in records[1].attacks] == [made.quantize().label, made.relearn().label]


def test_a_row_that_is_no_record_says_how_to_mend_it(folder):
    with sqlite3.connect(folder.file) as connection:
        connection.execute("UPDATE runs SET record = '{}' WHERE path = 'robust'")
    with pytest.raises(UserError, match="letgo runs rebuild"):
        folder.all()


def test_a_broken_index_says_how_to_mend_it(folder):
    folder.file.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="letgo runs rebuild"):
        folder.all()


def _record_many(root, worker, count):
    for number in range(count):
        directory = root / f"w{worker}-{number}"
        made.write(directory, made.result(run_id=f"w{worker}-{number}", attacks=[made.quantize()]))
        Index(root).record(directory)


def test_several_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_record_many, args=(tmp_path, worker, 8)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(Index(tmp_path).select("survived(quantize4)")) == 32


def test_a_killed_writer_loses_nothing_that_was_finished(tmp_path):
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_record_many, args=(tmp_path, 0, 10_000))
    worker.start()
    while len(list(tmp_path.glob(f"w0-*/{RESULT_FILE}"))) < 5:
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)
    index = Index(tmp_path)
    recorded = {record.run_id for record in index.all()}
    finished = {read_result(path.parent).run_id for path in tmp_path.glob(f"w0-*/{RESULT_FILE}")}
    # The run being recorded as the kill came has its directory, at most its line in the index is missing.
    assert recorded <= finished
    assert len(finished - recorded) <= 1
    assert len(recorded) >= 4
    index.rebuild()
    assert {record.run_id for record in index.all()} == finished


def test_a_run_belongs_to_the_nearest_index_above_it(tmp_path, monkeypatch):
    made.write(tmp_path / "runs" / "one", made.result(run_id="one"))
    monkeypatch.delenv("LETGO_RUNS", raising=False)
    assert index_for(tmp_path / "runs" / "one").root == tmp_path / "runs"
    Index(tmp_path).rebuild()
    tmp_path.chmod(0o1777)
    assert root_of(tmp_path) == tmp_path
    assert root_of(tmp_path / "runs") != tmp_path, "where everybody writes, an index is not for what lies deeper there"
    tmp_path.chmod(0o777)
    assert root_of(tmp_path / "runs") == tmp_path
    tmp_path.chmod(0o700)
    assert index_for(tmp_path / "runs" / "one").root == tmp_path
    monkeypatch.setenv("LETGO_RUNS", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    index = index_for(tmp_path / "runs" / "one")
    index.record(tmp_path / "runs" / "one")
    assert index.root == tmp_path / "elsewhere"
    assert [record.path for record in index.all()] == ["../runs/one"]
    index.rebuild()
    assert [record.path for record in index.all()] == ["../runs/one"]


def test_what_differs(folder):
    rows = {name: (a, b) for name, a, b in difference(folder.find("r1"), folder.find("r2"))}
    assert rows["optimizer"] == ("fozo", "adamw")
    assert rows["seed"] == (0, 7)
    assert rows["kept(quantize:bits=4,granularity=group,group_size=64)"] == (0.9, 0.1)
    assert not any(name.startswith(("after.", "before.", "model")) for name in rows)
    assert difference(folder.find("r1"), folder.find("r1")) == []


def test_an_expression_keeps_its_bounds_for_sweeps():
    query = parse_query("forget_accuracy<=0.3 and retain_accuracy>=0.95*before")
    assert [(str(c.field), c.op, c.value, c.stage) for c in query.comparisons] == [
        ("forget_accuracy", "<=", 0.3, None),
        ("retain_accuracy", ">=", 0.95, "before"),
    ]


def test_the_command_lists_shows_compares_and_tags(folder, tmp_path):
    from typer.testing import CliRunner

    from letgo.cli import app

    def command(*arguments):
        done = CliRunner().invoke(app, ["runs", *arguments, "--root", str(tmp_path)], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    listed = json.loads(command("list", "--where", "attacked(*)", "--sort", "-seed", "--show", "max_steps", "--json"))
    assert [row["path"] for row in listed] == ["fragile", "robust"]
    assert listed[0]["kept(relearn:groups=10,steps=60,learning_rate=2e-05)"] == 0.31
    assert listed[0]["max_steps"] == 80
    assert listed[0]["tags"][:2] == ["robustness-test", f"failed:{made.quantize().label}"]
    assert command("list", "--csv", "--where", "seed=7").splitlines()[1].startswith("r2,fragile,unlearn,")
    shown = json.loads(command("show", "r1", "--json"))
    assert shown["record"] == {key: listed[1][key] for key in shown["record"]}
    assert shown["result"] == json.loads((tmp_path / "robust" / RESULT_FILE).read_text())
    compared = {row["field"]: row for row in json.loads(command("diff", "r1", "r2", "--json"))}
    assert compared["seed"] == {"field": "seed", "robust": 0, "fragile": 7}
    assert "first-try" in json.loads(command("tag", "r1", "first-try", "--json"))["tags"]
    assert "r1" in command("list", "--where", "tag(first-try)", "--json")
