"""What a run derives from its config and its launcher, before there is a model. The config itself is never changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from letgo.benchmarks import BENCHMARKS
from letgo.core import processes
from letgo.core.catalog import parse_spec, settings_of
from letgo.core.errors import UserError, first_line
from letgo.objectives import METHODS, Objective, create_objective
from letgo.objectives.records import OneShotRecord
from letgo.optim import OPTIMIZERS, create_optimizer
from letgo.optim.base import ClosureOptimizer, OptimizerProtocol, adapt, every_optimizer, parameters_of
from letgo.training.config import UnlearnConfig
from letgo.training.distributed import strategy_of


@dataclass(frozen=True)
class RunPlan:
    """What a run derives from its config and its launcher."""

    strategy: str
    """`replicas` or `fsdp2`."""

    @property
    def shards(self) -> int:
        """The processes over which the weights are shared out."""
        return processes.count() if self.strategy == "fsdp2" else 1


def plan_run(args: UnlearnConfig) -> RunPlan:
    """Decide what the config leaves to the launcher.

    Raises:
        UserError: letgo can't do what the config asks for.
    """
    check_parts(args)
    plan = RunPlan(strategy_of(args))
    if plan.strategy == "fsdp2":
        check_shards(args)
    if args.moved_every and processes.count() > 1:
        raise UserError("moved_every compares a step with the gradient that one process has: leave it out, or run one")
    return plan


NO_TERMS = (
    "retain_weight_schedule: dual follows the retain loss of every step, and engine: batched evaluates the sum of both "
    "terms alone: take engine: in_place"
)


def _batched(settings: Mapping[str, Any]) -> bool:
    """Whether an optimizer's settings, or those of one inside it, ask for the batched engine."""
    inner = (value for value in settings.values() if isinstance(value, Mapping))
    return settings.get("engine") == "batched" or any(map(_batched, inner))


def check_parts(args: UnlearnConfig) -> None:
    """Check what the config names, and the settings of each: objective, optimizer, schedule, benchmark.
    Nothing is loaded.

    Raises:
        UserError: an unknown name, or a setting that it has not or that is out of range.
    """
    objective, optimizer = objective_of(args), trial_optimizer(args)
    args.check_float16(own=True)
    if objective is not None:
        _check_first_step(args)
    if objective is not None and not objective.needs_retain and adapt(optimizer).asks_for_terms:
        raise UserError(
            f"optimizer {args.optimizer} takes the forget and the retain term apart, and objective {args.objective} "
            "has no retain term here: name a retain_loss (letgo list retain-losses), or an objective that has one"
        )
    if objective is not None and objective.record.start and args.lora_rank:
        raise UserError(
            f"objective {args.objective} changes the weights before it trains them, and adapters leave the model's own "
            "as they are: leave lora_rank out"
        )
    if objective is not None and objective.dual and _batched(args.optimizer_args or {}):
        raise UserError(NO_TERMS)
    kwargs = args.lr_scheduler_kwargs if isinstance(args.lr_scheduler_kwargs, dict) else {}
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=dict(kwargs))
    except (TypeError, ValueError, AttributeError) as error:
        named = f"lr_scheduler_type {args.lr_scheduler_type} with lr_scheduler_kwargs {kwargs}"
        raise UserError(f"{named}: {first_line(error)}") from error
    if args.benchmark:
        name, settings = parse_spec(args.benchmark)
        BENCHMARKS.check_settings(name, settings)


def objective_of(args: UnlearnConfig) -> Objective | None:
    """The objective that a config names; None where it names a one-shot method, which has no loss to train with.

    Raises:
        UserError: an unknown name, or a setting that it has not.
    """
    settings = args.objective_args or {}
    if isinstance(record := METHODS.record(args.objective), OneShotRecord):
        METHODS.check_settings(args.objective, settings, skip=("model", "data"))
        if args.lora_rank and not record.adapters:
            raise UserError(f"{args.objective} changes matrices of the model itself, not adapters: leave lora_rank out")
        if args.moved_every:
            raise UserError(f"moved_every measures steps, and {args.objective} takes none: leave it out")
        if args.evaluate_every:
            raise UserError(
                f"evaluate_every looks at a model between steps, and {args.objective} changes the weights in one shot: "
                "leave evaluate_every out (and stop and keep with it)"
            )
        return None
    return create_objective(
        args.objective,
        retain_loss=args.retain_loss,
        retain_weight=args.retain_weight,
        retain_weight_schedule=args.retain_weight_schedule,
        forget_weight=args.forget_weight,
        **settings,
    )


