"""What a trainer's callback does besides training: progress, the history, the dataset's epoch, checkpoints marked
complete."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from letgo.core import processes
from letgo.core.files import append_json_line, write_json_lines
from letgo.core.own import code_in_use
from letgo.core.progress import Task
from letgo.optim.engine.moved import MEASURES
from letgo.training.checkpoints import mark_complete, remove_older
from letgo.training.looks import Looks, is_look, look_of, looks_in


def history_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the log as the history has it."""
    losses = ("loss", "forget_loss", "retain_loss")
    keys = ("step", "phase", *losses, "retain_weight", "learning_rate", "grad_norm", *MEASURES)
    return look_of(row) if is_look(row) else {k: row[k] for k in keys if k in row}


class Bookkeeping(TrainerCallback):
    """Tells the dataset its epoch, marks checkpoints complete, and shows progress."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.task: Task | None = None
        self.context: Any = None

    @property
    def live(self) -> Path | None:
        """Where this process tells those who look on how far it is."""
        return self.trainer.live if processes.is_first() else None

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = state.log_history[-1]
        if self.live is not None and ("loss" in row or is_look(row)):
            # To be looked at is no reason to fail.
            with contextlib.suppress(OSError, ValueError):
                append_json_line(self.live, history_row(row) | {"of": state.max_steps, "at": time.time()})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.context = self.trainer.reporter.task("unlearning", state.max_steps)
        self.task = self.context.__enter__()
        self.task.advance(state.global_step)
        if self.trainer.looks is not None:
            self.trainer.looks.begin(state.log_history)
        if self.live is not None:
            write_json_lines(self.live, self.trainer.history)
        if self.trainer.look_due():
            self.trainer.evaluate()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Epoch 1.5 is where a resumed run goes on in epoch 1.
        self.trainer.train_dataset.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        training_ranks = self.trainer.training_ranks
        self.trainer.move_retain_weight()
        # A zeroth-order step compares the weights itself.
        if training_ranks.count > 1 and self.trainer._phase != "zeroth_order":
            training_ranks.ranks.check(list(self.trainer.model.parameters()), state.global_step)
        if self.task is not None:
            terms = self.trainer._terms[-1] if self.trainer._terms else {}
            phase = {"first_order": "FO ", "zeroth_order": "ZO "}.get(self.trainer._phase, "")
            looks = looks_in(state.log_history)
            seen = f"; {Looks.text(looks[-1])} at step {looks[-1]['step']}" if looks else ""
            self.task.describe(phase + " ".join(f"{k} {v:.3g}" for k, v in terms.items()) + seen)
            self.task.advance()
        control.should_evaluate = self.trainer.look_due()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Every process has written its part.
        processes.exchange(None)
        processes.first_does(self._mark_complete)
        if self.trainer.looks is not None:
            self.trainer.looks.begin(state.log_history)

    def _mark_complete(self) -> None:
        trainer = self.trainer
        directory = Path(str(trainer.args.output_dir))
        checkpoint = directory / f"checkpoint-{trainer.state.global_step}"
        weight = {"retain_weight": trainer.objective.retain_weight} if trainer.objective.dual else {}
        code = {name: code.sha256 for name, code in code_in_use().items()}
        mark_complete(checkpoint, forget_rows_a_step=trainer.training_ranks.window_rows(), code=code, **weight)
        if trainer.checkpoints_kept is not None:
            remove_older(directory, checkpoint, trainer.checkpoints_kept)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.context is not None:
            self.context.__exit__(None, None, None)
            self.context = self.task = None
