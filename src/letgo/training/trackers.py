"""A run's last figures for W&B, MLflow, TensorBoard and trackio (`report_to`): after the attacks, in the same record
that transformers' own callbacks wrote during training.

They end their record when training ends, so here that waits till all is measured. What they get is the result's metrics
and kept shares and the run's card: no samples, no subjects' names.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from letgo.core.errors import UserError, first_line
from letgo.report.card import card
from letgo.runs.results import Metrics, Result
from letgo.training.config import UnlearnConfig

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Those of transformers' trackers that get the last figures; the others get what they get during training."""
CARD = "eval_letgo/card"


class _Held:
    """A tracker's callback that does not hear of the end of training until `close`."""

    def __init__(self, name: str, callback: Any) -> None:
        self.name, self.callback = name, callback
        self.last: tuple[Any, Any, Any] | None = None
        """Arguments, state and control as training left them."""

    def __getattr__(self, event: str) -> Any:
        return getattr(self.callback, event)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = (args, state, control)
        if self.name == "wandb":
            # Its record goes on all the same; and it may save the model, which is not kept for later.
            self.callback.on_train_end(args, state, control, **kwargs)

    def begin(self, config: UnlearnConfig) -> None:
        """Open the record of a run that was not trained by a Trainer in this process."""
        self.last = (config, TrainerState(is_world_process_zero=True), TrainerControl())
        self.callback.on_train_begin(*self.last)

    def log(self, figures: Mapping[str, Any]) -> None:
        assert self.last is not None
        self.callback.on_log(*self.last, logs=dict(figures))

    def close(self) -> None:
        if self.last is not None and self.name != "wandb":
            self.callback.on_train_end(*self.last)
        self.last = None


class Trackers:
    """A run's trackers, from training to its end.

    Raises:
        UserError: the package of one is not installed.
    """

    def __init__(self, config: UnlearnConfig, say: Callable[[str], None]) -> None:
        names = list(config.report_to or ())
        if missing := [name for name in names if name not in get_available_reporting_integrations()]:
            raise UserError(f"report_to: {missing[0]}, but its package is not installed: pip install {missing[0]}")
        self.config, self.say = config, say
        self.held: list[_Held] = []

    def hold(self, trainer: Trainer) -> None:
        """Take the trainer's trackers over, before it trains."""
        names = {INTEGRATION_TO_CALLBACK[name]: name for name in TRACKERS}
        callbacks = trainer.callback_handler.callbacks
        for place, callback in enumerate(callbacks):
            if name := names.get(type(callback)):
                callbacks[place] = held = _Held(name, callback)
                self.held.append(held)

    def tell(self, result: Result) -> None:
        """Give every tracker the result. One that can't take it fails no run: a message says so."""
        if not self.held:
            self._begin()
        figures, text = figures_of(result), card(result, published=True)
        for held in self.held:
            try:
                if held.last is None:
                    held.begin(self.config)
                held.log(figures)
                _give_card(held, text)
            except Exception as error:  # a tracker's library, or its server
                self.say(f"  {held.name} did not take the last figures: {first_line(error)}")

    def close(self) -> None:
        for held in self.held:
            try:
                held.close()
            except Exception as error:
                self.say(f"  {held.name} could not be closed: {first_line(error)}")

    def _begin(self) -> None:
        for name in self.config.report_to or ():
            if name in TRACKERS:
                self.held.append(_Held(name, INTEGRATION_TO_CALLBACK[name]()))


def figures_of(result: Result) -> dict[str, float]:
    """The result's figures by the names that transformers' trackers show under "eval": before, after, kept."""
    figures: dict[str, float] = {}

    def add(stage: str, metrics: Metrics) -> None:
        figures.update({f"eval_{stage}/{key}": metric.value for key, metric in metrics.items()})

    add("before", result.before)
    add("after", result.after)
    for attack in result.attacks:
        # Trackers allow few signs in a name.
        label = re.sub(r"[^\w.-]+", "-", attack.label)
        add(f"attacked/{label}", attack.metrics)
        if attack.kept is not None:
            figures[f"eval_kept/{label}"] = attack.kept
    figures.update({f"eval_robustness/{name}": value for name, value in result.robustness.items()})
    return figures


def _give_card(held: _Held, text: str) -> None:
    if held.name == "mlflow":
        import mlflow

        mlflow.log_text(text, "letgo-card.md")
        return
    held.log({CARD: _shown(held.name, text)})


def _shown(name: str, text: str) -> Any:
    """A Markdown text as the tracker shows it."""
    if name == "wandb":
        import wandb

        return wandb.Html(f"<pre>{html.escape(text)}</pre>", data_is_not_path=True)
    if name == "trackio":
        import trackio

        return trackio.Markdown(text)
    return text
