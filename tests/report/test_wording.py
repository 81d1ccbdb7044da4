"""Every page says where a run is scored on the very rows that were trained on, once, and as its record has it."""

from __future__ import annotations

import pytest

from letgo.report import write_report
from letgo.report.brief import write_brief
from letgo.report.card import card
from letgo.report.table import Column, columns
from letgo.report.terminal import print_result
from letgo.report.wording import wording_caution, wordings
from letgo.runs.results import ON_TRAINED_ROWS, TRAINED_ROWS
from tests.report.runs import AFTER, BEFORE, metric, result, scored_on, write_run
from tests.report.test_terminal import printed

TRAINED, REWORDED = result(**scored_on(TRAINED_ROWS)), result(**scored_on("paraphrases"))


def pages(tmp_path, value):
    run = write_run(tmp_path / "run", value)
    report = write_report([run], tmp_path / "report.html")
    texts = [path.read_text(encoding="utf-8") for path in (report, *write_brief([run], tmp_path / "brief.md"))]
    return [*texts, card(value), printed(print_result, value)]


def test_every_page_says_once_that_the_rows_trained_on_are_scored(tmp_path):
    report, brief, brief_page, card_text, terminal = pages(tmp_path, TRAINED)
    for page in (report, card_text, terminal):
        assert page.casefold().count(ON_TRAINED_ROWS) == 1
    assert report.index(wording_caution(TRAINED)) < report.index("Results</h2>")
    for page in (brief, brief_page):
        assert page.count("asked in 80 questions that were trained on.") == 1


@pytest.mark.parametrize("value", [REWORDED, result(**scored_on("asked.jsonl")), result()])
def test_no_page_says_so_of_other_words_or_without_a_record(tmp_path, value):
    report, brief, brief_page, card_text, terminal = pages(tmp_path, value)
    said = "asked in 80 questions." if value == result() else "asked in 80 questions that were not trained on."
    assert said in brief
    assert said in brief_page
    for page in (report, brief, brief_page, card_text, terminal):
        assert ON_TRAINED_ROWS not in page.casefold()


def test_runs_that_differ_in_it():
    assert wordings([TRAINED, REWORDED]) == " that were trained on in some runs"
    assert wordings([result(), REWORDED]) == ""


def test_tables_show_the_rows_trained_on_beside_the_other_words():
    trained = {"trained_accuracy": metric(0.9), "trained_probability": metric(0.8), "trained_rouge": metric(0.7)}
    value = result(before=BEFORE | trained, after=AFTER | trained | {"control_accuracy": metric(0.2)}, attacks=[])
    assert [column.key for column in columns([value])] == [
        *("forget_accuracy", "forget_probability", "trained_accuracy", "trained_probability"),
        *("retain_accuracy", "general_perplexity"),
    ]
    assert Column("trained_rouge").better == "lower is better"
    assert Column("control_accuracy").better == ""
    narrow = printed(print_result, value, width=60)
    assert max(map(len, narrow.splitlines())) <= 60
    assert "trained" not in narrow.split("status")[0]
