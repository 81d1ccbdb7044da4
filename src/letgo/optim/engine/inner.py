"""Optimizers inside optimizers: made by name, on the parameters and groups of the one around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from letgo.core.catalog import settings_of
from letgo.core.errors import located
from letgo.optim.base import Closure, ClosureOptimizer, OptimizerProtocol, ParamsT, adapt, as_float, check_number
from letgo.optim.registry import OPTIMIZERS, refuse_shards


def inner_optimizer(
    name: str, outer_groups: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Make an optimizer of the catalog on the parameters of another's groups.

    A group's own settings (`weight_decay`, ...) override `settings` where the optimizer knows them. Rates do not: the
    outer optimizer sets them before each step.

    Raises:
        UserError: the name or a setting is unknown.
    """
    OPTIMIZERS.check_settings(name, settings)
    make = OPTIMIZERS.load(name)
    known = set(settings_of(make)) - {"lr"}
    groups = [{k: v for k, v in group.items() if k == "params" or k in known} for group in outer_groups]
    optimizer: torch.optim.Optimizer = make(groups, **settings)
    refuse_shards(name, optimizer)
    return optimizer


def follow(inner: torch.optim.Optimizer, outer: torch.optim.Optimizer) -> None:
    """Give an optimizer inside another the parameters that the other has now.

    accelerate puts FSDP2's shards in the place of an optimizer's parameters after it was made, and does not look for
    optimizers inside it.
    """
    for group, outer_group in zip(inner.param_groups, outer.param_groups, strict=True):
        pairs = list(zip(group["params"], outer_group["params"], strict=True))
        if all(before is now for before, now in pairs):
            continue
        for before, now in pairs:
            if before is not now and before in inner.state:
                inner.state[now] = inner.state.pop(before)
        group["params"] = list(outer_group["params"])


class Wrapper(ClosureOptimizer):
    """Base of the optimizers that do something around each step of another on the same parameters.

    Args:
        params: parameters or groups. A group's own settings go to the base where it has them.
        lr: the base's rate; schedulers change this one.
        base: name in the catalog.
        base_options: more settings of the base.
        weight_decay: of the base.
    """

    scale = 1.0
    """What the base's rates are, in multiples of the groups' own."""

    def __init__(
        self, params: ParamsT, lr: float, base: str, base_options: Mapping[str, Any] | None, weight_decay: float
    ) -> None:
        check_number("lr", lr)
        check_number("weight_decay", weight_decay)
        super().__init__(params, {"lr": lr})
        options = {"weight_decay": weight_decay, **(base_options or {}), "lr": lr}
        with located("base, base_options" if base_options else "base"):
            self.base = inner_optimizer(base, self.param_groups, options)

    def children(self) -> list[torch.optim.Optimizer]:
        return [self.base]

    def step_base(self, *arguments: Any) -> Any:
        """One step of the base at the rates that the groups have now."""
        follow(self.base, self)
        for outer, inner in zip(self.param_groups, self.base.param_groups, strict=True):
            inner["lr"] = outer["lr"] if self.scale == 1.0 else self.scale * outer["lr"]
        return self.base.step(*arguments)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "base" in vars(self):
            raise ValueError("the parameters are fixed when a wrapper is made: give all groups to the constructor")
        super().add_param_group(param_group)

    def extra_state(self) -> dict[str, Any]:
        follow(self.base, self)
        return {"base": self.base.state_dict()}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        follow(self.base, self)
        if "base" in extra:
            self.base.load_state_dict(extra["base"])


class PassingWrapper(Wrapper):
    """Base of the wrappers that hand each step on as it comes, to a base of any grade, and do something around it."""

    @property
    def needs_closure(self) -> bool:
        return adapt(self.base).needs_closure

    @property
    def phase(self) -> str:
        return adapt(self.base).phase

    @property
    def at_work(self) -> OptimizerProtocol:
        return adapt(self.base).at_work

    def fit_total_steps(self, n: int) -> int:
        return adapt(self.base).fit_total_steps(n)

    def step(self, closure: Closure | None = None) -> Any:
        """One step of the base, whose `step` says what it needs and returns."""
        loss = self.step_base() if closure is None else self.step_base(closure)
        self.last_losses = adapt(self.base).last_losses or ([] if loss is None else [as_float(loss)])
        return loss