def optimizer_settings(args: UnlearnConfig) -> dict[str, Any]:
    """The settings that the optimizer of a config is made with."""
    settings: dict[str, Any] = {"lr": args.learning_rate}
    # Said always, also when it is 0: torch's AdamW decays by 0.01 where it is told nothing.
    if args.weight_decay or "weight_decay" in settings_of(OPTIMIZERS.load(args.optimizer)):
        settings["weight_decay"] = args.weight_decay
    return settings | (args.optimizer_args or {})


def fitted_steps(args: UnlearnConfig, total: int) -> int:
    """The steps of a run that is to have `total`: more where the optimizer must end on a round of its own."""
    return adapt(trial_optimizer(args)).fit_total_steps(total)


def check_shards(args: UnlearnConfig) -> None:
    """Check that a run can train a model whose weights are shared out over processes (`strategy: fsdp2`).

    Raises:
        UserError: it says what can't be, and the way out.
    """
    if objective_of(args) is None:
        raise UserError(
            f"strategy: fsdp2 shares out weights that are trained in steps; {args.objective} changes whole weights in "
            "one shot: take replicas, or one process"
        )
    if (objective := objective_of(args)) and (objective.record.start or objective.record.adversary):
        why = "changes whole weights before it trains them" if objective.record.start else "attacks whole models"
        raise UserError(
            f"strategy: fsdp2 shares the weights out, and objective {args.objective} {why}: take replicas, or one "
            "process"
        )
    if args.lora_rank:
        raise UserError(
            "strategy: fsdp2 shares out weights that are trained; adapters on a base in shards are not supported\n"
            "  train them on replicas: base_quantization: nf4 makes a base a quarter as large as in bfloat16"
        )
    if args.share == "directions":
        raise UserError(
            "share: directions is for replicas: where the weights are shared out every process takes part in every "
            "evaluation; give share: data, or leave strategy away"
        )
    record = OPTIMIZERS.record(args.optimizer)
    if record.refuses_shards:
        raise UserError(f"strategy: fsdp2 with optimizer {record.name!r}: {record.refuses_shards}")
    for optimizer in every_optimizer(trial_optimizer(args)):
        if isinstance(optimizer, ClosureOptimizer):
            try:
                optimizer.check_shards()
            except ValueError as error:
                raise UserError(f"strategy: fsdp2 with optimizer {record.name!r}: {error}") from error


def trial_optimizer(args: UnlearnConfig, tensor: Tensor | None = None) -> Any:
    """The optimizer of a config on a small tensor: what it will need is asked of it before there is a model."""
    trial = torch.nn.Parameter(torch.zeros(2, 2) if tensor is None else tensor)
    return create_optimizer(args.optimizer, [trial], **optimizer_settings(args))


def trial_step(optimizer: Any) -> None:
    """A first step on the mean squares of a trial optimizer's parameters."""
    parameters = parameters_of(optimizer)

    def evaluate() -> Tensor:
        return torch.stack([parameter.float().square().mean() for parameter in parameters]).sum()

    def closure(part: str | None = None) -> Tensor:
        optimizer.zero_grad()
        loss = evaluate()
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    adapt(optimizer).use_labels(lambda generator: (evaluate(), 1))
    optimizer.step(closure)


def _check_first_step(args: UnlearnConfig) -> None:
    """Let an optimizer that is not letgo's, here or inside another, take a step on a small matrix: what it can't do
    (dense gradients, say) it tells only then."""
    optimizer = trial_optimizer(args, torch.linspace(0.1, 1.0, 64).reshape(8, 8))
    if all(isinstance(inner, OptimizerProtocol) for inner in every_optimizer(optimizer)):
        return
    try:
        trial_step(optimizer)
    except Exception as error:  # another library's, of any kind
        raise UserError(f"optimizer {args.optimizer!r} can't step a dense matrix: {first_line(error)}") from error


def planned_steps(args: UnlearnConfig, rows: int, readers: int | None = None) -> tuple[int, int]:
    """Optimizer steps of a run on so many forget rows, and the epochs (whole or begun) that they are.

    Args:
        readers: processes among which the rows are split; by default those of this run.
    """
    window = args.train_batch_size * args.gradient_accumulation_steps * (readers or max(1, args.world_size))
    # As Trainer counts: an epoch's last window may be short, and epochs need not be whole.
    an_epoch = max(1, math.ceil(rows / window))
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * an_epoch)
    total = fitted_steps(args, total)
    return total, math.ceil(total / an_epoch)
