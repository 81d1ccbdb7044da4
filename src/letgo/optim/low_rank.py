"""The low-rank, batched engine: all evaluations of a step in one batched forward pass, and no weight touched.

A matrix's perturbation is v = U V^T / sqrt(r) with r columns, so that a linear layer at x + alpha v gives

    h (W + alpha v)^T = h W^T + (alpha / sqrt(r)) (h V) U^T,

the layer as it is plus a branch of rank r. The evaluations of a step differ in their branches only and run together
under `torch.vmap`: one product with W for all of them. Biases, norms and other tensors that are not matrices are
perturbed whole, as Gaussian or sign noise: they are small.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from letgo.optim.base import Closure
from letgo.optim.noise import Direction, NoiseKind, mix, noise_dtype, normals, signs
from letgo.optim.perturbation import SharedDraws, reads_values, writes_first


class LowRankDirection(Direction):
    """A direction whose matrices are U V^T / sqrt(r), U and V of independent entries of mean 0 and variance 1.

    E[v v^T] = I as for any direction (entries are uncorrelated, not independent), so that estimates are unbiased in
    the same sense to the order of mu^2. Matrices with a side of at most r, and tensors that are not matrices, get
    full noise.
    """

    def __init__(self, kind: NoiseKind, key: Sequence[int], tensors: Sequence[Tensor], rank: int) -> None:
        super().__init__(kind, key, tensors)
        self.rank = rank
        self._factors: dict[int, tuple[Tensor, Tensor]] = {}

    def is_low_rank(self, index: int) -> bool:
        tensor = self.tensors[index]
        return tensor.dim() == 2 and min(tensor.shape) > self.rank

    def factors(self, index: int) -> tuple[Tensor, Tensor]:
        """U / sqrt(r), of shape (rows, r), and V, of shape (columns, r)."""
        if index not in self._factors:
            tensor = self.tensors[index]
            dtype = noise_dtype(tensor.dtype)
            shape = (sum(tensor.shape), self.rank)
            generator = torch.Generator(tensor.device).manual_seed(mix(self.key, index, -1))
            if self.kind == "rademacher":
                words = torch.empty(-(-math.prod(shape) // 64), dtype=torch.int64, device=tensor.device)
                both = signs(words.random_(-(2**63), None, generator=generator), shape, dtype)
            else:
                both = normals(shape, dtype, generator)
            u, v = both.split(list(tensor.shape))
            self._factors[index] = (u / math.sqrt(self.rank), v)
        return self._factors[index]

    def forget(self) -> None:
        super().forget()
        self._factors.clear()

    def _values(self, index: int, number: int, rows: slice) -> Tensor:
        if not self.is_low_rank(index):
            return super()._values(index, number, rows)
        u, v = self.factors(index)
        return u[rows] @ v.t()

    def _shift(self, index: int, number: int, rows: slice, alpha: float, source: Tensor, out: Tensor) -> None:
        if self.is_low_rank(index):
            out.copy_(self._values(index, number, rows).mul_(alpha).add_(source))
        else:
            super()._shift(index, number, rows, alpha, source, out)


def joined_factors(
    directions: Sequence[Direction], coefficients: Sequence[float], index: int
) -> tuple[Tensor, Tensor] | None:
    """Factors of (1/q) sum_i c_i v_i at a matrix, of rank q r: one product instead of q. None for other noise."""
    pairs = [d.factors(index) for d in directions if isinstance(d, LowRankDirection) and d.is_low_rank(index)]
    if len(pairs) < len(directions):
        return None
    scaled = [u * (c / len(pairs)) for (u, _), c in zip(pairs, coefficients, strict=True)]
    return torch.cat(scaled, 1), torch.cat([v for _, v in pairs], 1)


class _Branches(TorchFunctionMode):
    """Gives functions what one evaluation's parameters would: branches beside linear layers and embeddings.

    Args:
        places: id of a parameter -> its index.
        branches: index -> (U, V) with alpha / sqrt(r) in U; or a whole perturbed tensor.
    """

    def __init__(self, places: dict[int, int], branches: dict[int, tuple[Tensor, ...]], seen: set[int]) -> None:
        super().__init__()
        self.places = places
        self.branches = branches
        self.seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not reads_values(func):
            return func(*args, **kwargs)
        if len(args) > 1 and func in (F.linear, F.embedding) and kwargs.get("max_norm") is None:
            index = self.places.get(id(args[1]), -1)
            branch = self.branches.get(index, ())
            if len(branch) == 2:
                self.seen.add(index)
                rest = [self._whole(a) for a in args[2:]]
                with_bias = {k: self._whole(a) for k, a in kwargs.items()}
                return func(*args[:2], *rest, **with_bias) + _branch(func, args[0], *branch, args[1].dtype)
        kept = int(writes_first(func))
        args = args[:kept] + tuple([self._whole(a) for a in args[kept:]])
        return func(*args, **{k: v if k == "out" else self._whole(v) for k, v in kwargs.items()})

    def _whole(self, value: Any) -> Any:
        """A parameter as a whole perturbed tensor, for functions that have no branch."""
        if isinstance(value, Tensor):
            index = self.places.get(id(value))
            if index is None:
                return value
            self.seen.add(index)
            branch = self.branches[index]
            if len(branch) == 1:
                return branch[0]
            return (value + branch[0] @ branch[1].t()).to(value.dtype)
        if type(value) in (list, tuple):
            return type(value)([self._whole(v) for v in value])
        return value


def _branch(func: Callable[..., Any], x: Tensor, u: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """The branch beside a linear layer (x of shape (..., columns)) or an embedding (x: ids)."""
    u, v = u.to(dtype), v.to(dtype)
    inner = x @ v if func is F.linear else u[x]
    outer = u if func is F.linear else v
    # With one column the product is an outer one, which multiplication does faster.
    return inner * outer.squeeze(1) if outer.shape[1] == 1 else inner @ outer.t()


class BatchedEngine:
    """Evaluates a closure at all of a step's perturbed weights at once.

    Args:
        chunk: how many evaluations run together; None: all.
    """

    def __init__(self, chunk: int | None = None) -> None:
        self.chunk = chunk

    def evaluate(
        self,
        closure: Closure,
        shifts: Sequence[tuple[Direction, float]],
        trainable: Sequence[int],
        draws: SharedDraws,
    ) -> list[float]:
        """closure() at theta + alpha * direction for every pair of `shifts`.

        Raises:
            ValueError: a parameter was never given to a torch function, so it could not be perturbed.
            RuntimeError: the closure cannot run under `torch.vmap` (it turns a loss into a number, writes a batched
                tensor into one that is not, ...).
        """
        low_rank = [(d, alpha) for d, alpha in shifts if isinstance(d, LowRankDirection)]
        tensors = shifts[0][0].tensors
        places = {id(tensors[i]): i for i in trainable}
        stacks = {i: _stack(low_rank, i) for i in trainable}
        seen: set[int] = set()
        draws.restore()

        def evaluate_one(branches: dict[int, tuple[Tensor, ...]]) -> Tensor:
            with _Branches(places, branches, seen):
                loss: Tensor = closure()
            return loss

        with warnings.catch_warnings():
            # Attention on a CPU has no batching rule and runs once an evaluation: a small part of the whole.
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
            losses = torch.vmap(evaluate_one, randomness="same", chunk_size=self.chunk)(stacks)
        unseen = [i for i in trainable if i not in seen]
        if unseen:
            raise ValueError(
                f"the closure gave parameter number {unseen[0]} to no torch function, so engine='batched' cannot "
                f"perturb it: freeze it if it is not used, or take engine='in_place'"
            )
        values: list[float] = losses.tolist()
        return values


def _stack(shifts: Sequence[tuple[LowRankDirection, float]], index: int) -> tuple[Tensor, ...]:
    """What tensor `index` is perturbed by, over the evaluations: (E, rows, r), (E, columns, r); or (E, *shape)."""
    if not shifts[0][0].is_low_rank(index):
        return (torch.stack([direction.shifted(index, alpha) for direction, alpha in shifts]),)
    pairs = [(direction.factors(index), alpha) for direction, alpha in shifts]
    return torch.stack([alpha * u for (u, _), alpha in pairs]), torch.stack([v for (_, v), _ in pairs])
