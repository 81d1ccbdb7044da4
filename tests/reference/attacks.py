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


def trained_prompt(
    model: Any, start: Tensor, batches: Sequence[Any], first: int, *, rate: float
) -> tuple[Tensor, list[float]]:
    """Vectors in the place of the tokens from `first` on, trained on batches one after another by the gradient's sign:
    each row by itself, made of embeddings token by token."""
    model.requires_grad_(False)
    table, vectors, losses = model.get_input_embeddings().weight, start.clone(), []
    for batch in batches:
        vectors.requires_grad_(True)
        total, count = torch.zeros(()), 0
        for ids, real, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            length = int(real.sum())
            read = [table[i] if i < first else vectors[i - first] for i in ids[:length].tolist()]
            logps = model(inputs_embeds=torch.stack(read)[None]).logits[0].log_softmax(-1)
            for place in range(1, length):
                if labels[place] != -100:
                    total, count = total - logps[place - 1, labels[place]], count + 1
        [gradient] = torch.autograd.grad(total / count, [vectors])
        losses.append(float(total.detach() / count))
        vectors = vectors.detach() - rate * gradient.sign()
    return vectors, losses


def ties(changes: Sequence[Sequence[float]], density: float, weight: float) -> list[float]:
    """TIES-Merging of changes of one model, each a flat list of numbers: trim, elect, merge."""
    count = len(changes[0])
    trimmed = []
    for change in changes:
        by_size = sorted(range(count), key=[abs(value) for value in change].__getitem__)
        smallest = set(by_size[: int((1.0 - density) * count)])
        trimmed.append([0.0 if i in smallest else change[i] for i in range(count)])
    merged = []
    for i in range(count):
        positive = sum(change[i] for change in trimmed) > 0
        agreeing = [change[i] for change in trimmed if change[i] and (change[i] > 0) == positive]
        merged.append(weight * sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


def dare(change: Sequence[float], drawn: Sequence[float], density: float) -> list[float]:
    """DARE of a change: a number whose draw from 0 to 1 is not below the density is dropped; the others are scaled."""
    return [value / density if draw < density else 0.0 for value, draw in zip(change, drawn, strict=True)]


def distilled(student: Any, teacher: Any, batches: Sequence[Any], *, rate: float) -> list[float]:
    """Teach a student a teacher's whole distribution at each label token, by AdamW on KL(teacher ‖ student), with the
    gradient's norm kept below 1; the losses before each step."""
    optimizer, losses = torch.optim.AdamW(student.parameters(), lr=rate), []
    for batch in batches:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        theirs, ours = (model(**inputs).logits[:, :-1].log_softmax(-1) for model in (teacher, student))
        divergence = (theirs.detach().exp() * (theirs.detach() - ours)).sum(-1)
        loss = divergence[batch["labels"][:, 1:] != -100].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
