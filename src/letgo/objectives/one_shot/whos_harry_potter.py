"""Who's Harry Potter: the model learns the answers of a model that was never trained on the forget set."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from letgo.core.errors import UserError
from letgo.core.values import Count, Positive, Seed
from letgo.models.head import OutputHead, output_head
from letgo.models.head import reference_head as frozen_head
from letgo.models.running import evaluating
from letgo.objectives.chunks import chunk_rows, label_logps, summed, vocabulary_of
from letgo.objectives.likelihood import Part, check_above, label_counts, label_hidden, over_tokens
from letgo.objectives.one_shot.data import Data, fine_tune
from letgo.objectives.retain import cross_entropy

Targets = Literal["hard", "soft"]


def generic(base: Tensor, reinforced: Tensor, alpha: float) -> Tensor:
    """v_generic = v_base − α ReLU(v_reinforced − v_base): logits in which no token is more likely because of the forget
    set (Eldan and Russinovich, arXiv 2310.02238, equation 1)."""
    return base - alpha * (reinforced - base).relu()


def whos_harry_potter(
    model: Any,
    data: Data,
    *,
    alpha: Positive = 5.0,
    targets: Targets = "hard",
    reinforce_lr: Positive = 3e-5,
    reinforce_epochs: Count = 3,
    lr: Positive = 1e-5,
    epochs: Count = 2,
    batch_size: Count = 4,
    seed: Seed = 0,
) -> None:
    """Fine-tune on generic targets: a copy of the model is trained further on the forget set (the reinforced model),
    v_generic = v_base − α ReLU(v_reinforced − v_base) is taken at every label position of the forget set, and the
    model is trained to predict it there.

    With `targets="hard"`, the paper's way, the label is the token of the highest v_generic; with "soft", ours, it is
    the distribution softmax(v_generic). The paper also replaces terms of the forget set by generic ones, from a
    dictionary that another model writes; that part is left out. (MUSE does no second training, but subtracts while
    decoding.)

    Source: Who's Harry Potter? (arXiv 2310.02238), section 2.1.

    Args:
        model: a causal LM, changed in place.
        data: the forget set.
        alpha: α > 0.
        targets: "hard" or "soft".
        reinforce_lr: rate of the reinforced model's training.
        reinforce_epochs: of it.
        lr: rate of the training on generic targets.
        epochs: of it.
        batch_size: rows in a batch of both.
        seed: of the batches' order.

    A second model exists while the targets are made; of the targets, hidden states are kept (two vectors a token), and
    where the output layer is trained a copy of its weights.
    """
    check_above("whp", "alpha", alpha)
    if targets not in ("hard", "soft"):
        raise UserError(f"whp: targets must be hard or soft, not {targets!r}")
    base = copy.deepcopy(model).eval()
    common = {"batch_size": batch_size, "seed": seed}
    settings: dict[str, Any] = {"lr": reinforce_lr, "epochs": reinforce_epochs, **common}
    fine_tune(model, data.forget, cross_entropy, advance=partial(data.advance, "reinforcing"), **settings)
    heads = frozen_head(base), frozen_head(model)
    stored: dict[int, tuple[Tensor, Tensor]] = {}
    with evaluating(model):
        for part in data.forget(batch_size):
            counts = label_counts(part).tolist()
            both = (label_hidden(base, part).split(counts), label_hidden(model, part).split(counts))
            stored |= dict(zip(part["index"].tolist(), zip(*both, strict=True), strict=True))
            data.advance("generic targets", len(part["labels"]))
        state = base.state_dict()
        model.load_state_dict(state)
    del base, state

    def loss_of(trained_model: Any, part: Part) -> Tensor:
        pairs = [stored[index] for index in part["index"].tolist()]
        before, reinforced = (torch.cat(side) for side in zip(*pairs, strict=True))
        return generic_loss(trained_model, part, (before, reinforced), heads, alpha, targets)

    settings = {"lr": lr, "epochs": epochs, **common}
    fine_tune(model, data.forget, loss_of, advance=partial(data.advance, "learning the generic targets"), **settings)


def generic_loss(
    model: Any,
    part: Part,
    hidden: tuple[Tensor, Tensor],
    heads: tuple[OutputHead, OutputHead],
    alpha: Positive,
    targets: Targets,
) -> Tensor:
    """Mean cross-entropy of the model to the generic labels, or distributions, at the part's label positions.

    Args:
        model: the one that is trained.
        part: the forget rows.
        hidden: of the base and of the reinforced model, each of shape (label tokens, width).
        heads: their output layers.
        alpha: α.
        targets: "hard" or "soft".
    """
    head = output_head(model)
    if targets == "hard":
        labels = torch.cat([g.argmax(-1) for g in _generic_chunks(hidden, heads, alpha)])
        return over_tokens(-label_logps(head, label_hidden(model, part), labels), part)

    def summand(logits: Tensor, base: Tensor, reinforced: Tensor) -> Tensor:
        with torch.no_grad():
            target = generic(heads[0](base), heads[1](reinforced), alpha).softmax(-1)
        return F.cross_entropy(logits, target.to(logits.dtype), reduction="sum")

    return over_tokens(summed(head, summand, label_hidden(model, part), *hidden), part)


@torch.no_grad()
def _generic_chunks(
    hidden: tuple[Tensor, Tensor], heads: tuple[OutputHead, OutputHead], alpha: float
) -> Iterator[Tensor]:
    size = chunk_rows(vocabulary_of(heads[0], hidden[0]))
    for base, reinforced in zip(hidden[0].split(size), hidden[1].split(size), strict=True):
        yield generic(heads[0](base), heads[1](reinforced), alpha)
