"""Random numbers as a function of a key and a position, in plain torch: the same bits on every machine and device.

Word number i of a key is the i-th output of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) started at the key: a
counter times an odd constant, hashed. Nothing is drawn in order, so that any part of a tensor's noise can be made by
itself, by any number of threads. Only integer arithmetic and single float operations that IEEE 754 rounds exactly are
used, each for itself, so that the fused kernels of `letgo.optim.engine.fused` give the same bits.

signs      one bit each. 4,096 elements share 64 words: seen as 256 lanes of 16 bits, the words give element
           256 s + w of their group bit 15 - s of lane w. So the 16 signs of a lane come to stand where a float has its
           own by shifts of whole registers.
normals    16 bits each, k in -32768 .. 32767, mapped to z(k) = x P(r) / Q(r) with x = (k + 1/2) / 32768 and
           r = (1 - x)(1 + x): a rational fit to the mean of N(0, 1) over each of 65,536 equally likely slices. Odd to
           the last bit, increasing, variance 1 (to 2e-8), fourth moment 2.9998, sixth 14.99, distance from the normal
           distribution function (Kolmogorov's) 9e-5, largest value 4.386.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

GOLDEN, FIRST_FACTOR, SECOND_FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1

GROUP = 4096
"""Elements whose signs share words."""
LANES = 256
"""16-bit lanes of a group's words."""

NUMERATOR = (0.00028090199339203537, 3.736663341522217, 1577.27978515625, 42299.6875, 68089.890625, -9219.9990234375)
DENOMINATOR = (5.936608795309439e-05, 1.0, 537.3291625976562, 20100.244140625, 61458.6171875)
"""Coefficients of P and Q, lowest power first; each is a float32."""


def mix(*values: int) -> int:
    """Hash integers into one of 64 bits, order mattering (the finalizer of SplitMix64, chained)."""
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + GOLDEN & _MASK
        state = (state ^ (state >> 30)) * FIRST_FACTOR & _MASK
        state = (state ^ (state >> 27)) * SECOND_FACTOR & _MASK
        state ^= state >> 31
    return state


def hashed(counters: Tensor) -> Tensor:
    """SplitMix64's finalizer of int64 words (read as unsigned), in place."""
    for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR), (31, None)):
        # The shift keeps the sign; what it brings in from the left is masked off.
        counters ^= (counters >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if factor is not None:
            counters *= _signed(factor)
    return counters


def words(key: int, start: int, stop: int, device: torch.device) -> Tensor:
    """(stop - start,) int64: words number start .. stop - 1 of a key."""
    count = stop - start
    return hashed(_ramp(max(0, count - 1).bit_length(), device)[:count] + _signed(key + start * GOLDEN))


def words_at(key: int, numbers: Tensor) -> Tensor:
    """The words of a key at int64 numbers, in their shape."""
    return hashed((numbers + 1) * _signed(GOLDEN) + _signed(key))


def signs(key: int, start: int, stop: int, dtype: torch.dtype, device: torch.device, magnitude: float = 1.0) -> Tensor:
    """(stop - start,): +magnitude or -magnitude for elements start .. stop - 1, in a dtype of 2, 4 or 8 bytes."""
    first, last = start // GROUP, -(-stop // GROUP)
    drawn, width = words(key, 64 * first, 64 * last, device), dtype.itemsize * 8
    if width > 16:
        integer = torch.int32 if width == 32 else torch.int64
        drawn = (drawn.view(torch.int16).to(integer) << (width - 16)).view(torch.int64)
    # Registers of several lanes are shifted whole: bits that leave a lane never become the next one's sign.
    planes = drawn.view(last - first, 1, -1) << _shifts(device)
    planes.bitwise_and_(_lanes(-0.0, dtype)).bitwise_xor_(_lanes(magnitude, dtype))
    return planes.view(-1).view(dtype)[start - first * GROUP : stop - first * GROUP]


def normals(key: int, start: int, stop: int, device: torch.device) -> Tensor:
    """(stop - start,) float32: standard normal numbers for elements start .. stop - 1."""
    return normal_table(device).index_select(0, _table_indices(key, start, stop, device))


def squares(key: int, start: int, stop: int, device: torch.device) -> int:
    """2^20 times the sum of the squares of `normals`, each rounded down: a whole number, whatever the order."""
    return int(_square_table(device).index_select(0, _table_indices(key, start, stop, device)).sum())


def signs_at(key: int, elements: Tensor) -> Tensor:
    """float32: +1 or -1 for int64 element numbers, in their shape."""
    within = elements & (GROUP - 1)
    lane = within & (LANES - 1)
    drawn = words_at(key, (elements >> 12 << 6) + (lane >> 2))
    bit = (drawn >> ((lane & 3) * 16 + 15 - (within >> 8))) & 1
    return (1 - 2 * bit).to(torch.float32)


def normals_at(key: int, elements: Tensor) -> Tensor:
    """float32: standard normal numbers for int64 element numbers, in their shape."""
    drawn = words_at(key, elements >> 2) >> ((elements & 3) * 16)
    return normal_table(elements.device)[drawn & 0xFFFF]


def _table_indices(key: int, start: int, stop: int, device: torch.device) -> Tensor:
    first, last = start // 4, -(-stop // 4)
    indices = words(key, first, last, device).view(torch.int16)[start - 4 * first : stop - 4 * first]
    return indices.to(torch.int32).bitwise_and_(0xFFFF)


@functools.lru_cache
def normal_table(device: torch.device) -> Tensor:
    """(65536,) float32: z(k) at place k modulo 65536."""
    k = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).to(torch.float32)
    x = k.add_(0.5).mul_(2.0**-15)
    r = (1 - x).mul_(1 + x)
    top, bottom = _horner(NUMERATOR, r), _horner(DENOMINATOR, r)
    return top.mul_(x).div_(bottom).to(device)


def _horner(coefficients: tuple[float, ...], r: Tensor) -> Tensor:
    total = torch.full_like(r, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total.mul_(r).add_(coefficient)
    return total


@functools.lru_cache
def _square_table(device: torch.device) -> Tensor:
    table = normal_table(device)
    return table.mul(table).mul_(2.0**20).to(torch.int64)


@functools.lru_cache(maxsize=32)
def _ramp(bits: int, device: torch.device) -> Tensor:
    """(2^bits,): the first steps of the counter."""
    return torch.arange(1, (1 << bits) + 1, device=device).mul_(_signed(GOLDEN))


@functools.lru_cache
def _shifts(device: torch.device) -> Tensor:
    return torch.arange(16, device=device)[:, None]


@functools.lru_cache(maxsize=256)
def _lanes(value: float, dtype: torch.dtype) -> int:
    """The bits of a float, repeated over the 64 of a word."""
    return int(torch.full((8 // dtype.itemsize,), value, dtype=dtype).view(torch.int64).item())


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value
