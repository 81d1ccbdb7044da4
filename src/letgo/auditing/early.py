"""What of an audit can be told before anything is loaded: nothing here imports torch or transformers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from letgo.auditing.suites import Try, tries_of
from letgo.benchmarks import OWN_ROWS
from letgo.core.errors import UserError
from letgo.core.sizes import read_duration
from letgo.runs.query import RunQuery, parse_query
from letgo.training.settings import check_attacks_early


def tries_asked(suite: str, attacks: Sequence[str]) -> list[Try]:
    """The attacks of a suite, and those named beside it; a `UserError` for one that there is not."""
    check_attacks_early(attacks)
    return [*tries_of(suite), *(Try(attack, "quick") for attack in attacks)]


def seconds_asked(budget: str | float | None) -> float | None:
    return None if budget is None else read_duration(budget, "audit: budget")


def requirement(require: str | None) -> RunQuery | None:
    """What is required of the record, parsed."""
    return None if require is None else parse_query(require)


def check_asked(models: Sequence[str | None], data: Collection[str]) -> None:
    """Raise a `UserError` for models that can't be audited, and for data that say nothing, or two things.

    Args:
        models: the one to audit, and the one before unlearning.
        data: the names of the settings that are given of `benchmark` and the user's own rows.
    """
    for model in models:
        refuse_served(model or "")
    own = [name for name in OWN_ROWS if name in data]
    if "benchmark" in data and own:
        raise UserError(f"audit: give either benchmark (which brings its data) or {own[0]}, not both")
    if "benchmark" not in data and "forget" not in data:
        raise UserError("audit: nothing to look for: give --forget FILE (and --retain FILE), or --benchmark NAME")


def refuse_served(model: str) -> None:
    """Raise a `UserError` for an address in the place of a model's name."""
    if model.split(":", 1)[0].lower() in ("http", "https"):
        raise UserError(f"{model}: of a served model give its name on the server, and its address as --server URL")
