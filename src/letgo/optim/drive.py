"""Drive an optimizer of any grade: one closure for all of them, and one place that says who clips.

A step's gradient is clipped once, when it is whole: in the closure where the step takes one gradient, and just before
the base's step where a smoothing optimizer makes its gradient from several closures'. Whoever lets an optimizer step
from `.grad`, without a closure, clips before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from letgo.optim.base import Closure, HessianClosure, adapt, every_optimizer, inner_optimizers, parameters_of
from letgo.optim.second_order import gnb_loss

Clip = Callable[[list[Tensor]], Any]
Evaluate = Callable[[str | None], Tensor]
"""Computes the loss, or the term of it that the argument names, and where gradients are enabled its gradient; returns
the loss, detached."""


class Drive:
    """An optimizer, prepared for its first step.

    Args:
        optimizer: of any grade, the catalog's or another.
        model: whose parameters it steps.
        clip: clips the gradients of the parameters that it is given, in place.
        labels: for second-order estimates, the loss of labels drawn from the model (`sampled_labels_loss`).
        clip_parts: clip the gradient of every closure, also where a smoothing optimizer makes its gradient from
            several.

    Attributes:
        protocol: what may be asked of the optimizer.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: Any,
        clip: Clip,
        labels: HessianClosure,
        *,
        clip_parts: bool = False,
    ) -> None:
        self.optimizer, self.clip, self.clip_parts = optimizer, clip, clip_parts
        self.protocol = adapt(optimizer)
        self.protocol.attach(model)
        self.protocol.use_labels(labels)
        for outer in every_optimizer(optimizer):
            if adapt(outer).combines and not clip_parts:
                for inner in inner_optimizers(outer):
                    inner.register_step_pre_hook(self._clip_before_step)

    def closure(self, evaluate: Evaluate) -> Closure:
        """The closure of one step."""

        def closure(part: str | None = None) -> Tensor:
            self.optimizer.zero_grad()
            loss = evaluate(part)
            if torch.is_grad_enabled() and (self.clip_parts or not self.protocol.at_work.combines):
                self.clip(parameters_of(self.optimizer))
            return loss

        return closure

    def _clip_before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.clip(parameters_of(optimizer))


def sampled_labels_loss(model: Any, batch: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int]:
    """For Sophia's Gauss-Newton-Bartlett estimate: the mean cross-entropy of labels drawn from a causal LM at the label
    positions of a batch, and their number."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return gnb_loss(logits[:, :-1], batch["labels"][:, 1:], generator)
