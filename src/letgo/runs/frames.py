"""A run's record as pandas tables: a row for each metric, attack, subject, sample or logged step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.extras import need

TABLES = ("metrics", "attacks", "subjects", "samples", "history")


def table_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Any:
    """A `pandas.DataFrame` of rows; what a row holds of several values by name has a column each: `scores.accuracy`.
    A table of no rows has these columns."""
    pandas = need("pandas", "notebook", what="to_pandas()")
    return pandas.json_normalize(list(rows)) if rows else pandas.DataFrame(columns=list(columns))


def check_table(name: str, known: Sequence[str] = TABLES) -> None:
    """Raise a `UserError` for a table that a run has not."""
    if name not in known:
        raise UserError(f"to_pandas({name!r}): unknown table{did_you_mean(name, known)}; known: {', '.join(known)}")


def metric_rows(stages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each stage and metric, with the ends of its 95 % interval."""
    return [
        {"stage": stage, "metric": name, "value": m.value, "low": m.ci95[0], "high": m.ci95[1], "n": m.n}
        for stage, metrics in stages.items()
        for name, m in metrics.items()
    ]
