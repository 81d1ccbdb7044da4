"""The language that picks runs: `optimizer=fozo and survived(quantize4) and retain_accuracy >= 0.95*before`.

    expression   A and B · A or B · not A · (A) · FIELD OP VALUE · survived(ATTACK) · attacked(ATTACK) · tag(WORD)
                 · forgotten · partly_forgotten (at least) · finished
    FIELD        a run's field (id, path, status, model, data, objective, optimizer, grade, seed, learning_rate,
                 subjects, subjects_revealed, …), a key of its config (max_steps, optimizer_args.mu), a metric after
                 unlearning (forget_accuracy) or at a stage (before.forget_accuracy, after.…, retrained.…), a set for
                 all its metrics by which forgetting is judged (retain: retain_accuracy, retain_probability), or
                 kept(ATTACK), the least share kept
    OP           = (or ==) != < <= > >= ~ (a shell pattern)
    VALUE        a number, a word, 'quoted text', or NUMBER*STAGE: the same metric at that stage, times the number
    ATTACK       as in `attack_matches`: relearn · quantize:bits=4 · quantize4

A run that has no such field is not picked. A field that no run has is a mistake, and the message says so.

Beside `holds`, yes or no, an expression `tells`: yes, no or None, where nobody can tell. So a gate asks
(`letgo.auditing.gate`): what can't be told does not pass, nor does its opposite.
"""

from __future__ import annotations

import ast
import fnmatch
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from letgo.core.catalog import did_you_mean, parse_chain, parse_value
from letgo.core.errors import UserError
from letgo.runs.record import RunRecord, attack_matches

_WORD = r"""[^\s()<>=!~*'"]+"""
_QUOTED = r"""'[^']*'|"[^"]*\""""
_FIELD = rf"""(?P<field>{_WORD}) (?:\s*\((?P<argument>(?:{_QUOTED}|[^)'"])*)\))?"""
_TOKEN = re.compile(
    rf"""\s*(?: (?P<joint>[()]|(?i:and|or|not)(?!{_WORD})) | {_FIELD} (?:
        \s*(?P<op><=|>=|!=|==|[=<>])\s* (?: (?P<quoted>{_QUOTED}) | (?P<value>{_WORD}) (?:\s*\*\s*(?P<stage>{_WORD}))? )
        | \s*~\s*(?P<pattern>{_QUOTED}|[^\s()'"][^\s()]*)
    )? )""",
    re.VERBOSE,
)
"""A bracket, `and`, `or` or `not`; or a condition, as far as there is one."""
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
ORDERS = ("<", "<=", ">", ">=")
_CALLS = ("survived", "attacked", "kept", "tag")
BARE = ("forgotten", "partly_forgotten", "finished")
"""Words that are conditions by themselves."""
FLAGS = {"lr": "learning_rate", "steps": "max_steps", "epochs": "num_train_epochs"}
"""Fields by the names that the command's flags have."""
_DEEPEST = 100
"""How many `not`s and groups may lie inside each other."""
MISSING = object()
"""What a field is in a run that has it not."""


@dataclass(frozen=True)
class Field:
    """A named quantity of a run."""

    name: str
    argument: str | None = None

    def __str__(self) -> str:
        return self.name if self.argument is None else f"{self.name}({self.argument})"

    def of(self, record: RunRecord, *, strict: bool = False) -> Any:
        """Its value in a run, or MISSING; `strict`: also where one of several attacks leaves open what was kept."""
        if self.argument is not None:
            return self._call(record, self.argument, strict)
        if self.name in BARE:
            return _said(self.name, record)
        if self.name in record.fields:
            value = record.fields[self.name]
            return MISSING if value is None else value
        stage, dot, metric = self.name.partition(".")
        if dot and stage in record.stages:
            return record.stages[stage].get(metric, MISSING)
        if self.name in record.stages["after"]:
            return record.stages["after"][self.name]
        value = record.config
        for part in self.name.split("."):
            value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
        return MISSING if value is None else value

    def parts(self, record: RunRecord) -> tuple[Field, ...]:
        """The fields that it stands for in a run: of a set, its metrics by which forgetting is judged; else itself."""
        stage, _, name = self.name.rpartition(".")
        of_set = record.judged_metrics(name) if self.argument is None else ()
        return tuple(Field(f"{stage}.{metric}" if stage else metric) for metric in of_set) or (self,)

    def _call(self, record: RunRecord, argument: str, strict: bool) -> Any:
        if self.name == "tag":
            return any(fnmatch.fnmatchcase(tag, argument) for tag in record.tags)
        attacks = [attack for attack in record.attacks if attack_matches(attack, argument)]
        if self.name == "attacked":
            return bool(attacks)
        if not attacks:
            return MISSING
        if self.name == "survived":
            lost = [attack for attack in attacks if not attack.survived]
            return MISSING if strict and lost and all(attack.kept is None for attack in lost) else not lost
        if strict and any(attack.kept is None for attack in attacks):
            return MISSING
        return min((attack.kept for attack in attacks if attack.kept is not None), default=MISSING)


