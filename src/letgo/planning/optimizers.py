"""What an optimizer costs, measured by a few of its steps on a few small tensors: memory in multiples of the trained
parameters, evaluations a step. So the plan of every optimizer of the catalog, and of hybrids, follows what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letgo.core.catalog import settings_of
from letgo.optim import OPTIMIZERS, create_optimizer
from letgo.optim.base import adapt, state_bytes
from letgo.planning.tracing import MemoryTally

_SIDE = 128
_MOST_STEPS = 64


@dataclass(frozen=True)
class OptimizerCost:
    """Memory in multiples of the trained parameters' bytes, but for `largest`, of the largest of them."""

    state: float
    """Kept between steps."""
    held: float
    """Alive, beside the state, while the loss is evaluated: copies of weights, gradients of other evaluations."""
    step: float
    """Alive at most while it steps, beside state and gradients; in multiples of all parameters."""
    largest: float
    """The same in multiples of the largest parameter, on top."""
    forwards: float
    """Evaluations of the loss without a gradient, a step on average."""
    backwards: float
    """Evaluations of the loss with a gradient, a step on average."""
    at_once: int
    """Most evaluations that run as one batch."""


def optimizer_cost(
    name: str, settings: Mapping[str, Any], dtype: torch.dtype, *, no_matrices: float = 0.0
) -> OptimizerCost:
    """What it costs where `no_matrices` of the trained bytes are of embeddings, output heads and vectors, of which some
    optimizers keep another state than of matrices.

    Raises a `UserError` for settings that the optimizer has not.
    """
    known = settings_of(OPTIMIZERS.load(name))
    # Averages of weights begin at once here: at the end of a run they are there in any case.
    soon: dict[str, Any] = {key: 1 for key in ("start", "every") if key in known}
    few, many = (_try(name, {**settings, **soon}, dtype, count) for count in (4, 8))
    vector = _try(name, {**settings, **soon}, dtype, 1, shape=(_SIDE * _SIDE,)) if no_matrices else {"state": 0.0}
    # What grows with the number of tensors is a multiple of all; the rest is a multiple of one.
    slope = max(0.0, (many["step"] - few["step"]) / 4)
    return OptimizerCost(
        state=(1 - no_matrices) * many["state"] / 8 + no_matrices * vector["state"],
        held=many["held"] / 8,
        step=slope,
        largest=max(0.0, few["step"] - 4 * slope),
        forwards=many["forwards"],
        backwards=many["backwards"],
        at_once=int(many["at_once"]),
    )


def _try(
    name: str, settings: Mapping[str, Any], dtype: torch.dtype, count: int, *, shape: tuple[int, ...] = (_SIDE, _SIDE)
) -> dict[str, float]:
    """Steps on `count` tensors of a shape: bytes in multiples of one of them."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for _ in range(count)]
    unit = parameters[0].nbytes
    optimizer = create_optimizer(name, parameters, **settings)
    protocol = adapt(optimizer)
    protocol.use_labels(lambda generator: (_loss(parameters), 8))
    tally = MemoryTally(parameters)
    most = {"state": 0.0, "held": 0.0, "step": 0.0, "at_once": 1.0}
    calls = {True: 0, False: 0}
    base = batched = 0

    def closure(part: str | None = None) -> Tensor:
        calls[torch.is_grad_enabled()] += 1
        most["held"] = max(most["held"], (tally.now - base) / unit)
        optimizer.zero_grad()
        before, tally.peak = tally.peak, tally.now
        loss = _loss(parameters)
        if loss.requires_grad:
            loss.backward()
        # The plan counts the evaluation itself with the model.
        tally.peak = max(before, tally.now)
        return loss.detach()

    total = min(_MOST_STEPS, max(4, protocol.fit_total_steps(1), 2 * protocol.costly_every))
    total = protocol.fit_total_steps(total)
    with tally:
        for _ in range(total):
            base = tally.now
            if protocol.needs_closure:
                counted = dict(calls)
                protocol.prepare(closure)
                calls.update(counted)
                tally.peak = tally.now
                before = calls[False]
                optimizer.step(closure)  # type: ignore[arg-type]
                forwards, losses = calls[False] - before, len(protocol.last_losses)
                if forwards and losses > forwards:
                    # One pass over a batch of evaluations.
                    batched += losses - forwards
                    most["at_once"] = max(most["at_once"], losses / forwards)
            else:
                optimizer.zero_grad()
                _loss(parameters).backward()
                calls[True] += 1
                tally.peak = tally.now
                optimizer.step()
            kept = state_bytes(optimizer)
            most["step"] = max(most["step"], (tally.peak - base) / unit - max(0.0, kept / unit - most["state"]))
            most["state"] = max(most["state"], kept / unit)
            optimizer.zero_grad()
    return most | {"forwards": (calls[False] + batched) / total, "backwards": calls[True] / total}


def _loss(parameters: list[torch.nn.Parameter]) -> Tensor:
    """Anything that reads every parameter and keeps next to nothing."""
    return torch.stack([parameter.flatten()[:1].float().square().sum() for parameter in parameters]).sum()
