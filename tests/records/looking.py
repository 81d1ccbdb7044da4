"""All commands that read records, on a folder with a damaged one: it is shown or named, and the others are there."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import typer

from letgo.analysis.records import read_analyses
from letgo.cli import main
from letgo.core.errors import UserError
from letgo.core.files import strict_json
from letgo.report.analyses import view
from letgo.runs.results import is_run, read_history, read_result, read_samples
from letgo.runs.sweeps import read_sweep
from tests.records import folder
from tests.records.damage import Damage

# Typer makes all commands anew at each call.
_command = functools.cache(typer.main.get_command)
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Wrong(AssertionError):
    """A command that did not end as promised."""


def letgo(*words: object) -> tuple[int, str, str]:
    """Run the command in this process: exit code, stdout, stderr. Whatever else it raises is a traceback."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["letgo", *map(str, words)]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch("typer.main.get_command", _command),
        ):
            main()
            code: Any = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException as error:
        raise Wrong(f"{' '.join(map(str, words))}: {type(error).__name__}: {error}") from error
    finally:
        sys.argv = argv
    check(code in (0, 2), words, f"exit {code}: {err.getvalue()}")
    check(not UNSAFE.search(out.getvalue() + err.getvalue()), words, "control characters")
    check(code == 0 or err.getvalue().startswith("letgo: "), words, f"no message: {err.getvalue()}")
    return code, out.getvalue(), err.getvalue()


def check(holds: bool, words: Sequence[object], what: str) -> None:
    if not holds:
        raise Wrong(f"{' '.join(map(str, words))}: {what[:2000]}")


def views(directory: Path) -> None:
    try:
        for entry in read_analyses(directory):
            view(entry, "x")
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError("parts that do not fit") from error


def readable(read: Any, directory: Path) -> bool:
    try:
        read(directory)
    except UserError:
        return False
    return True


def look(damages: Sequence[Damage], template: Path) -> Counter[str]:
    """Copy the folder, damage it, and see what every command says."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(shutil.copytree(template, Path(place) / "runs"))
        for damage in damages:
            damage.do(root)
        return _look(root)


def _look(root: Path) -> Counter[str]:
    bad, counts = root / "bad", Counter[str]()
    run, sweep = readable(read_result, bad), readable(read_sweep, root / "sweep")
    named = read_sweep(root / "sweep").run_directories(root / "sweep") if sweep else []
    cells = {path.name for path in named if is_run(path)}
    lost = sum(not is_run(path) for path in named) if sweep else 1

    # From the index as it was, then as it is made again.
    for again in (False, True):
        if again:
            code, out, _ = letgo("runs", "rebuild", root, "--json")
            problems = strict_json(out)["problems"]
            check(len(problems) == sum("/bad" in problem for problem in problems) <= 1, ["rebuild"], str(problems))
        code, out, _ = letgo("runs", "list", "--root", root, "--json", "--sort", "-kept(*),learning_rate")
        check(code == 0, ["list"], "stopped")
        paths = {row["path"] for row in strict_json(out)}
        check(paths >= {"good", "sweep/runs/one", "sweep/runs/two"}, ["list"], f"only {paths}")
        if again:
            check(("bad" in paths) != bool(problems), ["list"], f"neither shown nor named: {paths} {problems}")
    for words in (["--csv"], ["--where", "survived(quantize4) or not optimizer=fozo", "--show", "forget_accuracy"], []):
        code, out, _ = letgo("runs", "list", "--root", root, *words)
        check(code == 0 and "good" in out, words, out)
    code, out, err = letgo("runs", "show", "bad", "--root", root)
    check(code == 0 if run and "bad" in paths else True, ["show"], err)
    code, out, err = letgo("runs", "show", root / "bad", "--root", root, "--json")
    check(code == 2 or bool(strict_json(out)), ["show"], out)
    for words in ([], ["--json"]):
        code, out, err = letgo("runs", "diff", "good", "bad", "--root", root, *words)
        check(code == 2 or not words or strict_json(out) is not None, ["diff"], out)

    page, brief = root.parent / "report.html", root.parent / "brief.md"
    files = [read for read in (read_samples, read_history, views) if not readable(read, bad)] if run else []
    for words in (["report", root, "--output", page], ["brief", root, "--output", brief]):
        code, _, err = letgo(*words)
        check(code == 0, words, err)
        left_out = [line for line in err.split("\n") if line.startswith("left out: ")]
        check(run != any(f"{bad}/result.json" in line for line in left_out), words, err)
        check(lost == sum("sweep.json" in line for line in left_out), words, err)
        check(len(left_out) == len(set(left_out)), words, f"named twice: {err}")
        text = page.read_text() if words[0] == "report" else brief.read_text()
        for name in ("good", *cells, *(["bad"] if run else [])):
            there = re.search(rf"(\. |<h1>){name}</h|/{name} \(|title=\"{name}\"", text)
            check(there is not None, words, f"{name} is not there")
        if words[0] == "report":
            check(len(left_out) == (not run) + lost + len(files), words, f"{err}\n{files}")
        check(not UNSAFE.search(text), words, "control characters in the page")
    counts["named" if not run or lost or files else "shown"] += 1
    return counts


def made_folder() -> Path:
    return folder.write(Path(tempfile.mkdtemp(prefix="letgo-records-")))
