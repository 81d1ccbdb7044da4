"""The quantization grid that a model's weights are on, read off the weights themselves.

A model that was quantized and is stored in floating point again (a release made by quantization-aware training, a
dequantized INT4 checkpoint) has weights that take few values a block. The grids tried are those of round-to-nearest
quantizers, whose scale is known from a block's largest or outermost weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from letgo.optim.engine.rounding import NF4, Codebook, EvenLevels, Levels, blocks_of, flat_blocks, unblocked

FP4 = (-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""E2M1 of the microscaling formats, doubled."""
CLOSE = 0.2
"""On a grid is a weight that is at most this share of a bin away from a level: storing it in 16 bits moves it less.
So near to a grid that they were not made for are two weights in five; all must be."""
_BLOCKS = (0, -1, 256, 128, 64, 32, 16)
"""Weights that share a scale: the tensor, a row, a part of a row."""
_FEW = 8
"""So many rows refuse nearly every grid."""
Maker = Callable[[Tensor], Levels]


def e4m3() -> Tensor:
    """The finite values of 8-bit floats with four bits of exponent, ascending."""
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return values[values.isfinite()].unique()


@dataclass(frozen=True)
class OffsetLevels:
    """Evenly spaced levels from each block's lowest weight on: index i stands for `low + i · scale`."""

    scale: Tensor
    lowest: Tensor
    high: int
    block: int
    low: int = 0

    def index(self, weight: Tensor) -> Tensor:
        nearest = ((blocks_of(weight, self.block) - self.lowest) / self.scale).round()
        return unblocked(nearest.clamp(0, self.high).to(torch.int16), weight, self.block)

    def values(self, index: Tensor) -> Tensor:
        return unblocked(blocks_of(index, self.block) * self.scale + self.lowest, index, self.block)

    def column(self, number: int, shape: torch.Size) -> OffsetLevels:
        if self.block == 0:
            return self
        of_row = -(-shape[1] // self.block)
        scale, lowest = (part.view(-1, of_row)[:, number // self.block, None] for part in (self.scale, self.lowest))
        return OffsetLevels(scale, lowest, self.high, 1)


@dataclass(frozen=True)
class OwnLevels:
    """Levels on which a tensor lies, with its own values where a weight has the tensor's own index: these are exact."""

    levels: Levels
    original: Tensor
    index_of_original: Tensor

    @property
    def low(self) -> int:
        return self.levels.low

    @property
    def high(self) -> int:
        return self.levels.high

    def index(self, weight: Tensor) -> Tensor:
        return self.levels.index(weight)

    def values(self, index: Tensor) -> Tensor:
        return torch.where(index == self.index_of_original, self.original, self.levels.values(index))

    def column(self, number: int, shape: torch.Size) -> OwnLevels:
        here = slice(number, number + 1)
        return OwnLevels(self.levels.column(number, shape), self.original[:, here], self.index_of_original[:, here])


def own_levels(weight: Tensor, grid: str | None = None) -> tuple[OwnLevels | None, str, float]:
    """The levels that a matrix is on, what they are, and by how much of a bin it is off them at most; None and the
    nearest miss where it is on no grid that is known.

    Args:
        grid: try this one alone, by the name that an earlier call gave it.
    """
    weight = weight.detach().float()
    miss, nearest = float("inf"), "no grid"
    for name, make in _candidates(weight.shape):
        if grid not in (None, name):
            continue
        few = weight[:_FEW]
        off = off_by(make(weight if "the tensor" in name else few), few)
        if off <= CLOSE:
            levels = make(weight)
            off = off_by(levels, weight)
            if off <= CLOSE:
                return OwnLevels(levels, weight, levels.index(weight)), name, off
        miss, nearest = min((miss, nearest), (off, name))
    return None, nearest, miss


def off_by(levels: Levels, weight: Tensor) -> float:
    """The largest distance of a weight to its nearest level, in bins."""
    index = levels.index(weight)
    value = levels.values(index)
    bins = (levels.values(torch.where(index < levels.high, index + 1, index - 1)) - value).abs()
    distance = (weight - value).abs()
    # A block that is all zeros has bins of no width, and lies on its level.
    return float(torch.where(distance == 0, 0.0, distance / bins).max())


def _candidates(shape: torch.Size) -> Iterator[tuple[str, Maker]]:
    """The grids tried, with what makes their levels of weights: coarse ones first, for a fine one may hold a coarse."""
    for bits in (2, 3, 4, 5, 6, 8):
        for block in _BLOCKS:
            size = shape[1] if block == -1 else block
            if block > 0 and (shape[1] % size or size >= shape[1]):
                continue
            of = {0: "the tensor", -1: "a row"}.get(block, f"{block} weights")
            yield f"{bits} bits from the lowest to the highest of {of}", partial(_offset, steps=2**bits - 1, block=size)
            for top in (2 ** (bits - 1) - 1, 2 ** (bits - 1)):
                if top > 0:
                    yield f"{bits} bits, ±{top} for the largest of {of}", partial(_symmetric, top=top, block=size)
    for name, code, size in (
        ("NF4, 64 weights", torch.tensor(NF4), 64),
        ("MXFP4, 32 weights", torch.tensor(FP4), 32),
        ("FP8 (E4M3), a row", e4m3(), shape[1]),
        ("FP8 (E4M3), the tensor", e4m3(), shape.numel()),
    ):
        yield name, partial(_coded, code=code, block=size)


def _symmetric(weight: Tensor, *, top: int, block: int) -> Levels:
    scale = blocks_of(weight, block).abs().amax(dim=1, keepdim=True) / top
    scale = torch.where(scale == 0, 1.0, scale)
    return EvenLevels(scale, torch.zeros_like(scale), -top, top, block)


def _offset(weight: Tensor, *, steps: int, block: int) -> Levels:
    parts = blocks_of(weight, block)
    low, high = parts.amin(dim=1, keepdim=True), parts.amax(dim=1, keepdim=True)
    scale = (high - low) / steps
    return OffsetLevels(torch.where(scale == 0, 1.0, scale), low, steps, block)


def _coded(weight: Tensor, *, code: Tensor, block: int) -> Levels:
    absmax = flat_blocks(weight, block).abs().amax(dim=1)
    if len(code) == len(FP4):
        # The scale is a power of two, and the largest weight may be rounded down to 4 or 6 of 6.
        absmax = torch.where(absmax == 0, 1.0, absmax)
        scale = torch.exp2(torch.floor(torch.log2(absmax)) - 3)
    else:
        scale = absmax / float(code[-1])
    return Codebook(code, scale, block)
