"""A zeroth-order run as a log of kilobytes, and its replay.

A zeroth-order step is a function of the weights, the state, the seed and q scalars. So the seed and the scalars of
every step rebuild the weights of the end from those of the beginning, bit for bit, on the same kind of device with the
same version of torch, without evaluating any loss; and with them the moments, so that a log is a checkpoint too.

    optimizer = ZOSGD(model.parameters(), lr=1e-6)
    log = ReplayLog.attach(optimizer)
    ...                                          # train
    log.save("run.replay.json")

    optimizer = replay(fresh_model, ReplayLog.load("run.replay.json"))   # its state too: training can go on
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from letgo.optim.base import parameters_of
from letgo.optim.registry import OPTIMIZERS
from letgo.optim.zeroth_order import Estimate, ZerothOrder

FORMAT = 2
"""1: noise of the first release, which this version no longer makes."""


@dataclass
class ReplayLog:
    """What a run needs to be run again without its losses.

    `steps` holds one entry a step: [rate of each group, coefficient of each direction]; no coefficients where the step
    was skipped. Numbers are written so that they are read back exactly.
    """

    optimizer: str
    options: dict[str, Any]
    groups: list[dict[str, Any]]
    shapes: list[list[int]]
    first_step: int = 0
    steps: list[tuple[list[float], list[float]]] = field(default_factory=list)
    format: int = FORMAT

    @classmethod
    def attach(cls, optimizer: ZerothOrder) -> ReplayLog:
        """Start to log an optimizer that has no state yet (before its first step)."""
        if not isinstance(optimizer, ZerothOrder):
            raise ValueError(f"only a zeroth-order run can be replayed, not one of {type(optimizer).__name__}")
        if optimizer.state:
            raise ValueError("the optimizer has state already: attach the log before its first step")
        names = [r.name for r in OPTIMIZERS if r.grade == "zeroth" and OPTIMIZERS.load(r.name) is type(optimizer)]
        if not names:
            raise ValueError(f"{type(optimizer).__name__} is not in the catalog, so a log could not name it")
        parameters = parameters_of(optimizer)
        log = cls(
            optimizer=names[0],
            options=optimizer.options(),
            groups=[
                {**{k: v for k, v in group.items() if k != "params"}, "params": len(group["params"])}
                for group in optimizer.param_groups
            ],
            shapes=[list(p.shape) for p in parameters],
            first_step=optimizer.steps_taken,
        )
        optimizer.on_step = log.add
        return log

    def add(self, rates: list[float], coefficients: list[float]) -> None:
        self.steps.append((rates, coefficients))

    def save(self, path: str | Path) -> None:
        """Write as JSON: to a temporary name first, so that the file is whole or not there."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> ReplayLog:
        """Read what `save` wrote. A ValueError says what is wrong with a file that is something else."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            log = cls(**values)
            log.steps = [(list(rates), list(coefficients)) for rates, coefficients in values["steps"]]
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: not a replay log ({error})") from error
        if log.format != FORMAT:
            raise ValueError(f"{path}: a replay log of format {log.format}; this version reads format {FORMAT}")
        return log


@torch.no_grad()
def replay(model: nn.Module | Iterable[Tensor], log: ReplayLog | str | Path) -> ZerothOrder:
    """Take a logged run's steps again, from its initial weights, without evaluating a loss.

    Args:
        model: the model with the weights of the beginning (its `parameters()` were the optimizer's), or the parameters
            in the optimizer's order. They are changed in place.
        log: a `ReplayLog` or the path of one.

    Returns:
        The optimizer as it was at the end, moments and counter included.

    Raises:
        ValueError: the parameters are not those of the log.
    """
    log = log if isinstance(log, ReplayLog) else ReplayLog.load(log)
    parameters = list(model.parameters() if isinstance(model, nn.Module) else model)
    shapes = [list(p.shape) for p in parameters]
    if shapes != log.shapes:
        different = [i for i, (a, b) in enumerate(zip(shapes, log.shapes, strict=False)) if a != b][:1]
        raise ValueError(
            f"the log is of {len(log.shapes)} parameters, {len(shapes)} were given"
            + "".join(f"; number {i} has shape {shapes[i]}, not {log.shapes[i]}" for i in different)
        )
    groups, start = [], 0
    for group in log.groups:
        groups.append({**group, "params": parameters[start : start + group["params"]]})
        start += group["params"]
    optimizer: ZerothOrder = OPTIMIZERS.load(log.optimizer)(groups, **log.options)
    optimizer.steps_taken = log.first_step
    for rates, coefficients in log.steps:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if coefficients:
            optimizer.apply(Estimate(optimizer.directions(parameters), coefficients))
        optimizer.steps_taken += 1
    return optimizer
