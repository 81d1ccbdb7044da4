"""Run the tests as other processors would, with one and with two threads, and say which tests differ.

    python scripts/portable.py            the whole suite in every variant (`make portable`)
    python scripts/portable.py --part     the tests that compute most, in two variants

A variant limits what torch's own kernels, oneDNN and MKL may use of the processor. One that allows all that the
processor has is the same as no limit, and is run once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What torch's own kernels, oneDNN's and MKL's may use at most.
PROCESSORS = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "plain": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
# `make test` has run the processor's own kernels with one thread; these two add the most to that.
PART = [("avx2", 2), ("plain", 1)]
# Each limit and each number of threads, and the processor's own kernels with both.
WHOLE = [("native", 1), ("native", 2), *PART]
PART_TESTS = [
    "tests/optim/test_compressed.py",
    "tests/optim/test_second_order.py",
    "tests/optim/test_table.py",
    "tests/objectives/test_objectives.py",
    "tests/scoring/test_scoring.py",
    "tests/training/test_trainer.py",
    "tests/distributed/test_together.py",
    "tests/attacks/test_membership.py",
    "tests/attacks/test_quantize.py",
    "tests/attacks/test_relearn.py",
    "tests/attacks/test_weights.py",
]


def distinct(variants: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The variants that differ on this processor: AVX2 as a limit is none where there is nothing beyond it."""
    import torch

    unlimited = "avx2" if torch.backends.cpu.get_cpu_capability() == "AVX2" else None
    return list(dict.fromkeys(("native" if name == unlimited else name, threads) for name, threads in variants))


def run(processor: str, threads: int, folders: list[str]) -> dict[str, str]:
    """Every test's outcome in one variant: passed, failure, error or skipped. What pytest prints is kept back, unless a
    test fails."""
    environment = {**os.environ, **PROCESSORS[processor], "LETGO_TEST_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", f"--junit-xml={report}"]
        done = subprocess.run([*command, *folders], cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode or not report.exists():
            print(done.stdout, done.stderr, sep="\n", flush=True)
        if not report.exists():
            sys.exit(f"portable: pytest ended without a report under {processor} with {threads} threads")
        outcomes = {}
        for case in ElementTree.parse(report).iter("testcase"):
            marks = {child.tag for child in case}
            outcome = next((name for name in ("error", "failure", "skipped") if name in marks), "passed")
            outcomes[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="store_true", help="the tests that compute most, in two variants")
    parser.add_argument("folders", nargs="*", help="tests to run instead")
    options = parser.parse_args()
    variants = distinct(PART if options.part else WHOLE)
    folders = options.folders or (PART_TESTS if options.part else ["tests"])
    outcomes: dict[str, dict[str, str]] = {}
    for processor, threads in variants:
        name = f"{processor}, {threads} thread{'s' if threads > 1 else ''}"
        print(f"portable: {name}", flush=True)
        start = time.monotonic()
        outcomes[name] = run(processor, threads, folders)
        counts = {kind: list(outcomes[name].values()).count(kind) for kind in ("passed", "failure", "error", "skipped")}
        shown = ", ".join(f"{kind} {count}" for kind, count in counts.items() if count)
        print(f"portable: {name}: {shown} ({time.monotonic() - start:.0f} s)", flush=True)
    tests = sorted(set().union(*outcomes.values()))
    differ = [test for test in tests if len({run.get(test, "not run") for run in outcomes.values()}) > 1]
    for test in differ:
        print(f"differs: {test}: " + "; ".join(f"{name}: {run.get(test, 'not run')}" for name, run in outcomes.items()))
    failed = [test for test in tests if any(run.get(test) in ("failure", "error") for run in outcomes.values())]
    for test in failed:
        print(f"fails: {test}")
    print(f"portable: {len(tests)} tests in {len(outcomes)} variants: {len(differ)} differ, {len(failed)} fail")
    return 1 if failed or not tests else 0


if __name__ == "__main__":
    sys.exit(main())
