"""Attacks done the plain way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from letgo.attacks import ATTACKS
from letgo.attacks.engine.base import Attacked, Victim


def chain_over_the_disk(
    victim: Victim, links: Sequence[tuple[str, Mapping[str, Any]]], seed: int, folder: Path
) -> Attacked:
    """A chain by hand: each link's model is saved, and the next link attacks that directory."""
    for number, (name, settings) in enumerate(links[:-1]):
        left = ATTACKS.load(name)(victim, seed=seed, **settings).model
        left.save_pretrained(folder / str(number))
        victim.tokenizer().save_pretrained(folder / str(number))
        victim = replace(victim, directory=folder / str(number))
    name, settings = links[-1]
    attacked: Attacked = ATTACKS.load(name)(victim, seed=seed, **settings)
    return attacked


def logits_without_direction(model: Any, ids: Tensor, direction: Tensor, writers: Sequence[str]) -> Tensor:
    """Of a forward pass from which a unit direction is taken off whatever the named modules write, while it runs."""

    def off(module: Any, args: Any, output: Any) -> Any:
        written = output if isinstance(output, Tensor) else output[0]
        left = written - (written @ direction)[..., None] * direction
        return left if isinstance(output, Tensor) else (left, *output[1:])

    handles = [model.get_submodule(name).register_forward_hook(off) for name in writers]
    try:
        return model(input_ids=ids).logits.detach()
    finally:
        for handle in handles:
            handle.remove()


def logits_of_blocks(model: Any, ids: Tensor, kept: Sequence[int]) -> Tensor:
    """Of a Llama with these blocks alone."""
    inner = model.model
    states = inner.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    for number in kept:
        states = inner.layers[number](states, position_embeddings=inner.rotary_emb(states, positions))
    return model.lm_head(inner.norm(states)).detach()


def trained_vector(
    model: Any, module: str, batches: Sequence[Any], *, rate: float, longest: float
) -> tuple[Tensor, list[float]]:
    """A vector added to all that a module gives, trained on batches one after another, never longer than `longest`."""
    model.requires_grad_(False)
    delta = torch.zeros(model.config.hidden_size, requires_grad=True)
    handle = model.get_submodule(module).register_forward_hook(lambda module, args, output: output + delta)
    optimizer, losses = torch.optim.AdamW([delta], lr=rate, weight_decay=0.0), []
    for batch in batches:
        loss = model(**batch).loss
        [delta.grad] = torch.autograd.grad(loss, [delta])
        optimizer.step()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            if delta.norm() > longest:
                delta *= longest / delta.norm()
    handle.remove()
    return delta.detach(), losses
