"""The gate: what a record must fulfil, clause by clause, each with the figures that decided.

The language is that of `letgo runs list --where` (`letgo.runs.query`), with one difference: what nobody can tell does
not pass, and neither does its opposite. A record of a run that failed or collapsed passes no gate: a broken model
reveals nothing either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from letgo.attacks.engine.spec import AttackSpec
from letgo.benchmarks.engine.base import Benchmark
from letgo.core.catalog import did_you_mean, parse_chain
from letgo.core.errors import UserError
from letgo.metrics import METRICS, record_of
from letgo.report.numbers import number, percent
from letgo.report.table import SETS
from letgo.runs.query import BARE, MISSING, ORDERS, Condition, Field, Joint, RunQuery, check_field, parse_query
from letgo.runs.record import AttackSummary, RunRecord, attack_matches
from letgo.runs.results import NotTried, Result, read_result

OF_ATTACKS = ("survived", "kept", "attacked")
MOST_NAMED = 3
"""So many of the attacks that were not survived are named in a clause's figures."""
_NEEDS_BASE = ("survived", "kept", *BARE[:2])
_MARKS = {True: "✓", False: "✗", None: "?"}
_WORDS = {True: "passed", False: "failed", None: "can't tell"}


@dataclass(frozen=True)
class Clause:
    """One part of a gate: `passed` is None where nobody can tell; `figures` say what decided."""

    text: str
    passed: bool | None
    figures: str

    @property
    def outcome(self) -> str:
        return _WORDS[self.passed]

    def line(self) -> str:
        return f"{_MARKS[self.passed]} {self.text}: {self.outcome}; {self.figures}"


@dataclass(frozen=True)
class Gate:
    """What was required of a record, and what came of each clause."""

    require: str
    clauses: Sequence[Clause]

    @property
    def passed(self) -> bool:
        return all(clause.passed is True for clause in self.clauses)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        clauses = [asdict(clause) | {"outcome": clause.outcome} for clause in self.clauses]
        return {"require": self.require, "passed": self.passed, "clauses": clauses}

    def text(self) -> str:
        """For a terminal: the clauses that did not pass first."""
        failed = sum(clause.passed is not True for clause in self.clauses)
        head = f"gate not passed: {failed} of {len(self.clauses)} clauses" if failed else "gate passed"
        return "\n".join([head, *(f"  {clause.line()}" for clause in sorted(self.clauses, key=_failed_first))])


def _failed_first(clause: Clause) -> int:
    return {False: 0, None: 1, True: 2}[clause.passed]


def check(run: Result | Path | str, require: str) -> Gate:
    """Hold a record to what is required of it.

    Args:
        run: a record, or the directory of a run or an audit.
        require: an expression such as `forgotten and survived(*) and retain >= 0.95*before`.

    Raises:
        UserError: the expression is none, or names what the record does not have.
    """
    query = parse_query(require)
    result = run if isinstance(run, Result) else read_result(Path(run))
    record, not_tried = RunRecord.of("", result), result.audit.not_tried if result.audit else []
    for condition in _conditions(query.root):
        _check_stage(condition, record.stages)
        _check_number(condition)
        for part in condition.parts(record):
            if not _unmeasured(part.field, record):
                check_field(part.field, [record])
    known = [*record.attacks, *map(_left_out, not_tried)]
    if known:
        _check_patterns(query, known)
    clauses = [_clause(part, record, result, not_tried) for part in query.clauses]
    if result.status != "finished":
        why = "; ".join(result.reasons) or "the record says no more"
        clauses.insert(0, Clause("finished", False, f"the status is {result.status}: {why}"))
    return Gate(require, clauses)


def _unmeasured(field: Field, record: RunRecord) -> bool:
    """Whether a name is that of a metric that this record might have had: nobody can tell then, and it is no slip."""
    name = field.name.rpartition(".")[2]
    of_set = f"{name.partition('_')[0]}_" in SETS
    return of_set and (record_of(name) is not None or not record.stages["after"])


def check_beforehand(
    query: RunQuery, benchmark: Benchmark, attacks: Sequence[AttackSpec], not_tried: Sequence[NotTried], *, base: bool
) -> None:
    """Raise a `UserError` where an audit could never pass: a name that its record will not have, an attack that it does
    not make, or a question that nobody can answer without the model before unlearning."""
    stages = ["before", "after", *benchmark.references]
    known = known_fields(benchmark)
    for condition in _conditions(query.root):
        _check_stage(condition, stages)
        _check_number(condition)
        stage, dot, name = condition.field.name.rpartition(".")
        if condition.field.argument is None and ((dot and stage not in stages) or not _is_known(name, known)):
            near = did_you_mean(name, known)
            raise UserError(f"require: unknown name {condition.field.name!r}{near}\n  known: {', '.join(known)}")
        if not base and (name in _NEEDS_BASE or "before" in (stage, condition.stage)):
            raise UserError(f"require: {condition.text}: nobody can tell without the model before unlearning (base)")
    planned = [_summary(each.name, {**each.settings, **each.given}) for each in attacks]
    _check_patterns(query, [*planned, *map(_left_out, not_tried)])
    for field in _of_attacks(query):
        if not any(attack_matches(attack, str(field.argument)) for attack in planned):
            first = next(each for each in not_tried if _matches(each, field))
            raise UserError(
                f"require: {field}: no such attack is made here; {first.attack} is left out: {first.reason}"
            )


