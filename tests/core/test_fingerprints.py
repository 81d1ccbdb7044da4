from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import hmac
import os
from pathlib import Path

import letgo
from letgo.core.fingerprints import (
    Fingerprint,
    digest_of,
    file_digest,
    file_digests,
    keyed_digest,
    seed_of,
    source_hash,
    text_fingerprint,
)
from letgo.core.progress import Quiet

TEXT = "naïve 日本"


def test_each_hash_is_the_one_that_its_docstring_names(tmp_path):
    data = TEXT.encode()
    assert text_fingerprint(TEXT) == hashlib.blake2b(data, digest_size=16).hexdigest()
    parts = Fingerprint()
    parts.add(TEXT[:3])
    parts.add(memoryview(TEXT[3:].encode()))
    assert parts.hexdigest() == text_fingerprint(TEXT)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert file_digest(path) == hashlib.sha256(data).hexdigest()
    assert source_hash(TEXT) == "sha256-" + base64.b64encode(hashlib.sha256(data).digest()).decode()
    for size, order in ((4, "little"), (7, "big")):
        expected = int.from_bytes(hashlib.blake2b(data, digest_size=size).digest(), order)
        assert seed_of(TEXT, size=size, order=order) == expected


def test_digests_that_are_stored_stay_what_they_are():
    """Caches and records hold them: another value would have everything scored again."""
    assert digest_of({"b": 1, "a": [TEXT, None]}, 0.5) == "86eb9cefb4f7ff76"
    assert digest_of({"a": [TEXT, None], "b": 1}, 0.5) == digest_of({"b": 1, "a": [TEXT, None]}, 0.5)
    assert text_fingerprint("") == "cae66941d9efbd404e4d88758ea67670"


def test_a_keyed_digest_is_an_hmac_of_the_values_lines():
    expected = hmac.new(b"key", '{"a":1,"b":"naïve 日本"}\n[2]\n'.encode(), "sha256").hexdigest()
    assert keyed_digest(b"key", [{"b": TEXT, "a": 1}, [2]]) == expected
    assert keyed_digest(b"kez", [{"b": TEXT, "a": 1}, [2]]) != expected
    assert keyed_digest(b"key", [[2], {"b": TEXT, "a": 1}]) != expected


class Counted(Quiet):
    """A reporter that counts what it is told."""

    def __init__(self):
        self.total = self.done = 0

    @contextlib.contextmanager
    def task(self, name, total):
        self.total = total
        yield self

    def advance(self, by=1):
        self.done += by


def test_files_are_hashed_with_progress_in_megabytes(tmp_path):
    sizes = {"a": 600_000, "b": 2_700_000, "c": 0}
    paths = {name: tmp_path / name for name in sizes}
    for name, path in paths.items():
        path.write_bytes(os.urandom(sizes[name]))
    for remember in (False, True):
        counted = Counted()
        digests = file_digests(paths, reporter=counted, remember=remember)
        assert digests == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
        assert counted.done == counted.total == 3


def test_what_is_remembered_of_a_file_is_forgotten_when_it_changes(tmp_path):
    path, read = tmp_path / "file", lambda: file_digests({"": tmp_path / "file"}, reporter=Quiet(), remember=True)[""]
    path.write_bytes(b"first")
    os.utime(path, (1e9, 1e9))
    assert read() == read() == file_digest(path)
    path.write_bytes(b"other")  # as long as before
    os.utime(path, (1e9 + 1, 1e9 + 1))
    assert read() == file_digest(path)
    # Of a file changed just now, the clock may not tell the next change.
    path.write_bytes(b"third")
    now = path.stat()
    assert read() == file_digest(path)
    path.write_bytes(b"forth")
    os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns))
    assert read() == file_digest(path)


def test_there_is_no_other_hash():
    root = Path(letgo.__file__).parent
    users = [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*.py"))
        if any(_imports_hashlib(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    ]
    assert users == ["core/fingerprints.py"]


def _imports_hashlib(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "hashlib"
    return isinstance(node, ast.Import) and any(alias.name == "hashlib" for alias in node.names)
