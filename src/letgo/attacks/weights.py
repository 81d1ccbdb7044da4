"""Attacks that change the weights without data: pruning, noise, going back toward the original."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from letgo.attacks.displacement import changed_model
from letgo.attacks.engine.base import Attacked, Victim, linear_layers
from letgo.core.errors import UserError
from letgo.core.values import Part, Positive, Seed, Share


def prune(
    victim: Victim, *, sparsity: Part = 0.3, scope: Literal["layer", "model"] = "layer", seed: Seed = 0
) -> Attacked:
    """Set the smallest weights of the linear layers to zero, by magnitude, without retraining.

    Embeddings, norms, biases and the output layer stay.

    Args:
        sparsity: the share of weights that goes.
        scope: whether the smallest of each layer go, or of the whole model.

    Source: magnitude pruning, arXiv 1506.02626.
    """
    model = victim.load()
    weights = [layer.weight for layer in linear_layers(model).values()]
    bound = _smallest(torch.cat([w.detach().abs().flatten() for w in weights]), sparsity) if scope == "model" else None
    zeros = 0
    with torch.no_grad():
        for weight in weights:
            size = weight.abs()
            weight[size <= (_smallest(size.flatten(), sparsity) if bound is None else bound)] = 0.0
            zeros += int((weight == 0).sum())
    return changed_model(victim, model, zeros=zeros)


def _smallest(sizes: Tensor, share: float) -> Tensor:
    """The size at or below which that share of the sizes lies; negative where the share is less than one size."""
    count = int(share * sizes.numel())
    return sizes.float().kthvalue(count).values.to(sizes.dtype) if count else sizes.new_tensor(-1.0)


def noise(victim: Victim, *, sigma: Positive = 1e-3, relative: bool = False, seed: Seed = 0) -> Attacked:
    """Add Gaussian noise to every weight: θ + σ z, z ~ N(0, I); a tied tensor gets one draw.

    Randomized smoothing certifies against this perturbation (`letgo analyze certificate`).

    Args:
        sigma: σ, in the weights' own units; with `relative` in units of each tensor's root mean square.
        relative: scale the noise tensor by tensor.
        seed: of the noise.
    """
    model = victim.load()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                size = parameter.float().square().mean().sqrt() if relative else 1.0
                parameter.copy_(parameter.float() + sigma * size * drawn)
    return changed_model(victim, model)


def interpolate(victim: Victim, *, share: Share = 0.5, seed: Seed = 0) -> Attacked:
    """Go back toward the original on a straight line, by a share a: θ_u + a (θ_o − θ_u).

    An attacker needs the original for it. It tells how far off the forgetting is, and whether a barrier is on the way.

    Args:
        share: a.
    """
    model, original = victim.load(), dict(victim.load_original().named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in original or original[name].shape != parameter.shape:
                raise UserError(f"interpolate: the original has no parameter {name} of shape {tuple(parameter.shape)}")
            parameter.lerp_(original[name].to(parameter), share)
    return changed_model(victim, model)
