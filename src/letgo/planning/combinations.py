"""What can't be planned for several devices, because it can't be run on them: each says why, and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letgo.core.catalog import did_you_mean, settings_of
from letgo.core.errors import UserError
from letgo.optim import OPTIMIZERS
from letgo.planning import scaling
from letgo.planning.optimizers import OptimizerCost
from letgo.training.config import UnlearnConfig
from letgo.training.one_shot import is_one_shot
from letgo.training.trainer import optimizer_settings


def share_of(config: UnlearnConfig) -> str:
    return str(getattr(config, "share", "data") or "data")


def check_strategy(devices: int, strategy: str) -> None:
    if strategy not in scaling.STRATEGIES:
        known = ", ".join(scaling.STRATEGIES)
        raise UserError(f"letgo plan: no strategy {strategy!r}{did_you_mean(strategy, scaling.STRATEGIES)} ({known})")
    if devices < 1:
        raise UserError(f"letgo plan: devices must be at least 1, not {devices}")
    if strategy == "single" and devices > 1:
        raise UserError(f"letgo plan: strategy single is one device, not {devices}; give --strategy ddp or fsdp2")


def check_combination(config: UnlearnConfig, devices: int, strategy: str) -> None:
    """Raises a `UserError` for settings that don't go together, before anything is read."""
    if devices == 1:
        return
    sharded = strategy in scaling.SHARDED
    if is_one_shot(config.objective):
        raise UserError(
            f"letgo plan: {config.objective} gives weights in one shot and takes no steps that devices could share; "
            "give --devices 1"
        )
    if sharded and config.lora_rank and not config.base_quantization:
        raise UserError(
            "letgo plan: adapters are trained on replicas, not beside a base in shards; give --strategy ddp instead "
            f"of {strategy}, with base_quantization: nf4 where the base does not fit"
        )
    if sharded and config.base_quantization:
        raise UserError(
            f"letgo plan: a base in {config.base_quantization} can't be shared out by {strategy} (its packed weights "
            "would stay whole on every device); give --strategy ddp, or leave base_quantization away"
        )
    if share_of(config) == "directions" and strategy not in ("single", "ddp"):
        raise UserError(
            f"letgo plan: share: directions is for replicas (ddp); under {strategy} every device takes part in every "
            "evaluation: give share: data"
        )
    settings = optimizer_settings(config)
    if sharded and _mentions(settings, "engine", "batched"):
        raise UserError(
            f"letgo plan: engine: batched needs whole weights on every device, which {strategy} does not leave there; "
            "give engine: in_place, or --strategy ddp"
        )


def check_rows(config: UnlearnConfig, devices: int, strategy: str, rows: int, cost: OptimizerCost) -> None:
    """Raises a `UserError` where there is not enough to do for all devices, or the optimizer can't do it."""
    if devices == 1:
        return
    if strategy.startswith("zero") and cost.closures:
        raise UserError(
            "letgo plan: DeepSpeed's engine steps by itself, from gradients that it has reduced, and hands no closure "
            f"to {config.optimizer}; give --strategy fsdp2 or ddp"
        )
    if share_of(config) == "data" and devices > rows:
        raise UserError(
            f"letgo plan: {devices} devices, but the forget set has {rows} rows: {devices - rows} would have none; "
            f"give at most --devices {rows}"
        )
    if share_of(config) == "directions":
        if not cost.forwards:
            raise UserError(
                f"letgo plan: share: directions is for zeroth-order steps, and {config.optimizer} takes none"
            )
        evaluations = evaluations_of(config)
        if devices > evaluations:
            raise UserError(
                f"letgo plan: {devices} devices share directions, but a step has {evaluations} evaluations; give more "
                f"(num_directions: {-(-devices // 2)}), share: data, or at most --devices {evaluations}"
            )


def evaluations_of(config: UnlearnConfig) -> int:
    """Of a zeroth-order step; of a hybrid, of those that are."""
    q, difference = directions_of(config)
    return q + 1 if difference == "forward" else 2 * q


def directions_of(config: UnlearnConfig) -> tuple[int, str]:
    """q of a zeroth-order step, and how differences are taken: as set, at any depth, or the optimizer's default."""
    settings = optimizer_settings(config)
    known = settings_of(OPTIMIZERS.load(config.optimizer))

    def found(name: str, default: Any) -> Any:
        value = _inside(settings, name)
        return (
            value if value is not None else known.get(name) if isinstance(known.get(name), type(default)) else default
        )

    return int(found("num_directions", 1)), str(found("difference", "central"))


def _inside(settings: Any, name: str) -> Any:
    if not isinstance(settings, Mapping):
        return None
    if name in settings:
        return settings[name]
    return next((value for one in settings.values() if (value := _inside(one, name)) is not None), None)


def _mentions(settings: Mapping[str, Any], name: str, value: Any) -> bool:
    return bool(_inside(settings, name) == value)
