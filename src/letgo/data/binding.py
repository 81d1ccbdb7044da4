"""Keyed digests of data: they bind a record to the rows that it speaks of, and tell nobody else what these are.

A plain hash of a row about a person can be found by trying names. An HMAC can't be tried out without its key, which
stays with the data's owner: `$LETGO_DATA_KEY`, or `data.key` in letgo's folder of settings.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from letgo.core.errors import UserError
from letgo.core.files import read_text, write_text
from letgo.core.fingerprints import keyed_digest
from letgo.core.locks import locked
from letgo.data.rows import Row

_SCORED = ("paraphrases", "wrong_answers")
"""Fields of a row, beside its own, that decide what is asked."""


def key_path() -> Path:
    """Where the owner's key is, or will be made."""
    if chosen := os.environ.get("LETGO_DATA_KEY"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "letgo" / "data.key"


def data_key(say: Callable[[str], None], *, make: bool = True) -> bytes | None:
    """The owner's key (32 bytes), made where there is none yet, for its owner alone to read.

    Args:
        say: told where the key is made, or why it can't be.
        make: else None where there is none.

    Returns:
        None where there is none and none can be made: the work goes on without digests of its data.

    Raises:
        UserError: the file is no such key.
    """
    path = key_path()
    if not os.path.lexists(path):
        if not make:
            return None
        try:
            with locked(path.with_name(f".{path.name}.lock"), wait=True):
                if not path.is_file():
                    write_text(path, f"{secrets.token_hex(32)}\n", private=True)
                    say(
                        f"  made a key for digests of data: {path}\n  keep it, and keep it to yourself: who has it can "
                        "try out what a record's data was, and without it nobody can check that"
                    )
        except OSError as error:
            say(f"  the data is not bound to the record: no key can be made at {path} ({error.strerror or error})")
            return None
    text = read_text(path, "key of the data's digests").strip()
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise UserError(
            f"key of the data's digests: {path} does not hold 64 hexadecimal digits: put back a copy, or name another "
            "file in LETGO_DATA_KEY"
        )
    return bytes.fromhex(text)


def key_id(key: bytes) -> str:
    """A name of the key that does not give it away: the HMAC of a fixed text."""
    return keyed_digest(key, ["letgo data key"])[:16]


def row_value(row: Row) -> list[Any]:
    """A row as it is bound: all that is trained on or asked, and not where it stood."""
    extra = {name: row.fields[name] for name in _SCORED if row.fields.get(name) is not None}
    return [row.context, row.target, row.ends, row.fields.get("group"), extra]
