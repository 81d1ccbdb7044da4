"""In which words a run was asked for what it forgot, as its record has it (`config.scored.on`)."""

from __future__ import annotations

from collections.abc import Sequence

from letgo.runs.results import ON_TRAINED_ROWS, TRAINED_ROWS, Result


def wording_caution(result: Result) -> str:
    """A sentence for a result that is scored on the very rows that were trained on; "" for any other."""
    if _scored_on(result) != TRAINED_ROWS:
        return ""
    return f"{ON_TRAINED_ROWS.capitalize()}: whether other words bring the same facts back was not measured."


def wordings(results: Sequence[Result]) -> str:
    """In which words the runs were asked, to stand after "60 questions"; "" where a record does not say."""
    on = {_scored_on(result) for result in results}
    if "" in on:
        return ""
    if TRAINED_ROWS not in on:
        return " that were not trained on"
    return f" that were trained on{' in some runs' if len(on) > 1 else ''}"


def _scored_on(result: Result) -> str:
    return str((result.config.get("scored") or {}).get("on") or "")
