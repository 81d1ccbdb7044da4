"""Sizes in bytes and times, as people read and write them: one way for plans, sweeps and reports."""

from __future__ import annotations

import re
from typing import Any

from letgo.core.errors import UserError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def read_size(given: Any, where: str) -> int:
    """A whole number of bytes from 80GB, 80G, "80 GiB", 512mb or 80000000000.

    Args:
        given: text, or a number of bytes.
        where: the flag or key that the message names.

    Raises:
        UserError: anything else, and a size below one byte.
    """
    match = re.fullmatch(r"\s*([0-9]{0,18}\.?[0-9]{1,18})\s*([KMGT]I?)?B?\s*", str(given), re.IGNORECASE)
    count = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if not count:
        raise UserError(f"{where} must be a size such as 40GB or 512MiB, not {given!r}")
    return count


def size(count: float) -> str:
    """Bytes in the unit that reads best: powers of 1000, as devices are sold and `read_size` reads "80GB"."""
    value = float(count)
    for unit in ("B", "KB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.2f} GB" if value < 999.995 else f"{value / 1000:,.2f} TB"


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def read_duration(given: Any, where: str) -> float:
    """Seconds from 90s, 30m, 1.5h, 1h30m or a bare number of seconds.

    Args:
        given: text, or a number of seconds.
        where: the flag or key that the message names.

    Raises:
        UserError: anything else, and no time at all.
    """
    text = re.sub(r"\s", "", str(given)).lower()
    text += "s" if text[-1:].isdigit() else ""
    parts = re.findall(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", text)
    total = sum(float(count) * _SECONDS[unit] for count, unit in parts)
    if "".join(count + unit for count, unit in parts) != text or not total:
        raise UserError(f"{where} must be a time such as 90s, 30m or 1h30m, not {given!r}")
    return total
