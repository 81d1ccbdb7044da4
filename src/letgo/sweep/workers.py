"""What runs a sweep's tasks, as `execute.py` sees it: something that is given tasks, and tells of their ends.

Nothing here decides: which task comes next, what is tried again and what has failed is told by `execute.py`, from the
run directories, the same for every way of running them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from letgo.sweep.cell import Task


@dataclass(frozen=True)
class Ending:
    """How a task's process came back: "over" (its directory says what came of it), "busy" (another process is at work
    on it), "died" (the process was lost; `why`)."""

    task: Task
    how: Literal["over", "busy", "died"]
    why: str = ""


class Workers(Protocol):
    """Processes that run tasks. Leaving its context ends them, whatever they are at: a run goes on from its last
    checkpoint."""

    def free(self) -> int:
        """How many more tasks may be started now."""
        ...

    def start(self, task: Task) -> None:
        """Run a task, without waiting for it."""
        ...

    def ended(self, timeout: float | None) -> Sequence[Ending]:
        """The tasks that came to an end, once there is at least one; none after `timeout` seconds."""
        ...
