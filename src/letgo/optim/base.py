"""What every optimizer of this package obeys: one closure for every grade.

    def closure():
        optimizer.zero_grad()
        loss = compute_loss()
        if loss.requires_grad:
            loss.backward()
        return loss

A first-order step runs the closure with gradients enabled, a zeroth-order step without. An optimizer that can also
steps without a closure, from `.grad`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

IN_A_TRAINER = "in transformers' Trainer, and TRL's: letgo.closure_trainer(Trainer); see docs/other-loops.md"
"""The way out where a loop gives no closure."""
Closure = Callable[[], Any]
HessianClosure = Callable[[torch.Generator], tuple[Tensor, int]]
ParamsT = Iterable[Any]


class OptimizerProtocol:
    """What a training loop, an attack, the planner or a hybrid may ask of any optimizer, on top of torch's.

    `needs_closure`   whether the next step must be given a closure.
    `phase`           "first_order" or "zeroth_order": how the next step runs it.
    `at_work`         the optimizer that runs the closure of the next step: this one, or one inside it.
    `combines`        whether a step makes its gradient from the gradients of several closures.
    `asks_for_terms`  whether it calls closures for the terms of the loss: `closure(part="forget")`, `"retain"`.
    `children`        the optimizers that it hands its steps to.
    `last_losses`     the losses that the last step evaluated, in order.
    `costly_every`    every so many steps one costs more than the others.
    `fit_total_steps` the number of steps to plan for when about n are wanted.
    `attach`          to be called before the first step, with the model.
    `use_labels`      to be called before the first step, with the loss of labels drawn from the model.
    `prepare`         to be called before each step, with its closure: what a step would else evaluate beforehand.
    `notes`           what a record of the run is to say of the optimizer.
    `finish`          to be called after the last step; most do nothing.
    `finished`        within it, the weights are those that `finish` would leave now.
    `check_shards`    raises where the optimizer can't step parameters that FSDP2 has sharded.

    The defaults are those of an optimizer that takes one gradient a step, as torch's own do: `adapt` answers with them
    for an optimizer that does not know the protocol.
    """

    last_losses: list[float]
    combines = False

    @property
    def needs_closure(self) -> bool:
        return False

    @property
    def phase(self) -> str:
        return "first_order"

    @property
    def at_work(self) -> OptimizerProtocol:
        return self

    @property
    def asks_for_terms(self) -> bool:
        return any(adapt(inner).asks_for_terms for inner in self.children())

    @property
    def costly_every(self) -> int:
        return 1

    def children(self) -> list[torch.optim.Optimizer]:
        return []

    def fit_total_steps(self, n: int) -> int:
        """The smallest number of steps >= n at which a run may end."""
        return n

    def attach(self, model: Any) -> None:
        """Take the model whose parameters are stepped, where more than the parameters matters, here or inside."""
        for inner in self.children():
            adapt(inner).attach(model)

    def use_labels(self, hessian_closure: HessianClosure) -> None:
        """Take a function of a generator that returns the mean cross-entropy of labels drawn from the model, and their
        number, for an estimate that needs it, here or inside."""
        for inner in self.children():
            adapt(inner).use_labels(hessian_closure)

    def prepare(self, closure: Closure) -> None:
        """Do now what the next step would else do first, and is no part of it: a search for the rate, say. Most do
        nothing."""
        for inner in self.children():
            adapt(inner).prepare(closure)

    def notes(self) -> list[str]:
        """What a record of the run is to say, after the last step."""
        return [note for inner in self.children() for note in adapt(inner).notes()]

    def finish(self) -> None:
        """To be called once after the last step: leaves the weights that the run is to end with (averages, say)."""

    def finished(self) -> AbstractContextManager[None]:
        """Within: the weights are those that `finish` would leave now, to look at them. After: as they were, bit for
        bit."""
        return nullcontext()

    def check_shards(self) -> None:
        """Raise a ValueError if this optimizer can't step parameters in shards; its steps ask too."""

    def extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds under "letgo"."""
        return {}


class ClosureOptimizer(OptimizerProtocol, torch.optim.Optimizer):
    """Base of the optimizers here: a torch optimizer that knows the protocol.

    State dicts hold tensors, numbers, strings, lists and dicts only; what torch's own do not know (counters, seeds,
    inner optimizers) is under the key "letgo".
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self.last_losses = []

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["letgo"] = self.extra_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.load_extra_state(state_dict.get("letgo", {}))

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps defaults, state and groups only, so that a copied or pickled optimizer would lose our settings.
        # Hooks and a scheduler's wrapper around `step` stay behind, as they do in torch.
        kept = {k: v for k, v in self.__dict__.items() if not k.startswith("_optimizer_") and k != "step"}
        return {**kept, **super().__getstate__()}

    def _loss_with_grad(self, closure: Closure | None, part: str | None = None) -> Any:
        """Run a closure with gradients enabled, for the whole loss or a term of it, and note the loss; None without a
        closure."""
        if closure is None:
            return None
        with torch.enable_grad():
            loss = closure() if part is None else closure(part=part)  # type: ignore[call-arg]
        self.last_losses = [] if loss is None else [as_float(loss)]
        return loss


