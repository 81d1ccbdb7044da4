"""Representation misdirection: hidden states of the forget set are steered to a random direction."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy
import torch
from torch import Tensor

from letgo.core.errors import UserError
from letgo.core.values import Count, Natural, Positive, Seed
from letgo.models.forward import block_number, find_blocks
from letgo.objectives.likelihood import Part, layer_hidden, mean_squares, over_positions

_ATTENTION = re.compile(r"attn|attention")
_DOWN = re.compile(r"(?:^|\.)(?:down_proj|c_proj|dense_4h_to_h|fc2|fc_out|w2|wo|lin2|out_proj|proj|dense)(?:\.|$)")


def rmu(
    model: Any,
    forget: Part,
    *,
    layer: Natural | str | None = None,
    steering: Positive = 6.5,
    parameters: str | None = None,
    trained_layers: Count = 3,
    seed: Seed = 0,
) -> Tensor:
    """ℓ_f = mean over real tokens of (1/d) ‖h_ℓ(x) − c u‖², u = r/‖r‖, r ~ Uniform[0,1)^d   (RMU, arXiv 2403.03218,
    section 4, equation 1).

    No block above ℓ runs, and where the parameters are those of `trainable_pattern` nothing below the first of them
    has a gradient.

    Args:
        layer: ℓ, as in `block_number`: a number from 0, a block's name, or None for 7/32 of the depth.
        steering: the steering coefficient c > 0.
        parameters: regular expression for the parameters that are trained, searched in their names within a block; by
            default the MLP's output projection, as the authors do (`mlp.down_proj`, `mlp.c_proj`, …).
        trained_layers: of how many blocks, counted down from ℓ.
        seed: of u, which is the same over a run.
    """
    hidden = layer_hidden(model, forget, block_number(model, layer))
    target = steering * control_vector(hidden.shape[-1], seed).to(hidden.device)
    return over_positions(mean_squares(hidden, target), forget)


@lru_cache(maxsize=8)
def control_vector(width: int, seed: int) -> Tensor:
    """u of shape (width,), of length 1, from a separate generator."""
    # Not torch's: under vmap, where all evaluations of a step run at once, its draws are not allowed.
    drawn = numpy.random.default_rng(seed).random(width)
    return torch.from_numpy(drawn / numpy.linalg.norm(drawn)).float()


def trainable_pattern(
    model: Any, *, layer: Natural | str | None = None, parameters: str | None = None, trained_layers: Count = 3
) -> str:
    """A regular expression for the names of exactly the parameters that RMU trains: those of blocks
    ℓ − trained_layers + 1 … ℓ whose names within the block `parameters` matches.

    Raises:
        UserError: the pattern is no regular expression or matches nothing, or no output projection of the
            architecture's MLP is known.
    """
    name, blocks = find_blocks(model)
    number = block_number(model, layer)
    chosen = []
    for index in range(max(0, number - trained_layers + 1), number + 1):
        inner = {n: p for n, p in blocks[index].named_parameters() if "lora_" not in n}
        matches = _matches(inner, parameters) if parameters is not None else _projections(inner)
        chosen += [f"{name}.{index}.{n}" for n in matches]
    if not chosen:
        names = [n for n, _ in blocks[number].named_parameters()]
        raise UserError(
            f"rmu: parameters {parameters!r} is found in no parameter's name within {name}.{number}\n"
            f"  they are {', '.join(names)}"
            if parameters is not None
            else f"rmu: the MLP's output projection can't be told in {name}.{number}; give 'parameters', a pattern of "
            f"names such as {', '.join(names[:3])}"
        )
    return rf"(?:^|\.)(?:{'|'.join(map(re.escape, chosen))})$"


def _matches(inner: dict[str, Any], pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"rmu: parameters {pattern!r} is not a regular expression ({error})") from error
    return [name for name in inner if compiled.search(name)]


def _projections(inner: dict[str, Any]) -> list[str]:
    """The matrices of a block, outside its attention, that have a name in use for an MLP's output projection."""
    outside = [n for n, p in inner.items() if p.dim() >= 2 and not _ATTENTION.search(n)]
    return [name for name in outside if _DOWN.search(name)]
