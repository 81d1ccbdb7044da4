"""The kernels behind `letgo.optim.engine.fused`: noise made in registers, and added in the pass that reads the weights.

Imports numba. Everything here computes what `letgo.optim.engine.counter` defines, operation by operation, so that both
give the same bits: floats are only added, multiplied and divided, and never contracted (numba compiles without
fast-math). Tensors are flat arrays, of float32 or of the bits of bf16 as uint16. The inner loops are written for the
compiler's vectorizer: on slices, with an index that counts from 0, and with functions of their own where a tensor is
its own output, since a loop over arrays that overlap is not vectorized.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

U64, U32, U16, F32 = np.uint64, np.uint32, np.uint16, np.float32
GOLDEN, FIRST_FACTOR, SECOND_FACTOR = U64(0x9E3779B97F4A7C15), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
S27, S30, S31 = U64(27), U64(30), U64(31)
HALF, STEP, UNIT, SQUARES = F32(0.5), F32(2.0**-15), F32(1.0), F32(2.0**20)
HIGH_BIT, NO_BIT, SIGN_BIT = U16(0x8000), U16(0), U32(0x80000000)
GROUP, LANES, WORDS = 4096, 256, 64


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """njit that caches its machine code, next to this file or in the user's cache directory, if either is writable."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        except RuntimeError:  # no place for a cache
            return njit(nogil=True, error_model="numpy", **options)(function)

    return decorate


def _read(array: Any, j: int) -> Any:
    """An element as a float32; for the compiler only."""
    raise NotImplementedError


def _write(array: Any, j: int, value: Any) -> None:
    """Store a float32, rounded once to what the array holds; for the compiler only."""
    raise NotImplementedError


@overload(_read)
def _read_typed(array, j):  # type: ignore[no-untyped-def]
    if array.dtype == types.uint16:
        return lambda array, j: U32(U32(array[j]) << U32(16)).view(F32)
    return lambda array, j: array[j]


@overload(_write)
def _write_typed(array, j, value):  # type: ignore[no-untyped-def]
    if array.dtype == types.uint16:

        def write_bf16(array, j, value):  # type: ignore[no-untyped-def]
            u = F32(value).view(U32)
            nearest = U32(U32(u + U32(0x7FFF)) + U32((u >> U32(16)) & U32(1))) >> U32(16)  # ties to even
            array[j] = U16(nearest) if value == value else U16(0x7FC0)

        return write_bf16

    def write_float(array, j, value):  # type: ignore[no-untyped-def]
        array[j] = value

    return write_float


@jit()
def _draw(words, first, key):  # type: ignore[no-untyped-def]
    """Words number `first` and following of a key."""
    counter = key + (first + U64(1)) * GOLDEN
    for i in range(words.size):
        x = counter + U64(i) * GOLDEN
        x = (x ^ (x >> S30)) * FIRST_FACTOR
        x = (x ^ (x >> S27)) * SECOND_FACTOR
        words[i] = x ^ (x >> S31)


@jit()
def _normal(k, c):  # type: ignore[no-untyped-def]
    """z(k); c: the coefficients of P (6) and of Q (5)."""
    x = (F32(k) + HALF) * STEP
    r = (UNIT - x) * (UNIT + x)
    top = ((((c[5] * r + c[4]) * r + c[3]) * r + c[2]) * r + c[1]) * r + c[0]
    bottom = (((c[10] * r + c[9]) * r + c[8]) * r + c[7]) * r + c[6]
    return top * x / bottom


# Runs of elements whose signs stand at one bit of their lanes, or whose lanes are normals.


@jit()
def _signs_to(source, out, lanes, bit, alpha):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        _write(out, j, _read(source, j) + (-alpha if (lanes[j] & bit) != NO_BIT else alpha))


@jit()
def _signs_here(out, lanes, bit, alpha):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        _write(out, j, _read(out, j) + (-alpha if (lanes[j] & bit) != NO_BIT else alpha))