def _said(word: str, record: RunRecord) -> Any:
    """Whether a word of `BARE` is true of a run, or MISSING where its judgement can't tell."""
    if word == "finished":
        return record.status == "finished"
    if record.word is None or record.word == "can't tell":
        return MISSING
    return record.word == "forgotten" or (word == "partly_forgotten" and record.word == "partly forgotten")


@dataclass(frozen=True)
class Condition:
    """FIELD OP VALUE, where VALUE may be a multiple of the same metric at another stage."""

    field: Field
    op: str
    value: Any
    stage: str | None = None
    """Where set, `value` is multiplied by the field's metric at this stage."""
    text: str = ""

    def bound(self, record: RunRecord) -> Any:
        """What the field is compared with in this run, or MISSING."""
        if self.stage is None:
            return self.value
        base = Field(f"{self.stage}.{self.field.name.rpartition('.')[2]}").of(record)
        return self.value * base if _is_number(base) else MISSING

    def parts(self, record: RunRecord) -> tuple[Condition, ...]:
        """The conditions that it stands for in a run: one for each metric of a set."""
        return tuple(replace(self, field=field) for field in self.field.parts(record))

    def holds(self, record: RunRecord) -> bool:
        return all(part._compared(record) is True for part in self.parts(record))

    def tells(self, record: RunRecord) -> bool | None:
        told = [part._compared(record, strict=True) for part in self.parts(record)]
        return False if False in told else None if None in told else True

    def _compared(self, record: RunRecord, *, strict: bool = False) -> bool | None:
        left, right = self.field.of(record, strict=strict), self.bound(record)
        if left is MISSING or right is MISSING or (strict and any(value != value for value in (left, right))):
            return None  # NaN, too, is nothing that was measured
        if self.op == "~":
            return fnmatch.fnmatchcase(str(left), str(right))
        if _is_number(left) and _is_number(right):
            return _COMPARE[self.op](left, right)
        if self.op in ORDERS and (isinstance(left, bool) or isinstance(right, bool)):
            return None if strict else False
        if isinstance(left, bool) or isinstance(right, bool):
            return _COMPARE[self.op](left, right)
        if strict and self.op in ORDERS and _is_number(left) != _is_number(right):
            return None  # a text is neither above a number nor below it (`retain` may be the name of a file)
        return _COMPARE[self.op](str(left), str(right))


@dataclass(frozen=True)
class Joint:
    """`and`, `or` or `not` before or between parts."""

    op: Literal["and", "or", "not"]
    parts: tuple[Condition | Joint, ...]
    text: str

    def holds(self, record: RunRecord) -> bool:
        held = (part.holds(record) for part in self.parts)
        return all(held) if self.op == "and" else any(held) if self.op == "or" else not any(held)

    def tells(self, record: RunRecord) -> bool | None:
        told = [part.tells(record) for part in self.parts]
        if self.op == "not":
            return None if told[0] is None else not told[0]
        decides = self.op == "or"
        return decides if decides in told else None if None in told else not decides

    def conditions(self) -> Iterator[Condition]:
        for part in self.parts:
            yield from part.conditions() if isinstance(part, Joint) else (part,)


@dataclass(frozen=True)
class RunQuery:
    """A parsed expression, and the fields and comparisons that it names."""

    text: str
    root: Condition | Joint
    fields: tuple[Field, ...]
    comparisons: tuple[Condition, ...]

    def matches(self, record: RunRecord) -> bool:
        return self.root.holds(record)

    @property
    def clauses(self) -> tuple[Condition | Joint, ...]:
        """The parts that must all hold: those that `and` joins at the top."""
        return tuple(_clauses(self.root))

    def select(self, records: Sequence[RunRecord]) -> list[RunRecord]:
        """The records that match. A field that none of them has is a `UserError`."""
        for field in self.fields:
            check_field(field, records)
        return [record for record in records if self.matches(record)]


def _clauses(node: Condition | Joint) -> Iterator[Condition | Joint]:
    if isinstance(node, Joint) and node.op == "and":
        for part in node.parts:
            yield from _clauses(part)
    else:
        yield node


def check_field(field: Field, records: Sequence[RunRecord]) -> None:
    """Raise a `UserError` if there are runs and none has the field."""
    parts = [part for record in records for part in field.parts(record) if part.of(record) is not MISSING]
    if not records or field.argument is not None or parts:
        return
    known: dict[str, None] = {}
    for record in records:
        known |= dict.fromkeys(record.fields)
        known |= dict.fromkeys(metric for stage in record.stages.values() for metric in stage)
        known |= dict.fromkeys([*record.config, *BARE])
    if field.name not in known:
        near = did_you_mean(field.name, known)
        raise UserError(f"no run has a field {field.name!r}{near}\n  fields: {', '.join(known)}")


