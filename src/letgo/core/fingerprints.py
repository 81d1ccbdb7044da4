"""One short hash for what must be told apart: scored rows, cells of a grid, what an analysis depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def digest_of(*parts: Any) -> str:
    """Sixteen hexadecimal digits of values that JSON can hold; what it can't (a path, a date) counts as its text. The
    order of a mapping's keys does not count."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
