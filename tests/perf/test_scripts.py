"""Every script of `perf/` runs to its end and writes figures. How large they are is not asked: a test that is timed
fails on a busy machine."""

from __future__ import annotations

import json
import math

import pytest

from tests import warm

SCRIPTS = sorted((warm.ROOT / "perf").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_quick_run_ends_with_figures(script, tmp_path):
    if script.stem == "report_open":
        pytest.importorskip("playwright")
    done = warm.run([str(script), "--quick", "--json", str(tmp_path / "rows.json")])
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert len({row["name"] for row in rows}) == len(rows) > 1
    for row in rows:
        figures = [value for value in row.values() if isinstance(value, float)]
        assert figures, row
        assert all(map(math.isfinite, figures)), row
        assert row["name"] in done.stdout or "ratio" not in row


def test_there_are_scripts():
    assert {"evaluation", "optimizer_step", "report_open"} <= {script.stem for script in SCRIPTS}