@jit()
def _group_to(source, out, lanes, alpha):  # type: ignore[no-untyped-def]
    """A whole group of signs, from its first element on: one slice of the arrays instead of one a plane."""
    size = F32(alpha).view(U32)
    for plane in range(GROUP // LANES):
        shift = U32(plane + 16)
        for j in range(LANES):
            sign = U32(U32(lanes[j]) << shift) & SIGN_BIT
            k = plane * LANES + j
            _write(out, k, _read(source, k) + U32(size ^ sign).view(F32))


@jit()
def _group_here(out, lanes, alpha):  # type: ignore[no-untyped-def]
    size = F32(alpha).view(U32)
    for plane in range(GROUP // LANES):
        shift = U32(plane + 16)
        for j in range(LANES):
            sign = U32(U32(lanes[j]) << shift) & SIGN_BIT
            k = plane * LANES + j
            _write(out, k, _read(out, k) + U32(size ^ sign).view(F32))


@jit()
def _normals_to(source, out, lanes, c, scale, alpha):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        _write(out, j, _read(source, j) + alpha * (_normal(lanes[j], c) * scale))


@jit()
def _normals_here(out, lanes, c, scale, alpha):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        _write(out, j, _read(out, j) + alpha * (_normal(lanes[j], c) * scale))


@jit()
def _signs_alone(out, lanes, bit):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        out[j] = -UNIT if (lanes[j] & bit) != NO_BIT else UNIT


@jit()
def _normals_alone(out, lanes, c, scale):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        out[j] = _normal(lanes[j], c) * scale


@jit()
def _squares_of(lanes, c):  # type: ignore[no-untyped-def]
    total = np.int64(0)
    for j in range(lanes.size):
        z = _normal(lanes[j], c)
        total += np.int64(z * z * SQUARES)
    return total


SHIFT, SHIFT_HERE, ALONE = 0, 1, 2
"""What `_range` does: out = source + alpha v; out = out + alpha v; out = v."""


@jit()
def _range(what, normal, source, out, start, low, high, key, alpha, scale, c):  # type: ignore[no-untyped-def]
    """Elements low .. high - 1 of the arrays, which are elements start + low .. of their tensor."""
    words = np.empty(WORDS, U64)
    lanes, signed = words.view(U16), words.view(np.int16)
    at = low
    while at < high:
        element = start + at
        if normal:
            _draw(words, U64(element // LANES * WORDS), key)
            first = element % LANES
            count = min(LANES - first, high - at)
            drawn, there = signed[first : first + count], out[at : at + count]
            if what == SHIFT:
                _normals_to(source[at : at + count], there, drawn, c, scale, alpha)
            elif what == SHIFT_HERE:
                _normals_here(there, drawn, c, scale, alpha)
            else:
                _normals_alone(there, drawn, c, scale)
            at += count
            continue
        _draw(words, U64(element // GROUP * WORDS), key)
        group_end = min(high, (element // GROUP + 1) * GROUP - start)
        if what != ALONE and element % GROUP == 0 and group_end - at == GROUP:
            there = out[at:group_end]
            if what == SHIFT:
                _group_to(source[at:group_end], there, lanes, alpha)
            else:
                _group_here(there, lanes, alpha)
            at = group_end
            continue
        while at < group_end:
            first, plane = (start + at) % LANES, (start + at) % GROUP // LANES
            count = min(LANES - first, group_end - at)
            bit = U16(HIGH_BIT >> U16(plane))
            bits, there = lanes[first : first + count], out[at : at + count]
            if what == SHIFT:
                _signs_to(source[at : at + count], there, bits, bit, alpha)
            elif what == SHIFT_HERE:
                _signs_here(there, bits, bit, alpha)
            else:
                _signs_alone(there, bits, bit)
            at += count


@jit()
def single_thread(what, normal, source, out, start, key, alpha, scale, c):  # type: ignore[no-untyped-def]
    """`_range` of all of `out`."""
    _range(what, normal, source, out, start, 0, out.size, key, alpha, scale, c)


@jit(parallel=True)
def all_threads(what, normal, source, out, start, key, alpha, scale, c, parts):  # type: ignore[no-untyped-def]
    """`_range` of all of `out`, in parts of about the same size, cut where words begin."""
    pieces = (out.size + GROUP - 1) // GROUP
    for number in prange(parts):
        part = np.int64(number)  # prange counts in unsigned integers, which mix with signed ones to floats
        low = min(out.size, pieces * part // parts * GROUP)
        high = min(out.size, pieces * (part + 1) // parts * GROUP)
        _range(what, normal, source, out, start, low, high, key, alpha, scale, c)


@jit()
def rows(normal, source, out, which, key, alpha, scale, c):  # type: ignore[no-untyped-def]
    """out[i] = source[which[i]] + alpha v there, for matrices of as many columns."""
    columns = out.shape[1]
    for i in range(out.shape[0]):
        _range(SHIFT, normal, source[which[i]], out[i], which[i] * columns, 0, columns, key, alpha, scale, c)


@jit(parallel=True)
def squares(start, stop, key, c, parts):  # type: ignore[no-untyped-def]
    """2^20 times the sum of the squares of normals start .. stop - 1 of a key, each rounded down."""
    total = np.int64(0)
    first = start // LANES
    blocks = (stop + LANES - 1) // LANES - first
    for number in prange(parts):
        part = np.int64(number)
        words = np.empty(WORDS, U64)
        signed = words.view(np.int16)
        here = np.int64(0)
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            before = (first + block) * LANES
            _draw(words, U64((first + block) * WORDS), key)
            here += _squares_of(signed[max(0, start - before) : min(LANES, stop - before)], c)
        total += here
    return total
