"""How the processes of a run train together: which rows each takes, what they exchange, what a checkpoint holds.

Trainer, accelerate and torch do the work (DDP for replicas, FSDP2 for shards). This file adds what they lack: the ranks
of a zeroth-order step exchange losses only, and the loss of a batch does not depend on how its rows are shared out.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from letgo.core import processes
from letgo.core.errors import LetgoError, NonFiniteLossError, UserError
from letgo.models.running import is_sharded
from letgo.objectives.likelihood import process_share, share_window
from letgo.optim.base import every_optimizer, inner_optimizers
from letgo.optim.engine.ranks import Ranks
from letgo.optim.zeroth_order import ZerothOrder

if TYPE_CHECKING:
    from letgo.training.config import UnlearnConfig


class TrainingRanks:
    """The processes of one training run.

    Args:
        args: the run's config.
        model: as it will be trained; its weights may be shared out already.
    """

    def __init__(self, args: UnlearnConfig, model: Any) -> None:
        self.args = args
        self.number, self.count = processes.number(), processes.count()
        if args.world_size != self.count:
            raise LetgoError(f"Trainer knows of {args.world_size} processes, but {self.count} have joined the run")
        self.sharded = is_sharded(model)
        self.ranks = Ranks(args.share, args.check_processes_every)  # type: ignore[arg-type]

    # -- rows ---------------------------------------------------------------------------------------------------------

    @property
    def part_of(self) -> tuple[int, int]:
        """The part of each batch that this process loads."""
        return (self.number, self.count) if self.args.share == "data" else (0, 1)

    def window(self, batches: list[dict[str, Any]]) -> None:
        """Tell an accumulation window's micro-batches what they are a part of."""
        share_window(batches, self.part_of[1])

    def gradient_part(self, inputs: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Mapping[str, Tensor]]:
        """The rows of a batch of which this process computes the gradient. Where directions are shared every process
        holds the whole batch, and a first-order step takes a part of it in each."""
        if self.count == 1 or self.args.share == "data" or not torch.is_grad_enabled():
            return inputs
        return process_share(inputs, self.number, self.count)

    # -- optimizers ---------------------------------------------------------------------------------------------------

    def exchanges_gradients(self, optimizer: Any) -> bool:
        """Whether any step needs the mean gradient over replicas. DDP keeps buffers of a gradient's size for that."""
        leaves = [inner for inner in every_optimizer(optimizer) if not inner_optimizers(inner)]
        return not all(isinstance(leaf, ZerothOrder) for leaf in leaves)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the zeroth-order optimizers, at any depth, share what they evaluate."""
        if self.count == 1:
            return
        for inner in every_optimizer(optimizer):
            if isinstance(inner, ZerothOrder):
                inner.ranks = self.ranks

    def check_finite(self, loss: float) -> None:
        """Stop all processes where the loss of one is not finite: the others would wait for its gradients."""
        if self.count > 1:
            losses = processes.exchange(repr(loss))
            bad = [number for number, text in enumerate(losses) if text in ("nan", "inf", "-inf")]
            if bad:
                raise NonFiniteLossError(f"the loss is not finite (process {', '.join(map(str, bad))})")

    def mean(self, terms: Mapping[str, float]) -> dict[str, float]:
        """Loss terms as means over the processes."""
        if self.count == 1:
            return dict(terms)
        exchanged = processes.exchange({name: repr(value) for name, value in terms.items()})
        given = [others for others in exchanged if others]
        names = dict.fromkeys(name for others in given for name in others)
        return {name: sum(float(others[name]) for others in given if name in others) / len(given) for name in names}

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def window_rows(self) -> int:
        """Forget rows of an optimizer step."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.part_of[1]

    def fit_window(self, rows: int | None) -> str | None:
        """Make a step as large as that of a checkpoint that was written on another number of processes, by gradient
        accumulation. Returns a note for the record.

        Raises:
            UserError: there is no such number of micro-batches.
        """
        now = self.window_rows()
        if rows is None or rows == now:
            return None
        each = self.args.train_batch_size * self.part_of[1]
        if rows % each:
            raise UserError(
                f"the checkpoint is of {rows} forget rows a step, and {self.count} processes take {each} at a time: "
                "resume on a number of processes that divides it, or with another per_device_train_batch_size"
            )
        self.args.gradient_accumulation_steps = rows // each
        return (
            f"resumed with {rows // each} micro-batches of {each} forget rows a step, so that a step has {rows} as "
            "before"
        )

    def describe(self) -> dict[str, Any]:
        """For the record: who did what, and what crossed the wire."""
        return {
            "strategy": "fsdp2" if self.sharded else "replicas",
            "backend": str(torch.distributed.get_backend()),
            **self.ranks.describe(),
        }


def strategy_of(args: UnlearnConfig) -> str:
    """`replicas` or `fsdp2`: as the config says, or as the launcher's own configuration does.

    Raises:
        UserError: the launcher asks for a strategy that letgo does not have.
    """
    strategy = "fsdp2" if _launched_for_shards() or args.strategy == "fsdp2" else "replicas"
    if strategy == "fsdp2" and processes.count() == 1:
        raise UserError(
            "strategy: fsdp2 shares the weights out over several processes, but one runs\n"
            "  start several: torchrun --nproc_per_node 2 -m letgo unlearn …"
        )
    return strategy


@functools.cache
def _launched_for_shards() -> bool:
    """Whether `accelerate launch` was configured for FSDP2. Remembered: the answer is taken out of the environment, or
    Trainer would share the weights out again, and a sequence of requests asks several times."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("the launcher asks for FSDP1; letgo shares weights out by FSDP2: set fsdp_version: 2")
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    return True


def exchange_note(record: Mapping[str, Any], steps: int) -> str:
    """One line about how the processes of a run trained, from `TrainingRanks.describe`."""
    parts = [f"{record['ranks']} processes ({record['strategy']} over {record['backend']})"]
    if record["steps"]:
        parts.append(
            f"in {record['steps']} zeroth-order steps of {steps}, {record['share']} shared, each gave the others "
            f"{record['scalars_a_step']:g} losses a step, {record['bytes_exchanged']:,} bytes in all with the checksums"
        )
    return "; ".join(parts)


def load_whole_weights(model: Any, directory: Path) -> None:
    """Give a model in shards the weights of a checkpoint, which holds them whole."""
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state: dict[str, Any] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        state |= load_file(path)
    if not state:
        raise UserError(f"{directory} holds no weights")
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, strict=False))
