"""The first screen of many runs: what the map and the frontier draw, under which names."""

from __future__ import annotations

import re
from itertools import combinations

import pytest

from letgo.report.chart import LARGE, LINE
from letgo.report.comparison import lines_of
from letgo.report.overview import MOST_HEADS, MOST_ROWS, entries, frontier, heat_map, unbeaten
from letgo.report.table import attack_labels
from letgo.runs.sweeps import CellState, GroupState, Sweep, write_sweep
from tests.report import runs as made
from tests.report.test_comparison import LABEL, run_of


def shown(runs, folders=()):
    labels = attack_labels([run.result for run in runs])
    return entries(lines_of(runs, folders), labels), labels


def marks(figure):
    """What stands on each cell of a map, a row a setting."""
    return {name: [cell.text for cell in cells] for name, cells in figure.plot.rows}


def test_a_setting_is_named_by_what_tells_it_from_the_others_and_no_more(tmp_path):
    changes = [("adamw", 1e-4, 8), ("adamw", 2e-4, 8), ("fozo", 3e-4, 8)]
    runs = [
        run_of(
            tmp_path / f"r{i}", 0.5, optimizer=name, config={"optimizer": name, "learning_rate": rate, "batch": batch}
        )
        for i, (name, rate, batch) in enumerate(changes)
    ]
    assert [line.name for line in lines_of(runs)] == [
        *("adamw, learning rate 0.0001", "adamw, learning rate 0.0002", "fozo, learning rate 0.0003")
    ]
    apart = [
        run_of(tmp_path / f"s{i}", 0.5, optimizer=name, config={"optimizer": name, "lr": i})
        for i, name in enumerate("ab")
    ]
    assert [line.name for line in lines_of(apart)] == ["a", "b"], "the rate follows from the optimizer"
    assert [line.name for line in lines_of(runs[:1])] == ["npo, adamw"], "there is nothing to tell it from"


def test_the_map_shows_shares_and_its_own_marks_for_what_is_none(tmp_path):
    runs = [run_of(tmp_path / "good", 0.9, optimizer="a"), run_of(tmp_path / "weak", 0.26, optimizer="b")]
    for name, changes in {
        "unknown": {"kept": None, "survived": False},
        "broken": {"kept": 0.9, "survived": False, "collapsed": True},
    }.items():
        run = run_of(tmp_path / name, 0.5, optimizer=name)
        attack = run.result.attacks[0].model_copy(update=changes)
        runs.append(type(run)(run.directory, run.result.model_copy(update={"attacks": [attack]})))
    runs.append(run_of(tmp_path / "gone", 0.5, optimizer="gone", status="collapsed"))
    gone = runs[-1]
    runs[-1] = type(gone)(gone.directory, gone.result.model_copy(update={"attacks": []}))
    never = run_of(tmp_path / "never", 0.5, optimizer="never")
    runs.append(type(never)(never.directory, never.result.model_copy(update={"attacks": []})))
    settings, labels = shown(runs)
    figure = heat_map(settings, labels, "x")
    found = {name.partition(". ")[2]: cells for name, cells in marks(figure).items()}
    assert found == {"a": ["90"], "broken": ["✗"], "b": ["26"], "unknown": ["?"], "gone": ["✗"], "never": ["–"]}
    classes = {name.partition(". ")[2]: cells[0].class_ for name, cells in figure.plot.rows}
    assert (classes["a"], classes["b"]) == ("kept-3", "kept-1")
    assert (classes["unknown"], classes["broken"], classes["gone"], classes["never"]) == (
        *("unclear", "collapsed", "collapsed", "none"),
    )
    rows = {row[0].partition(". ")[2]: row[2:] for row in figure.table}
    assert rows["unknown"] == ["can't tell", "–", "–", "1 of 1 can't tell"]
    assert rows["gone"][-1] == "the model collapsed before it"
    assert "1 of 1 survived" in figure.plot.rows[0][1][0].hint


def test_a_cell_that_hides_a_broken_or_unknown_run_says_so(tmp_path):
    known = run_of(tmp_path / "a0", 0.6, optimizer="a")
    other = run_of(tmp_path / "a1", 0.6, optimizer="a", seed=1)
    attack = other.result.attacks[0].model_copy(update={"kept": None})
    unknown = type(other)(other.directory, other.result.model_copy(update={"attacks": [attack]}))
    settings, labels = shown([known, unknown, run_of(tmp_path / "b", 0.1, optimizer="b")])
    assert marks(heat_map(settings, labels, "x")) == {"1. a": ["60 ?"], "2. b": ["10"]}


