"""A run whose method gives weights, not a loss: task vector, who's Harry Potter, influence unlearning.

Such a method takes no optimizer and no steps of Trainer's, so it writes no checkpoints: a run that was cut off begins
anew when it is resumed.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from letgo.core.catalog import settings_of
from letgo.core.progress import Reporter, Task
from letgo.data import ForgetRetainDataset
from letgo.objectives import METHODS
from letgo.objectives.one_shot import Data
from letgo.objectives.one_shot.data import batches_of

if TYPE_CHECKING:
    from letgo.training.config import UnlearnConfig


class OneShot:
    """A one-shot method, a model and data: what `UnlearnTrainer` is to an objective.

    Args:
        model: a causal LM, as `letgo.training.prepare.prepare_model` leaves it; changed in place.
        args: the run's config; `objective_args` are the method's settings, as
            `letgo.training.run_plan.objective_of` checks them.
        dataset: the forget and the retain rows.
        pad_id: token id that pads batches.
        reporter: where progress goes.
    """

    def __init__(
        self, model: Any, args: UnlearnConfig, dataset: ForgetRetainDataset, *, pad_id: int, reporter: Reporter
    ) -> None:
        self.model, self.args, self.dataset, self.pad_id, self.reporter = model, args, dataset, pad_id, reporter
        self.settings = dict(args.objective_args or {})
        name = METHODS.record(args.objective).name
        self.notes = [
            f"{name} changes the weights in one shot: its settings are objective_args alone; no optimizer, no learning "
            "rate of the run's, no checkpoints, no history"
        ]
        self.history: list[dict[str, Any]] = []

    def run(self) -> None:
        device = next(self.model.parameters()).device
        forget = batches_of(self.dataset.forget, self.pad_id, device)
        retain = batches_of(self.dataset.retain, self.pad_id, device) if self.dataset.retain else None
        method = METHODS.load(self.args.objective)
        notes: list[str] = []
        self.reporter.say(f"  {self.notes[0]}")
        with _Stages(self.reporter) as stages:
            data = Data(forget, retain, stages.advance, notes.append)
            # One of somebody's own may draw nothing.
            seed = {"seed": self.args.seed} if "seed" in settings_of(method) else {}
            method(self.model, data, **seed | self.settings)
        for note in notes:
            self.reporter.say(f"  {note}")
        self.notes += notes


class _Stages:
    """Shows what a method says that it is doing: a task for each stage, its rows counted as they come."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.stack = reporter, ExitStack()
        self.stage, self.rows = "", 0
        self.task: Task | None = None

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def advance(self, what: str, rows: int) -> None:
        if what != self.stage or self.task is None:
            self.stack.close()
            self.stage, self.rows = what, 0
            # How many rows a stage will see is the method's own affair.
            self.task = self.stack.enter_context(self.reporter.task(what, 0))
        self.rows += rows
        self.task.describe(f"{self.rows} rows")
        self.task.advance(rows)
