"""Every hash that letgo takes: of values, texts, files, weights; and the numbers that seed random generators."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from letgo.core.progress import Reporter

_CHUNK, _MEGABYTE = 1 << 24, 1_000_000


def digest_of(*parts: Any) -> str:
    """Sixteen hexadecimal digits of values that JSON can hold; what it can't (a path, a date) counts as its text. The
    order of a mapping's keys does not count."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def file_digest(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. `advance` is called with the number of bytes read since."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()


def file_digests(paths: Mapping[str, Path], *, reporter: Reporter, remember: bool = False) -> dict[str, str]:
    """The SHA-256 of each file's bytes, with progress in megabytes: large files take a while.

    Args:
        paths: the files, by the names that they have in the answer.
        remember: take what this process has hashed before (`remembered_digest`). Not for a check: whoever changes a
            file can set its time.
    """
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    digests, done = dict[str, str](), 0
    with reporter.task("hashing (MB)", sum(sizes.values()) // _MEGABYTE) as task:

        def advance(count: int) -> None:
            nonlocal done
            task.advance((done + count) // _MEGABYTE - done // _MEGABYTE)
            done += count

        for name, path in paths.items():
            if remember:
                digests[name] = remembered_digest(path)
                advance(sizes[name])
            else:
                digests[name] = file_digest(path, advance)
    return digests


def remembered_digest(path: Path) -> str:
    """The SHA-256 of a file, read once in a process while its size and its time of change stay the same."""
    status = path.stat()
    if time.time_ns() - status.st_mtime_ns < _SETTLED:
        return file_digest(path)
    return _digest_of_state(path.resolve(), status.st_size, status.st_mtime_ns)


_SETTLED = 2_000_000_000
"""Nanoseconds. A file changed again within a tick of the file system's clock has the same time as before: the digest of
one that was changed a moment ago is not remembered."""


@functools.lru_cache(maxsize=1024)
def _digest_of_state(path: Path, size: int, changed: int) -> str:
    return file_digest(path)


def keyed_digest(key: bytes, values: Iterable[Any]) -> str:
    """The HMAC-SHA-256 of JSON values, one after another, in hexadecimal: who has not the key can't try out what was
    hashed. The order of a mapping's keys does not count; that of the values does."""
    digest = hmac.new(key, digestmod="sha256")
    for value in values:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=str)
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


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
