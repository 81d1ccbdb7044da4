"""The command as a user has it, and what a report's table of all metrics shows."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from letgo.cli import main
from letgo.report.numbers import interval, number
from tests import tiny


@pytest.fixture(scope="module")
def directory(model, tokenizer, tmp_path_factory) -> Path:
    """The directory of a module's own model, which must be of the module's scope too."""
    return tiny.save(tmp_path_factory.mktemp("model"), model, tokenizer)


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., str]:
    """Run `letgo` with these words in this process; what it printed. Anything but success fails the test."""

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["letgo", *map(str, words)])
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        assert not code, captured.err
        return captured.out

    return run


@pytest.fixture
def check_page() -> Callable[..., None]:
    """Check that a report's page has these results' metrics, each of a result in one row under its name: value,
    interval and n."""

    def check(page: Path, *stages: dict) -> None:
        text = page.read_text(encoding="utf-8")
        rows: dict[str, str] = {}
        row = r'<tr><th scope="row">([a-z0-9 ]+)(?:<small>[^<]*</small>)?</th>(<td>.*?)</tr>'
        for name, cells in re.findall(row, text, flags=re.DOTALL):
            rows[name] = rows.get(name, "") + re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", cells))
        for metrics in stages:
            assert metrics
            for key, metric in metrics.items():
                told = f"{number(metric.value)} {interval(metric)} n {metric.n:,}"
                assert told in rows[key.replace("_", " ")], key

    return check
