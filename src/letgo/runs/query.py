"""The language that picks runs: `optimizer=fozo and survived(quantize4) and retain_accuracy >= 0.95*before`.

    expression   A and B · A or B · not A · (A) · FIELD OP VALUE · survived(ATTACK) · attacked(ATTACK) · tag(WORD)
    FIELD        a run's field (id, path, status, model, data, objective, optimizer, grade, seed, learning_rate, …),
                 a key of its config (max_steps, optimizer_args.mu), a metric after unlearning (forget_accuracy) or
                 at a stage (before.forget_accuracy, after.…, retrained.…), or kept(ATTACK), the least share kept
    OP           = != < <= > >= ~ (a shell pattern)
    VALUE        a number, a word, 'quoted text', or NUMBER*STAGE: the same metric at that stage, times the number
    ATTACK       as in `RunRecord.attacks`: relearn · quantize:bits=4 · quantize4

A run that has no such field is not picked. A field that no run has is a mistake, and said.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from letgo.core.catalog import did_you_mean, parse_value
from letgo.core.errors import UserError
from letgo.runs.record import RunRecord

_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>'[^']*'|"[^"]*")|(?P<op><=|>=|!=|==|[=<>~()*])|(?P<word>[^\s()<>=!~*'"]+))""", re.VERBOSE
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CALLS = ("survived", "attacked", "kept", "tag")
MISSING = object()
"""What a field is in a run that has it not."""


@dataclass(frozen=True)
class Field:
    """A named quantity of a run."""

    name: str
    argument: str | None = None

    def __str__(self) -> str:
        return self.name if self.argument is None else f"{self.name}({self.argument})"

    def of(self, record: RunRecord) -> Any:
        """Its value in a run, or MISSING."""
        if self.argument is not None:
            return self._call(record, self.argument)
        flat = record.flat()
        if self.name in flat:
            return MISSING if flat[self.name] is None else flat[self.name]
        stage, dot, rest = self.name.partition(".")
        stages = stages_of(record)
        if dot and stage in stages:
            return stages[stage].get(rest, MISSING)
        if self.name in stages["after"]:
            return stages["after"][self.name]
        value: Any = record.result.config
        for part in self.name.split("."):
            value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
        return MISSING if value is None else value

    def _call(self, record: RunRecord, argument: str) -> Any:
        if self.name == "tag":
            return any(fnmatch.fnmatchcase(tag, argument) for tag in record.tags)
        found = record.attacks(argument)
        if self.name == "attacked":
            return bool(found)
        if not found:
            return MISSING
        return all(a.survived for a in found) if self.name == "survived" else min(a.kept for a in found)


@dataclass(frozen=True)
class Comparison:
    """FIELD OP VALUE, where VALUE may be a multiple of the same metric at another stage."""

    field: Field
    op: str
    value: Any
    stage: str | None = None
    """Where set, `value` is multiplied by the field's metric at this stage."""

    def bound(self, record: RunRecord) -> Any:
        """What the field is held against in this run, or MISSING."""
        if self.stage is None:
            return self.value
        base = Field(f"{self.stage}.{self.field.name.rpartition('.')[2]}").of(record)
        return MISSING if base is MISSING else self.value * base

    def holds(self, record: RunRecord) -> bool:
        left, right = self.field.of(record), self.bound(record)
        if left is MISSING or right is MISSING:
            return False
        if self.op == "~":
            return fnmatch.fnmatchcase(str(left), str(right))
        if _is_number(left) and _is_number(right):
            return _COMPARE[self.op](float(left), float(right))
        if isinstance(left, bool) or isinstance(right, bool):
            return _COMPARE[self.op](left, right) if self.op in ("=", "==", "!=") else False
        return _COMPARE[self.op](str(left), str(right))


@dataclass(frozen=True)
class Query:
    """A parsed expression: `matches(record)`, and the fields that it speaks of."""

    text: str
    matches: Callable[[RunRecord], bool]
    fields: tuple[Field, ...]
    comparisons: tuple[Comparison, ...]

    def select(self, records: Sequence[RunRecord]) -> list[RunRecord]:
        """The records that match. A field that none of them has is a `UserError`."""
        for field in self.fields:
            check_field(field, records)
        return [record for record in records if self.matches(record)]


def stages_of(record: RunRecord) -> dict[str, dict[str, float]]:
    """Metric values by stage: before, after, and each reference by its name."""
    result = record.result
    stages = {"before": result.before, "after": result.after, **result.references}
    return {name: {key: metric.value for key, metric in metrics.items()} for name, metrics in stages.items()}


def known_fields(records: Sequence[RunRecord]) -> list[str]:
    """Every plain field name that some run has."""
    names: dict[str, None] = {}
    for record in records:
        names.update(dict.fromkeys(record.flat()))
        names.update(dict.fromkeys(key for metrics in stages_of(record).values() for key in metrics))
        names.update(dict.fromkeys(record.result.config))
    return list(names)


