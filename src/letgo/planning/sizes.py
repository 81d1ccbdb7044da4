"""Sizes as people write them."""

from __future__ import annotations

import re

from letgo.core.errors import UserError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def read_size(text: str, where: str) -> int:
    """Bytes: 80GB, 80 GiB, 512MB, 80000000000.

    Raises:
        UserError: anything else, naming `where`.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]I?)?B?\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise UserError(f"{where} is {text!r}, which is no size; write it as 80GB or 80GiB")
    return int(float(found[1]) * _UNITS[(found[2] or "").upper()])
