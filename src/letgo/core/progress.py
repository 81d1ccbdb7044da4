"""Progress on stderr: a bar with time left on a terminal, a line now and then elsewhere, nothing when quiet. In a
notebook a bar beneath the cell."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator
from html import escape
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from letgo.core.terminal import guard_streams

EVERY_SECONDS = 15.0
"""How often a line is written where there is no terminal."""
REDRAWN_SECONDS = 0.25
"""How often a notebook's bar is drawn anew."""


class Reporter(Protocol):
    """How a long piece of work tells how far it is."""

    def say(self, text: str) -> None: ...

    def task(self, name: str, total: int) -> contextlib.AbstractContextManager[Task]: ...


class Task(Protocol):
    def advance(self, by: int = 1) -> None: ...

    def describe(self, text: str) -> None: ...


class _NoTask:
    def advance(self, by: int = 1) -> None:
        return None

    def describe(self, text: str) -> None:
        return None


class Quiet:
    """Says nothing."""

    def say(self, text: str) -> None:
        return None

    @contextlib.contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        yield _NoTask()


class _LineTask:
    """Writes "name: 12/40, 18 s left" at most every `EVERY_SECONDS`."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self.console, self.name, self.total = console, name, total
        self.done, self.note = 0, ""
        self.start = self.last = time.monotonic()

    def advance(self, by: int = 1) -> None:
        self.done += by
        now = time.monotonic()
        if now - self.last >= EVERY_SECONDS and 0 < self.done < self.total:
            note = f" ({self.note})" if self.note else ""
            left = seconds_left(now - self.start, self.done, self.total)
            text = f"  {self.name}: {self.done}/{self.total}, about {left:.0f} s left{note}"
            self.console.print(text, markup=False, emoji=False)
            self.last = now

    def describe(self, text: str) -> None:
        self.note = text


def seconds_left(seconds: float, done: float, total: float) -> float:
    """How long the rest of some work takes if it goes on as the first `seconds` went; `done` is above 0."""
    return seconds / done * (total - done)


class _BarTask:
    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self.progress = progress
        self.identifier = progress.add_task(name, total=total, note="")

    def advance(self, by: int = 1) -> None:
        self.progress.advance(self.identifier, by)

    def describe(self, text: str) -> None:
        self.progress.update(self.identifier, note=text)


class Live:
    """Progress bars on a terminal, lines in a log file. Everything goes to stderr: stdout is for results."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, file=sys.stderr)

    def say(self, text: str) -> None:
        # `hub:ID:…` is no emoji.
        self.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        start = time.monotonic()
        if self.console.is_terminal:
            with Progress(*_columns(self.console.width), console=self.console, transient=True, expand=True) as progress:
                guard_streams()
                yield _BarTask(progress, name, total)
        else:
            yield _LineTask(self.console, name, total)
        self.say(f"  {name}: {time.monotonic() - start:.1f} s")


def _columns(width: int) -> list[ProgressColumn]:
    """What a terminal has room for: the step and the time left always; then a bar, the time taken, a longer name."""
    named = Column(no_wrap=True, overflow="ellipsis", width=30 if width >= 100 else 20 if width >= 60 else 12)
    columns: list[ProgressColumn] = [TextColumn("  {task.description}", markup=False, table_column=named)]
    if width >= 60:
        columns.append(BarColumn(bar_width=24 if width >= 100 else 12))
    columns.append(MofNCompleteColumn())
    if width >= 100:
        columns.append(TimeElapsedColumn())
    columns += [TextColumn("left"), TimeRemainingColumn(compact=width < 60)]
    rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return [*columns, TextColumn("{task.fields[note]}", markup=False, table_column=rest)]


class InNotebook:
    """A bar beneath the cell that is running; what is said is the cell's own output."""

    def say(self, text: str) -> None:
        print(text)

    @contextlib.contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        from IPython.display import display

        task = _NotebookTask(name, total)
        task.handle = display(task, display_id=True)
        yield task
        task.end()


class _NotebookTask:
    handle: Any = None

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done, self.note, self.over = name, total, 0, "", False
        self.start = self.last = time.monotonic()

    def advance(self, by: int = 1) -> None:
        self.done += by
        if time.monotonic() - self.last >= REDRAWN_SECONDS:
            self.draw()

    def describe(self, text: str) -> None:
        self.note = text

    def draw(self) -> None:
        self.last = time.monotonic()
        self.handle.update(self)

    def end(self) -> None:
        self.over = True
        self.draw()

    def __repr__(self) -> str:
        seconds = time.monotonic() - self.start
        if self.over:
            return f"{self.name}: {seconds:.1f} s"
        left = f", about {seconds_left(seconds, self.done, self.total):.0f} s left" if self.done else ""
        return f"{self.name}: {self.done}/{self.total}{left}{f' ({self.note})' if self.note else ''}"

    def _repr_html_(self) -> str:
        bar = "" if self.over else f'<progress value="{self.done}" max="{self.total}"></progress> '
        return f"<div>{bar}{escape(repr(self))}</div>"


def usual(reporter: Reporter | None) -> Reporter:
    """What a function of the library reports to where its caller names nothing: a bar in a notebook, in place of those
    of the libraries beneath; else nobody."""
    if reporter is not None:
        return reporter
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if not hasattr(shell, "kernel"):
        return Quiet()
    quiet_libraries()
    return InNotebook()


def quiet_loggers() -> None:
    """Raise the level of loggers that speak while being imported (torchao and bitsandbytes name what is not there), or
    at every try to reach a hub. Cheap: nothing is imported."""
    import logging

    for name in ("torchao", "torch.utils._pytree", "bitsandbytes", "huggingface_hub", "accelerate", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Silence the progress bars and warnings of the libraries beneath: a command shows its own progress."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    # peft asks transformers for a name that it is about to drop.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    # transformers 5.24 calls it `cache`; models of others still know the older name alone.
    warnings.filterwarnings("ignore", message=".*past_key_values.*", category=FutureWarning)
    # accelerate hands the setting on under the name that it had before.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    disable_progress_bars()
    quiet_loggers()
