"""What can befall a record: cut off, flipped, of another type, deleted, doubled, nested, hostile, or no file at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.records.folder import FILES

ATTACK = "\x1b[2J\x1b]0;t\x07\r\u202e<script>alert(1)</script>[x](javascript:a)|`=1+1 [red]{{7*7}}\n# h"
TOKENS = [
    *[
        "null",
        "true",
        "0",
        "-1",
        "2.5",
        "1e308",
        "-1e308",
        "5e-324",
        "1e999",
        "NaN",
        "-Infinity",
        "[]",
        "{}",
        "[[]]",
        "[1,2,3]",
    ],
    *('""', '"x"', '":"', '"a:="', '"a:b,b"', '"\\ud800"', '"\\u0000"', '"../../x"', '"=cmd()"', '{"a": 1}'),
    *("9" * 300, "9" * 400, "9" * 5000, json.dumps("y" * 100_000)),
    *("[" * 90 + "]" * 90, "[" * 5000 + "]" * 5000, '{"a":' * 300 + "1" + "}" * 300),
    *map(json.dumps, (ATTACK, [ATTACK], {ATTACK: ATTACK})),
]
"""JSON that stands in a value's place; the last of them not all JSON."""
_HERE = "\N{OBJECT REPLACEMENT CHARACTER}"
BYTES = ("truncate", "flip", "cut out", "double", "not UTF-8", "empty", "blank")
VALUES = ("retype", "delete", "key twice", "nest", "hostile key")
PLACES = ("directory", "pipe", "link to itself", "link to nothing")


@dataclass(frozen=True)
class Damage:
    """One thing done to one file, at a place between its beginning (0) and its end (1)."""

    file: str
    kind: str
    where: float
    token: str

    def do(self, root: Path) -> None:
        path = root / self.file
        if self.kind in PLACES:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            if self.kind == "directory":
                path.mkdir()
            elif self.kind == "pipe":
                os.mkfifo(path)
            else:
                path.symlink_to(path.name if self.kind == "link to itself" else "nothing")
        elif path.is_file():
            old = path.read_bytes()
            path.write_bytes(self._bytes(old) if self.kind in BYTES else self._values(old))

    def _bytes(self, old: bytes) -> bytes:
        at = int(self.where * len(old))
        return {
            "truncate": old[:at],
            "flip": old[:at] + bytes(b ^ 0x15 for b in old[at : at + 3]) + old[at + 3 :],
            "cut out": old[:at] + old[at + 40 :],
            "double": old[: at + 60] + old[at:],
            "not UTF-8": old[:at] + b"\xff\xfe" + old[at:],
            "empty": b"",
            "blank": b"\0" * len(old),
        }[self.kind]

    def _values(self, old: bytes) -> bytes:
        try:
            lines = old.decode().split("\n") if self.file.endswith(".jsonl") else [old.decode()]
            number = int(self.where * 997) % len(lines)
            document = json.loads(lines[number])
        except (ValueError, RecursionError):
            return old  # damaged already
        places = list(_places(document))
        if not places:
            return old
        inside, key = places[int(self.where * len(places)) % len(places)]
        token = self.token
        if self.kind == "delete":
            del inside[key]
        elif self.kind == "nest":
            inside[key] = [inside[key]]
        elif self.kind == "hostile key" and isinstance(inside, dict):
            inside[ATTACK] = inside.pop(key)
        elif self.kind == "key twice" and isinstance(inside, dict):
            inside[key], token = _HERE, f"{json.dumps(inside[key])}, {json.dumps(key)}: {token}"
        else:
            inside[key] = _HERE
        lines[number] = json.dumps(document, ensure_ascii=False).replace(json.dumps(_HERE, ensure_ascii=False), token)
        return "\n".join(lines).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


damages = st.builds(
    Damage,
    st.sampled_from(
        [*(f"bad/{name}" for name in ("result.json", "result.json", "result.json", *FILES)), "sweep/sweep.json"]
    ),
    st.sampled_from([*BYTES, *VALUES, "retype", "retype", "retype", *PLACES]),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(TOKENS),
)
