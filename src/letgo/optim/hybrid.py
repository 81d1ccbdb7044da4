"""Hybrids: optimizers of different grades that take turns on the same parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from letgo.core.values import Seed
from letgo.optim.base import (
    IN_A_TRAINER,
    Closure,
    ClosureOptimizer,
    OptimizerProtocol,
    ParamsT,
    adapt,
    as_float,
    check_choice,
    check_number,
)
from letgo.optim.engine.inner import follow, inner_optimizer


@dataclass
class Turn:
    """One phase: the optimizer, its steps a turn, and its rate as a multiple of the hybrid's own."""

    optimizer: torch.optim.Optimizer
    steps: int
    rate: float

    @property
    def phase(self) -> str:
        return adapt(self.optimizer).phase


class Phases(ClosureOptimizer):
    r"""Any number of optimizers taking turns on the same parameters, over and over, in the order given.

    .. code-block:: text

        input: optimizers P_1 .. P_k with n_1 .. n_k steps a turn and rates r_1 .. r_k
        repeat
            for j = 1 .. k:  n_j steps of P_j at the rate r_j (lr now / lr at the start)

    Every optimizer keeps its own moments, untouched while others have their turn (`moments="keep"`), or starts each
    turn without any (`moments="reset"`). Kept moments of a first-order optimizer are as old as the turns between; the
    method's paper does not say which it does.

    Args:
        params: parameters or groups. A group's own settings (`weight_decay`, ...) go to each optimizer that has them.
        phases: (name in the catalog, steps a turn, settings) for each; settings must hold `lr`.
        lr: the rate that schedulers see and change: each optimizer's own rate is multiplied by lr now / lr at the
            start. None takes the first phase's rate.
        moments: `keep` or `reset`.
    """

    def __init__(
        self,
        params: ParamsT,
        phases: Sequence[tuple[str, int, Mapping[str, Any]]],
        *,
        lr: float | None = None,
        moments: Literal["keep", "reset"] = "keep",
    ) -> None:
        if not phases:
            raise ValueError("phases is empty: a hybrid needs at least one optimizer")
        for name, steps, settings in phases:
            if "lr" not in settings:
                raise ValueError(f"the settings of phase {name!r} must hold its lr")
            check_number(f"lr of {name}", settings["lr"])
            check_number(f"steps of {name}", steps, low=1)
        check_choice("moments", moments, ("keep", "reset"))
        lr = phases[0][2]["lr"] if lr is None else lr
        check_number("lr", lr)
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            group["start_lr"] = group["lr"]
        self.moments = moments
        self.steps_taken = 0
        self._asked = False
        self.turns = [self._turn(name, int(steps), dict(settings)) for name, steps, settings in phases]

    def _turn(self, name: str, steps: int, settings: dict[str, Any]) -> Turn:
        return Turn(inner_optimizer(name, self.param_groups, settings), steps, settings["lr"])

    @property
    def cycle(self) -> int:
        """Steps of one turn of all the optimizers."""
        return sum(turn.steps for turn in self.turns)

    @property
    def turn(self) -> Turn:
        """Whose turn the next step is."""
        step = self.steps_taken % self.cycle
        for turn in self.turns:
            if step < turn.steps:
                return turn
            step -= turn.steps
        raise AssertionError("a place in the cycle lies in one of its turns")

    @property
    def phase(self) -> str:
        return self.turn.phase

    @property
    def needs_closure(self) -> bool:
        # Whoever asks knows that some steps need one.
        self._asked = True
        return adapt(self.turn.optimizer).needs_closure

    @property
    def at_work(self) -> OptimizerProtocol:
        return adapt(self.turn.optimizer).at_work

    def children(self) -> list[torch.optim.Optimizer]:
        return [turn.optimizer for turn in self.turns]

    def prepare(self, closure: Closure) -> None:
        # The others when it is their turn.
        follow(self.turn.optimizer, self)
        adapt(self.turn.optimizer).prepare(closure)

    def fit_total_steps(self, n: int) -> int:
        """The smallest number of steps >= n after which the last optimizer has just had a whole turn."""
        return -(-n // self.cycle) * self.cycle

    def step(self, closure: Closure | None = None) -> Any:
        """One step of the optimizer whose turn it is; its `step` says what it needs and returns.

        Raises:
            ValueError: there is no closure, and the loop has never asked `needs_closure`: a later step would fail.
        """
        turn = self.turn
        if closure is None and not self._asked:
            self._check_that_none_is_needed()
        follow(turn.optimizer, self)
        if self.moments == "reset" and self._turn_begins():
            turn.optimizer.state.clear()
        for outer, inner in zip(self.param_groups, turn.optimizer.param_groups, strict=True):
            start = float(outer["start_lr"])
            inner["lr"] = turn.rate * (float(outer["lr"]) / start if start else 1.0)
        loss = turn.optimizer.step() if closure is None else turn.optimizer.step(closure)
        self.last_losses = adapt(turn.optimizer).last_losses or ([] if loss is None else [as_float(loss)])
        self.steps_taken += 1
        return loss

    def _check_that_none_is_needed(self) -> None:
        for number, each in enumerate(self.turns):
            if adapt(each.optimizer).needs_closure:
                first = sum(turn.steps for turn in self.turns[:number]) + 1
                raise ValueError(
                    f"{type(self).__name__} takes steps of {type(each.optimizer).__name__} from step {first} on, which "
                    f"need a closure: call step(closure), or ask `needs_closure` before each step\n  {IN_A_TRAINER}"
                )

    def _turn_begins(self) -> bool:
        step = self.steps_taken % self.cycle
        starts = [sum(t.steps for t in self.turns[:i]) for i in range(len(self.turns))]
        return step in starts

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "turns" in vars(self):
            raise ValueError("a hybrid's parameters are fixed when it is made: give all groups to the constructor")
        super().add_param_group(param_group)

    def extra_state(self) -> dict[str, Any]:
        for turn in self.turns:
            follow(turn.optimizer, self)
        return {"steps_taken": self.steps_taken, "optimizers": [t.optimizer.state_dict() for t in self.turns]}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self.steps_taken = int(extra.get("steps_taken", 0))
        inner = extra.get("optimizers", [])
        if len(inner) != len(self.turns):
            raise ValueError(f"the state is of {len(inner)} optimizers taking turns, this hybrid has {len(self.turns)}")
        for turn, state in zip(self.turns, inner, strict=True):
            follow(turn.optimizer, self)
            turn.optimizer.load_state_dict(state)


class FOZO(Phases):
    r"""The hybrid of first and zeroth order: N first-order steps, then M zeroth-order steps, repeated.

    .. code-block:: text

        input: first-order P (lr, N steps), zeroth-order Z (zo_lr, M steps)
        repeat
            N times:  x = step of P with grad f(x)                       at lr now
            M times:  x = step of Z with the estimate of grad f(x)       at zo_lr (lr now / lr at the start)

    A run should end on a whole zeroth-order round: `fit_total_steps(n)` is the number of steps to plan for.
    `lr` is the first-order rate and the one that schedulers change; the zeroth-order rate follows it in proportion.

    Source: the hybrid of "Downgrade to Upgrade" (arXiv 2510.00761): Adam and AdaZO with 20 + 20 steps. What it does
    not state (mu, q, rates, whether moments outlive a switch) is ours: the defaults here, and `moments="keep"`.

    Args:
        params: parameters or groups.
        lr: first-order rate.
        zo_lr: zeroth-order rate. The default is of the size that moved the loss of models of 1 to 135 million
            parameters with AdaZO; zo_sgd wants far smaller ones.
        fo: name of the first-order optimizer in the catalog (any grade that takes gradients).
        zo: name of the zeroth-order optimizer in the catalog.
        fo_steps: N.
        zo_steps: M.
        mu: of the zeroth-order optimizer: perturbation per coordinate.
        num_directions: of the zeroth-order optimizer: q.
        weight_decay: of both.
        fo_options: more settings of the first-order optimizer.
        zo_options: more settings of the zeroth-order optimizer.
        moments: `keep` or `reset`, see `Phases`.
        seed: of the zeroth-order noise.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        zo_lr: float = 3e-5,
        fo: str = "adamw",
        zo: str = "ada_zo",
        fo_steps: int = 20,
        zo_steps: int = 20,
        mu: float = 1e-3,
        num_directions: int = 1,
        weight_decay: float = 0.0,
        fo_options: Mapping[str, Any] | None = None,
        zo_options: Mapping[str, Any] | None = None,
        moments: Literal["keep", "reset"] = "keep",
        seed: Seed = 0,
    ) -> None:
        first = {"weight_decay": weight_decay, **(fo_options or {}), "lr": lr}
        zeroth = {
            "mu": mu,
            "num_directions": num_directions,
            "weight_decay": weight_decay,
            "seed": seed,
            **(zo_options or {}),
            "lr": zo_lr,
        }
        super().__init__(params, [(fo, fo_steps, first), (zo, zo_steps, zeroth)], lr=lr, moments=moments)
        if self.turns[0].phase != "first_order":
            raise ValueError(f"fo must be a first-order optimizer, {fo!r} is not")
        if self.turns[1].phase != "zeroth_order":
            raise ValueError(f"zo must be a zeroth-order optimizer, {zo!r} is not")

    @property
    def fo(self) -> torch.optim.Optimizer:
        """The first-order optimizer."""
        return self.turns[0].optimizer

    @property
    def zo(self) -> torch.optim.Optimizer:
        """The zeroth-order optimizer."""
        return self.turns[1].optimizer
