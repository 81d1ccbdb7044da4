"""Every fault at every moment of every job: `python -m tests.faults [JOB…] [--every K [--first N]]`.

A part of `make torture`.

Prints each wrong end as it is found and, last, how many faults of each kind were made in each job; exits 1 if one of
them ended wrongly.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import tiny, warm
from tests.faults.injector import KINDS
from tests.faults.jobs import JOBS, Bench


def torture(name: str, part: int, parts: int, moments: slice) -> tuple[Counter[str], list[str]]:
    """All faults of a job, or one of several equal parts of them: how many of each kind, and what ended wrongly."""
    made: Counter[str] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(JOBS[name], Path(folder))
        for number, at in enumerate(range(1, len(bench.events) + 1)[moments]):
            if number % parts != part:
                continue
            for kind in KINDS:
                made[kind] += 1
                if problem := bench.try_fault(kind, at):
                    wrong.append(f"{name}: {kind} at {at} ({bench.events[at - 1]}): {problem}")
                    print(wrong[-1], flush=True)
    return made, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", help=f"of {', '.join(JOBS)}; all by default")
    parser.add_argument("--every", type=int, default=1, help="at every K-th moment alone")
    parser.add_argument("--first", type=int, default=1, help="the first of these moments")
    options = parser.parse_args()
    workers = os.cpu_count() or 1
    moments = slice(options.first - 1, None, options.every)
    tiny.make_model()  # transformers' lazy imports are not for two threads at once
    total: Counter[str] = Counter()
    wrong: list[str] = []
    with ThreadPoolExecutor(workers) as pool:
        for name in options.jobs or JOBS:
            parts = list(pool.map(lambda part, name=name: torture(name, part, workers, moments), range(workers)))
            made = sum((counts for counts, _ in parts), Counter())
            wrong += [problem for _, problems in parts for problem in problems]
            total += made
            print(f"{name}: {dict(made)}", flush=True)
    print(f"faults: {sum(total.values())} injected ({dict(total)}), {len(wrong)} ended wrongly")
    return 1 if wrong or not total else 0


if __name__ == "__main__":
    code = main()
    warm.stop()
    sys.exit(code)
