"""The brief: a recommendation that follows from the figures, with its uncertainty; every number of a named run."""

from __future__ import annotations

import html as html_text
import re

import pytest

from letgo.core.errors import UserError
from letgo.optim.registry import GRADES, OPTIMIZERS
from letgo.report import write_report
from letgo.report.brief import MOST_ROWS, brief, write_brief
from letgo.runs.results import Audit, NotTried, read_result, write_result
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


def said(found, word):
    """The answer to the question that has this word."""
    (section,) = [section for section in found.sections if word in section.question]
    return " ".join(section.answer)


def test_it_answers_the_questions_of_who_decides(folder):
    found = brief([folder])
    assert [(entry.letter, entry.line.name) for entry in found.entries] == [("A", "fozo"), ("B", "adamw")]
    assert [entry.grade for entry in found.entries] == ["hybrid", "first order"]
    assert [row[0] for row in found.runs] == ["1", "2", "3", "4", "5", "6"]
    assert said(found, "whose data").startswith("6 runs were to make the model m forget ?, asked in 80 questions.")
    assert "the data of 20 subjects, whom the report names" in said(found, "whose data")
    assert said(found, "gone").startswith(
        "Yes, as far as these questions show: so ended 3 of 3 runs of setting A, the most robust of 2"
    )
    assert "Of 20 subjects none can still be brought out of the model" in said(found, "gone")
    assert "at most 14 % of such subjects can" in said(found, "gone")
    assert said(found, "Under what") == (
        "Storing the model's numbers more coarsely (K1) left 91 % of the forgetting (95 % interval 83 % to 98 %); "
        "3 of 3 runs count as having survived it."
    )
    worse = "On what it should still know it is 5 % worse (retain accuracy 0.95 before, 0.90 now)."
    assert worse in said(found, "did it cost")
    assert said(found, "to do").startswith("Take setting A. It is the best of 2 settings by these same figures")
    assert "Under that attack every other setting kept less over the same seeds." in said(found, "more robust")


def test_no_sentence_holds_a_setting(folder):
    words = " ".join(text for section in brief([folder]).sections for text in section.answer)
    assert not re.search(r"quantize|bits|group_size|npo|adamw|fozo|=", words)


def test_grades_are_the_catalogs(tmp_path):
    for name in ("fozo", "unknown", "sam", "sophia", "signsgd", "adamw", "zo_sgd"):
        run_of(tmp_path / name, 0.3, optimizer=name)
    assert {entry.grade for entry in brief([tmp_path]).entries} == {
        *("zeroth order", "compressed", "first order", "second order", "smoothing", "hybrid", "unknown")
    }
    assert {record.grade for record in OPTIMIZERS} == set(GRADES)


def test_what_cannot_be_told_apart_is_said(tmp_path):
    run_of(tmp_path / "a", 0.6)
    run_of(tmp_path / "b", 0.9, optimizer="fozo")
    found = brief([tmp_path])
    robust = said(found, "more robust")
    assert "can't be told apart from setting B (60 %)" in robust, "one seed shows no difference, however large"
    assert "kept less" not in robust
    assert "rest on 1 run a setting: with fewer than 3 no difference" in said(found, "to do")


def test_what_a_more_robust_setting_costs_is_said(tmp_path):
    for seed, (first, second) in enumerate([(0.80, 0.81), (0.9, 0.9), (0.85, 0.86)]):
        run_of(tmp_path / f"a{seed}", first, seed=seed, seconds={"unlearn": 10.0})
        worse = made.metrics(0.5, 0.017, 0.8, 15.0)
        run_of(tmp_path / f"b{seed}", second, optimizer="fozo", seed=seed, seconds={"unlearn": 90.0}, after=worse)
    told = said(brief([tmp_path]), "more robust")
    assert "Setting A kept 1 points more under its hardest attack than the fastest, setting B" in told
    assert "and took 1 min 30 s instead of 10 s" in told
    assert "What it should still know it knows worse (retain accuracy 0.80 against 0.90)" in told
    assert "setting B (85 %) is as good: the whole 95 % interval" in told


