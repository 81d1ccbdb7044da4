"""Relearning: does a little fine-tuning bring the forgotten back, also what was not in the fine-tuning?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.attacks.displacement import weight_change
from letgo.attacks.engine.base import Attacked, Victim
from letgo.attacks.quantize_served import check_exported, served_model
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.benchmarks.engine.items import limited
from letgo.core import processes
from letgo.core.catalog import parse_spec
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.values import BelowOne, Count, Epochs, Natural, Positive, Seed, Weight
from letgo.data.encode import Encoded
from letgo.data.pairs import pad_rows
from letgo.data.rows import Row, read_rows, rows_from_records
from letgo.models.adapters import add_lora, linear_targets
from letgo.models.load import context_length, disable_dropout
from letgo.objectives.likelihood import Part, process_share
from letgo.objectives.retain import cross_entropy
from letgo.optim import create_optimizer
from letgo.optim.base import adapt
from letgo.optim.drive import Drive, sampled_labels_loss

EXPORTED_RANK = 8
"""The rank of adapters on an exported model where none is named."""
Loss = Callable[[Any, Part], Tensor]
RateSchedule = Literal["constant", "linear", "cosine"]


def relearn(
    victim: Victim,
    *,
    data: str = "forget",
    holdout: BelowOne | None = None,
    samples: Count | None = None,
    steps: Count | None = None,
    epochs: Epochs | None = None,
    learning_rate: Positive | None = None,
    batch_size: Count = 4,
    optimizer: str = "adamw",
    schedule: RateSchedule = "constant",
    warmup: BelowOne = 0.0,
    lora: Natural = 0,
    base: Literal["saved", "exported"] = "saved",
    max_grad_norm: Weight = 1.0,
    evaluations: Natural = 5,
    seed: Seed = 0,
) -> Attacked:
    """Fine-tune the saved model with its own cross-entropy, and see what comes back.

    Of the forget set the attacker gets whole groups (a country, a person); the rest is held out, and the attack is
    judged on it where there is any. With retain or benign data the attacker sees nothing of the forget set, and all of
    it is judged. Rows come in a seeded order, a new one each time round.

    Args:
        data: "forget", with the benchmark's controls where it has any; "retain"; "benign" (plain prose that has to do
            with neither); or a file of rows.
        holdout: share of the forget groups that the attacker does not have; 0 gives it all. 0.5 by default, and only
            with data "forget".
        samples: at most so many rows, drawn; all by default.
        steps, epochs: optimizer steps, 20 by default; or instead passes over the attacker's rows.
        learning_rate: the highest, after the warm-up; by default `default_rate` of the model's size. `did` records it.
        batch_size: rows a step.
        optimizer: any of the catalog, of any grade; its settings follow after a colon, separated by semicolons
            ("sophia:rho=0.04;hessian_every=5").
        schedule, warmup: "constant", or to zero at the end "linear" or "cosine"; after a share of the steps in which
            the rate rises linearly.
        lora: rank of a LoRA adapter on all linear layers, merged at the end; 0 trains all parameters.
        base: what is fine-tuned: the saved model, or, of a run with `export:`, the exported one, with adapters alone
            (QLoRA), of rank 8 where `lora` says nothing. The models that it is compared with are rounded likewise.
        max_grad_norm: gradient clipping; 0 for none.
        evaluations: how many times the headline metrics are taken on the way, on a few items; 0 for never.
        seed: draws the groups, the rows and their order.

    Raises:
        UserError: for settings out of range, or a forget set too small to be divided.
        NonFiniteLossError: if the attacker's own loss is NaN or infinite.
    """
    if holdout and data != "forget":
        raise UserError(f"relearn: holdout is of the forget set, but the attacker's data are {data!r}")
    if base == "exported":
        check_exported(victim)
    if steps is not None and epochs is not None:
        raise UserError("relearn: give either steps or epochs, not both")
    check_optimizer("relearn", optimizer, learning_rate)
    if holdout is None:
        holdout = 0.5 if data == "forget" else 0.0
    generator = torch.Generator().manual_seed(seed)
    rows, seen = attackers_rows("relearn", victim, data, holdout, samples, generator)
    if base == "exported":
        lora = lora or EXPORTED_RANK
        tokenizer, model = victim.tokenizer(), served_model(victim)[0]
    else:
        tokenizer, model = victim.tokenizer(), victim.load()
    stored = model.dtype
    if stored == torch.float16:
        # Small gradients and their squares are 0 in it; the attacker trains in float32 and rounds at the end.
        model = model.float()
    encoded, _ = victim.benchmark.encode(
        tokenizer, rows, template=victim.template, max_length=context_length(model), long_rows="cut", name="relearn set"
    )
    disable_dropout(model)
    rate = learning_rate if learning_rate is not None else default_rate(sum(p.numel() for p in model.parameters()))
    if lora:
        model = add_lora(model, rank=lora, targets=linear_targets(model), seed=seed)
    if epochs is not None:
        steps = max(1, math.ceil(epochs * len(encoded) / batch_size))
    stepper = Stepper(model, optimizer, rate, max_grad_norm)
    batches = attackers_batches(encoded, batch_size, tokenizer.pad_token_id, generator, next(model.parameters()).device)
    curve, did = fine_tuned(
        "relearn",
        victim,
        stepper,
        batches,
        steps=steps or 20,
        rate=lambda step, total: rate * rate_at(step, total, schedule, warmup),
        evaluations=evaluations,
        seen=seen,
    )
    if lora:
        model = model.merge_and_unload()
    model = model.to(stored)
    did = {"rows": len(rows), "learning_rate": rate, **did, **how_far(victim, model)}
    if lora:
        did["lora_rank"] = lora
    if base == "exported":
        did["base"] = base
    return Attacked(model.eval(), did, seen, curve)


def fine_tuned(
    attack: str,
    victim: Victim,
    stepper: Stepper,
    batches: Iterator[dict[str, Tensor]],
    *,
    steps: int,
    rate: Callable[[int, int], float],
    evaluations: int,
    seen: frozenset[str],
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train a stepper's model; returns the course, with the looks at it, and what the record says of it.

    Args:
        rate: the learning rate at a step, from 1, of a total.
        evaluations, seen: looks on the way, and the groups that the attacker trains on.
    """
    model, total = stepper.model, stepper.protocol.fit_total_steps(steps)
    model.train()
    losses: list[float] = []
    probed: dict[int, Mapping[str, float]] = {}
    looks = {round(total * (number + 1) / evaluations) for number in range(evaluations)} if victim.probe else set()
    if victim.probe is not None and looks:
        probed[0] = victim.probe(model, seen)
    with victim.reporter.task(f"{attack}: training", total) as task:
        for step in range(1, total + 1):
            for group in stepper.optimizer.param_groups:
                group["lr"] = rate(step, total)
            losses.append(stepper.step(next(batches)))
            if not math.isfinite(losses[-1]):
                raise NonFiniteLossError(f"{attack}: the attacker's loss is {losses[-1]} at step {step}")
            if step == total:
                stepper.protocol.finish()
            if victim.probe is not None and step in looks:
                probed[step] = victim.probe(model, seen)
                model.train()
            task.describe(f"loss {losses[-1]:.3f}")
            task.advance()
    # A row for every step's loss (that of its batch before the step), with what was probed after it.
    curve = [{"step": 0.0, **probed[0]}] if 0 in probed else []
    for step, loss in enumerate(losses, start=1):
        curve.append({"step": float(step), "loss": loss, **probed.get(step, {})})
    return curve, {
        "steps": total,
        "groups_seen": len(seen & set(victim.benchmark.groups())),
        "groups_held_out": len(set(victim.benchmark.groups()) - seen),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "learned": _learned(losses),
    }


