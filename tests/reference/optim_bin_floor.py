"""The floor of an update, number by number."""

from __future__ import annotations

import bisect
from itertools import pairwise

import torch
from torch import Tensor


def levels_of_block(block: list[float], code: list[float]) -> list[float]:
    largest = max(abs(value) for value in block)
    return [largest * level for level in code]


def even_code(bits: int) -> list[float]:
    top = 2 ** (bits - 1) - 1
    return [i / top for i in range(-top - 1, top + 1)]


def floored(before: Tensor, now: Tensor, blocks: list[list[int]], code: list[float], keep: float) -> Tensor:
    """A matrix's weights after the projection.

    Args:
        blocks: the places of each block's weights in the flattened matrix.
        code: the levels of a block whose largest weight is 1, ascending.
    """
    old, new = before.flatten().tolist(), now.flatten().tolist()
    floors: dict[int, tuple[float, float]] = {}
    for places in blocks:
        levels = levels_of_block([old[place] for place in places], code)
        largest = max(abs(old[place]) for place in places)
        middles = [(a + b) / 2 for a, b in pairwise(levels)]
        for place in places:
            number = bisect.bisect_left(middles, old[place])
            following = number + (1 if new[place] > old[place] else -1)
            if abs(old[place]) == largest or new[place] == old[place] or not 0 <= following < len(levels):
                continue
            floor = levels[number] + 0.6 * (levels[following] - levels[number])
            if abs(floor) <= largest:
                floors[place] = (floor, largest)
    chosen = sorted(floors, key=lambda place: (-abs(new[place] - old[place]), place))[: round(keep * len(old))]
    result = list(old)
    for place in chosen:
        floor, largest = floors[place]
        up = new[place] > old[place]
        value = max(new[place], floor) if up else min(new[place], floor)
        result[place] = max(-largest, min(largest, value))
    return torch.tensor(result, dtype=before.dtype).view(before.shape)
