"""Files: the cache, a YAML file of settings, files that are there whole or not at all, JSON lines."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from letgo.core.errors import UserError


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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # Not `tempfile`'s: its files are for their owner alone, while here the umask decides.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = os.fstat(handle).st_mode
    os.close(handle)
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own, for its owner alone, in this one's place
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A CSV table of rows by their columns' names, each column where it was first met."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; a broken one is a `UserError` with its line."""
    return parse_json(path.read_text(encoding="utf-8"), path)


def parse_json(text: str, path: Path) -> Any:
    """What the text of a JSON file says, as `read_json`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a broken line is a `UserError` with its number."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: not a JSON object")
            rows.append(row)
    return rows
