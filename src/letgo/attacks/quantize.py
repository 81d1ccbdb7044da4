"""Quantization by rounding: does it bring the forgotten back?"""

from __future__ import annotations

from torch import Tensor

from letgo.attacks.displacement import apply_quantizer
from letgo.attacks.engine.base import Attacked, Victim
from letgo.attacks.rounding import EvenLevels, Granularity, make_grid
from letgo.core.errors import UserError


def quantize(
    victim: Victim,
    *,
    bits: int = 4,
    granularity: Granularity = "group",
    group_size: int = 64,
    symmetric: bool = True,
    seed: int = 0,
) -> Attacked:
    """Round every linear layer's weights to `bits` bits, to nearest, and dequantize them.

    Embeddings, norms, biases and the output layer stay as they are, as the common 4-bit formats leave them.

    Args:
        bits: 2 to 8.
        granularity: one scale per tensor, per output channel, or per group of `group_size` weights of a channel.
        group_size: weights that share a scale, with granularity "group"; a channel's last group may be shorter.
        symmetric: a scale alone, s = max|w|/(2^(b−1)−1); or a scale and a zero point over [min w, max w].
    """
    check_bits("quantize", bits)
    if granularity not in ("group", "channel", "tensor"):
        raise UserError(f"quantize: unknown granularity {granularity!r}; known: group, channel, tensor")
    check_group_size("quantize", group_size)

    def quantizer(name: str, weight: Tensor) -> tuple[Tensor, EvenLevels]:
        grid = make_grid(weight, bits=bits, granularity=granularity, group_size=group_size, symmetric=symmetric)
        return grid.values(grid.index(weight)), grid

    return apply_quantizer(victim, quantizer, f"quantizing to {bits} bits")


def check_bits(attack: str, bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise UserError(f"{attack}: bits must be a whole number from 2 to 8, not {bits!r}")


def check_group_size(attack: str, group_size: int) -> None:
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 2:
        raise UserError(f"{attack}: group_size must be a whole number of at least 2, not {group_size!r}")
