"""The plan of a run, put together from its stages."""

from __future__ import annotations

from letgo.core.errors import UserError
from letgo.planning.estimate import Planned
from letgo.planning.machine import resident_bytes
from letgo.planning.one_shot import one_shot_work
from letgo.planning.report import Plan
from letgo.training.config import UnlearnConfig


def plan(config: UnlearnConfig, *, flops: float | None = None, measure: bool = False) -> Plan:
    """What the run of a config will take. Reads the data, the tokenizer and the model's config; no weights.

    Args:
        config: as `letgo.read_config` or `letgo.training.config.make_config` gives it.
        flops: floating-point operations a second to take times with; by default measured (0.3 s of matrix products).
        measure: measure more closely: two layers of the architecture, forward and backward.

    Raises:
        UserError: for settings or data that can't be used.
    """
    check_flops(flops)
    return make_plan(Planned(config, resident_bytes()), flops, measure)


def check_flops(flops: float | None) -> None:
    if flops is not None and not flops > 0:
        raise UserError(f"letgo plan: flops must be above 0, not {flops}")


def make_plan(run: Planned, flops: float | None, measure: bool) -> Plan:
    work = run.training(run.objective) if run.objective else one_shot_work(run)
    operations = {"evaluate": run.evaluation_flops(), **work.flops}
    speed = run.speed(flops, measure, work.batch)
    return Plan(
        model={
            "name": run.args.model,
            "parameters": run.parameters,
            "trained": sum(p.numel() for p in run.trained),
            "bytes": run.weights,
            "dtype": run.args.base_quantization or run.args.dtype,
        },
        device=str(run.device),
        phases=(*run.evaluating(), *work.phases),
        process=run.process,
        disk=run.disk(work),
        steps=work.steps,
        flops=operations,
        speed=speed.flops if speed else None,
        how=speed.how if speed else "",
        seconds={name: count / speed.flops for name, count in operations.items()} if speed else {},
        notes=tuple(run.notes),
    )
