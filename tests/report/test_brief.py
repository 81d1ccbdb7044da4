"""The brief: a recommendation that follows from the figures, with its uncertainty; every number of a named run."""

from __future__ import annotations

import html as html_text

import pytest

from letgo.core.errors import UserError
from letgo.optim.registry import GRADES, OPTIMIZERS
from letgo.report import write_report
from letgo.report.brief import brief, write_brief
from letgo.runs.results import read_result, write_result
from letgo.runs.sweeps import CellState, GroupState, Sweep, write_sweep
from tests.report import runs as made
from tests.report.test_comparison import run_of

SEEDS = (0, 1, 2)


@pytest.fixture
def folder(tmp_path):
    """Three seeds each of a fragile first-order line and a robust hybrid."""
    for seed, (weak, strong) in enumerate([(0.2, 0.9), (0.25, 0.88), (0.18, 0.94)]):
        run_of(tmp_path / f"adamw{seed}", weak, seed=seed)
        run_of(tmp_path / f"fozo{seed}", strong, optimizer="fozo", seed=seed)
    return tmp_path


def _of_a_sweep(folder, reached):
    """Make the runs those of a sweep of which these optimizers reached the target."""
    groups = [
        GroupState(
            name=name,
            axes={},
            optimizer=name,
            reached=name in reached,
            cells=[CellState(name=f"{name}{s}", seed=s, status="finished", run=f"{name}{s}") for s in SEEDS],
        )
        for name in ("adamw", "fozo")
    ]
    write_sweep(folder, Sweep(source="grid.yaml", fingerprint="x", document={}, groups=groups))


def test_it_recommends_what_kept_most_and_says_how_sure_that_is(folder):
    found = brief([folder])
    assert [entry.line.name for entry in found.entries] == ["adamw", "fozo"]
    assert [entry.grade for entry in found.entries] == ["first order", "hybrid"]
    assert found.recommendation[0].startswith("Take fozo: under its hardest attack (quantize:bits=4")
    assert "it keeps 91 % of the forgetting (95 % interval 83 % to 98 %)" in found.recommendation[0]
    assert "it survived 3 of 3 attacks" in found.recommendation[0]
    assert "It is the best of 2 settings by these same figures" in found.recommendation[1]
    assert found.recommendation[-1] == "Under that attack every other setting kept less over the same seeds."
    assert [row[0] for row in found.runs] == ["1", "2", "3", "4", "5", "6"]


def test_grades_are_the_catalogs_in_its_order(tmp_path):
    for name in ("fozo", "unknown", "sam", "sophia", "signsgd", "adamw", "zo_sgd"):
        run_of(tmp_path / name, 0.3, optimizer=name)
    assert [entry.grade for entry in brief([tmp_path]).entries] == [
        *("zeroth order", "compressed", "first order", "second order", "smoothing", "hybrid", "unknown")
    ]
    assert {record.grade for record in OPTIMIZERS} == set(GRADES)


def test_what_cannot_be_told_apart_is_said(tmp_path):
    run_of(tmp_path / "a", 0.6)
    run_of(tmp_path / "b", 0.9, optimizer="fozo")
    told = " ".join(brief([tmp_path]).recommendation)
    assert "can't be told apart from adamw (60 %)" in told, "one seed shows no difference, however large"
    assert "kept less" not in told
    assert "rest on 1 seed a setting: with fewer than 3 no difference" in told


def test_the_cheapest_of_those_as_good_is_named(tmp_path):
    for seed, (first, second) in enumerate([(0.80, 0.81), (0.9, 0.9), (0.85, 0.86)]):
        run_of(tmp_path / f"a{seed}", first, seed=seed, seconds={"unlearn": 10.0})
        run_of(tmp_path / f"b{seed}", second, optimizer="fozo", seed=seed, seconds={"unlearn": 90.0})
    told = " ".join(brief([tmp_path]).recommendation)
    assert "Take fozo" in told
    assert "adamw (85 %) is as good: the whole 95 % interval" in told
    assert "Of these adamw is the cheapest: 10 s of unlearning instead of 1 min 30 s" in told


def test_runs_that_broke_or_missed_their_target_are_not_recommended(folder):
    _of_a_sweep(folder, reached={"adamw"})
    found = brief([folder])
    assert found.recommendation[0].startswith("Take adamw")
    assert "did not survive every attack" in " ".join(found.recommendation)
    assert found.notes == ["fozo: never reached the target (runs 4, 5, 6)"]


def test_report_says_what_differences_are_against(folder, tmp_path):
    def note():
        page = write_report([folder], tmp_path / "out" / "report.html").read_text()
        return html_text.unescape(page[page.index("Differences are against") :].split(", over the seeds")[0])

    assert note() == "Differences are against adamw (of the attacked settings the first)"
    _of_a_sweep(folder, reached={"fozo"})
    assert note() == "Differences are against fozo (of the attacked settings the first that reached its target)"
    _of_a_sweep(folder, reached=set())
    assert note().endswith("adamw (of the attacked settings the first; none reached its target)")


def test_a_setting_that_forgot_more_than_all_others_is_told_apart(folder):
    assert "forgot more" not in " ".join(brief([folder]).recommendation)
    for seed in SEEDS:
        run = folder / f"fozo{seed}"
        result = read_result(run)
        lower = result.after["forget_accuracy"].model_copy(update={"value": 0.2})
        write_result(run, result.model_copy(update={"after": result.after | {"forget_accuracy": lower}}))
    told = " ".join(brief([folder]).recommendation)
    assert "Take fozo" in told
    assert "It also forgot more than every other setting (forget accuracy 0.20; the others 0.50)" in told


def test_without_attacks_nothing_is_recommended(tmp_path):
    made.write(tmp_path / "bare", made.result(attacks=[]))
    assert "nothing can be said about what lasts" in brief([tmp_path]).recommendation[0]


def test_both_forms_carry_every_run_and_escape_what_comes_from_outside(folder, tmp_path):
    bad = made.result(config={"model": made.INJECTED, "objective": "npo|x", "optimizer": "adamw", "seed": 0})
    made.write(folder / "bad", bad)
    markdown, html = write_brief([folder], tmp_path / "out" / "brief.md")
    text, page = markdown.read_text(), html.read_text()
    assert "<script>alert" not in text
    assert "<script" not in page
    assert "npo\\|x" in text
    assert "default-src 'none'" in html_text.unescape(page)
    for name in ("adamw0", "adamw1", "fozo0", "fozo1", "bad"):
        assert name in text
        assert name in page


def test_mistakes_are_said(folder, tmp_path):
    with pytest.raises(UserError, match="name the file to write"):
        write_brief([folder], tmp_path / "brief.pdf")
    with pytest.raises(UserError, match="does not exist"):
        write_brief([tmp_path / "nothing"], tmp_path / "brief.md")
    made.write(tmp_path / "evals" / "one", made.result(run_id="eval-1", before={}))
    with pytest.raises(UserError, match="no unlearning run"):
        write_brief([tmp_path / "evals"], tmp_path / "brief.md")
