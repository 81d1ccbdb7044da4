"""Quantization: does rounding the weights bring the forgotten back?"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from letgo.attacks.base import Attacked, Victim
from letgo.errors import UserError

Granularity = Literal["group", "channel", "tensor"]


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

    Embeddings, norms, biases and the output layer stay as they are, as the common 4-bit formats leave them. There is
    nothing random in it: the seed changes nothing.

    Args:
        victim: the saved model.
        bits: 2 to 8.
        granularity: one scale per tensor, per output channel, or per group of `group_size` weights of a channel.
        group_size: weights that share a scale, with granularity "group"; a channel's last group may be shorter.
        symmetric: a scale alone, s = max|w|/(2^(b−1)−1); or a scale and a zero point over [min w, max w].
        seed: not used.
    """
    if not 2 <= bits <= 8:
        raise UserError(f"quantize: bits must be from 2 to 8, not {bits}")
    if granularity not in ("group", "channel", "tensor"):
        raise UserError(f"quantize: unknown granularity {granularity!r}; known: group, channel, tensor")
    if group_size < 2:
        raise UserError(f"quantize: group_size must be at least 2, not {group_size}")
    model = victim.load()
    layers = linear_layers(model)
    moved, total, count = 0.0, 0.0, 0
    with victim.reporter.task(f"quantizing to {bits} bits", len(layers)) as task, torch.no_grad():
        for layer in layers.values():
            rounded = round_to_nearest(
                layer.weight, bits=bits, granularity=granularity, group_size=group_size, symmetric=symmetric
            )
            moved += float((rounded - layer.weight).double().square().sum())
            total += float(layer.weight.double().square().sum())
            count += layer.weight.numel()
            layer.weight.copy_(rounded)
            task.advance()
    did = {
        "layers": len(layers),
        "weights": count,
        "displacement": moved**0.5,
        "relative_displacement": (moved / total) ** 0.5 if total else 0.0,
    }
    return Attacked(model, did)


def linear_layers(model: torch.nn.Module) -> dict[str, Any]:
    """The layers that quantizers quantize: all linear ones (GPT-2's Conv1D too) but the output layer."""
    from transformers.pytorch_utils import Conv1D

    find_output: Any = getattr(model, "get_output_embeddings", None)
    output = find_output() if find_output is not None else None
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    }
    if not found:
        raise UserError("quantize: the model has no linear layer to quantize")
    return found


def round_to_nearest(
    weight: Tensor, *, bits: int, granularity: Granularity = "group", group_size: int = 64, symmetric: bool = True
) -> Tensor:
    """Quantize and dequantize a matrix, round to nearest (ties to even).

    Symmetric: Q(w) = s·clip(round(w/s), −2^(b−1), 2^(b−1)−1) with s = max|w|/(2^(b−1)−1).
    Else: Q(w) = s·(clip(round(w/s) + z, 0, 2^b−1) − z) with s = (max w − min w)/(2^b−1), z = round(−min w/s), the
    range widened to hold 0.

    Args:
        weight: shape (rows, columns); a scale never spans two rows, but with granularity "tensor".

    Returns:
        A tensor of the same shape and type.
    """
    rows, columns = weight.shape
    values = weight.detach().float()
    if granularity == "tensor":
        blocks = values.reshape(1, -1)
    elif granularity == "channel":
        blocks = values
    else:
        short = -columns % group_size
        blocks = torch.nn.functional.pad(values, (0, short)).reshape(-1, group_size)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = blocks.abs().amax(dim=1, keepdim=True) / top
        scale = torch.where(scale == 0, 1.0, scale)
        rounded = (blocks / scale).round().clamp(-top - 1, top) * scale
    else:
        top = 2**bits - 1
        low = blocks.amin(dim=1, keepdim=True).clamp(max=0)
        high = blocks.amax(dim=1, keepdim=True).clamp(min=0)
        scale = (high - low) / top
        scale = torch.where(scale == 0, 1.0, scale)
        zero = (-low / scale).round()
        rounded = (((blocks / scale).round() + zero).clamp(0, top) - zero) * scale
    if granularity == "group":
        rounded = rounded.reshape(rows, -1)[:, :columns]
    return rounded.reshape(rows, columns).to(weight.dtype)
