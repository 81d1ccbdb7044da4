"""A user's own forget and retain files as a benchmark: how likely, and how literal, their targets still are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from letgo.benchmarks.engine.base import Benchmark, Item, SetName
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.data.encode import Template
from letgo.data.rows import Row, check_disjoint, read_rows

RowsSource = str | Path | Sequence[Mapping[str, Any]]


def user_rows(*, forget: RowsSource, retain: RowsSource | None = None, template: Template = "auto") -> Benchmark:
    """The rows of a forget and a retain file, scored by the probability of their targets and the ROUGE of greedy
    answers; rows with `wrong_answers` (a list) also by choice. Perplexity is of letgo's own general paragraphs.

    The rows scored are the rows trained on; to measure wordings not trained on, score another file.

    Args:
        forget, retain: files as in `letgo.data.rows.read_rows`, or lists of rows.
        template: how questions become prompts.
    """
    settings = {key: str(value) for key, value in locals().items() if isinstance(value, str | Path)}
    forget_rows = read_rows(forget, name="forget set")
    retain_rows = read_rows(retain, name="retain set") if retain is not None else []
    check_disjoint(forget_rows, retain_rows)
    return Benchmark(
        name="rows",
        settings=settings,
        forget=forget_rows,
        retain=retain_rows,
        items=[*_items(forget_rows, "forget"), *_items(retain_rows, "retain")],
        texts=general_paragraphs(held_out=True),
        template=template,
    )


def _items(rows: Sequence[Row], name: SetName) -> list[Item]:
    return [
        Item(name, f"{name}-{index}", row.group, row, tuple(row.fields.get("wrong_answers") or ()))
        for index, row in enumerate(rows)
    ]
