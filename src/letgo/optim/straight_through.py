"""Descent on what the weights will be after rounding: straight through the rounding, beside the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from torch import Tensor

from letgo.core.values import Natural, Within
from letgo.optim.base import Closure, ParamsT, check_number
from letgo.optim.engine.rounding import make_grid
from letgo.optim.engine.shards import local
from letgo.optim.smoothing import GradientSmoothing, SmoothedTerm, weights_at


class StraightThrough(GradientSmoothing):
    r"""The gradient at the rounded weights is added to that at the weights.

    .. code-block:: text

        input: base optimizer B, alpha, warmup w, ramp r, bits b
        Q(x): each matrix rounded to nearest on 2^b levels, a scale for each row or group, s = max|x| / (2^(b-1) - 1)
        alpha_t = 0 up to step w, then alpha (t - w) / r up to step w + r, then alpha
        on the forget term:  step of B with  grad f_f(x) + alpha_t grad f_f(Q(x)) + grad f_r(x)
        on the loss:         step of B with  grad f(x) + alpha_t grad f(Q(x))

    The gradient at Q(x) is taken as that of x: rounding is passed straight through (arXiv 1308.3432).

    Source: DurableUn (arXiv 2605.02196), with alpha = 3, 100 steps of warm-up and 100 of growth, and the retain term
    weighted by alpha + 1. Its code rounds adapters alone; here every matrix is rounded.

    Args:
        params: parameters or groups.
        lr: the base's rate.
        base: name in the catalog of an optimizer that steps from gradients.
        alpha: the weight of the gradient at the rounded weights.
        warmup, ramp: steps without it, and steps in which its weight grows.
        bits: 2 to 8.
        group_size: weights of a row that share a scale; 0 for the whole row.
        on: `forget` or `loss`.
        weight_decay: of the base.
        base_options: more settings of the base.

    The weights are put back from a copy, bit for bit.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        base: str = "adamw",
        alpha: float = 3.0,
        warmup: Natural = 0,
        ramp: Natural = 0,
        bits: Annotated[int, Within(2, 8)] = 4,
        group_size: Natural = 0,
        on: SmoothedTerm = "forget",
        weight_decay: float = 0.0,
        base_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_number("alpha", alpha)
        super().__init__(params, lr, base, base_options, weight_decay, on)
        self.alpha, self.warmup, self.ramp, self.bits, self.group_size = alpha, warmup, ramp, bits, group_size
        self.steps_taken = 0

    def smoothed(self, closure: Closure, parameters: list[Tensor]) -> tuple[Any, list[Tensor | None]]:
        loss, gradients = self.gradient(closure, parameters, self.part)
        self.steps_taken += 1
        weight = self.weight_at(self.steps_taken)
        if weight == 0:
            return loss, gradients
        with weights_at(parameters, [self.rounded(p) for p in parameters]):
            _, through = self.gradient(closure, parameters, self.part)
        for g, t in zip(gradients, through, strict=True):
            if g is not None and t is not None:
                g.add_(t, alpha=weight)
        return loss, gradients

    def weight_at(self, step: int) -> float:
        """alpha_t of step 1, 2, ..."""
        grown = 1.0 if self.ramp == 0 else min(1.0, (step - self.warmup) / self.ramp)
        return self.alpha * grown if step > self.warmup else 0.0

    def rounded(self, parameter: Tensor) -> Tensor:
        """Q of a matrix; other parameters as they are. Of shards, which hold whole rows, this rank's rows."""
        weight = local(parameter).detach()
        if parameter.dim() != 2 or weight.numel() == 0:
            return weight
        kind: Literal["group", "channel"] = "group" if self.group_size else "channel"
        grid = make_grid(weight, bits=self.bits, granularity=kind, group_size=self.group_size or 1)
        return grid.values(grid.index(weight)).to(weight.dtype)

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "steps_taken": self.steps_taken}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        super().load_extra_state(extra)
        self.steps_taken = int(extra.get("steps_taken", 0))