def parse_query(text: str) -> RunQuery:
    """Parse an expression; a mistake in it is a `UserError` that says where.

    Python's parser gets its skeleton alone, brackets and `and`, `or`, `not` with a `_` where each condition begins, so
    nothing that a user writes is ever Python.
    """
    text = text.strip()
    if not text:
        raise UserError("an empty expression picks nothing; leave it out to have all runs")
    skeleton, conditions = [" "] * len(text), {}
    fields, comparisons = [], []
    end, brackets, wants_condition = 0, 0, True
    while end < len(text):
        match = _TOKEN.match(text, end)
        joint = (match["joint"] or "").lower() if match else ""
        if match is None or (joint in ("and", "or", ")")) == wants_condition or (joint == ")" and not brackets):
            raise _error(text, end, "a field's name" if wants_condition else "end of the expression, 'and' or 'or'")
        start, end = match.start("joint" if joint else "field"), match.end()
        if not joint:
            conditions[start] = comparison = _condition(text, match)
            fields.append(comparison.field)
            comparisons += [comparison] if match["op"] or match["pattern"] else []
        skeleton[start : start + len(joint or "_")] = joint or "_"
        brackets += (joint == "(") - (joint == ")")
        wants_condition = joint in ("and", "or", "not", "(")
    if wants_condition or brackets:
        raise _error(text, end, "a field's name" if wants_condition else "')'")
    try:
        root = _node(ast.parse("".join(skeleton), mode="eval").body, text, conditions)
    except (SyntaxError, MemoryError, RecursionError):
        raise UserError(f"{_short(text)}: too many brackets and 'not's inside each other; write it flatter") from None
    return RunQuery(text, root, tuple(fields), tuple(comparisons))


def parse_field(text: str) -> Field:
    """Parse a field alone, such as a sort key: `kept(quantize4)`."""
    match = re.compile(_FIELD, re.VERBOSE).match(text.strip())
    if match is None or match.end() < len(text.strip()):
        raise _error(text.strip(), match.end() if match else 0, "a field alone, such as created or kept(quantize4),")
    return _field(text, match)


def _node(node: ast.expr, text: str, conditions: Mapping[int, Condition], depth: int = 0) -> Condition | Joint:
    """What a node of the skeleton asks of a run."""
    if depth > _DEEPEST:
        raise RecursionError
    if isinstance(node, ast.Name):
        return conditions[node.col_offset]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        op, inner = "not", [node.operand]
    elif isinstance(node, ast.BoolOp):
        op, inner = ("and" if isinstance(node.op, ast.And) else "or"), node.values
    else:
        raise SyntaxError
    # In the skeleton a condition is one sign long: a part ends where its last condition does.
    last = max(start for start in conditions if node.col_offset <= start < (node.end_col_offset or 0))
    end = max(node.end_col_offset or 0, last + len(conditions[last].text))
    parts = tuple(_node(each, text, conditions, depth + 1) for each in inner)
    return Joint(op, parts, text[node.col_offset : end])  # type: ignore[arg-type]


def _condition(text: str, match: re.Match[str]) -> Condition:
    """A condition, with its own text."""
    return replace(_read(text, match), text=text[match.start("field") : match.end()].rstrip())


def _read(text: str, match: re.Match[str]) -> Condition:
    field, op, word = _field(text, match), match["op"], match["value"]
    if match["pattern"]:
        return Condition(field, "~", _unquoted(match["pattern"]))
    if match["quoted"]:
        return Condition(field, op, _unquoted(match["quoted"]))
    if op is None:
        begun = re.compile(r"\s*([<>=!]=|[=<>~])").match(text, match.end())
        if begun:
            raise _error(text, begun.end(), "a value")
        if field.argument is None and (near := did_you_mean(field.name, BARE)) and field.name not in BARE:
            raise UserError(f"{_short(text)}: {field.name!r} is no condition by itself{near}")
        if (field.argument is None and field.name not in BARE) or field.name == "kept":
            raise _error(text, match.end(), "one of = != < <= > >= ~")
        return Condition(field, "=", True)
    value = parse_value(word)
    if match["stage"] is None:
        return Condition(field, op, 1.0, word) if word in ("before", "after") else Condition(field, op, value)
    if not _is_number(value):
        raise UserError(f"{_short(text)}: only a number can be multiplied, not {word!r}")
    return Condition(field, op, float(word), match["stage"])


def _field(text: str, match: re.Match[str]) -> Field:
    name, argument = match["field"], match["argument"]
    if argument is None:
        if text[match.end("field") :].lstrip().startswith("("):
            raise _error(text, len(text), "')'")
        return Field(FLAGS.get(name, name))
    argument = _unquoted(argument.strip())
    if name.lower() not in _CALLS:
        raise UserError(f"{_short(text)}: unknown {name}(…){did_you_mean(name, _CALLS)}; known: {', '.join(_CALLS)}")
    if not argument:
        raise UserError(f"{_short(text)}: {name}() needs an argument, such as {name}(quantize4)")
    if name.lower() != "tag":
        parse_chain(argument)
    return Field(name.lower(), argument)


def _error(text: str, position: int, wanted: str) -> UserError:
    rest = text[position:].lstrip()
    where = f"at {rest.split()[0][:20]!r} (character {len(text) - len(rest) + 1})" if rest else "at its end"
    return UserError(f"{_short(text)}: expected {wanted} {where}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:199]}…")


def _unquoted(text: str) -> str:
    return text[1:-1] if text[:1] in ("'", '"') and text[-1:] == text[:1] else text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
