"""`UnlearnTrainer`: transformers' Trainer, driving optimizers of every grade through one closure.

`Trainer` calls `optimizer.step()` without a closure, at one place, and that loop is left alone. When the next step
needs a closure (`optimizer.needs_closure`: zeroth order, the hybrid's zeroth-order phase), it is handed one over the
micro-batches of the accumulation window (`letgo.training.closures`). Checkpoints, resuming, logging, clipping and
schedules stay Trainer's own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from letgo.core import processes
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.progress import Quiet, Reporter
from letgo.core.ranks_lost import rank_loss_named
from letgo.data.pairs import ForgetRetainDataset, collate_pairs
from letgo.models.forward import through
from letgo.models.load import in_shards
from letgo.models.own_grid import own_levels
from letgo.objectives import Objective
from letgo.optim import create_optimizer
from letgo.optim.base import Closure, ClosureOptimizer, every_optimizer, unwrapped
from letgo.optim.bin_floor import BinFloor
from letgo.optim.drive import Drive, sampled_labels_loss
from letgo.optim.engine.moved import Gauge
from letgo.optim.engine.shards import cut_state, whole_state
from letgo.training.bookkeeping import Bookkeeping, history_row
from letgo.training.checkpoints import facts_of, last_checkpoint
from letgo.training.closures import KeepsWindow
from letgo.training.config import UnlearnConfig
from letgo.training.distributed import TrainingRanks, load_whole_weights
from letgo.training.looks import Looks, is_look
from letgo.training.run_plan import NO_TERMS, fitted_steps, optimizer_settings


class UnlearnTrainer(KeepsWindow, Trainer):
    """Train a model with an objective and an optimizer of the catalog.

    Args:
        model: a causal LM, as `letgo.training.prepare.prepare_model` leaves it.
        args: the run's config. The trainer works on a copy, in which it also sets what Trainer needs to know.
        dataset: forget rows paired with retain rows, with the reference quantities that the objective needs
            (`letgo.training.prepare.take_references`).
        pad_id: token id that pads batches.
        objective: as `objective_of` makes it of the config.
        looks: at the model, every so many steps (`letgo.training.looks.looks_of`); None for none.
        reporter: where progress goes.
    """

    def __init__(
        self,
        model: Any,
        args: UnlearnConfig,
        dataset: ForgetRetainDataset,
        *,
        pad_id: int,
        objective: Objective,
        looks: Looks | None = None,
        reporter: Reporter | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        if not args.output_dir:
            raise UserError("no output directory: give output_dir")
        if any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks):
            raise UserError(
                "EarlyStoppingCallback needs evaluations that letgo does not run: give stop: target instead"
            )
        args = copy.copy(args)
        self.objective, self.looks, self.reporter = objective, looks, reporter or Quiet()
        self.notes: list[str] = []
        self.live: Path | None = None
        """Where the history goes as it comes; None keeps it till the end."""
        """Notes for the record (such as: steps added, so that the run ends on a zeroth-order round)."""
        self._window: list[Mapping[str, Any]] = []
        self._latest: list[Mapping[str, Any]] = []
        self._terms: list[dict[str, float]] = []
        self._retain_losses: list[float] = []
        """Of the evaluations of the step that is being taken, where λ is a dual variable."""
        self._phase = ""
        self._closure_norm: float | None = None
        self.training_ranks = TrainingRanks(args, model)
        dataset.part_of = self.training_ranks.part_of
        if args.ddp_find_unused_parameters is None:
            # Only hidden states of an inner layer leave weights without a gradient; to look for them costs a pass.
            args.ddp_find_unused_parameters = self.objective.layer is not None
        # Pinned memory is for a device to copy from; asking for it without one only brings a warning.
        args.dataloader_pin_memory = args.dataloader_pin_memory and torch.cuda.is_available()
        # Trainer removes older checkpoints before the new one is known to be whole.
        self.checkpoints_kept, args.save_total_limit = args.save_total_limit, None
        save_strategy = args.save_strategy
        if self.training_ranks.sharded:
            # Trainer knows no checkpoints of a model that was shared out while it was loaded; here they are below.
            args.save_strategy = "no"
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            data_collator=collate_pairs(pad_id),
            callbacks=[Bookkeeping(self), *callbacks],
        )
        args.save_strategy = save_strategy
        self.remove_callback(PrinterCallback)
        # The objective's loss is a mean over the micro-batch, so the window's mean is Trainer's to take.
        self.model_accepts_loss_kwargs = False

    # -- the hub: `letgo.report.publish` pushes the finished run; Trainer pushes nothing ---

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        pass

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        pass

    # -- the optimizer ------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The catalog's optimizer over the trainable parameters; norms and biases are never decayed."""
        if getattr(self, "optimizer", None) is None:
            # What a pass has left gathered is no parameter of the optimizer's.
            trained = in_shards(self.model if model is None else model)
            decayed = set(self.get_decay_parameter_names(trained))
            named = [(n, p) for n, p in trained.named_parameters() if p.requires_grad]
            settings = optimizer_settings(self.args)
            groups: list[dict[str, Any]] = [{"params": [p for _, p in named]}]
            if settings.get("weight_decay"):
                groups = [
                    {"params": [p for n, p in named if n in decayed]},
                    {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
                ]
            optimizer = create_optimizer(self.args.optimizer, [g for g in groups if g["params"]], **settings)
            for inner in every_optimizer(optimizer):
                if isinstance(inner, BinFloor):
                    inner.levels_of = lambda weight: own_levels(weight)[0]
            self.drive = Drive(optimizer, trained, self._clip, self._sampled_labels_loss)
            optimizer.register_step_pre_hook(self._hand_closure)
            self._gauge = Gauge(optimizer)
            self.training_ranks.attach(optimizer)
            self.optimizer = optimizer
        return self.optimizer

    def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> tuple[Any, ...]:
        """As Trainer's, with the total lengthened where the optimizer must end on a round of its own."""
        values = super().set_initial_training_values(args, dataloader)
        total = values[-1]
        fitted = fitted_steps(self.args, total)
        if fitted == total:
            return values
        note = f"{total} steps lengthened to {fitted}, so that the run ends on a complete zeroth-order round"
        self.notes.append(note)
        self.reporter.say(f"  {note}")
        args.max_steps = fitted
        return super().set_initial_training_values(args, dataloader)

    def _hand_closure(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Step pre-hook: give a step that needs one a closure over the window's micro-batches."""
        # A plain optimizer has no phases to tell apart.
        self._phase = optimizer.phase if isinstance(optimizer, ClosureOptimizer) else ""
        if not self.drive.protocol.needs_closure:
            self._measure()
            self.training_ranks.check_finite(sum(terms["loss"] for terms in self._terms))
            return None
        window, self._window = self._window, []
        closure = self.drive.closure(functools.partial(self._evaluate_window, window))
        with self._unlogged():
            self.drive.protocol.prepare(closure)
        self._measure(closure)
        return (args[0], closure), {}

    def _measure(self, closure: Closure | None = None) -> None:
        """Let the step that comes next be measured, if it is time to."""
        if self.args.moved_every and (self.state.global_step + 1) % self.args.moved_every == 0:
            with self._unlogged():
                self._gauge.before(closure)

    @contextlib.contextmanager
    def _unlogged(self) -> Iterator[None]:
        """Within: what is evaluated is no part of a step, and neither logged nor felt by a dual λ."""
        kept = list(self._terms), list(self._retain_losses)
        yield
        self._terms, self._retain_losses = kept

    def _evaluate_window(self, window: Sequence[Mapping[str, Any]], part: str | None) -> Tensor:
        """The loss of a window's micro-batches, or a term of it, and where gradients are enabled its gradient."""
        # An evaluation alone needs nothing of the others: the optimizer exchanges the losses.
        model = self.model_wrapped if torch.is_grad_enabled() or self.training_ranks.sharded else self.model
        # float64: a zeroth-order step lives on the difference of two nearly equal losses.
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        for number, inputs in enumerate(window):
            with self._synchronised(model, number + 1 == len(window)):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, dict(inputs), part=part) / len(window)
                if loss.requires_grad:
                    self.accelerator.backward(loss)
            # Not in place: where several evaluations are batched, the sum has a dimension that it lacks.
            total = total + loss.detach().double()
        if torch.is_grad_enabled() and self.training_ranks.count > 1:
            self.training_ranks.check_finite(float(total))
            processes.average([total])
        return total

    def _synchronised(self, model: Any, last: bool) -> contextlib.AbstractContextManager[Any]:
        """The gradients of a window's micro-batches are averaged over the processes once, with the last of them."""
        if last or self.training_ranks.count == 1 or not torch.is_grad_enabled():
            return contextlib.nullcontext()
        deferred = self._defer_fsdp_gradient_reduction if self.training_ranks.sharded else None
        return deferred() if deferred is not None else self.accelerator.no_sync(model)

    def _sampled_labels_loss(self, generator: torch.Generator) -> tuple[Tensor, int]:
        """For Sophia's Gauss-Newton-Bartlett estimate: the mean cross-entropy of labels drawn from the model at the
        label positions of the window's forget and retain rows, and their number."""
        losses, counts = [], []
        for inputs in self._latest:
            for batch in self._prepare_inputs(inputs).values():
                loss, count = sampled_labels_loss(self.model_wrapped, batch, generator)
                losses.append(loss * count)
                counts.append(count)
        return torch.stack(losses).sum() / sum(counts), sum(counts)

    @property
    def progress(self) -> float:
        """The share of the run's steps that are done: what schedules of the retain weight follow."""
        return self.state.global_step / max(1, self.state.max_steps)

    # -- one step -----------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """As of any Trainer with closures; an objective may first shift the batch against the model."""
        if self.objective.record.adversary is not None:
            model.train()
            # Of the model inside: what wraps it waits for a backward pass of its weights.
            inputs = self.objective.attacked(self.model, self._prepare_inputs(inputs))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        part: str | None = None,
    ) -> Any:
        """The objective's loss on a batch of {"forget": …, "retain": …}, or one term of it as `part` says; the terms
        are kept for the log.

        Raises:
            NonFiniteLossError: if it is NaN or infinite in a first-order step (a zeroth-order optimizer decides
                itself what to do with an evaluation that is).
        """
        inputs = self.training_ranks.gradient_part(inputs)

        def evaluated(inside: Any) -> tuple[Tensor, dict[str, Tensor]]:
            terms = self.objective.terms(inside, inputs, part)
            return self.objective.total(terms, self.progress), terms

        loss, terms = through(model, evaluated)
        if torch._C._functorch.is_batchedtensor(loss):
            # One of several evaluations in one forward pass: it has no value of its own yet.
            return (loss, None) if return_outputs else loss
        values = {name: float(term.detach()) for name, term in terms.items()} | {"loss": float(loss.detach())}
        if part is None:
            self._terms.append(values)
        if self.objective.dual and "retain" in values:
            self._retain_losses.append(values["retain"])
        if self.training_ranks.count == 1 and loss.requires_grad and not math.isfinite(values["loss"]):
            raise NonFiniteLossError("the loss is not finite")
        return (loss, None) if return_outputs else loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The window's micro-batches, each told the window's rows and label tokens per micro-batch, so that the
        window's loss is the same however it is cut into micro-batches."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._latest = batches
        self.training_ranks.window(batches)
        return batches, None

    def get_train_dataloader(self) -> Any:
        """As Trainer's in one process. In several, each loads its part of a batch (`ForgetRetainDataset.part_of`), so
        that the batches are those of one process with the rows of all, the short one at an epoch's end too."""
        if self.training_ranks.count == 1:
            return super().get_train_dataloader()
        from accelerate.data_loader import prepare_data_loader

        args, accelerator = self.args, self.accelerator
        loader = torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size * self.training_ranks.part_of[1],
            sampler=self._get_train_sampler(),
            collate_fn=self.data_collator,
            drop_last=args.dataloader_drop_last,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return prepare_data_loader(
            loader,
            accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            rng_types=accelerator.rng_types.copy(),
            use_seedable_sampler=True,
            data_seed=args.data_seed,
        )

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's. Replicas that never compute a gradient are not wrapped: DDP would keep room for one."""
        if self.training_ranks.count == 1 or self.training_ranks.sharded:
            return super()._prepare_for_training(*args, **kwargs)
        if self.training_ranks.exchanges_gradients(unwrapped(self.create_optimizer())):
            return super()._prepare_for_training(*args, **kwargs)
        prepare = self.accelerator.prepare_model
        self.accelerator.prepare_model = functools.partial(prepare, evaluation_mode=True)
        try:
            return super()._prepare_for_training(*args, **kwargs)
        finally:
            self.accelerator.prepare_model = prepare

    # -- checkpoints of a model in shards: as those of a single process, so that any number may go on ------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.training_ranks.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_state(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            schedule: Any = self.lr_scheduler
            torch.save(schedule.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.training_ranks.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(cut_state(state, unwrapped(self.optimizer)))
        schedule: Any = self.lr_scheduler
        schedule.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.training_ranks.sharded and not hasattr(self.model, "peft_config"):
            load_whole_weights(self.model, Path(resume_from_checkpoint))
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer's, which asks only after a step whether it was the last one: a run that was killed after its last
        step has none left."""
        stopped = self.looks is not None and self.looks.over(self.state.log_history)
        if stopped or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As Trainer's; a loss that is not finite stops it with the step, the loss terms and the last checkpoint."""
        self._terms.clear()
        self._retain_losses.clear()
        self._window.clear()
        if resume_from_checkpoint and self.objective.dual:
            self.objective.retain_weight = facts_of(Path(resume_from_checkpoint))["retain_weight"]
        in_shards(self.model)
        # A checkpoint's weights take the place of those it begins from.
        if note := self.objective.begin(self.model):
            self.notes.append(note)
        try:
            with rank_loss_named():
                output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            self.drive.protocol.finish()
            self.notes += self.drive.protocol.notes()
            if self.looks is not None:
                self.notes += self.looks.end(self.model, self.state.log_history, self.state.max_steps)
            return output
        except NonFiniteLossError as error:
            last = last_checkpoint(Path(self.args.output_dir))
            shown = ", ".join(f"{k} {v:g}" for k, v in (self._terms[-1] if self._terms else {}).items())
            helps = "a smaller learning_rate, or a bounded objective such as npo, usually helps"
            if self.args.dtype == "float16":
                helps = "float16 ends at 65,504 and knows nothing below 6e-8: dtype: bfloat16 or float32 helps"
            raise NonFiniteLossError(
                f"{error}, at step {self.state.global_step + 1} ({shown or 'no terms'}); the run has stopped\n"
                f"  last good checkpoint: {last or 'none was written (save_steps is too large)'}\n"
                f"  {helps}"
            ) from error

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """A look, where Trainer would evaluate a data set: after the step's log, before its checkpoint."""
        if self.looks is None:
            raise UserError("no looks were asked for: give evaluate_every")
        log = self.state.log_history
        self.log(dict(self.looks.take(self.model, self.drive.protocol, self.state.global_step, log)))
        # Trainer asks again at the end of an epoch.
        self.control.should_evaluate = False
        self.control.should_training_stop |= self.looks.over(log)
        return {}

    def move_retain_weight(self) -> None:
        """After a step: let its retain loss, the mean over its evaluations in all processes, move a dual λ."""
        if not self.objective.dual:
            return
        if not self._retain_losses and self.training_ranks.count == 1:
            raise UserError(NO_TERMS)
        # What a zeroth-order optimizer evaluates too far away may be NaN; it leaves that out too.
        losses = [loss for loss in self._retain_losses if math.isfinite(loss)]
        self._retain_losses.clear()
        mean = self.training_ranks.mean({"retain": sum(losses) / len(losses)} if losses else {})
        if mean:
            self.objective.after_step(mean["retain"], (self.state.global_step - 1) / max(1, self.state.max_steps))

    def look_due(self) -> bool:
        """Whether to look at the model now."""
        state = self.state
        return self.looks is not None and self.looks.due(state.global_step, state.max_steps, state.log_history)

    def release(self) -> None:
        """Let go of what only training needs: gradients, the optimizer and its state."""
        del self.drive, self._gauge
        self.optimizer = self.lr_scheduler = None  # type: ignore[assignment]
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        self.model.zero_grad()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, with the loss and its terms averaged over all evaluations since the last log, also those that
        a closure made (Trainer sees only its own)."""
        evaluated = self.drive.protocol.last_losses
        if "loss" in logs and (self._terms or evaluated):
            means = {
                name: sum(terms[name] for terms in self._terms) / len(self._terms)
                for name in (self._terms[0] if self._terms else ())
            }
            for name, value in self.training_ranks.mean(means).items():
                logs[name if name == "loss" else f"{name}_loss"] = value
            if "loss" not in logs or not self._terms:
                # All evaluations ran as one batch, and only the optimizer saw their values.
                logs["loss"] = sum(evaluated) / len(evaluated)
            if self._phase:
                logs["phase"] = self._phase  # type: ignore[assignment]
            if self._phase == "zeroth_order":
                logs.pop("grad_norm", None)
            elif self._closure_norm is not None:
                logs["grad_norm"] = self._closure_norm
            self._closure_norm = None
            if self.objective.dual:
                logs["retain_weight"] = self.objective.retain_weight
            logs |= self._gauge.logged()
            self._terms.clear()
        super().log(logs, start_time)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row for each logged step (step, phase, loss and its terms, learning rate, λ after it where it is a dual
        variable) and for each look. Kept in checkpoints."""
        return [history_row(row) for row in self.state.log_history if "loss" in row or is_look(row)]
