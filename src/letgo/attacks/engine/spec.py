"""From "NAME:key=value,…", or several joined by "then", to an attack that is checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

from letgo.attacks import ATTACKS
from letgo.attacks.engine.base import Attacked, Victim
from letgo.attacks.engine.chain import apply_chain
from letgo.core.catalog import (
    check_settings,
    format_spec,
    join_chain,
    links_of,
    parse_spec,
    settings_of,
    split_chain,
)
from letgo.core.errors import EmptyScoreError, LetgoError, UserError
from letgo.core.values import Count, Share, Weight, Within, shown
from letgo.runs.results import Result

THRESHOLD = 0.5
"""An attack is survived if at least this share of the forgetting is kept."""
BOUND = 0.2
"""A searching attacker may cost the model at most this share of its utility."""
TRIALS = 12
"""How many settings `search` tries by default."""


@dataclass(frozen=True)
class AttackSpec:
    """One attack to run, or a chain of them.

    Attributes:
        name: as the catalog knows it; `settings` are the attack's own. Of a chain as `parse_chain` has the two.
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

    @property
    def links(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The attacks that are made one after another, each with its settings; of a plain attack that one."""
        return links_of(self.name, self.settings)

    @property
    def changes_weights(self) -> bool:
        return changes_weights(self.name)

    @property
    def of_pair(self) -> bool:
        return any(ATTACKS.record(name).of_pair for name, _ in self.links)


@dataclass(frozen=True)
class Options:
    """What a text may set beside the attack's own settings.

    Attributes:
        seeds: it is run under so many seeds, from `seed` on.
        threshold: the least share of the forgetting kept to have survived.
        search: so many settings are tried for the strongest.
        bound: the most utility that an attack found by search may cost.
        reference: whether the retrained model is attacked too, where there is one.
    """

    seeds: Annotated[int, Within(1, 1000)] = 1
    threshold: Share = THRESHOLD
    search: Count = TRIALS
    bound: Weight = BOUND
    reference: bool = True


def plan_attacks(specs: Sequence[str], *, seeds: int | None = None, threshold: float = THRESHOLD) -> list[AttackSpec]:
    """The attacks of several texts, no two of them the same, as far as they can be checked without data."""
    plans = [plan_attack(spec, seeds=seeds, threshold=threshold) for spec in specs]
    labels = [plan.label for plan in plans]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"attack {twice[0]!r} is named twice; for several seeds give seeds=N")
    check_attacks(plans)
    return plans


def check_attacks(plans: Sequence[AttackSpec], victim: Victim | None = None) -> None:
    """Let each attack begin on a model that is not there, under each of its seeds: all that it checks before it needs
    one is then checked, by its own rules (values, libraries, and of a `victim` its data, its original and its run).

    Raises:
        UserError: an attack can't be made so, or would have nothing to score.
    """
    unknown = cast(Any, _Unknown())
    known = {each.name: getattr(victim, each.name) for each in fields(Victim)} if victim else {}
    without = _NoModel(**{"directory": "", "benchmark": unknown, **known, "recorded": unknown})
    for plan in plans:
        for place, (name, settings) in enumerate(plan.links):
            later = place < len(plan.links) - 1
            link = replace(without, earlier=_left_nothing if place else None, later=later)
            for seed in plan.seeds if victim else plan.seeds[:1]:
                try:
                    _apply_link(link, plan, name, settings, seed)
                except _ModelNeeded:
                    continue
                except EmptyScoreError as error:
                    raise UserError(str(error)) from error


def apply_attack(victim: Victim, plan: AttackSpec, settings: Mapping[str, Any], seed: int) -> Attacked:
    """What an attack leaves; settings that it does not take are a `UserError`."""
    links = links_of(plan.name, settings)
    return apply_chain(
        victim,
        [
            (format_spec(name, given), partial(_apply_link, plan=plan, name=name, settings=given, seed=seed))
            for name, given in links
        ],
    )


def _apply_link(victim: Victim, plan: AttackSpec, name: str, settings: Mapping[str, Any], seed: int) -> Attacked:
    ATTACKS.check_settings(name, {**settings, "seed": seed}, skip=("victim",))
    try:
        attacked: Attacked = ATTACKS.load(name)(victim, seed=seed, **settings)
        if not isinstance(attacked, Attacked):
            raise UserError(f"attack {name} returns {shown(attacked)}, which is no letgo.attacks Attacked")
        return attacked
    except (TypeError, ValueError) as error:
        if isinstance(error, LetgoError):
            raise
        raise UserError(f"attack {plan.label}: {error}") from error


class _ModelNeeded(Exception):
    """An attack has come as far as it can without a model."""


def _left_nothing(victim: Victim) -> NoReturn:
    raise _ModelNeeded


class _Unknown:
    """Data that are not known yet."""

    def __getattr__(self, name: str) -> NoReturn:
        raise _ModelNeeded


class _NoModel(Victim):
    """A victim that is still to be made."""

    def load(self) -> NoReturn:
        raise _ModelNeeded

    tokenizer = load_original = load

    def run_directory(self) -> Path:
        if self.run is None:
            raise _ModelNeeded
        return self.run


def plan_attack(spec: str, *, seeds: int | None = None, threshold: float = THRESHOLD) -> AttackSpec:
    """Check an attack's text.

    Beside the attack's own settings, `seeds=3` runs seeds 0, 1, 2 (from `seed`, if given); `threshold=0.8` is the least
    share kept; `search=20` looks for the strongest settings, which may cost `bound=0.1` of the utility;
    `reference=false` does not attack the retrained model.

    "LINK then LINK" is a chain: each attack is made on the model that the one before it left, and what the last one
    leaves is judged. `seeds`, `seed`, `threshold` and `reference` are of the whole chain, whichever link names them;
    no chain is searched. A link that leaves the weights as they are can only stand last.

    Args:
        spec: "NAME:key=value,…", or several joined by " then ".
        seeds, threshold: where the text names none; by default the catalog's number of seeds.
    """
    parsed = [parse_spec(link) for link in split_chain(spec)]
    records = [ATTACKS.record(name) for name, _ in parsed]
    what = f"attack {join_chain(record.name for record in records)!r}"
    options: dict[str, Any] = {}
    for _, settings in parsed:
        of_all = {key: settings[key] for key in (*settings_of(Options), "seed") if key in settings}
        if twice := [key for key in of_all if key in options]:
            raise UserError(f"{what}: {twice[0]} is of the whole chain; give it in one link alone")
        options |= of_all
        for key in settings_of(Options):
            settings.pop(key, None)
    options.pop("seed", None)
    given: dict[str, Any] = {key: options[key] for key in ("search", "bound") if key in options}
    usual = max(record.seeds for record in records)
    if seeds is not None and any(record.random for record in records):
        usual = seeds
    options = {"seeds": usual, "threshold": threshold, **options}
    if options.get("search") is True:
        options["search"] = TRIALS
    # Those that this attack has no use for are checked too.
    check_settings(what, [Options], {"seeds": usual if seeds is None else seeds})
    check_settings(what, [Options], options)
    if given and len(records) > 1:
        raise UserError(
            f"{what}: {next(iter(given))}: a chain is not searched; search each attack by itself, and give the "
            "settings that it finds"
        )
    if given and not records[-1].space:
        known = ", ".join(each.name for each in ATTACKS if each.space)
        raise UserError(f"{what}: {next(iter(given))}: it has no settings to search over; those that have: {known}")
    if "bound" in given and "search" not in given:
        raise UserError(f"{what}: bound is of a search; give search=N too")
    for name, settings in parsed:
        ATTACKS.check_settings(name, {"seed": 0, **settings}, skip=("victim",))
    if still := [record.name for record in records[:-1] if not changes_weights(record.name)]:
        raise UserError(f"{what}: {still[0]} leaves the weights as they are: in a chain it can only stand last")
    if "search" in given and not searched(records[-1].name, parsed[-1][1]):
        raise UserError(f"{what}: every setting that search goes over is given; leave some open")
    first, count = max(settings.pop("seed", 0) for _, settings in parsed), options.pop("seeds")
    *earlier, (last, settings) = [
        (record.name, settings) for record, (_, settings) in zip(records, parsed, strict=True)
    ]
    name = join_chain([*(format_spec(*link) for link in earlier), last])
    return AttackSpec(name, settings, tuple(range(first, first + count)), given=given, **options)


def changes_weights(name: str) -> bool:
    """Whether an attack of this name, or a link of a chain, leaves other weights than it found."""
    return any(ATTACKS.record(link).means in ("weights", "data") for link, _ in links_of(name, {}))


def missing_attacks(specs: Iterable[str], result: Result) -> list[str]:
    """Those of the attacks that a run's record does not have yet."""
    made = {attack.label for attack in result.attacks}
    return [spec for spec in specs if plan_attack(spec).label not in made]


def searched(name: str, settings: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """What a search goes over: the attack's space without the settings that are given."""
    given = {*settings, "steps"} if settings.get("epochs") is not None else {*settings}
    return {key: values for key, values in ATTACKS.record(name).space.items() if key not in given}
