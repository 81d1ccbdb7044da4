"""In the terminal: tables that fit, text as it was written, names that the flags have."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from typer.main import get_command

import letgo as library
from letgo.cli import _going_on, app
from letgo.core.progress import Live
from letgo.report.terminal import print_columns
from letgo.runs import Index
from tests.report import runs as made


@pytest.fixture
def folder(tmp_path):
    for optimizer, rate in (("adamw", 3e-5), ("fozo", 3e-4)):
        config = made.result().config | {"optimizer": optimizer, "learning_rate": rate, "max_steps": 80}
        made.write_run(tmp_path / f"capitals-npo-{optimizer}", made.result(run_id=optimizer, config=config))
    Index(tmp_path).rebuild()
    return tmp_path


def test_the_version_is_printed_alone(letgo):
    assert letgo("--version") == (0, f"letgo {library.__version__}\n", "")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
def test_the_list_of_runs_fits_and_the_important_columns_go_last(letgo, folder, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = letgo("runs", "list", "--root", folder)
    lines = out.splitlines()
    assert code == 0
    assert max(map(len, lines)) <= width
    assert "name" in lines[0]
    assert "verdict" in lines[0]
    assert ("attacks" in lines[0]) == (width >= 80)
    assert ("grade" in lines[0]) == (width >= 140)
    assert ("no room for: " in out) == (width < 200)


def test_a_column_that_was_asked_for_stays_longer_than_the_usual_ones(letgo, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = letgo("runs", "list", "--root", folder, "--show", "forget_rouge")
    dropped = out.splitlines()[-1]
    assert "grade" in dropped
    assert "name" not in dropped
    letters = out.splitlines()[0]
    assert "verdict" in letters
    assert "attacks" in letters


def test_columns_are_dropped_from_the_right_and_those_named_last_in_their_order():
    file = io.StringIO()
    console = Console(file=file, width=24, color_system=None)
    print_columns({"a": ["x" * 9], "b": ["y" * 9], "c": ["z" * 9], "d": ["w" * 9]}, ["d", "a"], console)
    head, row, dropped = file.getvalue().splitlines()
    assert (head.split(), row.split()) == (["a", "d"], ["x" * 9, "w" * 9])
    assert dropped == "no room for: b, c"


def test_a_wide_cell_is_broken_and_a_hostile_one_is_text():
    file = io.StringIO()
    print_columns({"name": [made.INJECTED * 3]}, ["name"], Console(file=file, width=80, color_system=None))
    assert max(map(len, file.getvalue().splitlines())) <= 80
    assert "\x1b" not in file.getvalue()
    assert "[bold]" in file.getvalue().replace("\n", "").replace(" ", "")


@pytest.mark.parametrize(
    ("where", "found"),
    [("lr < 1e-4", ["adamw"]), ("lr >= 1e-4", ["fozo"]), ("steps = 80", ["adamw", "fozo"]), ("steps > 80", [])],
)
def test_the_flags_names_are_known_to_where(folder, where, found):
    assert sorted(record.run_id for record in Index(folder).select(where, None)) == found


def test_lr_is_known_to_sort_and_show(letgo, folder):
    code, out, _ = letgo("runs", "list", "--root", folder, "--sort", "-lr", "--show", "lr", "--csv")
    assert code == 0
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == ["fozo", "adamw"]


def test_what_is_said_is_printed_as_it_was_written():
    file = io.StringIO()
    Live(Console(file=file, width=80)).say("hub:id:train [bold]x[/bold]")
    assert file.getvalue() == "hub:id:train [bold]x[/bold]\n"


def texts(command, path=("letgo",)):
    """Every help text of a command and of those below it."""
    yield path, command.help or ""
    for parameter in command.params:
        yield path, getattr(parameter, "help", None) or ""
    for name, below in getattr(command, "commands", {}).items():
        yield from texts(below, (*path, name))


def test_no_help_text_is_taken_for_markup_or_an_emoji():
    console = Console()
    spoiled = [(path, text) for path, text in texts(get_command(app)) if console.render_str(text).plain != text]
    assert spoiled == []


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (["eval", "m", "--benchmark", "b", "--output=o"], "letgo eval m --benchmark b --output=o --resume"),
        (["eval", "m", "--benchmark", "b", "-oo"], "letgo eval m --benchmark b -oo --resume"),
        (["eval", "m", "--benchmark", "b"], ""),
        (["sweep", "grid.yaml", "--resume"], "letgo sweep grid.yaml --resume"),
    ],
)
def test_after_ctrl_c_the_command_that_goes_on_is_named(words, way):
    assert _going_on(words) == (f"\n  go on with: {way}" if way else "")
