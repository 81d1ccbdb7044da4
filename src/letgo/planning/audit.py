"""What an audit will take: the model measured, then attacked, and the others attacked alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from letgo.attacks.engine.cost import evaluations, passes, trains
from letgo.attacks.engine.prompts import only
from letgo.attacks.engine.spec import AttackSpec
from letgo.benchmarks.engine.base import RETRAINED, Benchmark
from letgo.benchmarks.engine.items import limited
from letgo.planning.estimate import Planned
from letgo.planning.machine import resident_bytes
from letgo.planning.report import Phase, Plan
from letgo.training.config import make_config

MEASURE = "measure"
"""The stage before the first attack."""
_SAMPLE = 600
"""About so many bytes is a line of samples.jsonl."""
_BATCH = 4
"""Rows of an attacker's step, by default."""


def plan_audit(
    settings: Mapping[str, Any],
    attacks: Sequence[AttackSpec],
    benchmark: Benchmark,
    *,
    original: str | None,
    flops: float | None = None,
) -> Plan:
    """An audit's memory, time and disk. Reads the data, the tokenizer and the model's config; no weights.

    Args:
        settings: of the model audited as a run has them: model, dtype, eval_limit, template, and the data.
        attacks: checked ones.
        original: the model before unlearning; None where it is not known.
        flops: floating-point operations a second; by default measured (0.3 s of matrix products).

    Returns:
        The plan; `seconds` has the stage `MEASURE` and one for each attack, under its label.
    """
    # Fine-tuning on the forget set takes what ascent on it takes; nothing else of a run is planned here.
    run = {**settings, "objective": "ga", "optimizer": "adamw", "per_device_train_batch_size": _BATCH}
    config = make_config(run | {"long_rows": "cut", "output_dir": "planned", "max_steps": 1}, where="audit")
    planned = Planned(config, resident_bytes())
    asked = limited([item for item in benchmark.items if item.set in ("forget", "control")], config.eval_limit)
    ends = (original is not None) + (RETRAINED in benchmark.references)
    whole = planned.scored.tokens
    part = planned.tokens(planned.asked_of(only(benchmark, asked), config.eval_limit)) if asked else whole
    tokens: dict[str, float] = {MEASURE: whole * (1 + (original is not None) + len(benchmark.references))}
    for plan in attacks:
        others = ends if plan.reference else int(original is not None)
        own = passes(plan, len(asked)) * part * (1 + others)
        tokens[plan.label] = own + evaluations(plan) * (whole + others * part)
    operations = {name: count * planned.scored.flops for name, count in tokens.items()}
    phases = [*planned.evaluating(), Phase("compare weights", {"weights of three models": 3 * planned.weights})]
    work = planned.training(planned.objective) if planned.objective and any(map(trains, attacks)) else None
    phases += [] if work is None else list(work.phases)
    speed = planned.speed(flops, measure=False, shape=planned.batch(planned.objective)["forget"]["input_ids"].shape)  # type: ignore[arg-type]
    lines = len(benchmark.items) * (ends + 1 + sum(max(1, evaluations(plan)) for plan in attacks))
    return Plan(
        model={
            "name": config.model,
            "parameters": planned.parameters,
            "trained": planned.parameters if work else 0,
            "bytes": planned.weights,
            "dtype": config.dtype,
        },
        device=str(planned.device),
        phases=tuple(phases),
        process=planned.process,
        disk={"samples and record": lines * _SAMPLE, "peak": lines * _SAMPLE},
        steps=0,
        flops=operations,
        speed=speed.flops if speed else None,
        how=speed.how if speed else "",
        seconds={name: count / speed.flops for name, count in operations.items()} if speed else {},
        notes=("times are of forward and backward passes alone; they are corrected when the model has been measured",),
    )
