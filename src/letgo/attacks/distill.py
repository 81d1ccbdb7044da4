"""Distillation: does a student that is taught the model's outputs over benign text know what was to be forgotten?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from letgo.attacks.engine.base import Attacked, Victim
from letgo.attacks.relearn import (
    Stepper,
    attackers_batches,
    attackers_rows,
    check_optimizer,
    default_rate,
    fine_tuned,
    how_far,
)
from letgo.core.errors import UserError
from letgo.core.values import BelowOne, Count, Natural, Positive, Seed, Weight
from letgo.models.forward import find_blocks
from letgo.models.head import output_head
from letgo.models.load import context_length, disable_dropout, load_model, resolve_model
from letgo.objectives.likelihood import Part, label_hidden
from letgo.objectives.retain import kl_to_reference
from letgo.objectives.undo import damage


def distill(
    victim: Victim,
    *,
    student: str = "copy",
    alpha: BelowOne = 0.1,
    beta: Weight = 0.1,
    blocks: Natural = 0,
    data: str = "benign",
    samples: Count | None = None,
    steps: Count = 50,
    learning_rate: Positive | None = None,
    batch_size: Count = 4,
    optimizer: str = "adamw",
    evaluations: Natural = 5,
    seed: Seed = 0,
) -> Attacked:
    """Teach a student the saved model's outputs, by KL(teacher ‖ student) over text that has nothing to do with the
    forget set, and ask the student.

    The student is the model itself with damaged weights, W ← (1 − α) W + α β N as in UNDO: an unlearning that sits on
    top of the knowledge may go with the damage, and benign text does not teach it again. Or it is another model of the
    same vocabulary: it shows whether the model's outputs carry the knowledge over. The original and the retrained model
    teach students of their own, damaged by the same draws, or that same other model.

    Args:
        student: "copy", or another model's directory, hub id or built-in name.
        alpha: α, the share of every weight of the copy that is lost; 0 leaves it what the teacher is.
        beta: β, of the noise N.
        blocks: only the last so many blocks are damaged; 0 for all weights.
        data: "benign" (plain prose), "retain", or a file of rows.
        samples: at most so many of the rows, drawn.
        steps, batch_size: of the student's training.
        learning_rate: by default `default_rate` of the student's size.
        optimizer: as in `relearn`.
        evaluations: how many times the headline metrics are taken on the way, on a few items; 0 for never.
        seed: draws the noise, the rows and their order.

    Source: the student and the loss of UNDO, arXiv 2506.06278, which unlearns by them.
    """
    if data == "forget":
        raise UserError("distill: the student must not be taught on the forget set; relearn:data=forget does that")
    if student != "copy":
        resolve_model(student)
    check_optimizer("distill", optimizer, learning_rate)
    generator = torch.Generator().manual_seed(seed)
    rows, seen = attackers_rows("distill", victim, data, 0.0, samples, generator)
    tokenizer, teacher = victim.tokenizer(), victim.load()
    model = victim.load() if student == "copy" else load_model(student, dtype=victim.dtype)
    stored, sizes = model.dtype, [each.get_input_embeddings().weight.shape[0] for each in (teacher, model)]
    if sizes[0] != sizes[1]:
        raise UserError(f"distill: the student {student} has {sizes[1]} words, the model {sizes[0]}; they must be one")
    teacher.float().requires_grad_(False)
    model.float()
    if student == "copy":
        _damage(model, blocks, alpha=alpha, beta=beta, seed=seed)
    length = min(context_length(teacher), context_length(model))
    encoded, _ = victim.benchmark.encode(
        tokenizer, rows, template=victim.template, max_length=length, long_rows="cut", name="distillation set"
    )
    disable_dropout(model)
    head = output_head(teacher)

    def loss(model: Any, batch: Part) -> Tensor:
        with torch.no_grad():
            known = label_hidden(teacher, batch)
        return kl_to_reference(model, {**batch, "reference_hidden": known}, reference_head=head)

    rate = learning_rate if learning_rate is not None else default_rate(sum(p.numel() for p in model.parameters()))
    stepper = Stepper(model, optimizer, rate, 1.0, loss)
    batches = attackers_batches(encoded, batch_size, tokenizer.pad_token_id, generator, next(model.parameters()).device)
    curve, did = fine_tuned(
        "distill",
        victim,
        stepper,
        batches,
        steps=steps,
        rate=lambda step, total: rate,
        evaluations=evaluations,
        seen=seen,
    )
    model = model.to(stored).eval()
    did = {"student": student, "rows": len(rows), "learning_rate": rate, **did, **how_far(victim, model)}
    return Attacked(model, did, seen, curve)


def _damage(model: Any, blocks: int, **how: Any) -> None:
    """UNDO's damage to all weights, or to those of the last blocks alone."""
    every = find_blocks(model)[1]
    if blocks > len(every):
        raise UserError(f"distill: the model has {len(every)} blocks, not {blocks}")
    if blocks:
        model.requires_grad_(False)
        for block in every[-blocks:]:
            block.requires_grad_(True)
    damage(model, **how)
    model.requires_grad_(True)
