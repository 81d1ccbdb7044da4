"""Round to nearest, in torch: the levels of a block of weights, the index of a weight among them, and back.

A grid belongs to the weights that it was made of. The index of *other* weights on it tells whether they would fall
into the same bins: how little an update has to be for a quantizer to undo it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Granularity = Literal["group", "channel", "tensor"]


class Levels(Protocol):
    """What every quantizer's levels can say of weights of the shape (rows, columns) that they were made for."""

    def index(self, weight: Tensor) -> Tensor: ...

    def values(self, index: Tensor) -> Tensor: ...


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
        """The index of each weight's nearest level, int16, of the weight's shape."""
        rounded = (_blocks(weight, self.block) / self.scale).round() + self.zero
        return _unblocked(rounded.clamp(self.low, self.high).to(torch.int16), weight, self.block)

    def values(self, index: Tensor) -> Tensor:
        """The levels that indices stand for, float32."""
        return _unblocked((_blocks(index, self.block) - self.zero) * self.scale, index, self.block)


@dataclass(frozen=True)
class Codebook:
    """Levels `absmax · code` for a block of consecutive weights; the code is the same for all (NF4, FP4)."""

    code: Tensor
    """The distinct levels of a block with absmax 1, ascending."""
    absmax: Tensor
    block: int

    def index(self, weight: Tensor) -> Tensor:
        flat = _flat_blocks(weight, self.block) / self.absmax[:, None].clamp(min=torch.finfo(torch.float32).tiny)
        middles = (self.code[1:] + self.code[:-1]) / 2
        index = torch.bucketize(flat, middles)
        return index.to(torch.int16).flatten()[: weight.numel()].reshape(weight.shape)

    def values(self, index: Tensor) -> Tensor:
        flat = self.code[_flat_blocks(index, self.block).long()] * self.absmax[:, None]
        return flat.flatten()[: index.numel()].reshape(index.shape)


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
    blocks = _blocks(weight, block)
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


def _blocks(weight: Tensor, block: int) -> Tensor:
    """(blocks, weights of a block), float32; a row's last block is filled up with zeros."""
    values = weight.detach().float()
    if block == 0:
        return values.reshape(1, -1)
    return torch.nn.functional.pad(values, (0, -weight.shape[1] % block)).reshape(-1, block)


def _unblocked(blocks: Tensor, like: Tensor, block: int) -> Tensor:
    rows, columns = like.shape
    return blocks.reshape(like.shape) if block == 0 else blocks.reshape(rows, -1)[:, :columns]


def _flat_blocks(weight: Tensor, block: int) -> Tensor:
    """(blocks, weights of a block) over the flattened tensor, as bitsandbytes cuts it; the last one filled up."""
    flat = weight.detach().float().flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % block)).reshape(-1, block)
