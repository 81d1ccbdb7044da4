"""From "NAME:key=value,…" to an attack that is checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from letgo.attacks import ATTACKS
from letgo.core.catalog import check_settings, format_spec, parse_spec, settings_of
from letgo.core.errors import UserError
from letgo.core.values import Count, Share, Weight, Within
from letgo.runs.results import Result

THRESHOLD = 0.5
"""An attack is survived if at least this share of the forgetting is kept."""
BOUND = 0.2
"""A searching attacker may cost the model at most this share of its utility."""
TRIALS = 12
"""How many settings `search` tries by default."""


@dataclass(frozen=True)
class AttackSpec:
    """One attack to run.

    Attributes:
        name: as the catalog knows it; `settings` are the attack's own.
        seeds: it is run under each.
        threshold: the least share kept to have survived.
        search: how many settings are tried for the strongest; 0 for none.
        bound: the utility loss that a searching attacker may cause.
        reference: whether the retrained model is attacked too, where there is one, for R.
        given: `search` and `bound` as the text sets them, for the label.
    """

    name: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    threshold: float
    search: int = 0
    bound: float = BOUND
    reference: bool = True
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return format_spec(self.name, {**self.settings, **self.given})


@dataclass(frozen=True)
class _Options:
    """What a text may set beside the attack's own settings."""

    seeds: Annotated[int, Within(1, 1000)] = 1
    threshold: Share = THRESHOLD
    search: Count = TRIALS
    bound: Weight = BOUND
    reference: bool = True


def plan_attack(spec: str, *, seeds: int | None = None, threshold: float = THRESHOLD) -> AttackSpec:
    """Check an attack's text.

    Beside the attack's own settings, `seeds=3` runs seeds 0, 1, 2 (from `seed`, if given); `threshold=0.8` is the least
    share kept; `search=20` looks for the strongest settings, which may cost `bound=0.1` of the utility;
    `reference=false` does not attack the retrained model.

    Args:
        spec: "NAME:key=value,…".
        seeds, threshold: where the text names none; by default the catalog's number of seeds.
    """
    name, settings = parse_spec(spec)
    record = ATTACKS.record(name)
    what = f"attack {record.name!r}"
    options: dict[str, Any] = {key: settings.pop(key) for key in settings_of(_Options) if key in settings}
    given: dict[str, Any] = {key: options[key] for key in ("search", "bound") if key in options}
    usual = record.seeds if seeds is None or not record.random else seeds
    options = {"seeds": usual, "threshold": threshold, **options}
    if options.get("search") is True:
        options["search"] = TRIALS
    # Those that this attack has no use for are checked too.
    check_settings(what, [_Options], {"seeds": usual if seeds is None else seeds})
    check_settings(what, [_Options], options)
    if given and not record.space:
        known = ", ".join(each.name for each in ATTACKS if each.space)
        raise UserError(f"{what}: {next(iter(given))}: it has no settings to search over; those that have: {known}")
    if "bound" in given and "search" not in given:
        raise UserError(f"{what}: bound is of a search; give search=N too")
    ATTACKS.check_settings(name, settings, skip=("victim",))
    first, count = settings.pop("seed", 0), options.pop("seeds")
    return AttackSpec(record.name, settings, tuple(range(first, first + count)), given=given, **options)


def missing_attacks(specs: Iterable[str], result: Result) -> list[str]:
    """Those of the attacks that a run's record does not have yet."""
    made = {attack.label for attack in result.attacks}
    return [spec for spec in specs if plan_attack(spec).label not in made]
