"""Quantization by rounding: does it bring the forgotten back?"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from letgo.attacks.displacement import Rounded, apply_quantizer
from letgo.attacks.engine.base import Attacked, Victim
from letgo.core.values import Seed, Within
from letgo.optim.engine.rounding import Granularity, make_grid

Bits = Annotated[int, Within(2, 8)]
GroupSize = Annotated[int, Within(2)]


def quantize(
    victim: Victim,
    *,
    bits: Bits = 4,
    granularity: Granularity = "group",
    group_size: GroupSize = 64,
    symmetric: bool = True,
    seed: Seed = 0,
) -> Attacked:
    """Round every linear layer's weights to `bits` bits, to nearest, and dequantize them.

    Embeddings, norms, biases and the output layer stay as they are, as the common 4-bit formats leave them.

    Args:
        bits: 2 to 8.
        granularity: one scale per tensor, per output channel, or per group of `group_size` weights of a channel.
        group_size: weights that share a scale, with granularity "group"; a channel's last group may be shorter.
        symmetric: a scale alone, s = max|w|/(2^(b−1)−1); or a scale and a zero point over [min w, max w].
    """

    def quantizer(name: str, weight: Tensor) -> Rounded:
        grid = make_grid(weight, bits=bits, granularity=granularity, group_size=group_size, symmetric=symmetric)
        return Rounded(grid.values(grid.index(weight)), grid)

    return apply_quantizer(victim, quantizer, f"quantizing to {bits} bits")
