"""An objective: a forget term plus λ times a retain term, with what each of them needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Literal

from torch import Tensor

from letgo.core.catalog import settings_of
from letgo.core.errors import UserError
from letgo.data.pairs import PARTS
from letgo.models.forward import block_number
from letgo.models.head import OutputHead, check_head, reference_head
from letgo.objectives.joint import joined
from letgo.objectives.records import ObjectiveRecord, TermRecord
from letgo.objectives.schedules import Dual, Schedule, constant

Batch = Mapping[str, Mapping[str, Tensor]]


@dataclass
class Term:
    """A forget or a retain term with its settings."""

    record: TermRecord
    function: Callable[..., Tensor]
    settings: dict[str, Any]
    components: Any = None
    """What `Objective.fit` made for it."""

    @property
    def reads_hidden(self) -> bool:
        """Whether it needs stored hidden states, and so the output layer that they go through."""
        return any("hidden" in names for names in self.record.reference.values())

    def __call__(self, model: Any, batch: Batch, head: OutputHead | None) -> Tensor:
        more: dict[str, Any] = {"reference_head": head} if self.reads_hidden else {}
        more |= {} if self.components is None else {"components": self.components}
        return self.function(model, *(batch[part] for part in self.record.parts), **self.settings, **more)


@dataclass
class Objective:
    """ℓ(θ) = w ℓ_f(θ | D_f) + λ s(p) ℓ_r(θ | D_r), ready to be called with a model and a batch.

    A batch is {"forget": part, "retain": part, "alternative": part}, as far as they are in `parts`. A part has
    `input_ids`, `attention_mask` and `labels` of shape (rows, length), `index` of shape (rows,), the rows' places in
    their data set, and what `reference` names: `reference_logps` of shape (rows,), `reference_hidden` and
    `reference_layer_hidden` packed, (tokens, width), rows in order. The part `alternative` is aligned with `forget`,
    row by row.

    s is the schedule of the retain term's weight, a function of progress p in [0, 1]. Where it is `Dual`, λ itself
    moves, by `after_step`, and s is 1.
    """

    record: ObjectiveRecord
    forget: Term
    retain: Term
    retain_weight: float
    forget_weight: float = 1.0
    schedule: Schedule | Dual = constant
    reference_head: OutputHead | None = None
    """The output layer that stored hidden states go through; set by `prepare`."""

    @property
    def needs_retain(self) -> bool:
        # A dual variable comes back from 0.
        return self.retain.record.name != "none" and (self.retain_weight != 0.0 or self.dual)

    @property
    def dual(self) -> bool:
        """Whether the retain loss moves the retain term's weight."""
        return isinstance(self.schedule, Dual)

    @property
    def _terms(self) -> dict[str, Term]:
        """The terms in use."""
        return {"forget": self.forget} | ({"retain": self.retain} if self.needs_retain else {})

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that a batch must have."""
        needed = {part for term in self._terms.values() for part in term.record.parts}
        return tuple(part for part in PARTS if part in needed)

    @property
    def reference(self) -> dict[str, tuple[str, ...]]:
        """Part -> the quantities of the reference model that a batch must carry there."""
        needed: dict[str, tuple[str, ...]] = {}
        for term in self._terms.values():
            for part, names in term.record.reference.items():
                needed[part] = tuple(dict.fromkeys((*needed.get(part, ()), *names)))
        return needed

    @property
    def alternative(self) -> Literal["refusal", "own"] | None:
        """What the part `alternative` holds, if there is one."""
        return self.record.alternative

    @property
    def layer(self) -> int | str | None:
        """The block that `layer_hidden` is taken after; a number once `prepare` has seen the model."""
        return {**self.retain.settings, **self.forget.settings}.get("layer")

    def prepare(self, model: Any, *, check: bool = True) -> None:
        """Look at the model before training, while it has the reference's weights, but after its trained parameters are
        chosen: choose the layer, and keep a copy of a trained output layer where the reference's is needed.

        Args:
            model: the model.
            check: run it on two tokens, to see that its output layer gives its logits.

        Raises:
            UserError: the model has no such layer, or is of an architecture that cannot be read.
        """
        kinds = {term.record.hidden for term in self._terms.values()}
        if "layer" in kinds:
            number = block_number(model, self.layer)
            for term in (self.forget, self.retain):
                if term.record.hidden == "layer":
                    term.settings["layer"] = number
        if check and ("label" in kinds or self.record.adversary):
            check_head(model)
        if any(term.reads_hidden for term in self._terms.values()):
            self.reference_head = reference_head(model)

    def trainable_pattern(self, model: Any) -> str | None:
        """A regular expression for the names of the parameters that the method trains; None for any."""
        if self.record.trainable is None:
            return None
        pattern: str = self._by_settings(self.record.trainable, model)
        return pattern

    def fit(self, model: Any, reference: Mapping[str, Mapping[str, Sequence[Tensor]]]) -> None:
        """Take what the method needs of all rows at once.

        Args:
            reference: part -> quantity -> one tensor a row, of the model before training.
        """
        if self.record.components is not None:
            self.forget.components = self._by_settings(self.record.components, model, reference["forget"])

    def begin(self, model: Any) -> str | None:
        """Change the model's weights to those that training begins from, where the method has such, once all that it
        needs of the model as it was is taken. Returns a note for the record; None where nothing was changed."""
        note: str | None = None if self.record.start is None else self._by_settings(self.record.start, model)
        return note

    def attacked(self, model: Any, batch: Batch) -> Batch:
        """A batch with what the method's own adversary adds to the forget rows' hidden states, as the weights are
        now; the batch as it is where the method has none."""
        if self.record.adversary is None:
            return batch
        latent = self._by_settings(self.record.adversary, model, batch["forget"])
        return batch if latent is None else {**batch, "forget": {**batch["forget"], "latent": latent}}

    def _by_settings(self, target: str, model: Any, *parts: Any) -> Any:
        """What a function of the record's own gives of the model and of those of the forget term's settings that it
        has."""
        function: Callable[..., Any] = resolve_name(target)
        wanted = settings_of(function, skip=("model", *PARTS))
        return function(model, *parts, **{k: v for k, v in self.forget.settings.items() if k in wanted})

    def terms(self, model: Any, batch: Batch, part: str | None = None) -> dict[str, Tensor]:
        """The terms by name, each a scalar: "forget", and "retain" (not yet weighted) where there is one; only one of
        them where `part` names it."""
        wanted = {name: term for name, term in self._terms.items() if part in (None, name)}
        if not wanted:
            raise UserError(f"objective {self.record.name!r} has no retain term to take apart from the forget term")
        batch = joined(model, batch, [term.record for term in wanted.values()], self.layer)
        return {name: term(model, batch, self.reference_head) for name, term in wanted.items()}

    def retain_weight_at(self, progress: float) -> float:
        """λ s(p)."""
        if isinstance(self.schedule, Dual):
            return self.retain_weight
        return self.retain_weight * self.schedule(min(1.0, max(0.0, progress)))

    def after_step(self, retain_loss: float, progress: float) -> None:
        """Move λ, where it is a dual variable.

        Args:
            retain_loss: of the whole step, over its micro-batches and processes.
            progress: the share of the run that was done before the step.
        """
        if isinstance(self.schedule, Dual):
            self.retain_weight = self.schedule.moved(self.retain_weight, retain_loss, progress)

    def total(self, terms: Mapping[str, Tensor], progress: float = 0.0) -> Tensor:
        """The loss: the weighted sum of the terms after this share of the run."""
        weights = {"forget": self.forget_weight, "retain": self.retain_weight_at(progress)}
        first, *rest = [term if weights[name] == 1.0 else weights[name] * term for name, term in terms.items()]
        return sum(rest, first)

    def __call__(self, model: Any, batch: Batch, progress: float = 0.0) -> Tensor:
        return self.total(self.terms(model, batch), progress)
