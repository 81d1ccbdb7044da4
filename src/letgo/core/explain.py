"""What one thing of a catalog takes, for `letgo list KIND NAME`: read from its signature and its docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from letgo.core.catalog import NOT_NEGATIVE, Catalog, settings_of
from letgo.core.values import annotations_of, kind_of, wanted

_ENTRY = re.compile(r"(\w+(?:, \w+)*)(?: \(.*?\))?:(?: (.*))?")
_SECTION = re.compile(r"(?:Args|Arguments|Parameters|Keyword Args|Attributes)(?: \(.*\))?:\s*")
_USUAL = {
    "lr": "the learning rate",
    "betas": "decay of the running means of the gradient and of its square",
    "eps": "added to what is divided by",
    "weight_decay": "share of the weights taken off a step, times lr",
}
"""What settings of these names mean where no docstring says it."""
_NO_SEED = "changes nothing: nothing is random here"


@dataclass(frozen=True)
class Setting:
    """One setting: its type in words, the value that it has where none is given, and what its docstring says of it.

    `default` is text; None where a value must be given.
    """

    name: str
    type: str
    default: str | None
    meaning: str


def explained(
    catalog: Catalog[Any], name: str, skip: Iterable[str] | None = (), more: Sequence[Any] = ()
) -> dict[str, Any]:
    """A record's fields, with its `settings` and the `file` and line where it is defined; it is imported for that.

    Args:
        skip: arguments that are not a user's to set; None for all.
        more: other callables whose settings may stand among these.
    """
    thing, record = catalog.load(name), catalog.record(name).as_dict()
    usual = _USUAL if record.get("random", True) else {**_USUAL, "seed": _NO_SEED}
    known: dict[str, Setting] = {}
    for target in () if skip is None else (thing, *more):
        for setting in settings_shown(target, skip or ()):
            known.setdefault(setting.name, replace(setting, meaning=setting.meaning or usual.get(setting.name, "")))
    return record | {
        "settings": [asdict(setting) for setting in known.values()],
        "file": place_of(thing),
    }


def settings_shown(target: Any, skip: Iterable[str] = ()) -> list[Setting]:
    """The settings of a callable, in their order."""
    try:
        kinds = annotations_of(target)
    except (NameError, AttributeError, TypeError, SyntaxError):  # another library's
        kinds = {}
    meanings = _meanings(target)
    return [
        Setting(
            name,
            wanted(_NOTHING, kinds.get(name, kind_of(default)), NOT_NEGATIVE) or "any value",
            None if default is inspect.Parameter.empty else _text(default),
            meanings.get(name, ""),
        )
        for name, default in settings_of(target, skip=skip).items()
    ]


def place_of(thing: Any) -> str:
    """FILE:LINE of a definition; "" of what has no file."""
    try:
        inside = inspect.unwrap(thing)
        return f"{inspect.getsourcefile(inside)}:{inspect.getsourcelines(inside)[1]}"
    except (TypeError, OSError):
        return ""


class _Nothing:
    """What no annotation allows."""

    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


def _text(default: Any) -> str:
    return str(default) if isinstance(default, str | int | float | bool | None) else repr(default)


def _meanings(target: Any) -> dict[str, str]:
    """Setting -> what the docstrings say of it: the thing's own, its constructor's, behind them its bases' or those
    of what it is `taking` from."""
    places = list(target.__mro__) if isinstance(target, type) else [target, getattr(target, "__taken__", None)]
    docs = [doc for place in places for doc in (place.__doc__, _constructor_doc(place)) if doc]
    meanings: dict[str, str] = {}
    for doc in docs:
        for name, meaning in _entries(inspect.cleandoc(doc).splitlines()):
            meanings.setdefault(name, meaning)
    return meanings


def _constructor_doc(place: Any) -> str | None:
    return vars(place)["__init__"].__doc__ if isinstance(place, type) and "__init__" in vars(place) else None


def _entries(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The names of a docstring's section of arguments, each with its whole text."""
    inside, indent, names, text = False, 0, list[str](), ""
    for line in [*lines, "."]:
        stripped, depth = line.strip(), len(line) - len(line.lstrip())
        entry = _ENTRY.fullmatch(stripped) if inside else None
        if stripped and inside and (depth == 0 or (entry and depth <= (indent or depth))):
            yield from ((name, text.strip()) for name in names)
            names, text = [], ""
        if _SECTION.fullmatch(stripped) and depth == 0:
            inside, indent = True, 0
        elif stripped and depth == 0:
            inside = False
        elif entry and depth <= (indent or depth):
            indent, names, text = depth, entry[1].split(", "), entry[2] or ""
        elif names and stripped:
            text += f" {stripped}"
