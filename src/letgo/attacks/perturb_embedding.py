"""A soft prompt: do vectors in the place of words bring answers back that they were not trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from letgo.attacks.engine.base import Attacked, Victim
from letgo.attacks.engine.prompts import askable, form_of, only
from letgo.attacks.perturb_latent import about_training, descend, frozen_batches, rows_beside_controls
from letgo.attacks.suffix import Place, attached
from letgo.core.errors import UserError
from letgo.core.values import Count, Part, Positive, Seed


def perturb_embedding(
    victim: Victim,
    *,
    tokens: Count = 10,
    steps: Count = 50,
    learning_rate: Positive = 0.05,
    batch_size: Count = 4,
    holdout: Part = 0.5,
    samples: Count | None = None,
    place: Place = "prefix",
    seed: Seed = 0,
) -> Attacked:
    """Train a few vectors that stand in the prompt like words, so that the right answers become likely, and ask what
    they were not trained on.

    Ten vectors that are trained for one question make any model say a long random text (arXiv 2502.15836). So, as in
    `perturb_latent`, one prompt is for all questions, it is trained on some groups and judged on the groups held out,
    and the original and the retrained model each get one under the same budget. Facts that no model knew (the
    benchmark's controls) are trained on and held out alongside. Without either of the two the attack is refused.

    Args:
        tokens: how many vectors.
        steps: of signed gradient descent, as it is done for one prompt.
        learning_rate: what a step adds to each number of a vector, beside the root mean square of the numbers in the
            embeddings of the words that the vectors begin as.
        batch_size: rows a step.
        holdout: share of the forget groups (and of the controls') that the attacker does not have.
        samples: at most so many rows, drawn.
        place: before the question, where the vectors disturb an answer least, or after it; "auto": after it, but before
            prompts that the answer completes.
        seed: draws groups, rows, their order, and the words that the vectors begin as.

    Source: embedding space attacks, arXiv 2402.09063, with one prompt for all rows.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, seen = rows_beside_controls("perturb_embedding", victim, holdout, samples, generator)
    rows = [row for row in rows if form_of(row) is not None]
    held_out = [item for item in askable(victim.benchmark) if item.group not in seen]
    if not rows or not any(item.set == "forget" for item in held_out):
        raise UserError(f"benchmark {victim.benchmark.name!r} has no forget item that can be asked in this way")
    tokenizer, model = victim.tokenizer(), victim.load()
    stored, taken = model.dtype, tokenizer.get_vocab().values()
    names = [f"<soft-{number}>" for number in range(tokens)]
    added = tokenizer.add_tokens(names, special_tokens=True)
    text, ids = "".join(names), tokenizer.convert_tokens_to_ids(names)
    if added != tokens or not set(ids).isdisjoint(taken):
        raise UserError(f"perturb_embedding: the tokenizer can't be given {tokens} new words like {names[0]}")
    batches = frozen_batches(
        victim, [attached(row, text, place) for row in rows], tokenizer, model, batch_size, generator
    )
    vectors = _stand_in(model, ids, torch.randint(len(taken), (tokens,), generator=generator))
    rate = learning_rate * float(vectors.detach().square().mean().sqrt())

    def step() -> None:
        assert vectors.grad is not None
        vectors.sub_(rate * vectors.grad.sign())
        vectors.grad = None

    curve = descend("perturb_embedding", victim, model, batches, steps, step)
    vectors.requires_grad_(False)
    model = model.to(stored).eval().requires_grad_(True)
    changed = [replace(item, row=attached(item.row, text, place)) for item in held_out]
    did = {"tokens": tokens, **about_training(victim, rows, seen, curve)}
    benchmark = only(victim.benchmark, changed)
    return Attacked(model, did, seen, curve, asked={"the soft prompt": benchmark}, tokenizer=tokenizer)


def _stand_in(model: Any, ids: Sequence[int], words: Tensor) -> Tensor:
    """Let the model read vectors, to be trained, at tokens that it has no embeddings of, or unused ones. They begin as
    the embeddings of words; the embeddings themselves, and what the output layer shares with them, stay.

    Args:
        ids: consecutive.
        words: the ids of as many words.
    """
    table = model.get_input_embeddings()
    # As the table gives them: some architectures scale what they look up.
    vectors = table(words.to(table.weight.device)).detach().clone().requires_grad_(True)
    first, plain = ids[0], table.forward

    def look_up(tokens: Tensor) -> Tensor:
        ours = (tokens >= first) & (tokens < first + len(ids))
        known: Tensor = plain(tokens.masked_fill(ours, 0))
        soft = vectors[(tokens - first).clamp(0, len(ids) - 1)]
        return torch.where(ours[..., None], soft.to(known.dtype), known)

    table.forward = look_up
    return vectors
