"""The data of the one-shot methods, and the plain fine-tuning that two of them start with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letgo.core.errors import NonFiniteLossError, UserError
from letgo.data.encode import Encoded
from letgo.data.pairs import generator_of, pad_rows
from letgo.objectives.likelihood import Part

Batches = Callable[[int], Iterable[Part]]
"""A function of a batch size: the rows of a data set as parts on the model's device, in order, from the start."""


@dataclass(frozen=True)
class Data:
    """The forget and the retain set, and where progress and notes go."""

    forget: Batches
    retain: Batches | None = None
    advance: Callable[[str, int], None] = lambda what, rows: None
    """Called with what is being done, and with the number of rows just done."""
    say: Callable[[str], None] = lambda text: None
    """Called with notes on the result."""


def batches_of(rows: Sequence[Encoded], pad_id: int, device: torch.device | str = "cpu") -> Batches:
    """The batches of encoded rows."""

    def batches(size: int) -> Iterator[Part]:
        for start in range(0, len(rows), size):
            part = pad_rows(rows[start : start + size], pad_id)
            part["index"] = torch.arange(start, start + len(part["labels"]))
            yield {key: value.to(device) for key, value in part.items()}

    return batches


def fine_tune(
    model: Any,
    batches: Batches,
    loss_of: Callable[[Any, Part], Tensor],
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Plain fine-tuning in place: AdamW without decay, constant rate, gradients clipped to norm 1, the batches in
    another order each epoch.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
    """
    parameters = trained(model)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    was_training = model.training
    model.eval()  # no dropout
    try:
        for epoch in range(epochs):
            parts = list(batches(batch_size))
            for index in torch.randperm(len(parts), generator=generator_of(seed, epoch)).tolist():
                optimizer.zero_grad()
                loss = loss_of(model, parts[index])
                if not math.isfinite(float(loss.detach())):
                    raise NonFiniteLossError(f"the loss is not finite while fine-tuning, in epoch {epoch + 1}")
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                advance(len(parts[index]["labels"]))
    finally:
        optimizer.zero_grad()
        model.train(was_training)


def trained(model: Any) -> list[torch.nn.Parameter]:
    """The parameters that are trained."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("the model has no trainable parameter")
    return parameters


def relative_length(change: Iterable[Tensor], parameters: Iterable[Tensor]) -> float:
    """‖Δθ‖ / ‖θ‖."""
    lengths = [
        math.sqrt(math.fsum(float(t.detach().norm(dtype=torch.promote_types(t.dtype, torch.float32))) ** 2 for t in ts))
        for ts in (change, parameters)
    ]
    return lengths[0] / lengths[1] if lengths[1] else math.inf


def rows_in(batches: Batches) -> int:
    """The number of rows of a data set."""
    return sum(len(part["labels"]) for part in batches(64))
