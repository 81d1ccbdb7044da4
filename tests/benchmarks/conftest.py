"""The command as a user has it, and what a report's table of all metrics shows."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from letgo.cli import main
from letgo.report.numbers import interval, number
from letgo.runs.results import Result, read_result
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
                shown = f"{number(metric.value)} {interval(metric)} n {metric.n:,}"
                assert shown in rows[key.replace("_", " ")], key

    return check


@pytest.fixture
def whole_path(command, check_page, tmp_path) -> Callable[..., tuple[Result, Result, str]]:
    """Unlearn for two steps, evaluate the run and report both, all by the command. Returns the run's result, that of
    the evaluation, whose scores must be the same, and what the commands printed."""

    def run(model: Path, spec: str, objective: str, *more: object, limit: int | None = None):
        settings = ("--lr", "1e-3", "--steps", "2", "--batch-size", "2", "--set", "use_cpu=true", "--quiet")
        limits = (("--set", f"eval_limit={limit}"), ("--limit", limit)) if limit else ((), ())
        out, evaluated, page = tmp_path / "run", tmp_path / "eval", tmp_path / "report.html"
        words = ("--model", model, "--benchmark", spec, "--objective", objective, *settings, *more, *limits[0])
        printed = command("unlearn", *words, "--output", out)
        printed += command("eval", out, "--benchmark", spec, *limits[1], "--output", evaluated, "--quiet")
        result, again = read_result(out), read_result(evaluated)
        scores = [{key: metric.value for key, metric in found.after.items()} for found in (result, again)]
        assert scores[1] == pytest.approx(scores[0], rel=1e-4, abs=1e-6)
        command("report", out, evaluated, "--output", page)
        attacked = [attack.metrics for attack in result.attacks]
        check_page(page, result.before, result.after, *attacked, again.after, *result.references.values())
        return result, again, printed

    return run
