"""Random directions for zeroth-order steps: made from a counter, block by block, and never from the global generator.

A direction v is one random vector over all of an optimizer's parameters. Every kind has E[v v^T] = I, so that `mu`
means the same size of perturbation per coordinate (root mean square) in each of them, and the estimate
c v with c = (f(x + mu v) - f(x - mu v)) / (2 mu) has the same scale in each:

    rademacher   independent signs                       E[c v] = grad f + O(mu^2)
    gaussian     independent N(0, 1)                     E[c v] = grad of E_v f(x + mu v), exactly
    sphere       sqrt(d) u, u uniform on the unit sphere  E[c v] = grad of f averaged over the ball of radius
                                                         mu sqrt(d), exactly: the factor d that an estimate along
                                                         unit vectors owes is in v v^T = d u u^T

The noise of a block is a function of (seed, step, direction, position of the parameter, position of the block) alone:
the same on every rank, whatever was drawn before, and it can be made again instead of being kept. It differs between
kinds of device and between dtypes.

What makes it cheap on a CPU: signs are made from random bits by shifting 64-bit words, so that their sign bits fall
where a float has its own (3 passes of integer arithmetic instead of one draw a coordinate); normal numbers are looked
up, by 16 random bits each, in the means of 65,536 equally likely slices of the normal distribution, scaled to variance
1 (half the cost of drawing them; the largest is 4.4).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

NoiseKind = Literal["rademacher", "gaussian", "sphere"]
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)

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


def block_elements(device: torch.device) -> int:
    """Elements of a block: on a CPU what stays in its cache, elsewhere enough to hide the cost of a call.

    A row that is longer is one block. These sizes are part of what the noise of a seed is: changing them changes runs.
    """
    return 1 << 18 if device.type == "cpu" else 1 << 26


def row_blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of `rows_of(tensor)` with at most `block_elements` elements each, and at least one row."""
    if tensor.numel() == 0:
        return
    count = rows_of(tensor).shape[0]
    per_block = max(1, block_elements(tensor.device) // (tensor.numel() // count))
    for start in range(0, count, per_block):
        yield slice(start, min(start + per_block, count))


def noise_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of noise for tensors of a dtype: at least float32."""
    return torch.promote_types(dtype, torch.float32)


@functools.lru_cache(maxsize=256)
def rounded(value: float, dtype: torch.dtype) -> float:
    """The value of a dtype that is nearest to a number."""
    return float(torch.tensor(value, dtype=dtype))


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
        self._pools: dict[torch.device, Tensor] = {}
        self._places: dict[tuple[int, int], int] = {}
        self._drawn: set[tuple[int, int]] = set()
        self.scale = self._sphere_scale() if kind == "sphere" else 1.0

    def blocks(self, index: int) -> Iterator[tuple[slice, Tensor]]:
        """The direction at tensor `index`: pairs of a slice of its rows and the values there.

        Values have the shape and device of `rows_of(tensor)[rows]`, the dtype too but at least float32 (so that what
        is computed with them is rounded to the tensor's dtype once, at the end), and are the caller's to overwrite.
        """
        for number, rows in enumerate(row_blocks(self.tensors[index])):
            yield rows, self._values(index, number, rows)

    def tensor(self, index: int) -> Tensor:
        """The whole of the direction at tensor `index`, in that tensor's shape and the dtype of `blocks`."""
        tensor = self.tensors[index]
        whole = torch.empty_like(tensor, dtype=noise_dtype(tensor.dtype), memory_format=torch.contiguous_format)
        for rows, values in self.blocks(index):
            rows_of(whole)[rows] = values
        return whole

    def shifted_blocks(self, index: int, alpha: float) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of tensor `index` + alpha * direction, each rounded once to the tensor's dtype."""
        source = rows_of(self.tensors[index].detach())
        for number, rows in enumerate(row_blocks(self.tensors[index])):
            block = torch.empty_like(source[rows], memory_format=torch.contiguous_format)
            self._shift(index, number, rows, alpha, source[rows], block)
            yield rows, block

    def shifted(self, index: int, alpha: float) -> Tensor:
        """A new tensor: tensor `index` + alpha * direction, rounded once to the tensor's dtype."""
        source = self.tensors[index].detach()
        whole = torch.empty_like(source, memory_format=torch.contiguous_format)
        for number, rows in enumerate(row_blocks(source)):
            self._shift(index, number, rows, alpha, rows_of(source)[rows], rows_of(whole)[rows])
        return whole

    def shifted_rows(self, index: int, alpha: float, which: Tensor) -> Tensor:
        """(n, columns): the rows `which` (n,) of a matrix + alpha * direction. Noise is made for their blocks only."""
        chosen = self.tensors[index].detach()[which].to(noise_dtype(self.tensors[index].dtype))
        for number, rows in enumerate(row_blocks(self.tensors[index])):
            here = ((which >= rows.start) & (which < rows.stop)).nonzero().squeeze(1)
            if len(here):
                values = self._values(index, number, rows)
                chosen[here] += alpha * values[which[here] - rows.start]
        return chosen.to(self.tensors[index].dtype)

    def forget(self) -> None:
        """Drop the bits that are kept to be unpacked again; they are made anew when needed."""
        self._pools.clear()
        self._places.clear()
        self._drawn.clear()

    def _shape(self, index: int, rows: slice) -> tuple[int, ...]:
        return (rows.stop - rows.start, *rows_of(self.tensors[index]).shape[1:])

    def _values(self, index: int, number: int, rows: slice) -> Tensor:
        tensor, shape = self.tensors[index], self._shape(index, rows)
        if self.kind == "rademacher":
            return signs(self._words(index, number, shape), shape, tensor.dtype).to(noise_dtype(tensor.dtype))
        generator = self._generator(index, number, tensor.device)
        noise = normals(shape, noise_dtype(tensor.dtype), generator)
        return noise.mul_(self.scale) if self.scale != 1.0 else noise

    def _shift(self, index: int, number: int, rows: slice, alpha: float, source: Tensor, out: Tensor) -> None:
        exact = out.dtype in (torch.float32, torch.float64) or rounded(alpha, out.dtype) == alpha
        if self.kind == "rademacher" and exact:
            words = self._words(index, number, out.shape)
            if out.numel() % 64 == 0:
                signs(words, out.shape, out.dtype, alpha, out=out)
            else:
                out.copy_(signs(words, out.shape, out.dtype, alpha))
            out.add_(source)
        else:
            out.copy_(self._values(index, number, rows).mul_(alpha).add_(source))

    def _words(self, index: int, number: int, shape: Sequence[int]) -> Tensor:
        """Random 64-bit words, a bit a coordinate: little enough to keep between the evaluations of a direction."""
        tensor = self.tensors[index]
        if (index, number) not in self._places:
            self._lay_out(tensor.device, index)
        start = self._places[index, number]
        words = self._pools[tensor.device][start : start + -(-math.prod(shape) // 64)]
        if (index, number) not in self._drawn:
            words.random_(-(2**63), None, generator=self._generator(index, number, tensor.device))
            self._drawn.add((index, number))
        return words

    def _lay_out(self, device: torch.device, needed: int) -> None:
        """Make room for the bits of all trained tensors of a device, and of the one needed, in one piece: small pieces
        that outlive the large passing ones between them would keep the allocator from joining and reusing the latter.
        """
        total = 0
        for index, tensor in enumerate(self.tensors):
            if tensor.device == device and (tensor.requires_grad or index == needed):
                for number, rows in enumerate(row_blocks(tensor)):
                    self._places[index, number] = total
                    total += -(-math.prod(self._shape(index, rows)) // 64)
                    self._drawn.discard((index, number))
        self._pools[device] = torch.empty(total, dtype=torch.int64, device=device)

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


def signs(
    words: Tensor, shape: Sequence[int], dtype: torch.dtype, magnitude: float = 1.0, out: Tensor | None = None
) -> Tensor:
    """Unpack the bits of int64 words (at least elements / 64 of them) into +magnitude and -magnitude.

    A word holds 64 / width floats of `width` bits. Shifted left by s = 0 .. width - 1, every bit of the word comes to
    stand at a float's sign once; the rest is masked off and replaced by the bits of the magnitude.

    Args:
        out: contiguous, of this shape and dtype, its elements a multiple of 64: written to instead of a new tensor.
    """
    width = dtype.itemsize * 8
    planes = torch.empty(width, len(words), dtype=torch.int64, device=words.device) if out is None else out
    planes = planes.view(-1).view(torch.int64).view(width, len(words))
    torch.bitwise_left_shift(words, _shifts(width, words.device), out=planes)
    planes.bitwise_and_(_lanes(-0.0, dtype)).bitwise_xor_(_lanes(magnitude, dtype))
    return out if out is not None else planes.view(dtype).view(-1)[: math.prod(shape)].view(tuple(shape))


def normals(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Standard normal numbers; on a CPU by 16 bits each, from a table."""
    device, count = generator.device, math.prod(shape)
    if device.type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device).normal_(generator=generator)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    places = words.view(torch.int16)[:count].to(torch.int32).bitwise_and_(0xFFFF)
    return torch.index_select(_normal_table(dtype), 0, places).view(tuple(shape))


@functools.lru_cache
def _shifts(width: int, device: torch.device) -> Tensor:
    return torch.arange(width, device=device)[:, None]


@functools.lru_cache(maxsize=256)
def _lanes(value: float, dtype: torch.dtype) -> int:
    """The bits of a float, repeated over the 64 of a word."""
    return int(torch.full((8 // dtype.itemsize,), value, dtype=dtype).view(torch.int64).item())


@functools.lru_cache
def _normal_table(dtype: torch.dtype) -> Tensor:
    """(65536,): the mean of each of as many equally likely slices of N(0, 1), scaled to variance 1."""
    n = 1 << 16
    edges = torch.special.ndtri(torch.arange(1, n, dtype=torch.float64) / n)
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    zero = torch.zeros(1, dtype=torch.float64)
    means = n * (torch.cat([zero, density]) - torch.cat([density, zero]))
    means = (means - means.flip(0)) / 2  # symmetric to the last bit
    return (means / means.square().mean().sqrt()).to(dtype)
