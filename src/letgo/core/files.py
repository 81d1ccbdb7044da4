"""Files: the cache, a YAML file of settings, files that are there whole or not at all, JSON lines."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import math
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from letgo.core.errors import UserError
from letgo.core.locks import take
from letgo.core.terminal import visible

DEEPEST = 100
"""How many lists and mappings of a JSON document may lie inside each other."""
_UNFINISHED = ".letgo-part"
"""What the name of a temporary file ends with."""
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_TOO_DEEP = f"more than {DEEPEST} lists and mappings inside each other"


def cache_directory() -> Path:
    """Where letgo keeps what it can make again: ``$LETGO_CACHE``, ``$XDG_CACHE_HOME/letgo`` or ``~/.cache/letgo``."""
    if chosen := os.environ.get("LETGO_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "letgo"


def load_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, keys not yet checked."""
    if not path.is_file():
        raise UserError(f"no such config file: {path}")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, not {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file in the same directory to write to; renamed to `path` when the block ends well, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    # Not `tempfile`'s: its files are for their owner alone, while here the umask decides.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
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


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
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


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file of letgo's own says; one that says nothing, or can't be read, is a `UserError`."""
    try:
        return strict_json(text_of(path))
    except ValueError as error:
        raise damaged(f"{path}{_line(error)}", _reason(error)) from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file of letgo's own; a broken line is a `UserError` with its number."""
    rows = []
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = strict_json(line)
        except ValueError as error:
            raise damaged(f"{path}:{number}", _reason(error)) from error
        if not isinstance(row, dict):
            raise damaged(f"{path}:{number}", "not a JSON object")
        rows.append(row)
    return rows


def text_of(path: Path) -> str:
    """The text of a file of letgo's own; a `UserError` where there is none that can be read."""
    try:
        # A pipe in its place would be waited for, a device be read without end.
        if not path.is_file():
            raise damaged(path, "not a regular file" if os.path.lexists(path) else "there is no such file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise damaged(path, f"can't be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise damaged(path, f"not UTF-8 (byte {error.start + 1})") from error


def damaged(where: Path | str, what: str) -> UserError:
    """The error of a file of letgo's own that is not as letgo writes it."""
    return UserError(
        f"{where}: {what}\n  it is damaged, or not letgo's: put back a copy, or remove it and make it again"
    )


def parse_json(text: str, path: Path) -> Any:
    """What the text of a JSON file of the user's says; a broken one is a `UserError` with its line."""
    try:
        return strict_json(text)
    except ValueError as error:
        raise UserError(f"{path}{_line(error)}: {_reason(error)}") from error


def strict_json(text: str) -> Any:
    """What JSON says, where that can be said in one way and written again: no key twice, no NaN, no number beyond a
    double's range, no half of a surrogate pair, nothing deeper than `DEEPEST`. Else a ValueError."""
    hooks: Any = {"parse_constant": _finite, "parse_float": _finite, "parse_int": _whole, "object_pairs_hook": _mapping}
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(_TOO_DEEP)
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is no number that can be worked with")
    return value


def _whole(digits: str) -> int:
    _finite(digits)
    return int(digits)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return mapping


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair (\\ud800 to \\udfff), which is no text"
    return f"not JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else str(error)


def _line(error: ValueError) -> str:
    return f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
