"""Files: the cache, a YAML file of settings, files that are there whole or not at all, JSON lines."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from letgo.core.errors import UserError
from letgo.core.locks import take
from letgo.core.terminal import visible
from letgo.core.values import DEEPEST, flaw, shown

_UNFINISHED = ".letgo-part"
"""What the name of a temporary file ends with."""
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def cache_directory() -> Path:
    """Where letgo keeps what it can make again: ``$LETGO_CACHE``, ``$XDG_CACHE_HOME/letgo`` or ``~/.cache/letgo``."""
    if chosen := os.environ.get("LETGO_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "letgo"


def require_file(path: Path, name: str = "") -> None:
    """Raise a `UserError` unless the path is a file that can be read to its end: a pipe or a device is read for
    ever."""
    what = f"{name}: " if name else ""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{what}no such file: {path}") from error
    except (OSError, ValueError) as error:  # no permission, too long a name, a NUL in it
        raise UserError(f"{what}{shown(str(path))} can't be read: {_reason(error)}") from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{what}{path} is {kind}; name a file")


def read_text(path: Path, name: str = "") -> str:
    """The text of a file; a `UserError` for one that is not there, is no regular file, can't be read or is not
    UTF-8. A byte order mark is left out. `name` is what messages call the file."""
    what = f"{name}: " if name else ""
    require_file(path, name)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what}{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{what}{path} can't be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


_LARGEST_SETTINGS = 1_000_000
"""Bytes of a file of settings: by far more than anyone writes by hand, and quickly read."""


class _SettingsLoader(yaml.SafeLoader):
    """YAML that means what it shows. A key given twice is an error, and not the last one. As in YAML 1.2, 1e-4 is a
    number, and `no`, 1:30 and dates are text. Depth and what aliases repeat are bounded."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("bool", "int", "float", "null", "str", "seq", "map")
    }
    aliases = 0

    def refuse(self, problem: str, mark: Any) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= DEEPEST:
            self.refuse("nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > 1000:
                self.refuse("over 1,000 aliases", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        given = set()
        for key, _ in node.value:
            # Keys are text in the end: 1 and "1" are the same, and so are true and True.
            text = str(key.value) if key.tag.endswith(":str") else str(key.value).lower()
            if text in given:
                self.refuse(f"the key {key.value!r} is given twice", key.start_mark)
            given.add(text)
        return node

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        if len(node.value) > 1000:
            self.refuse("over 1,000 keys in one mapping", node.start_mark)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, OverflowError):  # what Python's own constructors raise
            self.refuse(f"{shown(node.value)} is not of the kind {node.tag.rpartition(':')[2]!r}", node.start_mark)


class _SettingsDumper(yaml.SafeDumper):
    """Quotes what `_SettingsLoader` would not read as text."""


for _kind, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", "<"),
):
    for _either in (_SettingsLoader, _SettingsDumper):
        _either.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), list(_first))


