"""Closures for optimizers of every grade in loops that call `optimizer.step()` without one: transformers' Trainer, and
what is built on it (TRL).

    Trainer = letgo.closure_trainer(transformers.Trainer)
    Trainer(model, args, train_dataset=rows, optimizers=(optimizer, None)).train()

Trainer's loop is left alone. When the next step needs a closure, `training_step` does no backward pass and only keeps
the micro-batches of the accumulation window; a step pre-hook then hands the optimizer a closure over them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from letgo.core.errors import UserError
from letgo.optim.base import OptimizerProtocol, adapt, every_optimizer, unwrapped
from letgo.optim.drive import Drive, sampled_labels_loss
from letgo.optim.sure import Sure

_Base: Any = object
"""A Trainer stands here, whichever."""


class KeepsWindow(_Base):
    """What any Trainer with closures does. `drive` is the optimizer's, and `_window` the micro-batches kept."""

    drive: Drive
    _tr_loss: Tensor
    """Trainer's own sum of the losses that it has not logged yet."""
    _window: list[Mapping[str, Any]]
    _closure_norm: float | None = None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Trainer's own, but for a step that needs a closure: then the batch is only kept."""
        if not self.drive.protocol.needs_closure:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        model.train()
        self._window.append(self._prepare_inputs(inputs))
        self._items = num_items_in_batch
        return torch.zeros((), device=self.args.device)

    def _clip(self, parameters: list[Tensor]) -> None:
        """Clip the gradients of a step that runs the closure itself: it has none yet when Trainer clips."""
        if self.args.max_grad_norm and any(p.grad is not None for p in parameters):
            norm = self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)
            self._closure_norm = None if norm is None else float(norm)


class HandsClosures(KeepsWindow):
    """The first half of what `closure_trainer` makes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._window, self._latest, self._evaluated = [], list[Mapping[str, Any]](), list[Tensor]()
        super().__init__(*args, **kwargs)
        if self.optimizer is not None:
            self._check(self.optimizer)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Trainer's own, or the one that it was given, with closures handed to it."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        inside = unwrapped(optimizer)
        if not hasattr(self, "drive") or self.drive.optimizer is not inside:
            self._check(inside)
            self.drive = Drive(inside, self.model, self._clip, self._sampled_labels_loss)
            inside.register_step_pre_hook(self._hand_closure)
            inside.register_step_post_hook(self._count_loss)
        return optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own; the weights that it ends with are those that the optimizer leaves (an average, say)."""
        output = super().train(*args, **kwargs)
        self.drive.protocol.finish()
        return output

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._latest = batches
        return batches, items

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse now what could not be done at some later step."""
        name = type(unwrapped(optimizer)).__name__
        inner = list(every_optimizer(unwrapped(optimizer)))
        if adapt(optimizer).asks_for_terms or any(isinstance(each, Sure) for each in inner):
            raise UserError(
                f"{name} takes a forget and a retain term apart, and the loss of this trainer is one term\n"
                "  take another optimizer (or on='loss', where it has that), or letgo.UnlearnTrainer"
            )
        if not any(isinstance(each, OptimizerProtocol) or adapt(each).needs_closure for each in inner):
            return
        if self.args.fp16:
            raise UserError(f"{name} takes closures, of which a loss scaler (fp16) knows nothing: take bf16 or float32")
        for what, there in (
            ("DeepSpeed", self.is_deepspeed_enabled),
            ("FSDP", self.is_fsdp_enabled),
            (f"{self.args.world_size} processes", self.args.world_size > 1),
        ):
            if there:
                raise UserError(f"{name} with {what}: closures are for one process here; `letgo unlearn` knows more")

    def _hand_closure(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Step pre-hook: give a step that needs one a closure over the window's micro-batches."""
        if not self.drive.protocol.needs_closure:
            return None
        window, self._window, self._evaluated = self._window, [], []
        self._phase = self.drive.protocol.phase
        closure = self.drive.closure(functools.partial(self._evaluate, window))
        self.drive.protocol.prepare(closure)
        self._evaluated.clear()
        return (args[0], closure), {}

    def _count_loss(self, *_: Any) -> None:
        """Step post-hook: what Trainer logs of a step with a closure is the loss where the weights were: the first that
        was evaluated, or between two that lie around them the mean."""
        if self._evaluated:
            around = self._evaluated if self._phase == "zeroth_order" else self._evaluated[:1]
            self._tr_loss = self._tr_loss + torch.stack(around).mean().to(self._tr_loss)
            self._evaluated = []

    def _evaluate(self, window: Sequence[Mapping[str, Any]], part: str | None) -> Tensor:
        """The loss of a window's micro-batches, as Trainer has it, and where gradients are enabled its gradient."""
        by_items = self._items is not None and (self.model_accepts_loss_kwargs or self.compute_loss_func is not None)
        # float64: a zeroth-order step lives on the difference of two nearly equal losses.
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        for inputs in window:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(self.model, dict(inputs), num_items_in_batch=self._items)
            loss = loss if by_items else loss / len(window)
            if loss.requires_grad:
                self.accelerator.backward(loss)
            total = total + loss.detach().double()
        self._evaluated.append(total)
        return total

    def _sampled_labels_loss(self, generator: torch.Generator) -> tuple[Tensor, int]:
        """For Sophia's Gauss-Newton-Bartlett estimate, over the window's micro-batches."""
        losses, counts = [], []
        for inputs in map(self._prepare_inputs, self._latest):
            if not {"input_ids", "labels"} <= set(inputs):
                raise UserError("hessian='gnb' draws a language model's labels: batches need input_ids and labels")
            everywhere = {"attention_mask": torch.ones_like(inputs["input_ids"])}
            loss, count = sampled_labels_loss(self.model, everywhere | dict(inputs), generator)
            losses.append(loss * count)
            counts.append(count)
        return torch.stack(losses).sum() / sum(counts), sum(counts)


def closure_trainer(trainer: type[Any]) -> type[Any]:
    """A subclass of transformers' `Trainer`, or of one built on it (TRL's `SFTTrainer`), in which optimizers of every
    grade step. It is used as the class itself, with `optimizers=(optimizer, None)` or `optimizer_cls_and_kwargs`.

    Raises:
        UserError: by the subclass, when it is made, for an optimizer that it can't give what it needs.
    """
    return type(f"Closure{trainer.__name__}", (HandsClosures, trainer), {"__doc__": trainer.__doc__})
