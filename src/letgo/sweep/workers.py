"""What runs a sweep's tasks, as `execute.py` sees it: something that is given tasks, and reports their ends.

Nothing here decides: `execute.py` reads from the run directories which task comes next, what is tried again and what
has failed, the same for every way of running them. Imports nothing heavy: a worker's process unpickles its tasks here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CLAIMS = ".claims"
"""In a sweep's folder: a file a run, locked by the process that is at work on it."""


@dataclass(frozen=True)
class CellTask:
    """A run to be made: its directory, its settings, the attacks on it, and its tags."""

    directory: Path
    settings: Mapping[str, Any]
    attacks: Sequence[str]
    tags: Sequence[str]

    @property
    def claim(self) -> Path:
        """The file that is locked by the process that is at work on it."""
        return self.directory.parents[1] / CLAIMS / self.directory.name


@dataclass(frozen=True)
class Ending:
    """How a task's process came back: "over" (its directory says what came of it), "busy" (another process is at work
    on it), "died" (the process was lost; `why`)."""

    task: CellTask
    how: Literal["over", "busy", "died"]
    why: str = ""


class Workers(AbstractContextManager["Workers"]):
    """Processes that run tasks. Leaving its context ends them, whatever they are at: a run goes on from its last
    checkpoint."""

    @abstractmethod
    def free(self) -> int:
        """How many more tasks may be started now."""

    @abstractmethod
    def start(self, task: CellTask) -> None:
        """Run a task, without waiting for it."""

    @abstractmethod
    def ended(self, timeout: float | None) -> Sequence[Ending]:
        """The tasks that came to an end, once there is at least one; none after `timeout` seconds."""

    def __exit__(self, *_: object) -> None:
        """End what runs."""