def known_fields(benchmark: Benchmark) -> list[str]:
    """The names that a gate may use of an audit on these data."""
    sets = dict.fromkeys([*(item.set for item in benchmark.items), *(text.set for text in benchmark.texts)])
    metrics = [f"{name}_{metric.name}" for name in sets for metric in METRICS if metric.meaning]
    return [*BARE, "subjects", "subjects_revealed", "status", "verdict", "model", "forget", "retain", *metrics]


def _is_known(name: str, known: Sequence[str]) -> bool:
    """Whether an audit may have such a figure. A benchmark can have sets of its own (real authors, say), with metrics
    of the usual names; a set that is nearly one of the known ones is a slip."""
    sets = {each.partition("_")[0] for each in known}
    of_own = [name.removesuffix(f"_{metric.name}") for metric in METRICS if name.endswith(f"_{metric.name}")]
    return name in known or any(own not in sets and not did_you_mean(own, sets) for own in of_own)


def _conditions(node: Condition | Joint) -> Iterator[Condition]:
    yield from node.conditions() if isinstance(node, Joint) else (node,)


def _of_attacks(query: RunQuery) -> list[Field]:
    return [field for field in query.fields if field.name in OF_ATTACKS and field.argument is not None]


def _summary(name: str, settings: dict[str, Any]) -> AttackSummary:
    return AttackSummary(name=name, settings=settings, kept=None, survived=False, outcome="can't tell")


def _left_out(each: NotTried) -> AttackSummary:
    # Not checked: another letgo's record may name an attack that this one does not know.
    return _summary(*parse_chain(each.attack))


def _check_stage(condition: Condition, stages: Iterable[str]) -> None:
    if condition.stage is not None and condition.stage not in stages:
        near = did_you_mean(condition.stage, stages)
        raise UserError(f"{condition.text}: no stage {condition.stage!r}{near}; known: {', '.join(stages)}")


def _check_number(condition: Condition) -> None:
    """Raise a `UserError` where something is compared with NaN, or is to be above or below a word: texts have an order,
    but no gate means it."""
    word = condition.op in ORDERS and isinstance(condition.value, str) and condition.field.name != "created"
    if word or condition.value != condition.value:
        wanted = "write one without quotes, or NUMBER*before"
        raise UserError(f"{condition.text}: {str(condition.value)!r} is no number; {wanted}")


def _check_patterns(query: RunQuery, known: Sequence[AttackSummary]) -> None:
    """Raise a `UserError` for a pattern that none of the attacks, made or left out, matches."""
    for field in _of_attacks(query):
        if not any(attack_matches(attack, str(field.argument)) for attack in known):
            names = list(dict.fromkeys(attack.name for attack in known))
            near = did_you_mean(str(field.argument).partition(":")[0].rstrip("*"), names)
            raise UserError(f"{field}: no attack matches{near}\n  attacks: {', '.join(a.label for a in known)}")


def _clause(part: Condition | Joint, record: RunRecord, result: Result, not_tried: Sequence[NotTried]) -> Clause:
    passed, figures = part.tells(record), []
    for condition in _conditions(part):
        figures.append(_figures(condition, record, result))
        if condition.field.name not in ("survived", "kept"):
            continue
        matched = [each for each in not_tried if _matches(each, condition.field)]
        if matched:
            figures.append(f"not tried: {', '.join(each.attack for each in matched)}")
        if passed and any(each.failed for each in matched):
            # It was begun, and nobody knows how it would have ended.
            passed = None
    return Clause(part.text, passed, "; ".join(figures))


def _matches(each: NotTried, field: Field) -> bool:
    return attack_matches(_left_out(each), str(field.argument))


def _figures(condition: Condition, record: RunRecord, result: Result) -> str:
    """What a condition was decided by."""
    field = condition.field
    if field.name in BARE[:2]:
        judgement = result.judgement
        return "nothing was judged" if judgement is None else f"{judgement.word}: {judgement.why}"
    if field.name == "survived":
        return _survival(result, str(field.argument))
    if field.name == "subjects_revealed" and record.revealed is not None:
        return f"{record.revealed} of {record.subjects}, {condition.op} {condition.value} asked"
    if field.name == "kept":
        kept = [attack for attack in record.attacks if attack_matches(attack, str(field.argument))]
        shares = [f"{a.label} {percent(a.kept)}" if a.kept is not None else f"{a.label} {a.outcome}" for a in kept]
        return f"{', '.join(shares) or 'no such attack was made'}, {condition.op} {condition.value} asked"
    return ", ".join(_compared(part, record) for part in condition.parts(record))


def _survival(result: Result, pattern: str) -> str:
    attacks = [attack for attack in result.attacks if attack_matches(attack, pattern)]
    lost = [f"{attack.label} {attack.outcome} ({attack.why})" for attack in attacks if not attack.survived]
    if not attacks:
        return "no such attack was made"
    more = f"; and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
    return "; ".join(lost[:MOST_NAMED]) + more or f"all {len(attacks)} survived"


def _compared(condition: Condition, record: RunRecord) -> str:
    value, bound = condition.field.of(record, strict=True), condition.bound(record)
    # `retain` is also the name of a file: no figure.
    text = condition.op in ORDERS and isinstance(value, str) and not isinstance(condition.value, str)
    shown = "not measured" if value is MISSING or text else number(value) if isinstance(value, float) else str(value)
    asked = "not measured" if bound is MISSING else number(bound) if isinstance(bound, float) else str(bound)
    how = f" ({number(condition.value)} × {condition.stage})" if condition.stage else ""
    return f"{condition.field} {shown}, {condition.op} {asked}{how} asked"
