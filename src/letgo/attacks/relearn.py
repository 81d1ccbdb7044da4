"""Relearning: does a little fine-tuning bring the forgotten back, also what was not in the fine-tuning?"""

from __future__ import annotations

import math

import torch

from letgo.attacks.base import Attacked, Victim
from letgo.data.encode import Encoded, encode_rows
from letgo.data.pairs import pad_rows
from letgo.errors import NonFiniteLossError, UserError
from letgo.models.load import context_length, disable_dropout
from letgo.objectives.retain import cross_entropy
from letgo.optim import create_optimizer


def relearn(
    victim: Victim,
    *,
    steps: int = 20,
    learning_rate: float = 1e-5,
    batch_size: int = 4,
    holdout: float = 0.5,
    optimizer: str = "adamw",
    max_grad_norm: float = 1.0,
    seed: int = 0,
) -> Attacked:
    """Fine-tune all parameters on part of the forget set, with the model's own cross-entropy.

    Whole groups (a country, a person) are drawn for the attacker, the rest is held out; the attack is judged on what
    is held out, where there is any. Rows are gone through in a seeded order, anew each time round.

    Args:
        victim: the saved model.
        steps: optimizer steps.
        learning_rate: constant.
        batch_size: rows a step.
        holdout: share of the groups that the attacker does not have; 0 gives it all.
        optimizer: any first-order one of the catalog.
        max_grad_norm: gradient clipping; 0 for none.
        seed: draws the groups and the order of rows.

    Raises:
        UserError: for settings out of range, or a forget set too small to be divided.
        NonFiniteLossError: if the attacker's own loss is NaN or infinite.
    """
    if steps < 1 or batch_size < 1:
        raise UserError(f"relearn: steps and batch_size must be at least 1, not {steps} and {batch_size}")
    if not 0.0 <= holdout < 1.0:
        raise UserError(f"relearn: holdout must be at least 0 and less than 1, not {holdout}")
    generator = torch.Generator().manual_seed(seed)
    seen = _drawn_groups(victim.benchmark.groups(), holdout, generator)
    rows = [row for row in victim.benchmark.forget if row.group in seen]
    tokenizer, model = victim.tokenizer(), victim.load()
    encoded, _ = encode_rows(
        tokenizer, rows, template=victim.template, max_length=context_length(model), long_rows="cut", name="relearn set"
    )
    disable_dropout(model)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    stepper = create_optimizer(optimizer, trained, lr=learning_rate)
    if getattr(stepper, "needs_closure", False):
        raise UserError(f"relearn: optimizer {optimizer!r} needs a closure; name a first-order one")
    device, curve, losses = next(model.parameters()).device, [], []
    order: list[int] = []
    with victim.reporter.task(f"relearning on {len(seen)} groups", steps) as task:
        for step in range(1, steps + 1):
            batch, order = _next_batch(encoded, batch_size, order, generator)
            tensors = {k: v.to(device) for k, v in pad_rows(batch, tokenizer.pad_token_id).items()}
            loss = cross_entropy(model, tensors)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise NonFiniteLossError(f"relearn: the attacker's loss is {losses[-1]} at step {step}")
            stepper.zero_grad()
            loss.backward()
            if max_grad_norm:
                torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
            stepper.step()
            curve.append({"step": float(step), "loss": losses[-1]})
            task.describe(f"loss {losses[-1]:.3f}")
            task.advance()
    did = {
        "rows": len(rows),
        "groups_seen": len(seen),
        "groups_held_out": len(victim.benchmark.groups()) - len(seen),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    return Attacked(model.eval(), did, frozenset(seen), curve)


def _drawn_groups(groups: list[str], holdout: float, generator: torch.Generator) -> set[str]:
    held = round(len(groups) * holdout)
    if holdout > 0 and held == 0:
        raise UserError(f"relearn: holdout {holdout} of {len(groups)} group(s) holds out none; give a larger share")
    if held == len(groups):
        raise UserError(f"relearn: holdout {holdout} of {len(groups)} group(s) leaves the attacker nothing")
    drawn = torch.randperm(len(groups), generator=generator).tolist()
    return {groups[index] for index in drawn[held:]}


def _next_batch(
    rows: list[Encoded], size: int, order: list[int], generator: torch.Generator
) -> tuple[list[Encoded], list[int]]:
    """The next `size` rows, and what is left of the order they are gone through in."""
    while len(order) < size:
        order = order + torch.randperm(len(rows), generator=generator).tolist()
    return [rows[index] for index in order[:size]], order[size:]
