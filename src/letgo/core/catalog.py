"""The one registry mechanism: a name leads to a lazily imported target, with aliases and did-you-mean.

A kind of thing (optimizers, objectives, attacks, benchmarks, metrics) keeps one `Catalog` with one `Record` a line.
Nothing is imported until `load` is called, so listing is instant and optional dependencies stay optional. Beside the
names that it lists, a catalog knows a user's own things by their paths and entry points (`letgo.core.own`).
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Generic, Literal, TypeVar

from letgo.core.errors import UserError
from letgo.core.extras import installing
from letgo.core.own import as_path, description_of, import_path, note, offered, spec_with_path
from letgo.core.signatures import keywords
from letgo.core.values import Within, annotations_of, flaw, kind_of, shown, wanted

_EMPTY = inspect.Parameter.empty
_NO_SETTINGS = {"self", "params"}
_THEN = " then "
# A value may have the word in it ("text=well then, go on"): only before what can be a name, or a pattern of one.
_BEFORE_LINK = re.compile(r"\s+then\s+(?=[\w.*?-]+\s*(?::|$|\s+then\s))")
NOT_NEGATIVE = Within(0)
Faithfulness = Literal["faithful", "variant", "ours", "library", "yours"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of one named thing without importing it.

    `faithfulness` says how the thing stands to its source: `faithful` (the paper's algorithm), `variant` (`note` says
    how it differs), `ours` (no outside source), `library` (another package's own implementation, unchanged), `yours`
    (found by a path or an entry point: letgo knows nothing of it but its signature and what it says of itself).
    """

    name: str
    target: str
    """Where it lives, as "package.module:attribute"."""
    summary: str
    source: str
    faithfulness: Faithfulness
    note: str = ""
    aliases: tuple[str, ...] = ()
    extra: str | None = None
    """The optional dependency group that it needs, if any."""

    def __post_init__(self) -> None:
        if self.faithfulness == "variant" and not self.note:
            raise ValueError(f"record {self.name!r} is a variant: its note must say how it differs from its source")
        if self.target.count(":") != 1:
            raise ValueError(f"record {self.name!r}: target {self.target!r} is not of the form module:attribute")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Own(Generic[R]):
    """How a catalog takes things that are not letgo's own.

    Attributes:
        group: the entry points by which installed packages offer them.
        record: the type of their records.
        describe: looks at one and gives those fields of its record that it can tell, or raises a `UserError` where it
            is no such thing.
    """

    group: str
    record: type[R]
    describe: Callable[[Any], Mapping[str, Any]]
    record_of: Callable[[Any], type[R] | None] = lambda thing: None
    """Of things of more than one kind: the type of this one's record, where it is not `record`."""


