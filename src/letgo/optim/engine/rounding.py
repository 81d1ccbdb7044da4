"""Rounding: the levels of a block of weights, the index of a weight among them, and back.

Levels belong to the weights that they were made of. The index of *other* weights on them tells whether they would fall
into the same bins: how little an update has to be for a quantizer to undo it.

A weight w between two levels a < b is rounded
    to nearest         to the one that is nearer: an update that moves no weight over the middle of its bin is lost;
    stochastically     to b with probability (w - a) / (b - a), else to a: E[Q(w)] = w, so an update is kept on average;
    by error feedback  to nearest, after the error of the weight before it in its row has been added: the sum of a row
                       is kept to within half a bin, without chance.
A weight that is on a level stays there. One beyond the outermost level goes to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from letgo.core.fingerprints import seed_of
from letgo.core.values import Rounding
from letgo.optim.engine.counter import words

Granularity = Literal["group", "channel", "tensor"]
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""QLoRA's NormalFloat levels (arXiv 2305.14314, appendix E)."""


class Levels(Protocol):
    """What every quantizer's levels can say of weights of the shape (rows, columns) that they were made for. Indices
    are whole numbers from `low` to `high`; the level of the next one is the next higher or the next lower."""

    @property
    def low(self) -> int: ...

    @property
    def high(self) -> int: ...

    def index(self, weight: Tensor) -> Tensor:
        """The index of each weight's nearest level, int16, of the weight's shape."""
        ...

    def values(self, index: Tensor) -> Tensor:
        """The levels that indices stand for, float32."""
        ...

    def column(self, number: int, shape: torch.Size) -> Levels:
        """The levels of one column of weights of a shape, for a weight of the shape (rows, 1)."""
        ...


def rounded(
    levels: Levels, weight: Tensor, rounding: Rounding, *, seed: int = 0, name: str = "", first: int = 0
) -> Tensor:
    """The index of the level to which each weight is rounded, int16, of the weight's shape (rows, columns).

    Args:
        seed, name: what stochastic rounding draws from, so that each tensor has draws of its own. The draw of an
            element is a function of them and of its place, on every machine the same.
        first: the number of the tensor's row with which `weight` begins.
    """
    weight = weight.detach().float()
    if rounding == "nearest":
        return levels.index(weight)
    if rounding == "stochastic":
        index, other, share = _neighbours(levels, weight)
        key = seed_of(f"rounding {seed} {name}", size=8, order="little")
        # 32 bits of each word: a double holds them exactly.
        start = first * weight.shape[1]
        draws = (words(key, start, start + weight.numel(), weight.device) >> 32 & 0xFFFFFFFF).double() * 2.0**-32
        return torch.where(draws.view_as(share) < share, other, index)
    carried, columns = torch.zeros_like(weight[:, :1]), []
    for number in range(weight.shape[1]):
        column = levels.column(number, weight.shape)
        wanted = weight[:, number : number + 1] + carried
        index, other, _ = _neighbours(column, wanted)
        value = column.values(index)
        # Beyond the outermost level there is no neighbour: what is cut off there is not carried on.
        carried = torch.where(other == index, 0.0, wanted - value)
        columns.append(index)
    return torch.cat(columns, dim=1)


def bin_width(levels: Levels, index: Tensor) -> float:
    """The average distance of the levels of these indices to the next ones."""
    other = torch.where(index < levels.high, index + 1, index - 1)
    return float((levels.values(other) - levels.values(index)).abs().double().mean())


