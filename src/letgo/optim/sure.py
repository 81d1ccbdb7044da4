"""SURE: a base moves only the weights that the forget term leans on most, so that its rate can be large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from letgo.core.values import Natural, Within
from letgo.optim.base import (
    Closure,
    ParamsT,
    adapt,
    check_choice,
    check_takes_part,
    every_optimizer,
    given_closure,
    trained_parameters,
)
from letgo.optim.engine.inner import PassingWrapper

Unit = Literal["row", "tensor", "weight"]


class Sure(PassingWrapper):
    r"""Any optimizer that steps from gradients, on the salient units of the parameters alone.

    .. code-block:: text

        input: base optimizer B, share k, unit: a row of a parameter, a parameter or a weight
        at the first step (and every n-th):
            g = grad f_forget(x);   s_i = |g_i| for each unit i of all parameters, the Euclidean norm
            m_i = 1 for the share k of the units with the largest s_i, else 0
        every step:  x = m (step of B) + (1 - m) x

    Source: Zhang et al., Catastrophic Failure of LLM Unlearning via Quantization (arXiv 2410.16454), section "SURE": a
    large rate, so that the change outlives rounding, on salient units alone. Its public code has rows as units (1 in 10
    or 1 in 100), renews m at each step (`every=1`), multiplies gradients by it, and does so in a method that
    transformers' Trainer does not call. Here the update is multiplied, so that momentum and weight decay move nothing
    that is not salient either. `unit="weight"` is SalUn's mask (arXiv 2310.12508).

    Args:
        params: parameters or groups.
        lr: the base's rate.
        base: name in the catalog of an optimizer that computes gradients.
        keep: k, above 0 to 1. A unit without any gradient is never salient.
        unit: `row` (along the first dimension, an output neuron of a linear layer), `tensor` or `weight`.
        every: n, steps between two masks; 0 to keep the first.
        weight_decay: of the base.
        base_options: more settings of the base.

    A step that makes a mask needs a closure that can be asked for its forget term, `closure(part="forget")`, which it
    evaluates once more, on the rows of that step. With `keep=1` it is the base, as long as every unit has a gradient.
    The masks are kept: a byte for each unit. While a step is made, the weights are there twice. `salient` is the share
    of the units, by weights.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        *,
        base: str = "adamw",
        keep: Annotated[float, Within(0, 1, above=True)] = 0.1,
        unit: Unit = "row",
        every: Natural = 0,
        weight_decay: float = 0.0,
        base_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, not {keep}")
        check_choice("unit", unit, ("row", "tensor", "weight"))
        super().__init__(params, lr, base, base_options, weight_decay)
        leaves = [o for o in every_optimizer(self.base) if not adapt(o).children()]
        if all(adapt(leaf).phase == "zeroth_order" for leaf in leaves):
            raise ValueError(f"base must be an optimizer that computes gradients, {base!r} does not")
        self.keep, self.unit, self.every = keep, unit, int(every)
        self.steps_taken = 0
        self.masks: list[Tensor] = []

    @property
    def due(self) -> bool:
        """Whether the next step makes a mask."""
        return not self.masks or bool(self.every and self.steps_taken % self.every == 0)

    @property
    def needs_closure(self) -> bool:
        return self.due or super().needs_closure

    @property
    def salient(self) -> float:
        """The share of the trained weights that the base moves."""
        parameters = trained_parameters(self)
        moved = sum(int(m.expand_as(p).sum()) for m, p in zip(self.masks, parameters, strict=True))
        return moved / sum(p.numel() for p in parameters)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step of the base on the salient units; its `step` says what it needs and returns.

        Raises:
            ValueError: a mask is to be made and there is no closure, or it takes no `part`.
        """
        parameters = trained_parameters(self)
        if self.due:
            closure = given_closure(closure, "Sure makes a mask in this step")
            check_takes_part(closure, "Sure")
            self.masks = self._masks(closure, parameters)
        kept = [None if bool(m.all()) else p.clone() for m, p in zip(self.masks, parameters, strict=True)]
        loss = super().step(closure)
        for p, before, mask in zip(parameters, kept, self.masks, strict=True):
            if before is not None:
                p.copy_(torch.where(mask, p, before))
        self.steps_taken += 1
        return loss

    def _masks(self, closure: Closure, parameters: list[Tensor]) -> list[Tensor]:
        """Which units are salient: of each parameter, a mask that broadcasts to its shape."""
        self._loss_with_grad(closure, "forget")
        scores = [self._scores(torch.zeros_like(p) if p.grad is None else p.grad) for p in parameters]
        for p in parameters:
            p.grad = None
        all_scores = torch.cat([score.flatten() for score in scores])
        count = max(1, round(self.keep * len(all_scores)))
        least = all_scores.kthvalue(len(all_scores) - count + 1).values
        return [(score >= least) & (score > 0) for score in scores]

    def _scores(self, gradient: Tensor) -> Tensor:
        g = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        if self.unit == "weight" or g.dim() == 0:
            return g.abs()
        if self.unit == "tensor":
            return torch.linalg.vector_norm(g)
        others = tuple(range(1, g.dim()))
        return torch.linalg.vector_norm(g, dim=others, keepdim=True) if others else g.abs()

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "steps_taken": self.steps_taken, "masks": list(self.masks)}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        super().load_extra_state(extra)
        self.steps_taken = int(extra.get("steps_taken", 0))
        masks = zip(extra.get("masks", []), trained_parameters(self), strict=False)
        self.masks = [mask.detach().clone().to(p.device) for mask, p in masks]