class Catalog(Generic[R]):
    """An ordered list of records of one kind, found by name or alias; `note` is a remark on all of them.

    Names are lower case with underscores; a dash counts as an underscore and case is ignored when one is looked up.
    `in` and the iteration know those that are listed alone, and import nothing.

    Args:
        own: how things that are not letgo's own are taken; None where they are not.
    """

    def __init__(self, kind: str, records: Iterable[R], own: Own[R] | None = None, *, note: str = "") -> None:
        self.kind, self.own, self.note = kind, own, note
        self._records: dict[str, R] = {}
        self._names: dict[str, str] = {}
        for record in records:
            for name in (record.name, *record.aliases):
                key = _key(name)
                if key in self._names:
                    raise ValueError(f"{kind} {name!r} is listed twice")
                self._names[key] = record.name
            self._records[record.name] = record

    def __iter__(self) -> Iterator[R]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: str) -> bool:
        return isinstance(name, str) and _key(name) in self._names

    def names(self, pattern: str = "*") -> list[str]:
        """Names that match a shell pattern, in the catalog's order."""
        return [name for name in self._records if fnmatch.fnmatchcase(name, pattern.lower())]

    def installed(self) -> dict[str, str]:
        """What installed packages offer beside the names listed: name -> path. A name that is listed stays letgo's."""
        points = offered(self.own.group) if self.own is not None else {}
        return {name: point.value for name, point in points.items() if name not in self}

    def record(self, name: str) -> R:
        """The record under a name or an alias, or of what a path or an entry point names, which is then imported; an
        unknown name is a `UserError` with the nearest names."""
        if not isinstance(name, str):
            raise UserError(f"{self.kind} must be a name, not {shown(name)}; known: {', '.join(self._records)}")
        if name in self:
            return self._records[self._names[_key(name)]]
        return self._found(name)[0]

    def _found(self, name: str) -> tuple[R, Any]:
        """The record of what is not listed, and the thing itself."""
        path = as_path(self.installed().get(name, name))
        if self.own is None or path is None:
            form = "\n  one of your own is named by its path: module.Name, or package.module:Name"
            raise UserError(
                f"unknown {self.kind} {name!r}{did_you_mean(_key(name), [*self._names, *self.installed()])}\n"
                f"  known {self.kind}s: {', '.join([*self._records, *self.installed()])}"
                f"{'' if self.own is None else form}"
            )
        name = name if name in self.installed() else path
        what = f"{self.kind} {name!r}"
        target, thing = import_path(path, what, did_you_mean)
        if not callable(thing):
            raise UserError(f"{what} is {shown(thing)}, which can't be called")
        kind = self.own.record_of(thing) or self.own.record
        said, fields_known = description_of(thing), [f.name for f in fields(kind)]
        for key in said:
            if key not in fields_known or key in ("name", "target", "aliases", "extra", "faithfulness"):
                raise UserError(f"{what}: @described has no field {key!r}{did_you_mean(key, fields_known)}")
        try:
            described = self.own.describe(thing) if kind is self.own.record else {}
            told = {**_told_of(thing, target), **described, **said}
            record = kind(name=name, target=target, faithfulness="yours", **told)
        except (TypeError, ValueError) as error:
            raise UserError(f"{what}: {error}") from error
        except UserError as error:
            raise UserError(f"{what} {error}") from error
        note(name, self.kind, target, thing)
        return record, thing

    def load(self, name: str) -> Any:
        """Import and return what the name stands for."""
        if name not in self and isinstance(name, str):
            return self._found(name)[1]
        record = self.record(name)
        module_name, attribute = record.target.split(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if record.extra is None or (error.name or "").startswith("letgo"):
                raise
            raise UserError(
                f"{self.kind} {record.name!r} needs the package {error.name!r}: {installing(record.extra)}"
            ) from error
        return getattr(module, attribute)

    def check_settings(self, name: str, settings: Mapping[str, Any], *, skip: Iterable[str] = ()) -> None:
        """Raise a `UserError` unless the target takes these keyword arguments, by their names and by their values:
        each must be what the argument's annotation says. `skip` names those that are not the user's to set."""
        record = self.record(name)
        foreign = record.faithfulness == "yours"
        check_settings(f"{self.kind} {record.name!r}", [self.load(name)], settings, skip=skip, foreign=foreign)

    def check_early(self, name: str, settings: Mapping[str, Any], *, also: str = "", skip: Iterable[str] = ()) -> None:
        """As `check_settings`, by the text of the target's file: nothing is imported, and what it does not tell is not
        checked. `also` names another target whose settings may stand among these."""
        if name not in self and isinstance(name, str) and as_path(self.installed().get(name, name)) is not None:
            return
        record = self.record(name)
        own, more = keywords(record.target), keywords(also) if also else {}
        if own is not None and more is not None:
            known = {key: kind for key, kind in {**own, **more}.items() if key not in _NO_SETTINGS | {*skip}}
            _check(f"{self.kind} {record.name!r}", known, known, settings)


def check_settings(
    what: str,
    targets: Sequence[Any],
    settings: Mapping[str, Any],
    *,
    skip: Iterable[str] = (),
    foreign: bool = False,
) -> None:
    """Check settings that are shared out among the targets that have them, as `Catalog.check_settings`. `what` is
    what messages call them together.

    Args:
        foreign: not letgo's own, whose numbers may be negative, and which may take settings that they do not name
            (`**kwargs`): of these a name that is like one that they do name is taken for a mistake.
    """
    known = {key: default for target in targets for key, default in settings_of(target, skip=skip).items()}
    if foreign and any(_takes_more(target) for target in targets):
        known |= {key: None for key in settings if not did_you_mean(key, known)}
    for target in targets:
        kinds = {key: _kind_of(value, foreign) for key, value in known.items()} | _annotations(target, foreign)
        _check(what, known, kinds, settings, None if foreign else NOT_NEGATIVE)
    missing = [key for key, default in known.items() if default is _EMPTY and key not in settings]
    if missing:
        raise UserError(f"{what} needs a value for {', '.join(missing)}")


def _kind_of(default: Any, foreign: bool) -> Any:
    # Others write 0 for 0.0.
    kind = kind_of(default)
    return float if foreign and kind is int else kind


def _takes_more(target: Any) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(target).parameters.values())


def _annotations(target: Any, foreign: bool) -> dict[str, Any]:
    """As `annotations_of`. Another's annotations may name what is not there when it runs, or be none: then its defaults
    alone tell."""
    try:
        return annotations_of(target)
    except (NameError, AttributeError, TypeError, SyntaxError):
        if not foreign:
            raise
        return {}


