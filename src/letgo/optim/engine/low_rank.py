"""The low-rank, batched engine: all evaluations of a step in one batched forward pass, and no weight touched.

A matrix's perturbation is v = U V^T / sqrt(r) with r columns, so that a linear layer at x + alpha v gives

    h (W + alpha v)^T = h W^T + (alpha / sqrt(r)) (h V) U^T,

the layer as it is plus a branch of rank r. The evaluations of a step differ in their branches only and run together
under `torch.vmap`: one product with W for all of them, one call for all their branches, one for all their attention.
Biases, norms and other tensors that are not matrices are perturbed whole, as Gaussian or sign noise: they are small.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from letgo.optim.base import Closure
from letgo.optim.engine.noise import Block, Direction, NoiseKind, mix, noise_dtype, noise_values
from letgo.optim.engine.perturbation import SharedDraws, reads_values, takes_any, writes_first
from letgo.optim.engine.products import onednn_linear, serves
from letgo.optim.engine.row_blocks import cell_rows, cells_of, product
from letgo.optim.engine.shards import Piece

# What is inside a tensor that vmap gives a function. torch.vmap itself stands on these.
_functorch = torch._C._functorch

FEW_COLUMNS = 8
"""Branches of so few columns are added one column after another on a CPU: its matrix products are made for more, and
took 3 to 12 times as long for one."""


class LowRankDirection(Direction):
    """A direction whose matrices are U V^T / sqrt(r), U and V of independent entries of mean 0 and variance 1.

    E[v v^T] = I as for any direction (entries are uncorrelated, not independent), so that estimates are unbiased in
    the same sense to the order of mu^2. Matrices with a side of at most r, and tensors that are not matrices, get
    full noise.

    A matrix is multiplied out in cells (`letgo.optim.engine.row_blocks`), so that a shard's noise has the bits of the
    whole's. Each rank draws the factors of the whole matrix, r numbers a row and a column.
    """

    def __init__(
        self,
        kind: NoiseKind,
        key: Sequence[int],
        tensors: Sequence[Tensor],
        rank: int,
        pieces: Sequence[Piece] | None = None,
    ) -> None:
        super().__init__(kind, key, tensors, pieces)
        self.rank = rank
        self._factors: dict[int, tuple[Tensor, Tensor]] = {}

    def is_low_rank(self, index: int) -> bool:
        tensor = self.tensors[index]
        return tensor.dim() == 2 and min(tensor.shape) > self.rank

    def factors(self, index: int) -> tuple[Tensor, Tensor]:
        """U / sqrt(r), of shape (rows, r), and V, of shape (columns, r)."""
        if index not in self._factors:
            self._draw_factors()
        return self._factors[index]

    def _draw_factors(self) -> None:
        """The factors of all matrices: parts of one draw a device and dtype, which is faster than many small ones."""
        matrices: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, tensor in enumerate(self.tensors):
            if self.is_low_rank(index):
                matrices.setdefault((tensor.device, noise_dtype(tensor.dtype)), []).append(index)
        for number, ((device, dtype), indices) in enumerate(matrices.items()):
            sizes = [side * self.rank for index in indices for side in self.tensors[index].shape]
            drawn = noise_values(self.kind, mix(self.key, -1, number), (sum(sizes),), dtype, device).split(sizes)
            for index, u, v in zip(indices, drawn[::2], drawn[1::2], strict=True):
                scaled = u if self.rank == 1 else u / math.sqrt(self.rank)
                self._factors[index] = (scaled.view(-1, self.rank), v.view(-1, self.rank))

    def shifted_rows(self, index: int, alpha: float, which: Tensor) -> Tensor:
        if not self.is_low_rank(index):
            return super().shifted_rows(index, alpha, which)
        (u, v), source = self.factors(index), self.tensors[index].detach()[which]
        if self.rank == 1:
            return (u[which] @ v.t()).mul_(alpha).add_(source).to(source.dtype)
        values = torch.empty(source.shape, dtype=u.dtype, device=u.device)
        per_cell = cell_rows(source.shape[1], source.device)
        cells = which // per_cell
        for cell in cells.unique().tolist():
            here, low = cells == cell, cell * per_cell
            values[here] = (u[low : low + per_cell] @ v.t())[which[here] - low]
        return values.mul_(alpha).add_(source).to(source.dtype)

    def forget(self) -> None:
        super().forget()
        self._factors.clear()

    def rows_a_piece(self, matrix: Tensor, elements: int) -> int:
        rows = super().rows_a_piece(matrix, elements)
        if min(matrix.shape) <= self.rank:
            return rows
        per_cell = cell_rows(matrix.shape[1], matrix.device)
        return max(1, rows // per_cell) * per_cell  # whole cells, so that none is multiplied out twice

    def _cut(self, index: int) -> Iterator[Block]:
        return cells_of(self.pieces[index]) if self.is_low_rank(index) else super()._cut(index)

    def _values(self, index: int, block: Block) -> Tensor:
        if not self.is_low_rank(index):
            return super()._values(index, block)
        return product(*self.factors(index), block, self.pieces[index])

    def _whole(self, index: int) -> Tensor:
        if not self.is_low_rank(index):
            return super()._whole(index)
        u, v = self.factors(index)
        whole = Piece(u.new_empty(len(u), len(v)), torch.Size((len(u), len(v))), 0)
        for block in cells_of(whole):
            block.of(whole.local).copy_(product(u, v, block, whole))
        return whole.local

    def _shift(self, index: int, alpha: float, source: Tensor, out: Tensor, start: int = 0) -> None:
        if not self.is_low_rank(index):
            super()._shift(index, alpha, source, out, start)
            return
        first = start // source.shape[1]
        for block in cells_of(self.pieces[index], first, first + len(source)):
            here = slice(block.start - first, block.stop - first)
            out[here].copy_(self._values(index, block).mul_(alpha).add_(source[here]))


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
    """Gives functions what the parameters of one evaluation would, or under vmap of several: branches beside linear
    layers and embeddings, perturbed tensors elsewhere.

    Args:
        index_of: id of a parameter -> its index.
        branches: index -> (U, V) with alpha / sqrt(r) in U; or a whole perturbed tensor.
    """

    def __init__(self, index_of: dict[int, int], branches: dict[int, tuple[Tensor, ...]], seen: set[int]) -> None:
        super().__init__()
        self.index_of = index_of
        self.branches = branches
        self.seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not takes_any(self.index_of, args, kwargs):
            if func is F.scaled_dot_product_attention:
                return _attention(*args, **(kwargs or {}))
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if not reads_values(func):
            return func(*args, **kwargs)
        if len(args) > 1 and func in (F.linear, F.embedding) and kwargs.get("max_norm") is None:
            index = self.index_of.get(id(args[1]), -1)
            branch = self.branches.get(index, ())
            if len(branch) == 2:
                self.seen.add(index)
                rest = [self._whole(a) for a in args[2:]]
                with_bias = {k: self._whole(a) for k, a in kwargs.items()}
                first = self._whole(args[0])
                whole = _product if func is F.linear else func
                result = whole(first, args[1], *rest, **with_bias)
                return _with_branch(func, result, first, *branch)
        kept = int(writes_first(func))
        args = args[:kept] + tuple([self._whole(a) for a in args[kept:]])
        return func(*args, **{k: v if k == "out" else self._whole(v) for k, v in kwargs.items()})

    def _whole(self, value: Any) -> Any:
        """A parameter as a whole perturbed tensor, for functions that have no branch."""
        if isinstance(value, Tensor):
            index = self.index_of.get(id(value))
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


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer with the weight as it is: one product for all evaluations."""
    level = _level(x)
    inner = x if level is None else _inside(x)
    if serves(inner, weight) and (bias is None or _level(bias) is None):
        result = onednn_linear(inner, weight, bias)
        return result if level is None else _functorch._add_batch_dim(result, 0, level)
    return F.linear(x, weight, bias)


