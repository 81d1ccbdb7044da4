"""One short hash for what must be told apart: scored rows, cells of a grid, what an analysis depends on."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest_of(*parts: Any) -> str:
    """Sixteen hexadecimal digits of values that JSON can hold; what it can't (a path, a date) counts as its text. The
    order of a mapping's keys does not count."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
