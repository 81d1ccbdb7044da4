"""Random directions for zeroth-order steps: made from a counter, and never from the global generator.

A direction v is one random vector over all of an optimizer's parameters. Every kind has E[v v^T] = I, so that `mu`
means the same size of perturbation per coordinate (root mean square) in each of them, and the estimate
c v with c = (f(x + mu v) - f(x - mu v)) / (2 mu) has the same scale in each:

    rademacher   independent signs                       E[c v] = grad f + O(mu^2)
    gaussian     independent N(0, 1)                     E[c v] = grad of E_v f(x + mu v), exactly
    sphere       sqrt(d) u, u uniform on the unit sphere  E[c v] = grad of f averaged over the ball of radius
                                                         mu sqrt(d), exactly: the factor d that an estimate along
                                                         unit vectors owes is in v v^T = d u u^T

The noise of a coordinate is a function of (seed, step, direction, place of the parameter, place in the parameter)
alone: the same on every rank, machine and device and for every dtype, whatever was drawn before, and made again where
it is needed instead of being kept. See `letgo.optim.engine.counter` for how, and `letgo.optim.engine.fused` for doing
it faster. So a rank that holds some rows of a sharded tensor makes the noise of those rows, with the bits of the
whole's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from letgo.optim.engine import counter, fused
from letgo.optim.engine.counter import mix as mix
from letgo.optim.engine.shards import Piece, piece_of, summed

NoiseKind = Literal["rademacher", "gaussian", "sphere"]
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)


class Block(NamedTuple):
    """Part of a tensor: a range of its elements in order, or of its rows where those cannot be had as a view."""

    start: int
    stop: int
    flat: bool

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor, as a view: one-dimensional, or rows."""
        return (tensor.view(-1) if self.flat else rows_of(tensor))[self.start : self.stop]


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor as a view with rows along its first dimension; one row if it has fewer than two dimensions."""
    return tensor if tensor.dim() >= 2 else tensor.unsqueeze(0)


def block_elements(device: torch.device) -> int:
    """Elements of a block: on a CPU what stays in its cache, elsewhere enough to hide the cost of a call."""
    return 1 << 17 if device.type == "cpu" else 1 << 24


def row_blocks(tensor: Tensor) -> Iterator[Block]:
    """The blocks of a tensor's rows: at most `block_elements` elements, and at least one row."""
    if tensor.numel() == 0:
        return
    count = rows_of(tensor).shape[0]
    per_block = max(1, block_elements(tensor.device) // (tensor.numel() // count))
    for start in range(0, count, per_block):
        yield Block(start, min(start + per_block, count), False)


def blocks_of(tensor: Tensor) -> Iterator[Block]:
    """The blocks of a tensor: of its elements if it is contiguous, else of its rows."""
    if not tensor.is_contiguous():
        yield from row_blocks(tensor)
        return
    count, size = tensor.numel(), block_elements(tensor.device)
    for start in range(0, count, size):
        yield Block(start, min(start + size, count), True)


def noise_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of noise for tensors of a dtype: at least float32."""
    return torch.promote_types(dtype, torch.float32)


@functools.lru_cache(maxsize=256)
def rounded(value: float, dtype: torch.dtype) -> float:
    """The value of a dtype that is nearest to a number."""
    return float(torch.tensor(value, dtype=dtype))


def noise_values(kind: NoiseKind, key: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new tensor of independent signs or normal numbers (those of `sphere` are not yet scaled)."""
    count = math.prod(shape)
    if kind == "rademacher":
        return counter.signs(key, 0, count, dtype, device).view(tuple(shape))
    return counter.normals(key, 0, count, device).to(dtype).view(tuple(shape))


class Direction:
    """One random direction over a list of tensors.

    Args:
        kind: `rademacher`, `gaussian` or `sphere`.
        key: (seed, step, direction): the noise is a function of it and of the positions of tensor and element.
        tensors: the parameters in order. Frozen ones belong in the list too, so that freezing one changes no other's
            noise; they do not count for the sphere's dimension.
        pieces: this rank's piece of each tensor, where that is known already.

    Of a sharded tensor every method but `tensor` sees this rank's rows and nothing else. The length of a sphere's
    vector is a sum of whole numbers over the ranks, so it is exact: 8 bytes a direction from each, counted in `sent`.
    """

    def __init__(
        self, kind: NoiseKind, key: Sequence[int], tensors: Sequence[Tensor], pieces: Sequence[Piece] | None = None
    ) -> None:
        self.kind = kind
        self.key = mix(*key)
        self.tensors = tensors
        self.pieces = list(map(piece_of, tensors)) if pieces is None else pieces
        self.normal = kind != "rademacher"
        self.fused = fused.kernels_for([piece.local for piece in self.pieces])
        self.sent = 0
        self.scale = self._sphere_scale() if kind == "sphere" else 1.0

    def blocks(self, index: int) -> Iterator[tuple[Block, Tensor]]:
        """The direction at tensor `index`: its blocks and the values there.

        Values have the shape and device of `block.of(piece.local)`, the dtype too but at least float32 (so that what is
        computed with them is rounded to the tensor's dtype once, at the end), and are the caller's to overwrite.
        """
        for block in self._cut(index):
            yield block, self._values(index, block)

    def tensor(self, index: int) -> Tensor:
        """The whole of the direction at tensor `index`, in that tensor's shape and the dtype of `blocks`.

        Of a sharded tensor too, every rank making all of it: nothing is exchanged.
        """
        piece = self.pieces[index]
        if piece.sharded:
            return self._whole(index)
        whole = torch.empty_like(
            piece.local, dtype=noise_dtype(piece.local.dtype), memory_format=torch.contiguous_format
        )
        for block, values in self.blocks(index):
            block.of(whole).copy_(values)
        return whole

    def _whole(self, index: int) -> Tensor:
        shape = self.pieces[index].shape
        return self._draw(index, 0, math.prod(shape)).view(shape)

    def shifted(self, index: int, alpha: float, out: Tensor | None = None) -> Tensor:
        """Tensor `index` + alpha * direction, rounded once to the tensor's dtype: contiguous; new, or in `out`.

        Args:
            out: contiguous, of the tensor's shape and dtype.
        """
        source = self.pieces[index].local
        whole = torch.empty_like(source, memory_format=torch.contiguous_format) if out is None else out
        self._shift(index, alpha, source, whole)
        return whole

    def shifted_pieces(self, index: int, alpha: float, elements: int) -> Iterator[tuple[slice, Tensor]]:
        """Rows of matrix `index` + alpha * direction, about so many elements at a time.

        A piece lives until the next one is asked for, which overwrites it.
        """
        source = self.pieces[index].local
        per_piece = self.rows_a_piece(source, elements)
        held = source.new_empty(min(per_piece, source.shape[0]), source.shape[1])
        for start in range(0, source.shape[0], per_piece):
            rows = slice(start, min(start + per_piece, source.shape[0]))
            piece = held[: rows.stop - rows.start]
            self._shift(index, alpha, source[rows], piece, start * source.shape[1])
            yield rows, piece

    def shifted_rows(self, index: int, alpha: float, which: Tensor) -> Tensor:
        """(n, columns): the rows `which` (n,) of matrix `index` + alpha * direction; no noise is made for others.

        For matrices that are not sharded.
        """
        source = self.pieces[index].local
        if self.fused and self.fused.serves(source) and which.dtype == torch.int64:
            out = source.new_empty(len(which), source.shape[1])
            self.fused.rows(source, out, which.contiguous(), self.normal, self._key(index), alpha, self.scale)
            return out
        columns = torch.arange(source.shape[1], device=source.device)
        elements = which[:, None].to(torch.int64) * source.shape[1] + columns
        draw = counter.normals_at if self.normal else counter.signs_at
        values = self._scaled(draw(self._key(index), elements)).to(noise_dtype(source.dtype))
        return values.mul_(alpha).add_(source[which]).to(source.dtype)

    def move(self, index: int, alpha: float) -> None:
        """Tensor `index` += alpha * direction, in place, rounded once. Without an effect where alpha is 0."""
        if alpha == 0.0:
            return  # adding a zero would turn -0.0 into 0.0
        tensor = self.pieces[index].local
        if tensor.is_contiguous():
            self._shift(index, alpha, tensor, tensor)
        else:
            tensor.copy_(self.shifted(index, alpha))

    def forget(self) -> None:
        """Drop what is kept to be used again; it is made anew when needed."""

    def rows_a_piece(self, matrix: Tensor, elements: int) -> int:
        """Rows of a matrix to perturb at a time, so that about this many elements are perturbed at once."""
        return max(1, elements // max(1, matrix.shape[1]))

    def _key(self, index: int) -> int:
        return mix(self.key, index)

    def _cut(self, index: int) -> Iterator[Block]:
        return blocks_of(self.pieces[index].local)

    def _scaled(self, values: Tensor) -> Tensor:
        return values.mul_(self.scale) if self.scale != 1.0 else values

    def _values(self, index: int, block: Block) -> Tensor:
        piece = self.pieces[index]
        if block.flat:
            return self._draw(index, piece.start + block.start, piece.start + block.stop)
        shape = rows_of(piece.local).shape[1:]
        width = math.prod(shape)
        drawn = self._draw(index, piece.start + block.start * width, piece.start + block.stop * width)
        return drawn.view(block.stop - block.start, *shape)

    def _draw(self, index: int, start: int, stop: int) -> Tensor:
        """(stop - start,): values at the elements start .. stop - 1 of a whole tensor."""
        tensor = self.pieces[index].local
        dtype, key = noise_dtype(tensor.dtype), self._key(index)
        if self.fused and tensor.device.type == "cpu":
            values = torch.empty(stop - start)
            self.fused.values(values, start, self.normal, key, self.scale)
        elif self.normal:
            values = self._scaled(counter.normals(key, start, stop, tensor.device))
        else:
            values = counter.signs(key, start, stop, torch.float32, tensor.device)
        return values.to(dtype)

    def _shift(self, index: int, alpha: float, source: Tensor, out: Tensor, start: int = 0) -> None:
        """out = source + alpha * direction at the elements `start` and following of this rank's piece of a tensor.

        Args:
            source: those elements, in any layout.
            out: contiguous, of the same shape and dtype; it may be `source`.
        """
        if not out.numel():
            return
        start += self.pieces[index].start
        if self.fused and self.fused.serves(source):
            self.fused.shift(source, out, start, self.normal, self._key(index), alpha, self.scale)
            return
        exact = not self.normal and (out.dtype in (torch.float32, torch.float64) or rounded(alpha, out.dtype) == alpha)
        source, out, size = source.reshape(-1), out.view(-1), block_elements(out.device)
        for first in range(0, out.numel(), size):
            here, there = source[first : first + size], out[first : first + size]
            low, high = start + first, start + first + len(here)
            if exact:
                # Signs of the size alpha are exact in the tensor's own dtype.
                torch.add(here, counter.signs(self._key(index), low, high, out.dtype, out.device, alpha), out=there)
            else:
                there.copy_(self._draw(index, low, high).mul_(alpha).add_(here))

    def _sphere_scale(self) -> float:
        """sqrt(d) / |g| of the Gaussian vector g that the direction is made from."""
        parts: list[tuple[Any, float]] = []
        dimension = 0
        for index, (tensor, piece) in enumerate(zip(self.tensors, self.pieces, strict=True)):
            if tensor.requires_grad and tensor.numel():
                dimension += tensor.numel()
                parts.append((piece.group, self._squares(index, piece)))
        if not parts:
            return 1.0
        # Whole numbers: the sum is the same however the ranks share it.
        squared, self.sent = summed(parts, torch.int64, self.pieces[0].local.device)
        return math.sqrt(dimension / (squared / (1 << 20))) if squared else 1.0

    def _squares(self, index: int, piece: Piece) -> int:
        start, stop, device = piece.start, piece.start + piece.local.numel(), piece.local.device
        if self.fused and device.type == "cpu":
            return self.fused.squares(start, stop, self._key(index))
        size = block_elements(device)
        return sum(
            counter.squares(self._key(index), low, min(low + size, stop), device) for low in range(start, stop, size)
        )
