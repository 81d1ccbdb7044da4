"""Unlearn, noise, distil: an unlearned model taught anew to a copy of itself whose weights were damaged."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from letgo.core.values import BelowOne, Seed, Weight
from letgo.data.pairs import generator_of
from letgo.objectives.likelihood import no_term


def undo(model: Any, *, alpha: BelowOne = 0.5, beta: Weight = 0.1, seed: Seed = 0) -> Tensor:
    """ℓ_f = 0: what is trained is the retain term, KL(teacher ‖ student), from the weights that `damage` leaves (UNDO,
    arXiv 2506.06278).

    The teacher is the model as it was before, which must be an unlearned one already: what it still knows it teaches.

    Args:
        alpha: α, the share of every weight that is lost (0.1 to 0.8 are in use); 0 leaves the student what the teacher
            is.
        beta: β, of the noise (0 and 0.1 are in use).
        seed: of the noise.
    """
    return no_term(model)


@torch.no_grad()
def damage(model: Any, *, alpha: BelowOne = 0.5, beta: Weight = 0.1, seed: Seed = 0) -> str:
    """W ← (1 − α) W + α β N in place, for every trained parameter; returns a note for the record.

    N is Xavier's uniform noise for matrices, U(−a, a) with a = √(6 / (rows + columns)), and 0 for vectors, so that the
    gains of norms shrink too. It is drawn by the seed and the parameter's name, on the CPU: the same on every device
    and in every process.
    """
    if alpha:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_((1.0 - alpha) * parameter + alpha * beta * _noise(name, parameter, seed))
    share = f"{1.0 - alpha:g} of the teacher's weights and {alpha * beta:g} of noise"
    return f"undo: the student began as {share} (seed {seed}), to be taught by the model as it was"


def _noise(name: str, parameter: Tensor, seed: int) -> Tensor:
    if parameter.dim() < 2 or not parameter.numel():
        return torch.zeros_like(parameter)
    # Of a convolution, the inputs of an output and the outputs of an input.
    field = math.prod(parameter.shape[2:])
    most = math.sqrt(6.0 / (field * (parameter.shape[0] + parameter.shape[1])))
    drawn = torch.rand(parameter.shape, generator=generator_of(seed, *name.encode()))
    return ((2.0 * drawn - 1.0) * most).to(parameter.device, parameter.dtype)
