"""A run whose every text is an attack, on every command and page: it is shown as text."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from pydantic import ValidationError
from rich.console import Console

from letgo.analysis.records import AnalysisFile
from letgo.cli import main
from letgo.core import terminal
from letgo.core.files import csv_text, strict_json
from letgo.core.progress import Live
from letgo.report.card import card
from letgo.runs.results import HistoryRow, Result, SampleRow, read_result
from letgo.runs.sweeps import Sweep
from tests.records import folder
from tests.records.damage import ATTACK
from tests.records.looking import UNSAFE, letgo
from tests.report.test_html import Page

MARKS = (
    "=1+1|x\n<http://evil.example><img src=x onerror=alert(1)>\"'> [a](javascript:alert(1)) ![b](http://e/x.png)"
    " https://evil.example www.evil.example `code` **bold** &lt;b&gt; {{7*7}} {% x %} [red]r[/red] ~~s~~ <!-- $x$"
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""What rich colours with."""


def everywhere(document: Any, model: Any, attack: str) -> Any:
    """The document with the attack in place of each text and each key that its schema leaves free."""
    document = copy.deepcopy(document)
    for inside, key in list(_texts(document)):
        old = copy.deepcopy(inside)
        if isinstance(key, tuple):
            inside[attack] = inside.pop(key[0])
        else:
            inside[key] = attack
        try:
            model.model_validate(document)
        except (ValidationError, ValueError):
            inside.clear()
            inside.update(old) if isinstance(inside, dict) else inside.extend(old)
    return document


def _texts(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from _texts(value[key])
        if isinstance(value[key], str):
            yield value, key
    if keys and isinstance(value, dict):
        yield value, (list(value)[-1],)


def attacked(root: Path, attack: str) -> Path:
    """The folder of `folder.write` with attacks in all records of `bad`, which it returns, and of half of the sweep."""
    folder.write(root)
    for run in (root / "bad", root / "sweep/runs/one"):
        document = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(everywhere(document, Result, attack)))
        for name, model in (("samples.jsonl", SampleRow), ("history.jsonl", HistoryRow)):
            rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
            # One stage and one set stay, or no question would be shown.
            kept = [everywhere(row, model, attack) | {k: row[k] for k in ("stage", "set") if k in row} for row in rows]
            (run / name).write_text("".join(json.dumps(row) + "\n" for row in kept))
        (run / "tags.json").write_text(json.dumps([attack]))
    for path in (root / "bad").glob("analysis-*.json"):
        path.write_text(json.dumps(everywhere(json.loads(path.read_text()), AnalysisFile, attack)))
    path = root / "sweep/sweep.json"
    path.write_text(json.dumps(everywhere(json.loads(path.read_text()), Sweep, attack)))
    named = root / ("x" + attack.replace("/", "_").replace("\0", "")[:80])
    (root / "bad").rename(named)
    assert letgo("runs", "rebuild", root)[0] == 0
    return named


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return pages(folder.write(tmp_path_factory.mktemp("plain") / "runs"))


