"""Progress on stderr: a bar with time left on a terminal, a line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from letgo.core.terminal import guard_streams

EVERY_SECONDS = 15.0
"""How often a line is written where there is no terminal."""


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
            left = (now - self.start) / self.done * (self.total - self.done)
            note = f" ({self.note})" if self.note else ""
            self.console.print(f"  {self.name}: {self.done}/{self.total}, about {left:.0f} s left{note}", markup=False)
            self.last = now

    def describe(self, text: str) -> None:
        self.note = text


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
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        start = time.monotonic()
        if self.console.is_terminal:
            columns = (
                TextColumn("  {task.description:<28}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                guard_streams()
                yield _BarTask(progress, name, total)
        else:
            yield _LineTask(self.console, name, total)
        self.say(f"  {name}: {time.monotonic() - start:.1f} s")


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
    # accelerate hands the setting on under the name that it had before.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    disable_progress_bars()
    quiet_loggers()
