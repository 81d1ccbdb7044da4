"""Reports are made from files alone: neither torch nor transformers is loaded for them."""

from __future__ import annotations

import subprocess
import sys

from tests.report import runs as made

READING = """
import sys
from pathlib import Path

from rich.console import Console

from letgo.report import verdict, write_report
from letgo.report.attacks import print_attacks
from letgo.report.brief import write_brief
from letgo.report.card import card
from letgo.report.load import find_runs
from letgo.report.terminal import print_answers, print_result

folder = Path(sys.argv[1])
write_report([folder], folder / "report.html")
write_brief([folder], folder / "brief.md")
for run in find_runs([folder])[0]:
    verdict(run.result), card(run.result)
    print_result(run.result, Console())
    print_answers(run.samples(), Console())
    print_attacks(run.result, [made.label for made in run.result.attacks if made.name == "relearn"], Console())
print("loaded:", *sorted({"torch", "transformers", "datasets"} & sys.modules.keys()))
"""


def test_reading_runs_loads_neither_torch_nor_transformers(tmp_path):
    for optimizer in ("adamw", "fozo"):
        config = made.result().config | {"optimizer": optimizer}
        made.write_run(tmp_path / optimizer, made.result(run_id=optimizer, config=config))
    done = subprocess.run([sys.executable, "-c", READING, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"
    assert (tmp_path / "report.html").stat().st_size > 10_000