def test_runs_that_broke_or_missed_their_target_are_not_recommended(folder):
    _of_a_sweep(folder, reached={"adamw"})
    found = brief([folder])
    assert [entry.line.name for entry in found.entries] == ["adamw", "fozo"]
    assert said(found, "to do").startswith("Take setting A if one must be taken. It survived 0 of 3 attacks")
    assert "Setting B kept more, but can't be compared" in said(found, "more robust")
    assert found.notes == ["setting B: never reached the target (runs 4, 5, 6)"]
    _of_a_sweep(folder, reached=set())
    found = brief([folder])
    assert said(found, "gone").startswith("No: of 2 settings none forgot cleanly and met every attack")
    assert said(found, "to do") == "No setting forgot cleanly and met every attack: none of them can be recommended."
    assert found.notes == ["settings A, B: never reached the target (runs 1, 2, 3, 4, 5, 6)"]


def test_what_nobody_can_tell_and_what_broke_is_no_share(tmp_path):
    for seed, changes in enumerate([{}, {"kept": None}, {"collapsed": True, "kept": 1.0}]):
        run = run_of(tmp_path / str(seed), 0.6, seed=seed)
        attack = run.result.attacks[0].model_copy(update=changes)
        write_result(run.directory, run.result.model_copy(update={"attacks": [attack]}))
    found = brief([tmp_path])
    way = "storing the model's numbers more coarsely (K1)"
    assert said(found, "Under what") == (
        f"S{way[1:]} left 60 % of the forgetting; 1 of 2 runs count as having survived it. "
        f"Nobody can tell what {way} left: the model before unlearning no longer knows it then either (in 1 of 3 runs)."
        f" S{way[1:]} broke the model, which proves nothing (in 1 of 3 runs)."
    )
    assert "It survived 1 of 2 attacks" in said(found, "to do")
    assert any("it broke 1 of its models, which proves nothing" in note for note in found.notes)


def test_an_answer_is_that_of_the_worst_run(folder):
    run = folder / "fozo1"
    judged = made.judgement("partly forgotten", worst=["Peru"])
    write_result(run, read_result(run).model_copy(update={"judgement": judged}))
    found = brief([folder])
    assert said(found, "gone").startswith("Only in part: so ended 1 of 3 runs of setting A")
    assert "Of 20 subjects 1 can still be brought out" in said(found, "gone")
    assert "It forgot only partly" in said(found, "to do")


def test_an_audit_is_told_and_never_recommended(tmp_path):
    about = Audit(
        model="org/model",
        kind="hub model",
        weights="0" * 64,
        base="org/base",
        suite="quick",
        threshold=0.5,
        attacks=["quantize"],
        not_tried=[NotTried(attack="suffix", reason="it needs gradients")],
    )
    made.write(tmp_path / "audit-1", made.result(run_id="audit-1", audit=about, attacks=[made.quantize()]))
    found = brief([tmp_path])
    told = said(found, "audit say of the model org/model")
    assert "(K1) left 90 % of the forgetting" in told
    assert "org/model, suffix: it needs gradients." in said(found, "not tried")
    assert not any("to do" in section.question for section in found.sections)
    assert said(found, "whose data").startswith("1 audit looked for capitals:forget")


def test_many_settings_stay_one_table(tmp_path):
    for index in range(MOST_ROWS + 2):
        run_of(tmp_path / f"r{index:02d}", 0.5, config={"optimizer": "adamw", "lr": index})
    found = brief([tmp_path])
    assert len(found.shown) == MOST_ROWS
    assert "2 more settings are in the report (letgo report)" in found.notes
    assert len(found.runs) == MOST_ROWS + 2


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
    assert "forgot more" not in said(brief([folder]), "to do")
    for seed in SEEDS:
        run = folder / f"fozo{seed}"
        result = read_result(run)
        lower = result.after["forget_accuracy"].model_copy(update={"value": 0.2})
        write_result(run, result.model_copy(update={"after": result.after | {"forget_accuracy": lower}}))
    told = said(brief([folder]), "to do")
    assert "It also forgot more than every other setting (forget accuracy 0.20; the others 0.50)" in told


def test_without_attacks_nothing_is_recommended(tmp_path):
    made.write(tmp_path / "bare", made.result(attacks=[]))
    found = brief([tmp_path])
    assert "nothing can be said about what lasts: attack them first" in said(found, "to do")
    assert said(found, "Under what") == "Nobody has attacked it yet, so nothing can be said about what lasts."


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
