"""Progress: what a terminal of any width shows, and a notebook unasked."""

from __future__ import annotations

import io
import sys
import types

import pytest
from rich.console import Console
from rich.progress import Progress

from letgo.core import progress
from letgo.core.progress import InNotebook, Live, Quiet, seconds_left, usual


def drawn(width):
    """The line of a bar at a third of its work."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    bar = Progress(*progress._columns(width), console=console, expand=True, get_time=lambda: clock[0])
    clock = [0.0]
    task = bar.add_task("measuring after relearn", total=1200, note="FO forget 0.123 retain 0.456")
    for step in range(1, 5):
        clock[0] = 10.0 * step
        bar.advance(task, 100)
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(bar.get_renderable())
    return text.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize("width", [40, 50, 60, 80, 100, 120, 200])
def test_step_and_time_left_are_shown_at_any_width_on_one_line(width):
    [line] = drawn(width)
    assert len(line) <= width
    assert "400/1200" in line
    assert "left 0:01:20" in line or "left 01:20" in line
    assert "measuring" in line
    assert "FO" in line or width == 40, "what room is left shows the losses"


def test_the_time_left_is_that_of_the_pace_so_far():
    assert seconds_left(30.0, 10, 40) == 90.0


class Kernel:
    kernel = object()


@pytest.fixture
def notebook(monkeypatch):
    """A notebook's display, as IPython has it; gives what was displayed."""
    shown = []

    class Handle:
        def update(self, thing):
            shown.append((repr(thing), thing._repr_html_()))

    def display(thing, display_id):
        shown.append((repr(thing), thing._repr_html_()))
        return Handle()

    module = types.ModuleType("IPython")
    module.get_ipython = Kernel
    module.display = types.ModuleType("IPython.display")
    module.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", module.display)
    return shown


def test_a_notebook_has_a_bar_unasked(notebook, monkeypatch):
    monkeypatch.setattr(progress, "REDRAWN_SECONDS", 0.0)
    quieted = []
    monkeypatch.setattr(progress, "quiet_libraries", lambda: quieted.append(True))
    reporter = usual(None)
    assert isinstance(reporter, InNotebook)
    assert quieted, "no bars of other libraries beside it"
    with reporter.task("<b>unlearning", 4) as task:
        task.describe("FO <i>")
        task.advance()
    first, second, last = notebook
    assert first[0] == "<b>unlearning: 0/4"
    assert second[0].startswith("<b>unlearning: 1/4, about ")
    assert '<progress value="1" max="4">' in second[1]
    assert "&lt;b&gt;unlearning" in second[1]
    assert "<i>" not in second[1]
    assert last[0].endswith(" s")
    assert "<progress" not in last[1]


def test_elsewhere_nobody_is_told_unless_asked(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert isinstance(usual(None), Quiet)
    live = Live()
    assert usual(live) is live
    plain = types.ModuleType("IPython")
    plain.get_ipython = lambda: object()
    monkeypatch.setitem(sys.modules, "IPython", plain)
    assert isinstance(usual(None), Quiet), "IPython in a terminal is no notebook"