def test_one_setting_is_taken_apart_into_its_runs(tmp_path):
    settings, labels = shown([run_of(tmp_path / str(seed), 0.2 + seed / 10, seed=seed) for seed in (0, 1)])
    assert [entry.title for entry in settings] == ["1. seed 1", "2. seed 0"]
    assert marks(heat_map(settings, labels, "x")) == {"1. seed 1": ["30"], "2. seed 0": ["20"]}


def test_many_settings_and_attacks_stay_readable(tmp_path):
    runs = []
    for index in range(MOST_ROWS + 3):
        run = run_of(tmp_path / str(index), 0.5, config={"optimizer": "o", "lr": index})
        attacks = [made.quantize(settings={"bits": bits}) for bits in range(2, 3 + MOST_HEADS)]
        runs.append(type(run)(run.directory, run.result.model_copy(update={"attacks": attacks})))
    settings, labels = shown(runs)
    figure = heat_map(settings, labels, "x")
    assert len(figure.plot.rows) == MOST_ROWS
    assert "3 more stand in the table" in figure.caption
    assert len(figure.table) == len(runs) * len(labels)
    assert [key.sign for key in figure.plot.legend if key.sign.startswith("A")] == [f"A{i}" for i in range(1, 6)]


def test_the_frontier_is_what_no_other_beats():
    merits = {"a": (1, 0), "b": (0, 1), "behind": (0, 0), "same": (1, 0), "half": (0.5, 0)}
    assert unbeaten(merits) == ["a", "b", "same"]
    assert unbeaten({}) == []


def test_what_broke_or_missed_its_target_is_never_on_the_frontier(tmp_path):
    runs = [
        run_of(tmp_path / name, kept, optimizer=name, after=made.metrics(accuracy, 0.1, retain, 15.0))
        for name, kept, accuracy, retain in [
            ("best", 0.9, 0.3, 0.9),
            ("useful", 0.2, 0.4, 0.95),
            ("worse", 0.1, 0.5, 0.8),
            ("missed", 0.99, 0.2, 0.99),
        ]
    ]
    groups = [
        GroupState(
            name=run.directory.name,
            axes={},
            optimizer="",
            reached=run.directory.name != "missed",
            cells=[CellState(name="c", seed=0, status="finished", run=run.directory.name)],
        )
        for run in runs
    ]
    write_sweep(tmp_path, Sweep(source="", fingerprint="", document={}, groups=groups))
    settings, labels = shown(runs, [tmp_path])
    figure = frontier(settings, labels, "x")
    assert {row[0].partition(". ")[2]: row[-1] for row in figure.table} == {
        "best": "yes",
        "useful": "yes",
        "worse": "no",
        "missed": "no",
    }
    assert settings[0].title == "1†. missed"
    assert "never reached its sweep's target" in heat_map(settings, labels, "y").caption


@pytest.mark.parametrize("spread", [0.0, 0.004])
def test_numbers_in_the_frontier_never_lie_on_each_other(tmp_path, spread):
    runs = [
        run_of(
            tmp_path / str(i),
            0.5,
            config={"optimizer": "o", "lr": i},
            after=made.metrics(0.5 + i * spread, 0.1, 0.9 - (i % 5) * spread, 15.0),
        )
        for i in range(30)
    ]
    written = re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)">(\d+)<', frontier(*shown(runs), "x").drawing)
    assert len(written) > 5
    boxes = [(float(x), float(y), float(x) + LARGE * len(text), float(y) + LINE) for x, y, text in written]
    for (left, top, right, bottom), other in combinations(boxes, 2):
        assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_without_attacks_there_is_no_map(tmp_path):
    run = run_of(tmp_path / "a", 0.5)
    bare = type(run)(run.directory, run.result.model_copy(update={"attacks": []}))
    settings, labels = shown([bare])
    assert (labels, heat_map(settings, labels, "x")) == ([], None)
    assert frontier(settings, labels, "x").table[0][3] == "–"
    assert frontier([], [LABEL], "x") is None