def how_far(victim: Victim, model: Any) -> dict[str, Any]:
    """How far an attack moved all weights, beside unlearning."""
    _, moved = weight_change(victim, model)
    names = ("displacement", "relative_displacement", "unlearning_displacement", "original")
    return {name: moved[name] for name in names if name in moved}


def default_rate(parameters: int) -> float:
    """The learning rate where none is given: 1e-5 · max(1, (N₀/N)^½) for N parameters, N₀ = 2.5 · 10⁹, to two digits.

    The papers' attackers fine-tune models of billions of parameters at 1e-5, which teaches a small one nothing. The
    rule is ours. At a given depth N grows with the square of the width, so the rate goes with 1/width, as Adam's does
    between models of one shape (arXiv 2203.03466). It is meant for steps of Adam's kind on all parameters.
    """
    return float(f"{1e-5 * max(1.0, math.sqrt(2.5e9 / parameters)):.2g}")


def _learned(losses: Sequence[float]) -> float:
    """By what share the attacker's own loss fell, from the first to the last fifth of its steps. An attack whose loss
    does not fall has taught the model nothing, and surviving it proves little."""
    fifth = max(1, len(losses) // 5)
    first, last = sum(losses[:fifth]) / fifth, sum(losses[-fifth:]) / fifth
    return 1.0 - last / first if first > 0 else 0.0


def rate_at(step: int, total: int, schedule: str, warmup: float) -> float:
    """The share of the highest learning rate at step 1…total: linear up over the warm-up, then as the schedule says,
    so that the step after the last would have none."""
    rising = round(warmup * total)
    if step <= rising:
        return step / rising
    done = (step - 1 - rising) / max(total - rising, 1)
    return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[schedule]


class Stepper:
    """The attacker's optimizer, of any grade, for a model's trainable parameters; `spec` is `relearn`'s `optimizer`,
    `loss` a function of the model and a batch."""

    def __init__(
        self, model: Any, spec: str, learning_rate: float, max_grad_norm: float, loss: Loss = cross_entropy
    ) -> None:
        name, settings = _optimizer_of(spec)
        self.model, self.max_grad_norm, self.loss = model, max_grad_norm, loss
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = create_optimizer(name, self.trained, lr=learning_rate, **settings)
        self.batch: dict[str, Tensor] = {}
        self.drive = Drive(
            self.optimizer,
            model,
            self._clip,
            lambda generator: sampled_labels_loss(model, self.batch, generator),
            clip_parts=True,
        )
        self.protocol = self.drive.protocol

    def step(self, batch: dict[str, Tensor]) -> float:
        """One step; returns the loss before it (of the first evaluation, where there were several)."""
        several = processes.count() > 1
        # Each process takes a part of the rows; a zeroth-order optimizer averages the losses itself.
        self.batch = process_share({"rows": batch}, processes.number(), processes.count())["rows"] if several else batch
        zeroth = self.protocol.phase == "zeroth_order"
        dtype = torch.float64 if zeroth else torch.float32
        losses: list[Tensor] = []

        def evaluate(part: str | None) -> Tensor:
            loss = self.loss(self.model, self.batch)
            if loss.requires_grad:
                loss.backward()
                if several:
                    processes.average([p.grad for p in self.trained if p.grad is not None])
            losses.append(loss.detach().to(dtype))
            return losses[-1]

        self.optimizer.step(self.drive.closure(evaluate))
        evaluated = self.protocol.last_losses
        before = torch.tensor(evaluated[0] if evaluated else float(losses[0]), dtype=torch.float64)
        if several and not zeroth:
            processes.average([before])
        return float(before)

    def _clip(self, parameters: list[Tensor]) -> None:
        if self.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)


