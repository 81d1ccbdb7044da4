from __future__ import annotations

import ast
import base64
import hashlib
from pathlib import Path

import letgo
from letgo.core.fingerprints import Fingerprint, digest_of, file_digest, seed_of, source_hash, text_fingerprint

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
