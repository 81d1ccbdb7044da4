"""Signatures of statements by OpenSSF's model-signing, with a key of one's own: no network, no account.

`attestation.sig` is a Sigstore bundle over the digest of `attestation.json`, which names every other file by its
digest. `model_signing verify key` checks it without letgo.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from letgo.core.errors import UserError, first_line
from letgo.core.extras import need
from letgo.core.files import require_file, written_whole

PASSWORD = "LETGO_KEY_PASSWORD"
"""The environment's variable for the password of an encrypted key."""
_MAKE = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub"


def _library(part: str) -> Any:
    # It needs pyOpenSSL too, and does not say so: both come with the extra.
    need("OpenSSL", "sign", what="signing and checking signatures")
    return need(f"model_signing.{part}", "sign", what="signing and checking signatures")


def _signer(key: Path) -> Any:
    require_file(key, "private key")
    password = os.environ.get(PASSWORD)
    signing = _library("signing")
    try:
        # The library's annotation says text; what reads the key takes bytes alone.
        return signing.Config().use_elliptic_key_signer(
            private_key=key, password=password.encode() if password else None
        )
    except TypeError as error:
        raise UserError(
            f"private key {key}: {first_line(error)}; an encrypted key's password goes in {PASSWORD}"
        ) from error
    except Exception as error:  # cryptography raises many kinds for what is no such key
        raise UserError(
            f"private key {key} can't be used ({first_line(error)}): it must be a PEM file of a key on the curve "
            f"P-256, P-384 or P-521\n  make one: {_MAKE}"
        ) from error


def check_private_key(key: Path) -> None:
    """Raise a `UserError` unless a key can sign."""
    _signer(key)


def sign(statement: Path, signature: Path, key: Path) -> None:
    """Write the signature of a statement's file."""
    signer = _signer(key)
    with written_whole(signature) as temporary:
        signer.sign(statement, temporary)


def signature_problem(statement: Path, signature: Path, key: Path) -> tuple[str, str] | None:
    """Which part a signature does not hold for, and why; None where it holds.

    Raises:
        UserError: the public key can't be used.
    """
    require_file(key, "public key")
    verifying = _library("verifying")
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:
        raise UserError(
            f"public key {key} can't be used ({first_line(error)}): it must be a PEM file of a public key on the curve "
            "P-256, P-384 or P-521"
        ) from error
    try:
        verifier.verify(statement, signature)
    except Exception as error:  # of a bundle that is damaged in any way, any kind
        text = first_line(error)
        if text.startswith("Signature mismatch"):
            return "statement", "is not the one that was signed"
        if text.startswith("Key mismatch"):
            return "signature", f"was not made with the key of {key}"
        return "signature", f"does not hold ({type(error).__name__}: {text})"
    return None
