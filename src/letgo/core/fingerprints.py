"""Every hash that letgo takes: of values, texts, files, weights; and the numbers that seed random generators."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Literal


def digest_of(*parts: Any) -> str:
    """Sixteen hexadecimal digits of values that JSON can hold; what it can't (a path, a date) counts as its text. The
    order of a mapping's keys does not count."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Fingerprint:
    """A hash (BLAKE2b, 128 bits) of texts and bytes that are added one after another."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, data: str | bytes | memoryview) -> None:
        self._hash.update(data.encode() if isinstance(data, str) else data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def text_fingerprint(text: str) -> str:
    """The `Fingerprint` of one text."""
    fingerprint = Fingerprint()
    fingerprint.add(text)
    return fingerprint.hexdigest()


def seed_of(text: str, *, size: int, order: Literal["little", "big"]) -> int:
    """A number of `size` bytes that seeds a random generator: the same for equal texts, unrelated for others."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), order)


def source_hash(text: str) -> str:
    """An inline script or style as a page's Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