@pytest.fixture(scope="module", params=[ATTACK, MARKS], ids=["escapes", "marks"])
def hostile(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile") / "runs"
    return root, attacked(root, request.param)


def pages(root: Path) -> dict[str, Path]:
    out = root.parent
    assert letgo("report", root, "--output", out / "report.html")[0] == 0
    assert letgo("brief", root, "--output", out / "brief.md")[0] == 0
    return {name: out / name for name in ("report.html", "brief.html", "brief.md")}


def test_pages_have_the_elements_that_they_have_of_a_run_without_attacks(hostile, plain):
    made = pages(hostile[0])
    for name in ("report.html", "brief.html"):
        page, other = Page(made[name]), Page(plain[name])
        assert {tag for tag, _ in page.elements} <= {tag for tag, _ in other.elements} | {"q", "dl", "dt", "dd"}
        assert page.raw == other.raw, "scripts and styles"
        known = {(tag, key) for tag, attributes in other.elements for key in attributes}
        known |= {("p", "class"), ("details", "open")}
        assert {(tag, key) for tag, attributes in page.elements for key in attributes} <= known
        assert all(a["href"].startswith(("#", "data:,")) for a in page.of("a") + page.of("link"))
        assert not UNSAFE.search(page.source)


def test_markdown_has_no_marks_but_its_own(hostile, plain):
    root, bad = hostile
    texts = [pages(root)["brief.md"].read_text(), card(read_result(bad)), card(read_result(bad), published=True)]
    kinds = []
    for text in texts:
        assert not UNSAFE.search(text)
        parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        front, body = text.split("---\n", 2)[1:] if text.startswith("---\n") else ("", text)
        assert ATTACK not in front
        tokens = [inner for token in parser.parse(body) for inner in (token, *(token.children or ()))]
        kinds.append(Counter(token.type for token in tokens))
        code = [token.content for token in tokens if token.type == "code_inline"]
        assert set(code) <= {"result.json", "letgo unlearn config.yaml --output again"}
        # What GitHub makes links of without any brackets.
        assert not re.search(r"(?<!\\)https?://|(?<![\w\\])www\.", body)
    for kind in ("link_open", "image", "html_inline", "html_block", "s_open", "em_open", "fence", "code_block"):
        assert all(kind not in counts for counts in kinds), kind


@pytest.mark.parametrize("terminal_there", [False, True])
def test_no_command_gives_a_terminal_what_it_obeys(hostile, monkeypatch, terminal_there):
    root, bad = hostile
    words = [
        ["runs", "list", "--root", root, "--show", "model"],
        ["runs", "list", "--root", root, "--csv"],
        ["runs", "show", bad.name, "--root", root],
        ["runs", "diff", "good", bad.name, "--root", root],
        ["runs", "tag", bad.name, "x", "--root", root],
        ["runs", "show", ATTACK, "--root", root],
        ["runs", "list", ATTACK],
        ["report", root / ATTACK],
        ["report", root, "--output", root.parent / "r.html"],
        ["list", ATTACK],
        ["show-config", bad / "result.json"],
        [ATTACK],
        [f"--{ATTACK}"],
    ]
    (root / "broken").mkdir(exist_ok=True)
    (root / "broken" / "result.json").write_text(json.dumps({"schema": ATTACK}))
    for line in words:
        out, err = Screen(terminal_there), Screen(terminal_there)
        monkeypatch.setattr(sys, "argv", ["letgo", *map(str, line)])
        monkeypatch.setenv("TERM", "xterm-256color")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
            main()
        for text in (out.getvalue(), err.getvalue()):
            assert not UNSAFE.search(COLOUR.sub("", text) if terminal_there else text), (line, text)
            assert "\x1b[2J" not in text
            assert "\x1b[31mred" not in text
        if line[:2] == ["runs", "list"] and terminal_there and len(line) > 4 and line[-1] == "model":
            assert COLOUR.search(out.getvalue()), "letgo's own colours"


class Screen(io.StringIO):
    def __init__(self, terminal_there: bool) -> None:
        super().__init__()
        self.terminal_there = terminal_there

    def isatty(self) -> bool:
        return self.terminal_there


def test_json_says_what_the_record_says(hostile):
    root, bad = hostile
    for words in (["show", bad], ["diff", "sweep/runs/two", bad], ["list"]):
        _, out, _ = letgo("runs", *words, "--root", root, "--json")
        strict_json(out)
    _, out, _ = letgo("runs", "show", bad, "--root", root, "--json")
    assert json.loads(out)["result"] == json.loads((bad / "result.json").read_text())


def test_cells_are_no_formulas_and_numbers_stay_numbers(hostile):
    root, _ = hostile
    _, out, _ = letgo("runs", "list", "--root", root, "--csv")
    for row in csv.reader(io.StringIO(out)):
        for cell in row:
            assert not cell.startswith(tuple("=+-@\t\r\n")) or float(cell) < 0
    rows = [{"a": -1.5, "=b": "=1+1", "c": None}, {"a": -2, "=b": "-2+3", "c": "@x"}, {"a": "\t=1", "c": "a=1"}]
    text = csv_text(rows)
    assert list(csv.reader(io.StringIO(text))) == [
        ["a", "'=b", "c"],
        ["-1.5", "'=1+1", ""],
        ["-2", "'-2+3", "'@x"],
        ["'\t=1", "", "a=1"],
    ]


def test_a_bar_and_what_is_said_beside_it_are_text(monkeypatch):
    screen = Screen(True)
    monkeypatch.setenv("TERM", "xterm-256color")
    with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(screen):
        terminal.guard()
        reporter = Live(Console(stderr=True, file=sys.stderr, force_terminal=True))
        with reporter.task(ATTACK, 2) as task:
            print(ATTACK)
            print(ATTACK, file=sys.stderr)
            reporter.say(ATTACK)
            task.describe(ATTACK)
            task.advance()
    text = screen.getvalue()
    assert "\x1b[2J" not in text
    assert "\x1b]" not in text
    assert "\u202e" not in text
    assert "\x1b[2K" in text, "the bar's own moves"


def test_what_no_terminal_can_write_is_no_reason_to_fail(monkeypatch):
    for encoding, shown in (("ascii", "✓"), ("latin-1", "?")):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        with contextlib.redirect_stdout(stream):
            terminal.guard()
            print("✓ \ud800")
            sys.stdout.flush()
        assert raw.getvalue().decode("utf-8").startswith(shown)
