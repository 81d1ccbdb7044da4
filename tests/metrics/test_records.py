"""One record for a metric: tables, documentation and benchmarks read it, and keep no list of their own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from letgo.benchmarks import BENCHMARKS
from letgo.metrics import METRICS, headlines, record_of
from letgo.metrics.records import Headline
from letgo.report.table import Column, columns

ROOT = Path(__file__).parents[2]


def lists_of_metrics(text: str) -> list[str]:
    """Literals of a module that name two metrics or more, as "line: names"."""
    found = []
    for node in ast.walk(ast.parse(text)):
        parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        names = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        records = {name: record_of(name) or record_of(f"forget_{name}") for name in names}
        known = [name for name, record in records.items() if record is not None and record.meaning]
        if len(known) > 1:
            found.append(f"{node.lineno}: {known}")
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "src/letgo/report").glob("*.py")), ids=lambda path: path.stem)
def test_the_report_has_no_list_of_metrics_of_its_own(path):
    assert lists_of_metrics(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        'A = ("forget_accuracy", "x", "forget_probability")',
        'A = {"rouge": 1, "bleu": 2}',
        'A = [["verbmem", "utility", "toxic"]]',
    ],
)
def test_such_a_list_would_be_seen(text):
    assert len(lists_of_metrics(text)) == 1


def test_the_documentation_says_of_each_metric_what_its_record_says():
    text = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
    table = text.partition("| metric | what it is |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert len(rows) > 5
    for names, meaning in rows:
        for name in names.replace("`", "").split(", "):
            record = record_of(name)
            assert record is not None, name
            assert meaning == record.meaning


def test_a_record_is_found_by_the_name_that_a_result_uses():
    assert record_of("retain_accuracy") is METRICS.record("accuracy")
    assert record_of("forget_quality") is METRICS.record("forget_quality")
    assert record_of("retain_arc_easy_acc") is None
    assert headlines("forget_accuracy", "forget_of_a_plugin") == (
        Headline("forget_accuracy", 0.25),
        Headline("forget_of_a_plugin"),
    )


def test_every_headline_of_a_benchmark_has_a_record():
    for benchmark in BENCHMARKS:
        for headline in benchmark.headlines:
            record = record_of(headline.metric)
            assert record is not None
            assert record.amount
            assert headline.floor == record.floor


def test_tables_take_direction_and_meaning_from_the_record():
    assert [column.key for column in columns([])] == [
        *("forget_accuracy", "forget_probability", "retain_accuracy", "general_perplexity")
    ]
    assert (Column("forget_rouge").better, Column("retain_rouge").better) == ("lower is better", "higher is better")
    assert Column("forget_quality").better == "higher is better"
    assert (Column("forget_quality").amount, Column("forget_verbmem").amount) == (False, True)
    assert (Column("retain_of_a_plugin").better, Column("retain_of_a_plugin").meaning) == ("", "")
