"""`python -m tests.inputs COUNT`: COUNT inputs of each kind; prints how many were accepted, refused, and wrong, and
exits 1 if any was wrong."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import contextlib
import io
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from tests.inputs.generators import Input, everything
from tests.inputs.invariant import Wrong, meet


def main(count: int) -> int:
    """Try `count` inputs of each kind; returns the number of wrong ones."""
    warnings.simplefilter("ignore")
    wrong: list[tuple[Input, Wrong]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, strategy in everything.items():
            tally = tried(strategy, count, Path(folder), wrong)
            shown = ", ".join(f"{tally[name]:,} {name}" for name in ("accepted", "refused", "wrong"))
            print(f"{kind:<10} {tally.total():,} tried: {shown}", flush=True)
    for given_, error in wrong[:20]:
        print(f"WRONG {error}\n  {given_!r}"[:1500])
    return len(wrong)


def tried(strategy: Any, count: int, folder: Path, wrong: list[tuple[Input, Wrong]]) -> Counter[str]:
    """How many inputs of a kind were accepted, refused, and wrong; those go to `wrong`."""
    tally: Counter[str] = Counter()

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(strategy)
    def check(given: Input) -> None:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                tally["accepted" if meet(given, folder) else "refused"] += 1
        except Wrong as error:
            tally["wrong"] += 1
            wrong.append((given, error))

    check()
    return tally


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000) else 0)