def _told_of(thing: Any, target: str) -> dict[str, str]:
    """What any record says, as far as the thing's own docstring and its place tell."""
    # A class without a docstring would show the one of its base.
    doc = vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__
    summary = next(iter(inspect.cleandoc(doc or "").splitlines()), "")
    return {"summary": summary or target.partition(":")[2], "source": target.replace(":", ".")}


def _check(
    what: str,
    known: Iterable[str],
    kinds: Mapping[str, Any],
    settings: Mapping[str, Any],
    within: Within | None = NOT_NEGATIVE,
) -> None:
    """Check settings by their names and by the kinds that these should be of. As everywhere, a number whose annotation
    names no range is `within` what is not negative."""
    names = list(known)
    for key, value in settings.items():
        if key not in names:
            raise UserError(
                f"{what} has no setting {key!r}{did_you_mean(key, names)}\n  its settings: {', '.join(names) or 'none'}"
            )
        if problem := wanted(value, kinds[key], within):
            raise UserError(f"{what}: {key} must be {problem}, not {shown(value)}")
        if problem := flaw(value):
            raise UserError(f"{what}: {key}: {problem}")


def check_arguments(function: Any, **given: Any) -> None:
    """Check some of a function's arguments against its annotations, as `check_settings`."""
    others = [name for name in settings_of(function) if name not in given]
    check_settings(f"{function.__name__}()", [function], given, skip=others)


def settings_of(target: Any, *, skip: Iterable[str] = ()) -> dict[str, Any]:
    """The keyword arguments of a callable (or fields of a dataclass) and their defaults, in order."""
    skipped = _NO_SETTINGS | {*skip}
    if isinstance(target, type) and hasattr(target, "__dataclass_fields__"):
        return {
            f.name: _EMPTY if f.default is MISSING and f.default_factory is MISSING else f.default
            for f in fields(target)
            if f.init and f.name not in skipped
        }
    keyword_kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(target).parameters.values()
        if parameter.kind in keyword_kinds and parameter.name not in skipped
    }


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an error message: "; did you mean 'x'?" for near names, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def parse_value(text: str) -> Any:
    """A setting's text as the value it means: none, true/false, int, float, else the text itself."""
    lowered = text.strip().lower()
    words: dict[str, Any] = {"none": None, "null": None, "true": True, "false": False}
    if lowered in words:
        return words[lowered]
    for number in (int, float):
        try:
            return number(lowered)
        except ValueError:
            continue
    return text.strip()


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split "name:key=value,key=value" into the name and its settings.

    A bare key means true (`quantize:double`). Values go through `parse_value`. Of a path "package.module:Name" the
    name comes back in dots.
    """
    name, _, rest = spec_with_path(spec).partition(":")
    if not name.strip():
        raise UserError(f"{spec!r} names nothing; the form is NAME or NAME:key=value,key=value")
    settings: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = part.partition("=")
        if not key.strip():
            raise UserError(f"{spec!r}: {part!r} has no key; the form is NAME:key=value,key=value")
        if key.strip() in settings:
            raise UserError(f"{spec!r} sets {key.strip()!r} twice")
        settings[key.strip()] = parse_value(value) if equals else True
    return name.strip(), settings


def format_spec(name: str, settings: Mapping[str, Any]) -> str:
    """The inverse of `parse_spec`."""
    return name + (":" + ",".join(f"{k}={v}" for k, v in settings.items()) if settings else "")


def split_chain(spec: str) -> list[str]:
    """The links of "LINK then LINK then LINK", each a spec; of a plain spec that one."""
    return [link.strip() for link in _BEFORE_LINK.split(spec)]


def join_chain(links: Iterable[str]) -> str:
    """The inverse of `split_chain`."""
    return _THEN.join(links)


def parse_chain(spec: str) -> tuple[str, dict[str, Any]]:
    """A chain's name and settings. The name is the spec as far as the last link's name, the settings are that link's:
    so `format_spec` gives the spec again, and a chain of one is that one."""
    *earlier, last = split_chain(spec)
    for link in earlier:
        parse_spec(link)
    name, settings = parse_spec(last)
    return join_chain([*earlier, name]), settings


def links_of(name: str, settings: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Each link's own name and settings, of a chain's (`parse_chain`). A record's name may be anybody's: a link in it
    that can't be parsed is its own name."""
    *earlier, last = split_chain(name)
    links = list[tuple[str, Mapping[str, Any]]]()
    for link in earlier:
        try:
            links.append(parse_spec(link))
        except UserError:
            links.append((link, {}))
    return [*links, (last, settings)]


def _key(name: str) -> str:
    return name.strip().lower().replace("-", "_")
