"""What a value must be: a setting's own type and range, read from its annotation; and what no value from a file may
hold."""

from __future__ import annotations

import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from letgo.core.errors import UserError

DEEPEST, _MOST = 50, 200_000
"""How deep the values of a file may be nested, and how many there may be, aliases followed."""
_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    str: "text",
    Path: "a path",
    Mapping: "a mapping",
    dict: "a mapping",
    Sequence: "a list",
    list: "a list",
}


@dataclass(frozen=True)
class Within:
    """The range of a number, in an annotation: `bits: Annotated[int, Within(2, 8)]`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """Whether `low` itself is left out."""
    below: bool = False
    """Whether `high` itself is left out."""

    def __contains__(self, value: Any) -> bool:
        low = value > self.low if self.above else value >= self.low
        return bool(low and (value < self.high if self.below else value <= self.high))

    def __str__(self) -> str:
        if -math.inf < self.low and self.high < math.inf and not self.above and not self.below:
            return f"from {self.low} to {self.high}"
        low = f"{'above' if self.above else 'at least'} {self.low}" if self.low > -math.inf else ""
        high = f"{'below' if self.below else 'at most'} {self.high}" if self.high < math.inf else ""
        return " and ".join(filter(None, (low, high)))


Count = Annotated[int, Within(1)]
Natural = Annotated[int, Within(0)]
Seed = Annotated[int, Within(0, 2**32 - 1)]
Rounding = Literal["nearest", "stochastic", "error_feedback"]
"""How a weight finds its level (`letgo.optim.engine.rounding`)."""
Weight = Annotated[float, Within(0)]
Positive = Annotated[float, Within(0, above=True)]
Epochs = Annotated[float, Within(0, 10**6, above=True)]
Share = Annotated[float, Within(0, 1, above=True)]
"""Some of a whole, or all of it."""
Part = Annotated[float, Within(0, 1, above=True, below=True)]
"""Some of a whole, never all of it."""
BelowOne = Annotated[float, Within(0, 1, below=True)]


def wanted(value: Any, kind: Any, within: Within | None = None) -> str | None:
    """What a value must be in words, if it is not of the kind that an annotation names; None if it is. A number may
    not be infinite or NaN; what a value holds inside is for `flaw` to say."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return wanted(value, parts[0], next((each for each in parts[1:] if isinstance(each, Within)), None))
    if origin in (typing.Union, types.UnionType):
        problems = [wanted(value, part, within) for part in parts]
        return None if None in problems else " or ".join(dict.fromkeys(filter(None, problems)))
    if origin is Literal:
        same = any(type(value) is type(part) and value == part for part in parts)
        return None if same else f"one of {', '.join(map(str, parts))}"
    if kind is type(None):
        return None if value is None else ""
    if kind in (int, float):
        return _number_wanted(value, kind, within)
    if origin is tuple and Ellipsis not in parts:
        fits = isinstance(value, list | tuple) and len(value) == len(parts)
        if fits and not any(wanted(each, part) for each, part in zip(value, parts, strict=True)):
            return None
        return f"a list of {len(parts)} values, each {wanted(None, parts[0])}"
    expected = origin or kind
    if expected is Any or not isinstance(expected, type) or isinstance(value, expected):
        return None
    return _WORDS.get(expected, f"a {expected.__name__}")


def _number_wanted(value: Any, kind: type, within: Within | None) -> str | None:
    right = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    most = 2**63 - 1 if kind is int else sys.float_info.max
    if right and abs(value) <= most and (within is None or value in within):
        return None
    words = "a whole number" if kind is int else "a number"
    return f"{words} {'of ' * (str(within).startswith('at'))}{within}" if within else f"{words} that is finite"


def compiled(field: str, pattern: str) -> re.Pattern[str]:
    """A setting's regular expression; one that is none is a `UserError`."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{field}: {pattern!r} is not a regular expression ({error})") from error


def annotations_of(target: Callable[..., Any]) -> dict[str, Any]:
    """What a function, a dataclass or a class's constructor says of its arguments' types."""
    if isinstance(target, type) and hasattr(target, "__dataclass_fields__"):
        return typing.get_type_hints(target, include_extras=True)
    function: Any = inspect.unwrap(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    # What it returns may be imported where it is called.
    annotations = {name: kind for name, kind in function.__annotations__.items() if name != "return"}
    stripped: Any = types.SimpleNamespace(__annotations__=annotations)
    return typing.get_type_hints(stripped, globalns=function.__globals__, include_extras=True)


def kind_of(default: Any) -> Any:
    """The type of a setting without an annotation (another library's), as its default shows it."""
    if isinstance(default, tuple):
        return tuple[tuple(map(kind_of, default))]  # type: ignore[misc]
    return type(default) if isinstance(default, bool | int | float | str) else Any


def shown(value: Any) -> str:
    """A value as a message shows it: short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits; endless nesting
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def flaw(value: Any, *, finite: bool = True, foreign: bool = True) -> str | None:
    """What makes a value from a file unfit for any use, and where in it: text that UTF-8 has no bytes for, a NUL, a
    number that is infinite or NaN (if `finite`), or more than anyone writes by hand. None for a sound value.

    Args:
        foreign: not of letgo's own records, which may be long, and in which a model may have written a NUL.
    """
    waiting: list[tuple[str, int, Any]] = [("", 0, value)]
    seen = 0
    while waiting:
        where, depth, each = waiting.pop()
        seen += 1
        problem = None
        if isinstance(each, str):
            problem = _flaw_of_text(each, foreign)
        elif isinstance(each, float):
            problem = f"{each} is no number to work with" if finite and not math.isfinite(each) else None
        elif isinstance(each, Mapping | list | tuple):
            problem = f"is nested more than {DEEPEST} levels deep" if depth >= DEEPEST else None
            if foreign and seen + len(waiting) + len(each) > _MOST:
                problem = f"holds more than {_MOST:,} values"
            if problem is None:
                waiting += [(f"{where}{name}", depth + 1, inner) for name, inner in _inside(each)]
        if problem is not None:
            place = where.lstrip(".")
            return f"{place[:60]}{'…' * (len(place) > 60)}: {problem}" if where else problem
    return None


def _inside(value: Mapping[Any, Any] | Sequence[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield ".(a key)", key
            yield f".{key if isinstance(key, str) and _flaw_of_text(key) is None else '?'}", inner
    else:
        yield from ((f"[{index}]", inner) for index, inner in enumerate(value))


def _flaw_of_text(text: str, foreign: bool = True) -> str | None:
    if foreign and "\0" in text:
        return "the text has a NUL character in it"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"the text has half a character in it (U+{ord(text[error.start]):04X}), which UTF-8 can't hold"
    return None
