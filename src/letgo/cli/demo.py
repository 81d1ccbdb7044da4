"""`letgo demo`: the main job on built-in data, from a real model to a report, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.core.errors import UserError, first_line
from letgo.core.progress import Quiet, Reporter
from letgo.models.load import model_config
from letgo.training.config import make_config
from letgo.training.unlearn import Run, unlearn

_COMMON: dict[str, Any] = {
    "objective": "npo_gdr",
    "optimizer": "fozo",
    "max_steps": 80,
    "save_strategy": "no",
    "seed": 0,
}

CAPITALS: Mapping[str, Any] = _COMMON | {
    "model": "smollm2",
    "benchmark": "capitals",
    "objective_args": {"beta": 0.5},
    "retain_weight": 2.0,
    "optimizer_args": {"zo_lr": 6e-5, "mu": 1e-3, "fo_steps": 20, "zo_steps": 20},
    "learning_rate": 4e-5,
    "per_device_train_batch_size": 6,
    "attacks": [
        "quantize:bits=4,group_size=32",
        "relearn:steps=24,learning_rate=4e-5,batch_size=5,holdout=0.5,seeds=1,evaluations=4",
    ],
}
"""Twenty capitals out of a pretrained model of 135 million parameters, by the MLPs of its upper half (`upper_mlps`)."""

BIOGRAPHIES: Mapping[str, Any] = _COMMON | {
    "model": "biographies",
    "benchmark": "biographies",
    "objective_args": {"beta": 0.1},
    "optimizer_args": {"zo_lr": 3e-5, "mu": 1e-3, "fo_steps": 20, "zo_steps": 20},
    "learning_rate": 7e-4,
    "per_device_train_batch_size": 16,
    "attacks": ["quantize:bits=4,group_size=32", "relearn:steps=40,learning_rate=5e-4,batch_size=16,holdout=0.5"],
}
"""Twenty fictional people out of the shipped tiny model."""


@dataclass(frozen=True)
class Shown:
    """What a demo made."""

    run: Run
    report: Path


def demo(
    *,
    tiny: bool = False,
    model: str | None = None,
    output: Path = Path("letgo-runs"),
    reporter: Reporter | None = None,
    **changes: Any,
) -> Shown:
    """Unlearn, attack and report on built-in data.

    Args:
        tiny: the biographies benchmark on the shipped tiny model, instead of capitals on a pretrained one.
        output: folder for the run's directory and `report.html`.
        changes: settings of a run's YAML, over the demo's.
    """
    from letgo.report import write_report

    reporter = reporter or Quiet()
    settings = dict(BIOGRAPHIES if tiny else CAPITALS) | ({"model": model} if model else {}) | changes
    if not tiny:
        settings.setdefault("trainable", upper_mlps(str(settings["model"])))
    directory = _unused(output / ("demo-tiny" if tiny else "demo"))
    config = make_config(settings | {"output_dir": str(directory)}, where="demo")
    what = "20 fictional people" if tiny else "the capitals of 20 countries"
    reporter.say(f"Unlearning {what} from {config.model}, then attacking what comes of it")
    run = unlearn(config, reporter=reporter)
    report = write_report([directory], output / "report.html")
    return Shown(run, report)


def upper_mlps(model: str) -> str:
    """The pattern of the parameters in the MLPs of a model's upper half of layers: facts are found there, the gradient
    has half the way to go, and a zeroth-order step has a third of the parameters to search in."""
    try:
        layers = int(model_config(model).num_hidden_layers)
    except AttributeError as error:
        raise UserError(f"{model}: its config has no number of layers ({first_line(error)})") from error
    return rf"\.({'|'.join(map(str, range(layers // 2, layers)))})\.mlp\."


def _unused(directory: Path) -> Path:
    """The directory, or the first of its numbered namesakes that is not there yet: a demo never overwrites a run."""
    candidate, number = directory, 1
    while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
        number += 1
        candidate = directory.with_name(f"{directory.name}-{number}")
    return candidate
