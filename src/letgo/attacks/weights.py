"""Attacks that change the weights without data: pruning, noise, going back toward the original, merging."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.attacks.displacement import changed_model
from letgo.attacks.engine.base import Attacked, Victim, linear_layers
from letgo.core.errors import UserError
from letgo.core.values import Part, Positive, Seed, Share
from letgo.models.load import load_model, resolve_model


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
    model, original = victim.load(), victim.load_original()
    with torch.no_grad():
        for parameter, theirs in _aligned("interpolate", model, {"the original": original}):
            parameter.lerp_(theirs.to(parameter), share)
    return changed_model(victim, model)


def merge(
    victim: Victim,
    *,
    partner: str,
    weight: Positive = 0.5,
    method: Literal["add", "soup", "ties", "dare"] = "add",
    density: Share | None = None,
    seed: Seed = 0,
) -> Attacked:
    """Merge another model in. Whoever holds a sibling (the original fine-tuned for something else) merges the two to
    have both abilities, and may get back what was forgotten.

    All but "soup" merge changes of the original, δ_u = θ_u − θ_o and δ_p = θ_p − θ_o, which then must be known.

    Args:
        partner: its directory, hub id or built-in name; of the same architecture.
        weight: μ.
        method: "add": θ_o + δ_u + μ δ_p, which is linear; "soup": θ_u + μ (θ_p − θ_u), which with the original as
            partner is `interpolate`; "ties": θ_o + μ δ, where of δ_u and δ_p the largest numbers are left, their sum
            elects the sign of each number of δ, and δ is the mean of those of that sign; "dare": "add" with numbers of
            both changes dropped at random, and the others scaled up, so that each change stays as it is in the mean.
        density: the share of each change that "ties" and "dare" leave; 0.2 by default.
        seed: of what is dropped.

    Source: task arithmetic, arXiv 2212.04089; model soups, arXiv 2203.05482; TIES-Merging, arXiv 2306.01708 (μ is its
    λ); DARE, arXiv 2311.03099.
    """
    if density is not None and method not in ("ties", "dare"):
        raise UserError(f"merge: density is of the methods ties and dare; {method} leaves every change whole")
    resolve_model(partner)
    density = 0.2 if density is None else density
    model = victim.load()
    others = {f"the partner {partner}": load_model(partner, dtype=victim.dtype)}
    if method != "soup":
        others["the original"] = victim.load_original()
    aligned = list(_aligned("merge", model, others))
    generator, least = torch.Generator().manual_seed(seed), [0.0, 0.0]
    if method == "ties":
        for number in range(2):
            sizes = torch.cat([_changes(*each)[number].abs().flatten() for each in aligned])
            least[number] = float(_smallest(sizes, 1.0 - density))
    with torch.no_grad():
        for parameter, theirs, *original in aligned:
            if method == "soup":
                parameter.lerp_(theirs.to(parameter), weight)
                continue
            ours, other = _changes(parameter, theirs, *original)
            if method == "ties":
                left = [change * (change.abs() > size) for change, size in zip((ours, other), least, strict=True)]
                moved = weight * _elected(left) - ours
            elif method == "dare":
                moved = _dropped(ours, density, generator) - ours + weight * _dropped(other, density, generator)
            else:
                moved = weight * other
            parameter.copy_(parameter.float() + moved)
    return changed_model(victim, model)


def _changes(ours: Tensor, partner: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
    """What the two models changed of the original, in float32, where ours is."""
    start = original.detach().float().to(ours.device)
    return ours.detach().float() - start, partner.detach().float().to(ours.device) - start


def _elected(changes: Sequence[Tensor]) -> Tensor:
    """Number by number, the mean of those changes that have the sign of their sum; 0 where there is none."""
    stacked = torch.stack(tuple(changes))
    agree = (stacked.sign() == stacked.sum(dim=0).sign()) & (stacked != 0)
    return (stacked * agree).sum(dim=0) / agree.sum(dim=0).clamp_min(1)


def _dropped(change: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """A change of which each number stays with a probability `density`, and is then divided by it."""
    stays = torch.rand(change.shape, generator=generator).to(change.device) < density
    return change * stays / density


def _aligned(attack: str, model: Any, others: Mapping[str, Any]) -> Iterator[tuple[Tensor, ...]]:
    """Each parameter of a model with those of the others; a `UserError` where another one does not fit."""
    theirs = {what: dict(other.named_parameters()) for what, other in others.items()}
    for name, parameter in model.named_parameters():
        for what, known in theirs.items():
            if name not in known or known[name].shape != parameter.shape:
                raise UserError(f"{attack}: {what} has no parameter {name} of shape {tuple(parameter.shape)}")
        yield parameter, *(known[name] for known in theirs.values())