def _with_branch(func: Callable[..., Any], result: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The result of a linear layer (x: its input, (..., columns)) or an embedding (x: ids), plus its branch.

    The branches of all evaluations are one product, added as it is made. Under vmap the work is done on the tensors
    inside, which have the evaluations as their first dimension.
    """
    level = _level(u)
    if level is None:
        if _level(x) is not None or _level(result) is not None:  # the closure's own vmap
            return result + _branch(func, x, u.to(result.dtype), v.to(result.dtype))
        return _added(func, result[None], x[None], u[None], v[None])[0]
    if any(_level(t) not in (None, level) for t in (result, x)) or (func is F.embedding and _level(x) is not None):
        return result + _branch(func, x, u.to(result.dtype), v.to(result.dtype))
    evaluations = _inside(u).shape[0]
    inner = [_inside(t) if _level(t) is not None else t.expand(evaluations, *t.shape) for t in (result, x)]
    total = _added(func, inner[0], inner[1], _inside(u), _inside(v))
    batched: Tensor = _functorch._add_batch_dim(total, 0, level)
    return batched


def _added(func: Callable[..., Any], result: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """result (E, ..., out) plus the branches of E evaluations: (x V) U^T, or for an embedding U[x] V^T."""
    e, width = result.shape[0], result.shape[-1]
    if torch.is_autocast_enabled(result.device.type):
        with torch.autocast(result.device.type, enabled=False):  # the dtype is the result's already
            return _added(func, result, x, u, v)
    u, v = u.to(result.dtype), v.to(result.dtype)
    if func is F.linear:
        inner, outer = _products(x.reshape(e, -1, x.shape[-1]).to(result.dtype), v), u
    else:
        inner, outer = torch.stack([rows[ids] for rows, ids in zip(u, x.reshape(e, -1), strict=True)]), v
    flat = result.reshape(e, -1, width)
    if result.requires_grad or flat.stride(0) == 0:
        return torch.baddbmm(flat, inner, outer.transpose(1, 2)).view(result.shape)
    rank = outer.shape[-1]
    if rank == 1 or (rank <= FEW_COLUMNS and flat.device.type == "cpu" and flat.dtype == torch.float32):
        for column, other in zip(inner.split(1, -1), outer.transpose(1, 2).split(1, 1), strict=True):
            flat.addcmul_(column, other)
        return flat.view(result.shape)
    return flat.baddbmm_(inner, outer.transpose(1, 2)).view(result.shape)


def _products(x: Tensor, v: Tensor) -> Tensor:
    """x v of E evaluations: (E, n, columns), (E, columns, r) -> (E, n, r)."""
    if x.device.type == "cpu" and len(x) > 1:
        # MKL's batched product with one column took 5 to 8 times as long as these.
        return torch.stack([rows @ columns for rows, columns in zip(x, v, strict=True)])
    return x @ v


def _branch(func: Callable[..., Any], x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The branch alone, in operations that any vmap knows."""
    return (x.to(v.dtype) @ v) @ u.t() if func is F.linear else u[x] @ v.t()


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention of all evaluations in one call: they are so many more rows of the batch.

    `torch.vmap` has no rule for it on a CPU and would call it once an evaluation.
    """
    mask = kwargs.get("attn_mask", args[0] if args else None)
    dropout = kwargs.get("dropout_p", args[1] if len(args) > 1 else 0.0)
    levels = {_level(t) for t in (query, key, value)}
    level = next(iter(levels))
    if len(levels) > 1 or level is None or dropout or query.dim() != 4 or (mask is not None and _level(mask)):
        return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)
    inside = [_inside(t) for t in (query, key, value)]
    evaluations, batch = inside[0].shape[:2]
    if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
        mask = mask.expand(evaluations, *mask.shape).flatten(0, 1)
        args, kwargs = ((mask, *args[1:]), kwargs) if args else (args, {**kwargs, "attn_mask": mask})
    q, k, v = (t.flatten(0, 1) for t in inside)
    result = F.scaled_dot_product_attention(q, k, v, *args, **kwargs)
    batched: Tensor = _functorch._add_batch_dim(result.unflatten(0, (evaluations, batch)), 0, level)
    return batched


def _level(tensor: Tensor) -> int | None:
    """The level of vmap that a tensor belongs to; None for an ordinary one."""
    return int(_functorch.maybe_get_level(tensor)) if _functorch.is_batchedtensor(tensor) else None


def _inside(tensor: Tensor) -> Tensor:
    """The tensor inside a batched one, the evaluations first."""
    inside: Tensor = _functorch.get_unwrapped(tensor)
    return inside.movedim(_functorch.maybe_get_bdim(tensor), 0)


class BatchedEngine:
    """Evaluates a closure at all of a step's perturbed weights at once.

    Args:
        chunk: how many evaluations run together; None: all. With 1 there is no vmap.
    """

    def __init__(self, chunk: int | None = None) -> None:
        self.chunk = chunk

    def evaluate(
        self,
        closure: Closure,
        shifts: Sequence[tuple[Direction, float]],
        trainable: Sequence[int],
        draws: SharedDraws,
    ) -> list[Any]:
        """closure() at theta + alpha * direction for every pair of `shifts`.

        Raises:
            ValueError: a parameter was never given to a torch function, so it could not be perturbed.
            RuntimeError: several evaluations run at once and the closure cannot run under `torch.vmap` (it turns a
                loss into a number, writes a batched tensor into one that is not, ...).
        """
        low_rank = [(d, alpha) for d, alpha in shifts if isinstance(d, LowRankDirection)]
        tensors = shifts[0][0].tensors
        index_of = {id(tensors[i]): i for i in trainable}
        seen: set[int] = set()

        def evaluate(branches: dict[int, tuple[Tensor, ...]]) -> Any:
            with _Branches(index_of, branches, seen):
                return closure()

        losses: list[Any] = []
        chunk = self.chunk or len(low_rank)
        for start in range(0, len(low_rank), chunk):
            here = low_rank[start : start + chunk]
            stacks = {i: _stack(here, i) for i in trainable}
            draws.restore()
            torch.clear_autocast_cache()
            if len(here) == 1:
                losses.append(evaluate({i: tuple([t[0] for t in stack]) for i, stack in stacks.items()}))
                continue
            with warnings.catch_warnings():
                # What has no batching rule runs once an evaluation; the large things have one here.
                warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
                losses += torch.vmap(evaluate, randomness="same")(stacks).tolist()
        torch.clear_autocast_cache()
        unseen = [i for i in trainable if i not in seen]
        if unseen:
            raise ValueError(
                f"the closure gave parameter number {unseen[0]} to no torch function, so engine='batched' cannot "
                f"perturb it: freeze it if it is not used, or take engine='in_place'"
            )
        return losses


def _stack(shifts: Sequence[tuple[LowRankDirection, float]], index: int) -> tuple[Tensor, ...]:
    """What tensor `index` is perturbed by, over the evaluations: (E, rows, r), (E, columns, r); or (E, *shape)."""
    if not shifts[0][0].is_low_rank(index):
        return (torch.stack([direction.shifted(index, alpha) for direction, alpha in shifts]),)
    pairs = [(direction.factors(index), alpha) for direction, alpha in shifts]
    return torch.stack([alpha * u for (u, _), alpha in pairs]), torch.stack([v for (_, v), _ in pairs])