def load_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, keys not yet checked. A `UserError` names the file, and the line or key, of what is
    not YAML, of a key given twice and of a value that nothing can use."""
    require_file(path, "config file")
    if path.stat().st_size > _LARGEST_SETTINGS:
        raise UserError(f"{path}: a file of settings has at most {_LARGEST_SETTINGS:,} bytes; this is another file")
    loaded = parse_settings(read_text(path, "config file"), str(path))
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, not {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}


def parse_settings(text: str, where: str) -> Any:
    """What a YAML text says, in plain values that are sound (`letgo.core.values.flaw`)."""
    try:
        loaded = yaml.load(text, _SettingsLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
        number = mark.line if mark else None if position is None else text.count("\n", 0, position)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "nested too deeply"
        raise UserError(f"{where}{'' if number is None else f':{number + 1}'}: not YAML ({problem})") from error
    if problem := flaw(loaded):
        raise UserError(f"{where}: {problem}")
    return loaded


def settings_text(settings: Mapping[str, Any]) -> str:
    """YAML that `parse_settings` reads as the same settings."""
    return yaml.dump(settings, Dumper=_SettingsDumper, sort_keys=False, allow_unicode=True, width=110)


@contextlib.contextmanager
def written_whole(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A temporary file in the same directory to write to; renamed to `path` when the block ends well, else removed.

    Args:
        private: for its owner alone to read and write, whatever the umask: a key, or what names people.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    # Not `tempfile`'s: its files are for their owner alone, while here the umask decides.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666)
    try:
        take(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the sign that its writer is alive
        yield temporary
        # safetensors puts a file of its own, for its owner alone, in this one's place.
        temporary.chmod(os.fstat(handle).st_mode)
        os.replace(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path, older_than: float = 3600.0) -> None:
    """Remove what writers that were killed have left unfinished in a folder: whoever next writes a file there does it.

    Args:
        older_than: seconds. A file that nobody holds may still have been made, or put in its place, this moment; where
            there is no other writer, 0 will do.
    """
    for path in folder.glob(f".*{_UNFINISHED}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than:
                with path.open("r+b") as file:
                    if take(file, fcntl.LOCK_EX | fcntl.LOCK_NB) == "held":
                        path.unlink()


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    with written_whole(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A CSV table of rows by their columns' names, each column where it was first met. Text that a spreadsheet would
    take for a formula begins with an apostrophe."""
    text, names = io.StringIO(), list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, names))
    for row in rows:
        writer.writerow(_cell(row.get(name)) for name in names)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.startswith(_FORMULA) else visible(value)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]], *, private: bool = False) -> None:
    with written_whole(path, private=private) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file that others may be reading; a killed writer may leave half of the last line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file of letgo's own says; one that says nothing, or can't be read, is a `UserError`."""
    try:
        return strict_json(text_of(path))
    except ValueError as error:
        raise damaged(f"{path}{_line(error)}", _problem(error)) from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file of letgo's own; a broken line is a `UserError` with its number."""
    rows = []
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = strict_json(line)
        except ValueError as error:
            raise damaged(f"{path}:{number}", _problem(error)) from error
        if not isinstance(row, dict):
            raise damaged(f"{path}:{number}", "not a JSON object")
        rows.append(row)
    return rows


def text_of(path: Path) -> str:
    """The text of a file of letgo's own; a `UserError` where there is none that can be read."""
    try:
        return read_text(path)
    except UserError as error:
        raise _damaged(str(error)) from error


def damaged(where: Path | str, what: str) -> UserError:
    """The error of a file of letgo's own that is not as letgo writes it."""
    return _damaged(f"{where}: {what}")


def _damaged(message: str) -> UserError:
    return UserError(f"{message}\n  it is damaged, or not letgo's: put back a copy, or remove it and make it again")


def parse_json(text: str, path: Path, line: int | None = None) -> Any:
    """What the text of a JSON file of the user's, or of this line of it, says; a broken one is a `UserError`."""
    try:
        return strict_json(text)
    except ValueError as error:
        place = f":{line}" if line else _line(error)
        near = f": {shown(text.strip())}" if line and isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{place}: {_problem(error)}{near}") from error


def strict_json(text: str) -> Any:
    """What JSON says, where that can be said in one way and written again: no key twice, no NaN, no number beyond a
    double's range, no half of a surrogate pair, no endless nesting. Else a ValueError."""
    try:
        value = _JSON.decode(text)
    except RecursionError:
        raise ValueError("not JSON (nested too deeply)") from None
    if problem := flaw(value, foreign=False):
        raise ValueError(problem)
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"not JSON ({text[:20]} is no finite number)")
    return value


def _whole(digits: str) -> int:
    if len(digits) > 1000:
        raise ValueError("not JSON (a whole number of over 1,000 digits)")
    _finite(digits)
    return int(digits)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"not JSON (the key {twice!r} is given twice in one object)")
    return mapping


_JSON = json.JSONDecoder(object_pairs_hook=_mapping, parse_float=_finite, parse_int=_whole, parse_constant=_finite)


def _problem(error: ValueError) -> str:
    return f"not JSON ({error.msg}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)


def _line(error: ValueError) -> str:
    return f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
