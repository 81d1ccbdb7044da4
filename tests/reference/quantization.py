"""Round to nearest, one weight at a time."""

from __future__ import annotations


def round_half_even(value: float) -> int:
    return round(value)  # Python's round is to even


def quantize_block(block: list[float], bits: int, symmetric: bool) -> list[float]:
    if symmetric:
        top = 2 ** (bits - 1) - 1
        largest = max(abs(w) for w in block)
        if largest == 0:
            return list(block)
        scale = largest / top
        return [max(-top - 1, min(top, round_half_even(w / scale))) * scale for w in block]
    top = 2**bits - 1
    low, high = min(*block, 0.0), max(*block, 0.0)
    if high == low:
        return list(block)
    scale = (high - low) / top
    zero = round_half_even(-low / scale)
    return [(max(0, min(top, round_half_even(w / scale) + zero)) - zero) * scale for w in block]


def quantize_matrix(rows: list[list[float]], bits: int, granularity: str, group_size: int, symmetric: bool):
    if granularity == "tensor":
        flat = quantize_block([w for row in rows for w in row], bits, symmetric)
        width = len(rows[0])
        return [flat[i : i + width] for i in range(0, len(flat), width)]
    size = len(rows[0]) if granularity == "channel" else group_size
    return [
        [w for start in range(0, len(row), size) for w in quantize_block(row[start : start + size], bits, symmetric)]
        for row in rows
    ]
