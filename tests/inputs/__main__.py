"""`python -m tests.inputs COUNT [SEED]`: COUNT inputs of each kind, others with each seed.

Prints how many were accepted, refused, and wrong, and exits 1 if any was wrong.
"""

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

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.inputs.generators import Input, everything
from tests.inputs.invariant import Wrong, meet


def main(count: int = 1000, number: int = 0) -> int:
    """Try `count` inputs of each kind, drawn by a seed; returns the number of wrong ones."""
    warnings.simplefilter("ignore")
    wrong: list[tuple[Input, Wrong]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, strategy in everything.items():
            tally = tried(strategy, count, number, Path(folder), wrong)
            shown = ", ".join(f"{tally[name]:,} {name}" for name in ("accepted", "refused", "wrong"))
            print(f"{kind:<10} {tally.total():,} tried: {shown}", flush=True)
    for given_, error in wrong[:20]:
        print(f"WRONG {error}\n  {given_!r}"[:1500])
    return len(wrong)


def tried(strategy: Any, count: int, number: int, folder: Path, wrong: list[tuple[Input, Wrong]]) -> Counter[str]:
    """How many inputs of a kind were accepted, refused, and wrong; those go to `wrong`."""
    tally: Counter[str] = Counter()

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @seed(number)
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
    sys.exit(1 if main(*map(int, sys.argv[1:3])) else 0)
