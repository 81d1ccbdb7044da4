"""A latent perturbation: does one vector, added inside the model, bring answers back that it was not trained on?"""

from __future__ import annotations

import math
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
    benchmark = victim.benchmark
    if not benchmark.control and RETRAINED not in benchmark.references:
        raise UserError(
            f"perturb_latent: benchmark {benchmark.name!r} has no controls (facts that no model knew), and there is no "
            "retrained model: what it brings out of any model would pass for what this one still knows\n"
            "  give control rows, or the retrained model"
        )
    generator = torch.Generator().manual_seed(seed)
    rows, seen = attackers_rows("perturb_latent", victim, "forget", holdout, samples, generator)
    tokenizer, model = victim.tokenizer(), victim.load()
    stored = model.dtype
    model = model.float()
    encoded, _ = benchmark.encode(
        tokenizer, rows, template=victim.template, max_length=context_length(model), long_rows="cut", name="attack set"
    )
    disable_dropout(model)
    model.requires_grad_(False)
    at = block_number(model, layer)
    delta, start = _added(last_writer(find_blocks(model)[1][at], model))
    batches = attackers_batches(encoded, batch_size, tokenizer.pad_token_id, generator, delta.device)
    first = next(batches)
    longest = bound * _mean_length(model, at, first)
    rate = learning_rate * longest / math.sqrt(delta.numel())
    optimizer = torch.optim.AdamW([delta], lr=rate, weight_decay=0.0)
    losses: list[float] = []
    with victim.reporter.task("training a latent perturbation", steps) as task:
        for step in range(steps):
            optimizer.zero_grad()
            loss = cross_entropy(model, first if step == 0 else next(batches))
            loss.backward()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise NonFiniteLossError(f"perturb_latent: the loss is {losses[-1]} at step {step + 1}")
            optimizer.step()
            with torch.no_grad():
                moved = delta - start
                delta.copy_(start + moved * (longest / moved.norm().clamp_min(longest)))
            task.advance()
    length = float((delta - start).detach().norm())
    model = model.to(stored).eval().requires_grad_(True)
    groups = set(benchmark.groups())
    did: dict[str, Any] = {
        "layer": at,
        "length": length,
        "longest": longest,
        "rows": len(rows),
        "steps": steps,
        "groups_seen": len(seen & groups),
        "groups_held_out": len(groups - seen),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    attacked = changed_model(victim, model, **did)
    curve = [{"step": float(step), "loss": loss} for step, loss in enumerate(losses, start=1)]
    return Attacked(attacked.model, attacked.did, seen, curve, layers=attacked.layers)


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