def _neighbours(levels: Levels, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The index of the nearest level; that of the level on the weight's other side, or the same where there is none;
    and how far the weight is from the one to the other, as a share of the way (float64)."""
    index = levels.index(weight)
    value = levels.values(index)
    error = weight - value
    other, share = index, torch.zeros_like(weight, dtype=torch.float64)
    for step in (-1, 1):
        candidate = (index + step).clamp(levels.low, levels.high)
        way = levels.values(candidate) - value
        beyond = way * error > 0
        other = torch.where(beyond, candidate, other)
        share = torch.where(beyond, error.double() / way.double(), share)
    return index, other, share.clamp(0, 1)


@dataclass(frozen=True)
class EvenLevels:
    """Evenly spaced levels, block by block: index i stands for `scale · (i − zero)`, low ≤ i ≤ high.

    `scale` and `zero` have a row a block (a tensor, a channel, a group of a channel) and one column.
    """

    scale: Tensor
    zero: Tensor
    low: int
    high: int
    block: int
    """Weights of a row that share a scale; 0 where one scale is the whole tensor's."""

    def index(self, weight: Tensor) -> Tensor:
        nearest = (blocks_of(weight, self.block) / self.scale).round() + self.zero
        return unblocked(nearest.clamp(self.low, self.high).to(torch.int16), weight, self.block)

    def values(self, index: Tensor) -> Tensor:
        return unblocked((blocks_of(index, self.block) - self.zero) * self.scale, index, self.block)

    def column(self, number: int, shape: torch.Size) -> EvenLevels:
        if self.block == 0:
            return self
        blocks = -(-shape[1] // self.block)
        scale, zero = (part.view(-1, blocks)[:, number // self.block, None] for part in (self.scale, self.zero))
        return EvenLevels(scale, zero, self.low, self.high, 1)


@dataclass(frozen=True)
class Codebook:
    """Levels `absmax · code` for a block of consecutive weights; the code is the same for all (NF4, FP4)."""

    code: Tensor
    """The distinct levels of a block with absmax 1, ascending."""
    absmax: Tensor
    block: int

    @property
    def low(self) -> int:
        return 0

    @property
    def high(self) -> int:
        return len(self.code) - 1

    def index(self, weight: Tensor) -> Tensor:
        flat = flat_blocks(weight, self.block) / self.absmax[:, None].clamp(min=torch.finfo(torch.float32).tiny)
        middles = (self.code[1:] + self.code[:-1]) / 2
        index = torch.bucketize(flat, middles)
        return index.to(torch.int16).flatten()[: weight.numel()].reshape(weight.shape)

    def values(self, index: Tensor) -> Tensor:
        flat = self.code[flat_blocks(index, self.block).long()] * self.absmax[:, None]
        return flat.flatten()[: index.numel()].reshape(index.shape)

    def column(self, number: int, shape: torch.Size) -> Codebook:
        places = torch.arange(shape[0], device=self.absmax.device) * shape[1] + number
        return Codebook(self.code, self.absmax[places // self.block], 1)


def make_grid(
    weight: Tensor, *, bits: int, granularity: Granularity = "group", group_size: int = 64, symmetric: bool = True
) -> EvenLevels:
    """The levels of round-to-nearest quantization.

    Symmetric: Q(w) = s·clip(round(w/s), −2^(b−1), 2^(b−1)−1) with s = max|w|/(2^(b−1)−1).
    Else: Q(w) = s·(clip(round(w/s) + z, 0, 2^b−1) − z) with s = (max w − min w)/(2^b−1), z = round(−min w/s), the
    range widened to hold 0. Rounding is to nearest, ties to even.

    Args:
        weight: shape (rows, columns); a scale never spans two rows, but with granularity "tensor". The last group of
            a row may be shorter.
    """
    block = {"tensor": 0, "channel": weight.shape[1], "group": group_size}[granularity]
    blocks = blocks_of(weight, block)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = blocks.abs().amax(dim=1, keepdim=True) / top
        scale = torch.where(scale == 0, 1.0, scale)
        return EvenLevels(scale, torch.zeros_like(scale), -top - 1, top, block)
    top = 2**bits - 1
    low = blocks.amin(dim=1, keepdim=True).clamp(max=0)
    high = blocks.amax(dim=1, keepdim=True).clamp(min=0)
    scale = (high - low) / top
    scale = torch.where(scale == 0, 1.0, scale)
    return EvenLevels(scale, (-low / scale).round(), 0, top, block)


def blocks_of(weight: Tensor, block: int) -> Tensor:
    """(blocks, weights of a block), float32; a row's last block is filled up with zeros."""
    values = weight.detach().float()
    if block == 0:
        return values.reshape(1, -1)
    return torch.nn.functional.pad(values, (0, -weight.shape[1] % block)).reshape(-1, block)


def unblocked(blocks: Tensor, like: Tensor, block: int) -> Tensor:
    rows, columns = like.shape
    return blocks.reshape(like.shape) if block == 0 else blocks.reshape(rows, -1)[:, :columns]


def flat_blocks(weight: Tensor, block: int) -> Tensor:
    """(blocks, weights of a block) over the flattened tensor, as bitsandbytes cuts it; the last one filled up."""
    flat = weight.detach().float().flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % block)).reshape(-1, block)