def check_field(field: Field, records: Sequence[RunRecord]) -> None:
    """Raise a `UserError` if there are runs and none has the field."""
    if not records or field.argument is not None or any(field.of(record) is not MISSING for record in records):
        return
    known = known_fields(records)
    if field.name in known:
        return
    raise UserError(f"no run has a field {field.name!r}{did_you_mean(field.name, known)}\n  fields: {', '.join(known)}")


def parse_query(text: str) -> Query:
    """Parse an expression; a mistake in it is a `UserError` that says where."""
    return _Parser(text).query()


def parse_field(text: str) -> Field:
    """Parse a field alone, such as a sort key: `kept(quantize4)`."""
    parser = _Parser(text)
    field = parser.field()
    parser.end()
    return field


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        self.place = 0
        self.fields: list[Field] = []
        self.comparisons: list[Comparison] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise UserError(f"{text!r}: can't read {text[position:].strip()[:20]!r} at character {position + 1}")
            self.tokens.append((match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
            position = match.end()

    def query(self) -> Query:
        if not self.tokens:
            raise UserError("an empty expression picks nothing; leave it out to have all runs")
        matches = self.disjunction()
        self.end()
        return Query(self.text, matches, tuple(self.fields), tuple(self.comparisons))

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.place][:2] if self.place < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.place += 1
        return token

    def end(self) -> None:
        if self.peek()[0] != "end":
            raise self.error("end of the expression, 'and' or 'or'")

    def error(self, wanted: str) -> UserError:
        kind, value = self.peek()
        where = "at its end" if kind == "end" else f"at {value!r} (character {self.tokens[self.place][2] + 1})"
        return UserError(f"{self.text!r}: expected {wanted} {where}")

    def _is_word(self, word: str) -> bool:
        kind, value = self.peek()
        return kind == "word" and value.lower() == word

    def disjunction(self) -> Callable[[RunRecord], bool]:
        parts = [self.conjunction()]
        while self._is_word("or"):
            self.take()
            parts.append(self.conjunction())
        return parts[0] if len(parts) == 1 else lambda record: any(part(record) for part in parts)

    def conjunction(self) -> Callable[[RunRecord], bool]:
        parts = [self.negation()]
        while self._is_word("and"):
            self.take()
            parts.append(self.negation())
        return parts[0] if len(parts) == 1 else lambda record: all(part(record) for part in parts)

    def negation(self) -> Callable[[RunRecord], bool]:
        if self._is_word("not"):
            self.take()
            inner = self.negation()
            return lambda record: not inner(record)
        if self.peek() == ("op", "("):
            self.take()
            inner = self.disjunction()
            self._close()
            return inner
        return self.condition()

    def _close(self) -> None:
        if self.take() != ("op", ")"):
            self.place -= 1
            raise self.error("')'")

    def field(self) -> Field:
        kind, name = self.peek()
        if kind != "word":
            raise self.error("a field's name")
        self.take()
        if self.peek() != ("op", "("):
            return Field(name)
        if name.lower() not in _CALLS:
            raise UserError(f"{self.text!r}: unknown {name}(…){did_you_mean(name, _CALLS)}; known: {', '.join(_CALLS)}")
        start = self.tokens[self.place][2] + 1
        while self.peek() != ("op", ")"):
            if self.take()[0] == "end":
                self.place -= 1
                raise self.error("')'")
        argument = self.text[start : self.tokens[self.place][2]].strip().strip("'\"")
        self.take()
        if not argument:
            raise UserError(f"{self.text!r}: {name}() needs an argument, such as {name}(quantize4)")
        return Field(name.lower(), argument)

    def condition(self) -> Callable[[RunRecord], bool]:
        field = self.field()
        self.fields.append(field)
        kind, op = self.peek()
        if kind != "op" or (op not in _COMPARE and op != "~"):
            if field.name in ("survived", "attacked", "tag") and field.argument is not None:
                return lambda record: field.of(record) is True
            raise self.error("one of = != < <= > >= ~")
        self.take()
        comparison = self._value(field, op)
        self.comparisons.append(comparison)
        return comparison.holds

    def _pattern(self) -> str:
        """A shell pattern as it stands: to the next blank or bracket, stars and all."""
        start = self.tokens[self.place][2]
        match = re.compile(r"[^\s()]+").match(self.text, start)
        if match is None:
            raise self.error("a pattern")
        while self.place < len(self.tokens) and self.tokens[self.place][2] < match.end():
            self.take()
        return match[0]

    def _value(self, field: Field, op: str) -> Comparison:
        kind, text = self.peek()
        if kind == "quoted":
            self.take()
            return Comparison(field, op, text[1:-1])
        if op == "~" and kind != "end":
            return Comparison(field, op, self._pattern())
        if kind != "word":
            raise self.error("a value")
        self.take()
        value = parse_value(text)
        if self.peek() == ("op", "*"):
            if not _is_number(value):
                raise UserError(f"{self.text!r}: only a number can be multiplied, not {text!r}")
            self.take()
            kind, stage = self.take()
            if kind != "word":
                self.place -= 1
                raise self.error("a stage, such as before")
            return Comparison(field, op, float(value), stage)
        if text in ("before", "after"):
            return Comparison(field, op, 1.0, text)
        return Comparison(field, op, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
