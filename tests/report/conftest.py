from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import letgo
from letgo.report.attestation import attest
from letgo.runs.results import Result
from tests import tiny
from tests.report.runs import result, write_run


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run directory: run(name, result, samples)."""

    def make(name: str = "run", value: Result | None = None, rows: list[dict[str, Any]] | None = None) -> Path:
        return write_run(tmp_path / name, value or result(), rows)

    return make


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Two pairs of keys on P-256: name -> (private, public)."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, pairs = tmp_path_factory.mktemp("keys"), {}
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        how = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        private.write_bytes(key.private_bytes(*how))
        public.write_bytes(key.public_key().public_bytes(how[0], serialization.PublicFormat.SubjectPublicKeyInfo))
        pairs[name] = (private, public)
    return pairs


@pytest.fixture(scope="session")
def attested(tmp_path_factory, model_directory, keys):
    """A run on own files, exported and attacked, with a signed statement."""
    folder = tmp_path_factory.mktemp("attested")
    settings = tiny.own_files(folder, model_directory, max_steps=2, learning_rate=1e-3, per_device_train_batch_size=2)
    run = letgo.unlearn(**settings, attacks=["quantize:bits=4"], export={"format": "int4"})
    attest(run.directory, sign_with=keys["ours"][0])
    return run.directory