class _Adapted(OptimizerProtocol):
    """The protocol for an optimizer of torch's or another library's. One whose `step` can't do without a closure
    (L-BFGS) is given one; one that holds other weights while it trains (schedule-free ones, by `train` and `eval`) is
    told when."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.last_losses = []
        self._optimizer = optimizer
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        self._needs_closure = closure is not None and closure.default is inspect.Parameter.empty

    @property
    def needs_closure(self) -> bool:
        return self._needs_closure

    def attach(self, model: Any) -> None:
        self._turn("train")

    def finish(self) -> None:
        self._turn("eval")

    @contextmanager
    def finished(self) -> Iterator[None]:
        self._turn("eval")
        try:
            yield
        finally:
            self._turn("train")

    def _turn(self, mode: str) -> None:
        turn = getattr(self._optimizer, mode, None)
        if callable(turn):
            turn()


def adapt(optimizer: torch.optim.Optimizer) -> OptimizerProtocol:
    """The protocol of any optimizer, also of one that accelerate has wrapped."""
    inside = unwrapped(optimizer)
    return inside if isinstance(inside, OptimizerProtocol) else _Adapted(inside)


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer itself, without accelerate's wrapper, which keeps it as `optimizer`."""
    if isinstance(optimizer, OptimizerProtocol):
        return optimizer
    inside = getattr(optimizer, "optimizer", None)
    return inside if isinstance(inside, torch.optim.Optimizer) else optimizer


def inner_optimizers(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers that an optimizer hands its steps to: those that take turns, or the one that it wraps."""
    return adapt(optimizer).children()


def every_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """An optimizer and the optimizers inside it, at any depth."""
    yield optimizer
    for inner in inner_optimizers(optimizer):
        yield from every_optimizer(inner)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that an optimizer, and those within it, keep."""
    sizes: dict[int, int] = {}
    for inner in every_optimizer(optimizer):
        # What torch does not know of (averages, directions) is in the extra state.
        for leaf in tree_leaves((list(inner.state.values()), adapt(inner).extra_state())):
            if isinstance(leaf, Tensor):
                sizes.setdefault(leaf.data_ptr(), leaf.nbytes)
    return sum(sizes.values())


def as_float(loss: Any) -> float:
    """A closure's loss, tensor or number, as a float."""
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters in the order of the groups, frozen ones too."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters that are not frozen, in the order of the groups."""
    return [p for p in parameters_of(optimizer) if p.requires_grad]


def state_like(state: dict[str, Any], key: str, parameter: Tensor) -> Tensor:
    """The state of a name, made of zeros like the parameter when first asked for."""
    if key not in state:
        state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    value: Tensor = state[key]
    if value.is_contiguous() != parameter.is_contiguous():  # loaded from a run where it was laid out otherwise
        value = state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value


def check_number(name: str, value: float, *, low: float = 0.0, high: float = math.inf, open_low: bool = False) -> None:
    """Raise a ValueError unless low <= value < high, or low < value if `open_low`."""
    if not (low < value < high if open_low else low <= value < high):
        sign, rest = (">" if open_low else ">="), (f" and < {high}" if high < math.inf else " and finite")
        raise ValueError(f"{name} must be {sign} {low}{rest}, not {value}")


def check_betas(name: str, betas: Iterable[float]) -> None:
    """Raise a ValueError unless every beta is >= 0 and < 1."""
    for i, beta in enumerate(betas):
        check_number(f"{name}[{i}]", beta, high=1.0)


def given_closure(closure: Closure | None, why: str) -> Closure:
    """The closure of a step that can't do without one; a ValueError where there is none."""
    if closure is None:
        raise ValueError(f"{why}: step(closure) needs a closure\n  {IN_A_TRAINER}")
    return closure


def check_takes_part(closure: Closure, who: str) -> None:
    """Raise a ValueError unless a closure can be asked for a term of the loss."""
    parameters = inspect.signature(closure).parameters.values()
    if not any(p.name == "part" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        raise ValueError(f"{who} needs a closure that can be called with part='forget' and part='retain'")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise a ValueError unless the value is one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
