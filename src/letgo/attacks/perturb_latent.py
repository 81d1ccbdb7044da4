"""A latent perturbation: does one vector, added inside the model, bring answers back that it was not trained on?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from letgo.attacks.displacement import changed_model
from letgo.attacks.engine.base import Attacked, Victim
from letgo.attacks.relearn import attackers_batches, attackers_rows
from letgo.attacks.residual import last_writer
from letgo.benchmarks.engine.base import RETRAINED
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.values import Count, Natural, Part, Positive, Seed
from letgo.data.rows import Row
from letgo.models.forward import block_number, find_blocks
from letgo.models.load import context_length, disable_dropout
from letgo.objectives.retain import cross_entropy


def perturb_latent(
    victim: Victim,
    *,
    layer: Natural | None = None,
    steps: Count = 16,
    learning_rate: Positive = 0.2,
    bound: Positive = 0.5,
    batch_size: Count = 4,
    holdout: Part = 0.5,
    samples: Count | None = None,
    seed: Seed = 0,
) -> Attacked:
    """Train one vector δ that a block adds to all its outputs, so that the right answers become likely, and ask what
    it was not trained on.

    With a vector for each question a frozen model can be made to say anything, known or not. So there is one for all
    of them, it is trained on some groups and judged on the groups held out, and the original and the retrained model
    each get one under the same budget. Facts that no model knew (the benchmark's controls) are trained on and held out
    alongside. Without either of the two there is nothing to tell knowledge from what δ teaches any model, and the
    attack is refused.

    Args:
        layer: the block that adds it, from 0; by default at 7/32 of the depth.
        steps: of AdamW, without weight decay.
        learning_rate: in units of the length at which every number of δ is of one size and δ at its bound.
        bound: the longest δ may become, beside the mean length of the states that go into the block.
        batch_size: rows a step.
        holdout: share of the forget groups (and of the controls') that the attacker does not have.
        samples: at most so many rows, drawn.
        seed: draws groups, rows and their order.

    Source: the inner loop of latent adversarial training (arXiv 2407.15549), with one δ for all tokens and rows.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, seen = rows_beside_controls("perturb_latent", victim, holdout, samples, generator)
    tokenizer, model = victim.tokenizer(), victim.load()
    stored = model.dtype
    batches = frozen_batches(victim, rows, tokenizer, model, batch_size, generator)
    at = block_number(model, layer)
    delta, start = _added(last_writer(find_blocks(model)[1][at], model))
    first = next(batches)
    longest = bound * _mean_length(model, at, first)
    rate = learning_rate * longest / math.sqrt(delta.numel())
    optimizer = torch.optim.AdamW([delta], lr=rate, weight_decay=0.0)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()
        moved = delta - start
        delta.copy_(start + moved * (longest / moved.norm().clamp_min(longest)))

    curve = descend("perturb_latent", victim, model, chain([first], batches), steps, step)
    length = float((delta - start).detach().norm())
    model = model.to(stored).eval().requires_grad_(True)
    did = {"layer": at, "length": length, "longest": longest, **about_training(victim, rows, seen, curve)}
    return replace(changed_model(victim, model, **did), seen=seen, curve=curve)


def rows_beside_controls(
    attack: str, victim: Victim, holdout: float, samples: int | None, generator: torch.Generator
) -> tuple[list[Row], frozenset[str]]:
    """As `attackers_rows` has them of the forget set; a `UserError` where there is nothing that no model knew."""
    benchmark = victim.benchmark
    if not benchmark.control and RETRAINED not in benchmark.references:
        raise UserError(
            f"{attack}: benchmark {benchmark.name!r} has no controls (facts that no model knew), and there is no "
            "retrained model: what it brings out of any model would pass for what this one still knows\n"
            "  give control rows, or the retrained model"
        )
    return attackers_rows(attack, victim, "forget", holdout, samples, generator)


def frozen_batches(
    victim: Victim, rows: Sequence[Row], tokenizer: Any, model: Any, size: int, generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """The rows in batches without end, for what is trained beside a model, which is frozen here, in float32."""
    model.float().requires_grad_(False)
    disable_dropout(model)
    encoded, _ = victim.benchmark.encode(
        tokenizer, rows, template=victim.template, max_length=context_length(model), long_rows="cut", name="attack set"
    )
    return attackers_batches(encoded, size, tokenizer.pad_token_id, generator, next(model.parameters()).device)


def descend(
    attack: str,
    victim: Victim,
    model: Any,
    batches: Iterator[dict[str, Tensor]],
    steps: int,
    step: Callable[[], None],
) -> list[dict[str, float]]:
    """Take the gradient of the right answers' loss and then a step of it, so many times; returns the losses before
    each step, as a curve."""
    curve = []
    with victim.reporter.task(f"{attack}: training", steps) as task:
        for number in range(1, steps + 1):
            loss = cross_entropy(model, next(batches))
            loss.backward()
            curve.append({"step": float(number), "loss": float(loss.detach())})
            if not math.isfinite(curve[-1]["loss"]):
                raise NonFiniteLossError(f"{attack}: the loss is {curve[-1]['loss']} at step {number}")
            with torch.no_grad():
                step()
            task.advance()
    return curve


def about_training(
    victim: Victim, rows: Sequence[Row], seen: frozenset[str], curve: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What the record says of it."""
    groups = set(victim.benchmark.groups())
    return {
        "rows": len(rows),
        "steps": len(curve),
        "groups_seen": len(seen & groups),
        "groups_held_out": len(groups - seen),
        "first_loss": curve[0]["loss"],
        "last_loss": curve[-1]["loss"],
    }


def _added(writer: Any) -> tuple[nn.Parameter, Tensor]:
    """The bias of a block's last layer, there or made now, which is to be trained; and what it is without δ."""
    if writer.bias is None:
        width = writer.weight.shape[0]
        writer.bias = nn.Parameter(torch.zeros(width, dtype=writer.weight.dtype, device=writer.weight.device))
    writer.bias.requires_grad_(True)
    return writer.bias, writer.bias.detach().clone()


@torch.no_grad()
def _mean_length(model: Any, layer: int, batch: dict[str, Tensor]) -> float:
    """Of the states that go into a block, over the batch's real tokens."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[layer]
    return float(states[inputs["attention_mask"].bool()].norm(dim=-1).mean())
