"""A user's own optimizers, objectives, attacks, benchmarks and metrics: Python code that is found by a path
("package.module.Name", or "package.module:Name") or that an installed package offers as an entry point.

Only what a user runs imports it. What a record names is a text like any other: whoever reads a record asks
`check_recorded` before anything that it names is imported, and is refused unless the user trusts the record
(`recorded_code`). What was imported is noted with a digest of its file (`noted`), for the record.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from letgo.core.errors import UserError, first_line
from letgo.core.fingerprints import file_digest

_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
_COLON_FORM = re.compile(
    r"\s*([^\W\d]\w*(?:\.[^\W\d]\w*)+(?=:)|[^\W\d]\w*(?=:[A-Z])):([^\W\d]\w*(?:\.[^\W\d]\w*)*)\s*(?=:|$)"
)
_TRUSTED: ContextVar[bool] = ContextVar("recorded_code_trusted", default=False)

T = TypeVar("T")


@dataclass(frozen=True)
class Code:
    """Python code that is not letgo's own, as a record names it.

    Attributes:
        kind: "optimizer", "objective", …
        target: where it is defined, "package.module:Name".
        sha256: of the file of that module.
        package: the installed package that it belongs to, with its version; "" of a file of one's own.
    """

    kind: str
    target: str
    sha256: str
    package: str = ""


@dataclass
class Notes:
    """The code that was imported since `noted` began, by the names that it was asked for by, and the SHA-256 that the
    file of some must have."""

    code: dict[str, Code] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, code: Code) -> None:
        if self.expected.get(name, code.sha256) != code.sha256:
            raise UserError(
                f"{code.kind} {name!r}: its source is not the one that the record was made with\n"
                f"  SHA-256 in the record: {self.expected[name]}\n  of {code.target.partition(':')[0]} now: "
                f"{code.sha256}\n  put the old source back, or begin anew in another directory"
            )
        self.code[name] = code


_NOTED: ContextVar[tuple[Notes, ...]] = ContextVar("noted", default=())


@contextmanager
def noted() -> Iterator[Notes]:
    """Within: code of others is noted where it is looked up. Also a decorator."""
    notes = Notes()
    token = _NOTED.set((*_NOTED.get(), notes))
    try:
        yield notes
    finally:
        _NOTED.reset(token)


def code_in_use() -> dict[str, Code]:
    """What the innermost `noted` has noted so far."""
    return dict(_NOTED.get()[-1].code) if _NOTED.get() else {}


def expect(digests: Mapping[str, str]) -> None:
    """Refuse from now on, within the innermost `noted`, code whose file has another SHA-256 than is given here for its
    name. What is noted already is held to it at once."""
    notes = _NOTED.get()[-1]
    notes.expected.update(digests)
    for name, code in list(notes.code.items()):
        notes.note(name, code)


@contextmanager
def recorded_code(trusted: bool | None) -> Iterator[None]:
    """Within, in this thread: whether code that a record names may be imported. By default it may not: the record may
    come from somebody else. None leaves it as it is."""
    token = _TRUSTED.set(_TRUSTED.get() if trusted is None else trusted)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def check_recorded(kind: str, name: str) -> None:
    """Raise a `UserError` where a record names code that is not letgo's own, and the user has not said to trust it."""
    if not _TRUSTED.get():
        raise UserError(
            f"the record names the {kind} {name!r}, which is not letgo's own: what a record names is not imported\n"
            "  if you trust the record and that code: --trust-remote-code (trust_remote_code=True)"
        )


def described(**fields: Any) -> Callable[[T], T]:
    """Say of one's own optimizer, objective, attack, benchmark or metric what letgo can't read from its signature: the
    fields of its kind's record, such as `@described(means="prompts", random=False)` on an attack."""

    def mark(thing: T) -> T:
        thing.__letgo__ = fields  # type: ignore[attr-defined]
        return thing

    return mark


def description_of(thing: Any) -> dict[str, Any]:
    """What `described` says of this thing itself, not of what it inherits from."""
    return dict(getattr(thing, "__dict__", {}).get("__letgo__", {}))


def as_path(name: str) -> str | None:
    """A name with all dots if it is a path, in one of its two forms; None of any other name."""
    dotted = name.strip().replace(":", ".", 1)
    return dotted if _PATH.fullmatch(dotted) else None


def spec_with_path(spec: str) -> str:
    """A spec "package.module:Name:key=value" with its path in dots; any other spec as it is. Behind a single word only
    a class is a path's end: in "quantize:double" the second word is a setting."""
    return _COLON_FORM.sub(r"\1.\2", spec, count=1)


@functools.cache
def offered(group: str) -> Mapping[str, importlib.metadata.EntryPoint]:
    """The entry points of a group that installed packages offer, by name. Nothing is imported.

    Raises:
        UserError: two packages offer different things under one name.
    """
    points: dict[str, importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=group):
        if points.setdefault(point.name, point).value != point.value:
            raise UserError(
                f"two packages offer {point.name!r} in {group}: {points[point.name].value} and {point.value}\n"
                "  uninstall one of them, or name yours by its path"
            )
    return points


def import_path(path: str, what: str, near: Callable[[str, list[str]], str]) -> tuple[str, Any]:
    """Import what a path in dots names; returns "module:attribute" and the thing itself.

    Args:
        what: what messages call it.
        near: says which of several names a name is like (`letgo.core.catalog.did_you_mean`).

    Raises:
        UserError: there is no such module or name, or the module can't be imported.
    """
    parts = path.split(".")
    _look_here(parts[0])
    missing = ""
    for count in range(len(parts) - 1, 0, -1):
        module, names = ".".join(parts[:count]), parts[count:]
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            lacks = error.name or module
            if module != lacks and not module.startswith(f"{lacks}."):
                raise UserError(f"{what}: {module} needs the package {lacks!r}, which is not installed") from error
            missing = lacks
            continue
        except Exception as error:
            raise UserError(f"{what}: importing {module} fails: {type(error).__name__}: {first_line(error)}") from error
        for name in names:
            if not hasattr(found, name):
                raise UserError(f"{what}: {module} has no {'.'.join(names)!r}{near(name, dir(found))}")
            found = getattr(found, name)
        return f"{module}:{'.'.join(names)}", found
    raise UserError(
        f"{what}: there is no module {missing or parts[0]!r}, neither installed nor in {Path.cwd()}\n"
        "  the form is package.module.Name"
    )


def _look_here(package: str) -> None:
    """Let modules of the folder in which the command was run be found, after all installed ones."""
    here = Path.cwd()
    beside = (here / f"{package}.py").is_file() or (here / package).is_dir()
    if beside and str(here) not in sys.path and package not in sys.modules and not importlib.util.find_spec(package):
        sys.path.append(str(here))
        importlib.invalidate_caches()


def note(name: str, kind: str, target: str, thing: Any) -> None:
    """Note that code was imported under a name, everywhere where it is to be noted.

    Raises:
        UserError: its file is another one than is expected.
    """
    if _NOTED.get():
        code = _code(kind, target, getattr(inspect.unwrap(thing), "__module__", None) or target.partition(":")[0])
        for notes in _NOTED.get():
            notes.note(name, code)


@functools.cache
def _code(kind: str, target: str, module: str) -> Code:
    """Read once in a process, as the module itself is."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not Path(file).is_file():
        raise UserError(f"{kind} {target}: the module {module} has no file, so a record could not say what it was")
    try:
        root = module.partition(".")[0]
        package = f"{root} {importlib.metadata.version(root)}"
    except importlib.metadata.PackageNotFoundError:
        package = ""
    return Code(kind, target, file_digest(Path(file)), package)