def _optimizer_of(spec: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of `relearn`'s `optimizer`."""
    name, settings = parse_spec(spec.replace(";", ","))
    if "lr" in settings:
        # The schedule sets it at every step.
        raise UserError(f"relearn: give learning_rate={settings['lr']} beside the optimizer, not lr within it")
    return name, settings


def check_optimizer(attack: str, spec: str, learning_rate: float | None) -> None:
    """Raise a `UserError` for an `optimizer` that is not known, or takes a forget and a retain term apart."""
    name, settings = _optimizer_of(spec)
    trial = create_optimizer(name, [torch.nn.Parameter(torch.zeros(2, 2))], lr=learning_rate or 1e-5, **settings)
    if adapt(trial).asks_for_terms:
        raise UserError(f"{attack}: optimizer {name} takes a forget and a retain term apart; the attacker has one loss")


def attackers_batches(
    rows: Sequence[Encoded], size: int, pad: int, generator: torch.Generator, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Rows in a seeded order, a new one each time all have been through; a batch may span two orders."""
    order: list[int] = []
    while True:
        while len(order) < size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        padded = pad_rows([rows[index] for index in order[:size]], pad)
        order = order[size:]
        yield {key: value.to(device) for key, value in padded.items()}


def attackers_rows(
    attack: str, victim: Victim, data: str, holdout: float, samples: int | None, generator: torch.Generator
) -> tuple[list[Row], frozenset[str]]:
    """What the attacker trains on, and the groups of the forget set and of the controls that are in it."""
    seen: frozenset[str] = frozenset()
    if data == "forget":
        drawn = drawn_groups(attack, victim.benchmark.groups(), holdout, generator)
        rows = [row for row in victim.benchmark.forget if row.group in drawn]
        if invented := list(dict.fromkeys(row.group for row in victim.benchmark.control)):
            # What any model would learn from such data: facts of the same form that none ever knew.
            drawn |= drawn_groups(attack, invented, holdout, generator)
            rows += [row for row in victim.benchmark.control if row.group in drawn]
    elif data == "retain":
        rows = list(victim.benchmark.retain)
    elif data == "benign":
        rows = rows_from_records([{"text": text.text} for text in general_paragraphs(held_out=False)], "benign texts")
    else:
        rows = read_rows(data, name="relearn set")
    if not rows:
        raise UserError(f"{attack}: there is no {data} data to train on")
    if samples is not None and samples < len(rows):
        order = torch.randperm(len(rows), generator=generator).tolist()[:samples]
        rows = [rows[index] for index in sorted(order)]
    if data == "forget":
        # Groups without a drawn row are held out too.
        seen = frozenset(row.group for row in rows)
        scored = {item.group for item in limited(victim.benchmark.items, victim.limit) if item.set == "forget"}
        if holdout and scored and scored <= seen:
            raise UserError(
                f"{attack}: with holdout {holdout} and seed {generator.initial_seed()} the attacker has all "
                f"{len(scored)} group(s) of the forget set that are scored, so none is left to judge it by\n"
                "  score more items (eval_limit, --limit), or give a larger holdout"
            )
    elif data != "benign":
        forget = set(victim.benchmark.groups())
        contents = {row.content for row in victim.benchmark.forget}
        seen = frozenset(row.group for row in rows if row.group in forget and row.content in contents)
    return rows, seen


def drawn_groups(attack: str, groups: list[str], holdout: float, generator: torch.Generator) -> set[str]:
    """The groups that the attacker has; the rest, a share `holdout`, are held out."""
    held = round(len(groups) * holdout)
    if holdout > 0 and held == 0:
        raise UserError(f"{attack}: holdout {holdout} of {len(groups)} group(s) holds out none; give a larger share")
    if held == len(groups):
        raise UserError(f"{attack}: holdout {holdout} of {len(groups)} group(s) leaves the attacker nothing")
    drawn = torch.randperm(len(groups), generator=generator).tolist()
    return {groups[index] for index in drawn[held:]}
