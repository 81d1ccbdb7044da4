"""How long a report takes to write, and to open in a browser, against a page of a single run.

    python perf/report_open.py [--quick] [--json FILE] [--runs N]

Synthetic runs of the real schema, 500 of them (`--quick`: 50), each with two attacks, a training history and samples.
Opening is timed by the browser itself, from the start of navigation to the end of the load event, the median of
several; layout and paint of what is first seen are in it. Of many runs the rows far below the window follow: when they
are all there is timed too.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

GOAL_SECONDS = 1.0
COUNTS = {"quick": 50, "full": 500}


def make_runs(folder: Path, count: int) -> None:
    from tests.report import runs as made

    optimizers = ["adamw", "fozo", "sophia", "ada_zo"]
    for index in range(count):
        name, seed = f"run-{index:03d}", index // len(optimizers)
        config = made.result().config | {"optimizer": optimizers[index % len(optimizers)], "seed": seed}
        made.write_run(folder / name, made.result(run_id=name, config=config, seed=seed))


def opened(path: Path, runs: int) -> tuple[float, float, float]:
    """Median seconds from navigation to the end of the load event and the frame after it; the processor time of the
    page's main thread by then, which other processes do not stretch; and seconds until all rows are laid out."""
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        taken = []
        for _ in range(runs + 1):
            page = browser.new_page()
            devtools = page.context.new_cdp_session(page)
            devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
            start = time.perf_counter()
            page.goto(path.as_uri(), wait_until="load")
            page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
            first = time.perf_counter() - start
            metrics = devtools.send("Performance.getMetrics")["metrics"]
            busy = next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")
            page.wait_for_function("() => !document.querySelector('.short')")
            page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
            taken.append((first, busy, time.perf_counter() - start))
            page.close()
        browser.close()
    first, busy, whole = (statistics.median(times) for times in zip(*taken[1:], strict=True))
    return first, busy, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    from letgo.report import write_report

    count = COUNTS["quick" if options.quick else "full"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_runs(folder / "many", count)
        make_runs(folder / "one", 1)
        start = time.perf_counter()
        many = write_report([folder / "many"], folder / "many.html")
        written = time.perf_counter() - start
        one = write_report([folder / "one"], folder / "one.html")
        size = many.stat().st_size
        (seconds, busy, whole), (single, alone, _) = opened(many, options.runs), opened(one, options.runs)
    machine = f"{platform.machine()}, {platform.system()}"
    rows: list[dict[str, Any]] = [
        {"name": f"open {count} runs, seconds / {GOAL_SECONDS:g}", "ratio": seconds / GOAL_SECONDS, "goal": 1.0},
        {"name": f"open {count} runs / open one run", "ratio": seconds / single, "goal": None},
    ]
    for row in rows:
        row |= {"better": "lower", "runs": options.runs, "machine": machine}
        goal = "" if row["goal"] is None else f"  goal {row['goal']:.2f}"
        print(f"{row['name']:<44} {row['ratio']:7.3f}{goal}")
    print(f"opened in {seconds:.2f} s, all rows {whole:.2f} s (one run: {single:.2f} s)")
    print(f"processor time of the page's main thread: {busy:.2f} s (one run: {alone:.2f} s)")
    print(f"written in {written:.1f} s; {size / 1e6:.1f} MB")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
