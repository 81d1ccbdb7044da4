"""Zeroth-order optimizers: gradients estimated from the loss at perturbed weights, no backward pass.

`ZerothOrder` evaluates and estimates; a subclass turns an estimate into an update. What a step does to the weights is
a function of the weights, the state and a few scalars (one per direction), which is why ranks need to exchange scalars
only and why a run can be replayed from a log of kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.core.errors import NonFiniteLossError
from letgo.core.ranks_lost import rank_loss_named
from letgo.core.values import Seed
from letgo.optim.base import (
    Closure,
    ClosureOptimizer,
    ParamsT,
    as_float,
    check_choice,
    check_number,
    given_closure,
    parameters_of,
    state_like,
)
from letgo.optim.engine.low_rank import BatchedEngine, LowRankDirection, joined_factors
from letgo.optim.engine.noise import NOISE_KINDS, Block, Direction, NoiseKind, noise_dtype, rounded
from letgo.optim.engine.perturbation import InPlaceEngine, SharedDraws
from letgo.optim.engine.ranks import Ranks
from letgo.optim.engine.row_blocks import add_product, cells_of, product
from letgo.optim.engine.shards import gathering_anew, has_shards, local, piece_of

Difference = Literal["central", "forward"]
EngineKind = Literal["in_place", "saved", "batched"]


@dataclass
class Estimate:
    """A gradient estimate (1/q) sum_i c_i v_i, kept as its q coefficients and directions.

    Of a sharded tensor it is the estimate at this rank's rows.
    """

    directions: list[Direction]
    coefficients: list[float]

    def blocks(self, index: int) -> Iterator[tuple[Block, Tensor, float]]:
        """The estimate at tensor `index`: blocks, values and a factor; the estimate there is factor * values.

        With one direction the factor is its coefficient, so that the update is rounded once. With more, the sum is
        taken in the precision of the noise and the factor is 1.
        """
        q = len(self.directions)
        if q == 1:
            for block, values in self.directions[0].blocks(index):
                yield block, values, self.coefficients[0]
            return
        joined = joined_factors(self.directions, self.coefficients, index)
        if joined is not None:
            piece = self.directions[0].pieces[index]
            for block in cells_of(piece):
                yield block, product(*joined, block, piece), 1.0
            return
        for parts in zip(*(d.blocks(index) for d in self.directions), strict=True):
            block, total = parts[0]
            total.mul_(self.coefficients[0] / q)
            for (_, values), coefficient in zip(parts[1:], self.coefficients[1:], strict=True):
                total.add_(values, alpha=coefficient / q)
            yield block, total, 1.0

    def move(self, index: int, lr: float) -> None:
        """Tensor `index` -= lr * estimate, rounded once."""
        if len(self.directions) == 1:
            self.directions[0].move(index, -lr * self.coefficients[0])
            return
        if lr == 0.0:
            return  # adding a zero would turn -0.0 into 0.0
        piece = self.directions[0].pieces[index]
        tensor = piece.local
        joined = joined_factors(self.directions, self.coefficients, index)
        if joined is not None and tensor.dtype == noise_dtype(tensor.dtype):
            add_product(*joined, -lr, piece)
            return
        for block, values, factor in self.blocks(index):
            block.of(tensor).add_(values, alpha=-lr * factor)


class ZerothOrder(ClosureOptimizer):
    r"""Base of the zeroth-order optimizers: estimate, then `update`.

    .. code-block:: text

        for i = 1 .. q:
            draw v_i                      E[v v^T] = I: rademacher, gaussian or sphere (see letgo.optim.engine.noise)
            central:  c_i = (f(x + mu v_i) - f(x - mu v_i)) / (2 mu)            2 q evaluations
            forward:  c_i = (f(x + mu v_i) - f(x)) / mu                         q + 1 evaluations
        g = (1/q) sum_i c_i v_i

    In a `torch.distributed` run every rank draws the same directions and the losses are averaged over the ranks, so
    that all of them take the same step; nothing else is exchanged. With `optimizer.ranks = Ranks("directions")` every
    rank evaluates a part of the directions instead (see `letgo.optim.engine.ranks`). Of parameters sharded by FSDP2
    every rank perturbs and moves the rows that it holds, by what it would if it held all: the weights are those of a
    run on replicas, bit for bit in float32. Such parameters are perturbed in memory and put back from a copy of the
    rank's shard; the optimizer itself exchanges no weights for that, only FSDP2 gathers them for each evaluation.

    Args (every subclass takes them, and adds its own):
        num_directions: q.
        mu: the perturbation's root mean square per coordinate, in any kind of noise. A unit-sphere radius r as papers
            state it is mu = r / sqrt(number of parameters). With bf16 or fp16 weights it is rounded to their dtype.
        noise: `rademacher` (cheapest), `gaussian` or `sphere`.
        difference: `central` or `forward`.
        seed: of the noise. The global generators are neither used nor seeded; draws that the closure itself makes from
            them (dropout) are the same in all evaluations of a step.
        nonfinite: what to do when an evaluation is NaN or infinite: `raise` a `NonFiniteLossError`, or `skip` the step
            (the next one has new noise). The weights are untouched in both cases.
        engine: `in_place` perturbs each tensor while a function reads it; `saved` perturbs all of them in memory and
            puts kept originals back (memory of the weights twice, but right for any code that evaluates them);
            `batched` runs all evaluations as one batched forward pass (see `letgo.optim.engine.low_rank`): it needs a
            rank, and a closure that `torch.vmap` can run.
        evaluations_at_once: of the batched engine; None is all 2 q. Fewer need less memory, and are as fast where the
            batch alone keeps the processor busy.
        rank: r > 0 makes the perturbation of every matrix U V^T / sqrt(r) with r columns, in any engine; 0: full.
    """

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        num_directions: int,
        mu: float,
        noise: NoiseKind,
        difference: Difference,
        seed: int,
        nonfinite: Literal["raise", "skip"],
        engine: EngineKind,
        rank: int,
        evaluations_at_once: int | None,
    ) -> None:
        check_number("lr", defaults["lr"])
        check_number("weight_decay", defaults.get("weight_decay", 0.0))
        check_number("num_directions", num_directions, low=1)
        check_number("mu", mu, open_low=True)
        check_choice("noise", noise, NOISE_KINDS)
        check_choice("difference", difference, ("central", "forward"))
        check_choice("nonfinite", nonfinite, ("raise", "skip"))
        check_choice("engine", engine, ("in_place", "saved", "batched"))
        check_number("rank", rank)
        if engine == "batched" and not rank:
            raise ValueError("engine='batched' perturbs matrices by low-rank branches: give a rank of 1 or more")
        check_number("evaluations_at_once", 1 if evaluations_at_once is None else evaluations_at_once, low=1)
        if rank and noise == "sphere":
            raise ValueError("a direction of low rank has no fixed length: noise='sphere' needs rank=0")
        super().__init__(params, defaults)
        self.num_directions = int(num_directions)
        self.mu = mu
        self.noise: NoiseKind = noise
        self.difference = difference
        self.seed = int(seed)
        self.nonfinite = nonfinite
        self.steps_taken = 0
        self.on_step: Callable[[list[float], list[float]], None] | None = None
        self.blind = False
        """Whether every c_i is 1, whatever the losses: `random_walk`'s placebo. One loss is evaluated, to report it."""
        self.ranks = Ranks()
        self._mu = mu
        self.rank = int(rank)
        self._engine: InPlaceEngine | BatchedEngine
        self._engine = (
            BatchedEngine(evaluations_at_once) if engine == "batched" else InPlaceEngine(always_save=engine == "saved")
        )

    @property
    def needs_closure(self) -> bool:
        return True

    @property
    def phase(self) -> str:
        return "zeroth_order"

    def options(self) -> dict[str, Any]:
        """The constructor's settings that are not a group's, as far as updates depend on them."""
        return {"num_directions": self.num_directions, "noise": self.noise, "seed": self.seed, "rank": self.rank}

    def extra_state(self) -> dict[str, Any]:
        return {"steps_taken": self.steps_taken, "seed": self.seed}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self.steps_taken = int(extra.get("steps_taken", 0))
        self.seed = int(extra.get("seed", self.seed))

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; returns the mean of the losses that it evaluated (which is f(x) up to O(mu^2)).

        Raises:
            ValueError: there is no closure; or parameters are sharded and the engine is `batched`, or directions are
                shared over the ranks, or they are not sharded by rows.
            NonFiniteLossError: a loss was NaN or infinite and `nonfinite="raise"`.
            RankLostError: another rank of the run is gone.
        """
        closure = given_closure(closure, f"{type(self).__name__} is zeroth order and evaluates the loss itself")
        parameters = parameters_of(self)
        if has_shards(parameters):
            self.check_shards()
        self._mu = _representable(self.mu, parameters)
        with rank_loss_named():
            directions = self.directions(parameters)
            losses, like = self._evaluate(closure, [] if self.blind else directions, parameters)
        finite = all(map(math.isfinite, losses))
        mean = like.new_tensor(math.fsum(losses) / len(losses) if finite else math.nan)
        if not finite and self.nonfinite == "raise":
            raise NonFiniteLossError(
                f"{type(self).__name__}, step {self.steps_taken}: the losses at the perturbed weights are {losses}; "
                f"the weights are as before the step. A smaller mu or lr may help, or nonfinite='skip'"
            )
        coefficients = self.coefficients(losses, len(directions)) if finite else []
        if self.on_step is not None:
            self.on_step([float(group["lr"]) for group in self.param_groups], coefficients)
        if finite:
            self.apply(Estimate(directions, coefficients))
        self.steps_taken += 1
        self.ranks.check(parameters, self.steps_taken)
        return mean

    def directions(self, parameters: Sequence[Tensor]) -> list[Direction]:
        """The directions of the step that comes next."""
        return self.draw(parameters, self.num_directions)

    def draw(self, parameters: Sequence[Tensor], count: int) -> list[Direction]:
        """So many directions of the step that comes next."""
        keys = [(self.seed, self.steps_taken, i) for i in range(count)]
        pieces = list(map(piece_of, parameters))
        if self.rank:
            return [LowRankDirection(self.noise, key, parameters, self.rank, pieces) for key in keys]
        return [Direction(self.noise, key, parameters, pieces) for key in keys]

    def update(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        """Move one parameter, given the estimate at `index`."""
        raise NotImplementedError

    def _evaluate(
        self, closure: Closure, directions: list[Direction], parameters: list[Tensor]
    ) -> tuple[list[float], Tensor]:
        """All losses of a step, averaged over the ranks, and a tensor like the closure's loss. Without directions: the
        loss at the weights."""
        trainable = [i for i, p in enumerate(parameters) if p.requires_grad]
        draws = SharedDraws(parameters)
        alphas = (self._mu, -self._mu) if self.difference == "central" else (self._mu,)
        shifts = [(direction, alpha) for direction in directions for alpha in alphas]
        unmoved = int(self.difference == "forward" or not directions)
        assigned = self.ranks.assigned(unmoved + len(shifts))
        losses: list[Any] = []
        if unmoved and 0 in assigned:
            with gathering_anew(parameters):
                losses.append(closure())
        mine = [shifts[number - unmoved] for number in assigned if number >= unmoved]
        if isinstance(self._engine, BatchedEngine):
            losses += self._engine.evaluate(closure, mine, trainable, draws) if mine else []
        else:
            for number, (direction, alpha) in enumerate(mine):
                losses.append(self._engine.evaluate(closure, direction, alpha, trainable, draws))
                if len(directions) > 1 and (number + 1 == len(mine) or mine[number + 1][0] is not direction):
                    direction.forget()
        first = losses[0] if losses else torch.zeros((), device=parameters[0].device)
        like = first.detach() if isinstance(first, Tensor) else torch.tensor(first, device=parameters[0].device)
        evaluated = [as_float(loss) for loss in losses]
        self.last_losses = self.ranks.joined(evaluated, unmoved + len(shifts), like.device)
        self.ranks.note_gathers(list(map(piece_of, parameters)), len(assigned))
        self.ranks.bytes_exchanged += sum(direction.sent for direction in directions)
        return self.last_losses, like

    def loss_here(self, closure: Closure) -> float:
        """The loss at the weights, without gradients, averaged over the ranks."""
        with torch.no_grad():
            losses, _ = self._evaluate(closure, [], parameters_of(self))
        return losses[0]

    def check_shards(self) -> None:
        if isinstance(self._engine, BatchedEngine):
            raise ValueError(
                "engine='batched' runs all evaluations as one pass over whole weights, and these are sharded over the "
                "ranks (FSDP2): take engine='in_place', or replicas (DDP)"
            )
        if self.ranks.share == "directions" and self.ranks.count > 1:
            raise ValueError(
                "directions cannot be shared over ranks that hold shards of the weights (FSDP2): a forward pass needs "
                "all of them, at the same direction. Share the data (share='data'), or take replicas (DDP)"
            )

    def coefficients(self, losses: Sequence[float], directions: int) -> list[float]:
        """c_i of each direction, given all losses of a step."""
        if self.blind:
            return [1.0] * directions
        if self.difference == "forward":
            return [(loss - losses[0]) / self._mu for loss in losses[1:]]
        return [(up - down) / (2 * self._mu) for up, down in zip(losses[::2], losses[1::2], strict=True)]

    def apply(self, estimate: Estimate) -> None:
        """Update every parameter with an estimate."""
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad and parameter.numel():
                    if group["weight_decay"]:
                        local(parameter).mul_(1 - float(group["lr"]) * group["weight_decay"])
                    self.update(group, parameter, estimate, index)
                index += 1


class ZOSGD(ZerothOrder):
    r"""Zeroth-order gradient descent: MeZO's method with noise made once per direction and no drift.

    .. code-block:: text

        input: lr, mu, q, momentum b, weight decay w
        m = 0
        for t = 1, 2, ...
            g = (1/q) sum_i v_i (f(x + mu v_i) - f(x - mu v_i)) / (2 mu)
            m = b m + g                        (b = 0: no m is kept)
            x = (1 - lr w) x - lr m

    Without weight decay and momentum the weights after a step are exactly x - lr g, rounded once.

    Source: Malladi et al., Fine-Tuning Language Models with Just Forward Passes (arXiv 2305.17333), algorithm 1, where
    noise is Gaussian; `noise="gaussian", num_directions=1` is that method without its rounding drift.

    Args:
        momentum: b, as in `torch.optim.SGD`; with it the state is a copy of the parameters.
        others: see `ZerothOrder`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-6,
        *,
        momentum: float = 0.0,
        mu: float = 1e-3,
        num_directions: int = 1,
        noise: NoiseKind = "rademacher",
        difference: Difference = "central",
        weight_decay: float = 0.0,
        seed: Seed = 0,
        nonfinite: Literal["raise", "skip"] = "raise",
        engine: EngineKind = "in_place",
        rank: int = 0,
        evaluations_at_once: int | None = None,
    ) -> None:
        check_number("momentum", momentum, high=1.0)
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
            num_directions=num_directions,
            mu=mu,
            noise=noise,
            difference=difference,
            seed=seed,
            nonfinite=nonfinite,
            engine=engine,
            rank=rank,
            evaluations_at_once=evaluations_at_once,
        )

    def update(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        move_with_momentum(self, group, parameter, estimate, index)


def move_with_momentum(
    optimizer: ZerothOrder, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int
) -> None:
    """m = b m + g; x -= lr m, at tensor `index`."""
    lr, momentum = float(group["lr"]), group["momentum"]
    if not momentum:
        estimate.move(index, lr)
        return
    x, buffer = local(parameter), local(state_like(optimizer.state[parameter], "momentum_buffer", parameter))
    for block, values, factor in estimate.blocks(index):
        m = block.of(buffer).mul_(momentum).add_(values, alpha=factor)
        # In the noise's dtype: bf16's own sum rounds the last elements of a tensor otherwise than the others.
        block.of(x).add_(m.to(values.dtype), alpha=-lr)


def _representable(mu: float, parameters: Sequence[Tensor]) -> float:
    """mu rounded to the coarsest dtype, so that +-mu is added to low-precision weights with no rounding of its own."""
    for dtype in (torch.bfloat16, torch.float16):
        if any(p.dtype == dtype for p in parameters) and rounded(mu, dtype):
            return rounded(mu, dtype)
    return mu
