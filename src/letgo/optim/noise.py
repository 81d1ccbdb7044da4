"""Random directions for zeroth-order steps: made from a counter, block by block, and never from the global generator.

A direction v is one random vector over all of an optimizer's parameters. Every kind has E[v v^T] = I, so that `mu`
means the same size of perturbation per coordinate (root mean square) in each of them, and the estimate
c v with c = (f(x + mu v) - f(x - mu v)) / (2 mu) has the same scale in each:

    rademacher   independent signs                      E[c v] = grad f + O(mu^2)
    gaussian     independent N(0, 1)                    E[c v] = grad of E_v f(x + mu v), exactly
    sphere       sqrt(d) u, u uniform on the unit sphere E[c v] = grad of f averaged over the ball of radius
                                                        mu sqrt(d), exactly: the factor d that an estimate along
                                                        unit vectors owes is in v v^T = d u u^T

The noise of a block is a function of (seed, step, direction, position of the parameter, position of the block) alone:
the same on every rank, whatever was drawn before, and it can be made again instead of being kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

NoiseKind = Literal["rademacher", "gaussian", "sphere"]
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)

BLOCK_ELEMENTS = 1 << 20
"""Largest block that noise is made in (a longer row is one block): large enough to hide the cost of a call, small
enough to stay in the processor's cache. It is part of what the noise of a seed is: changing it changes every run."""

_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """Hash integers into one of 64 bits, order mattering (the finalizer of SplitMix64, chained)."""
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor as a view with rows along its first dimension; one row if it has fewer than two dimensions."""
    return tensor if tensor.dim() >= 2 else tensor.unsqueeze(0)


def row_blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of `rows_of(tensor)` with at most `BLOCK_ELEMENTS` elements each, and at least one row."""
    rows = rows_of(tensor)
    count = rows.shape[0]
    if tensor.numel() == 0:
        return
    per_block = max(1, BLOCK_ELEMENTS // (tensor.numel() // count))
    for start in range(0, count, per_block):
        yield slice(start, min(start + per_block, count))


class Direction:
    """One random direction over a list of tensors.

    Args:
        kind: `rademacher`, `gaussian` or `sphere`.
        key: what the noise is a function of, beside the places of tensor and block: (seed, step, direction).
        tensors: the parameters in order. Frozen ones belong in the list too, so that freezing one changes no other's
            noise; they do not count for the sphere's dimension.
    """

    def __init__(self, kind: NoiseKind, key: Sequence[int], tensors: Sequence[Tensor]) -> None:
        self.kind = kind
        self.key = mix(*key)
        self.tensors = tensors
        self._generators: dict[torch.device, torch.Generator] = {}
        self._bits: dict[int, list[Tensor]] = {}
        self.scale = self._sphere_scale() if kind == "sphere" else 1.0

    def blocks(self, index: int) -> Iterator[tuple[slice, Tensor]]:
        """The direction at tensor `index`: pairs of a slice of its rows and the values there.

        Values have the shape and device of `rows_of(tensor)[rows]`, the dtype too but at least float32 (so that what
        is computed with them is rounded to the tensor's dtype once, at the end), and are the caller's to overwrite.
        """
        tensor = self.tensors[index]
        rows_view = rows_of(tensor)
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        for number, rows in enumerate(row_blocks(tensor)):
            shape = (rows.stop - rows.start, *rows_view.shape[1:])
            if self.kind == "rademacher":
                yield rows, _signs(self._packed_signs(index, number, shape, tensor.device), shape, dtype)
            else:
                noise = torch.empty(shape, dtype=dtype, device=tensor.device)
                noise.normal_(generator=self._generator(index, number, tensor.device))
                yield rows, noise.mul_(self.scale) if self.scale != 1.0 else noise

    def tensor(self, index: int) -> Tensor:
        """The whole of the direction at tensor `index`, in that tensor's shape and the dtype of `blocks`."""
        tensor = self.tensors[index]
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        whole = torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)
        for rows, values in self.blocks(index):
            rows_of(whole)[rows] = values
        return whole

    def shifted(self, index: int, alpha: float) -> Tensor:
        """A new tensor: tensor `index` + alpha * direction, rounded once to the tensor's dtype."""
        source = self.tensors[index].detach()
        shifted = torch.empty_like(source, memory_format=torch.contiguous_format)
        for rows, values in self.blocks(index):
            torch.add(rows_of(source)[rows], values, alpha=alpha, out=rows_of(shifted)[rows])
        return shifted

    def forget(self) -> None:
        """Drop the bits that are kept to be unpacked again; they are made anew when needed."""
        self._bits.clear()

    def _packed_signs(self, index: int, number: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Random bytes, ceil(columns / 8) a row. One bit a parameter is little enough to keep between evaluations."""
        kept = self._bits.setdefault(index, [])
        if number == len(kept):
            rows, columns = shape[0], math.prod(shape[1:])
            count = rows * -(-columns // 8)
            words = torch.empty(-(-count // 8), dtype=torch.int64, device=device)
            words.random_(-(2**63), None, generator=self._generator(index, number, device))
            kept.append(words.view(torch.uint8)[:count].view(rows, -1))
        return kept[number]

    def _generator(self, index: int, number: int, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed(mix(self.key, index, number))

    def _sphere_scale(self) -> float:
        """sqrt(d) / |g| of the Gaussian vector g that the direction is made from."""
        self.scale, squared, dimension = 1.0, 0.0, 0
        for index, tensor in enumerate(self.tensors):
            if tensor.requires_grad:
                dimension += tensor.numel()
                squared += sum(float(values.double().square().sum()) for _, values in self.blocks(index))
        return math.sqrt(dimension / squared) if squared else 1.0


def _signs(packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Unpack bytes of shape (rows, ceil(columns / 8)) into +1 and -1 of the given shape."""
    columns = math.prod(shape[1:])
    table = _sign_table(dtype, packed.device)
    signs = torch.index_select(table, 0, packed.reshape(-1).to(torch.int32)).view(shape[0], -1)
    return signs.view(shape) if signs.shape[1] == columns else signs[:, :columns].reshape(shape)


_SIGN_TABLES: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def _sign_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(256, 8): row b holds the bits of byte b as +1 and -1. Looking bytes up is many times cheaper than drawing each
    sign, or shifting and masking."""
    key = (dtype, device)
    if key not in _SIGN_TABLES:
        bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
        _SIGN_TABLES[key] = (2 * bits - 1).to(dtype)
    return _SIGN_TABLES[key]
