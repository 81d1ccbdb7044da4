"""An objective: a forget term plus λ times a retain term, with what each of them needs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from letgo.core.catalog import settings_of
from letgo.core.errors import UserError
from letgo.data.pairs import PARTS
from letgo.models.forward import block_number
from letgo.models.head import OutputHead, check_head, reference_head
from letgo.objectives.joint import joined
from letgo.objectives.records import ObjectiveRecord, TermRecord
from letgo.objectives.schedules import Schedule, constant

Term = Callable[..., Tensor]
Batch = Mapping[str, Mapping[str, Tensor]]


@dataclass
class Objective:
    """ℓ(θ) = w ℓ_f(θ | D_f) + λ s(p) ℓ_r(θ | D_r), ready to be called with a model and a batch.

    A batch is {"forget": part, "retain": part, "alternative": part}, as far as they are in `parts`. A part has
    `input_ids`, `attention_mask` and `labels` of shape (rows, length), `index` of shape (rows,), the rows' places in
    their data set, and what `reference` names: `reference_logps` of shape (rows,), `reference_hidden` and
    `reference_layer_hidden` packed, (tokens, width), rows in order. The part `alternative` is aligned with `forget`,
    row by row.

    s is the schedule of the retain term's weight, a function of progress p in [0, 1].
    """

    record: ObjectiveRecord
    retain_record: TermRecord
    forget_term: Term
    retain_term: Term
    forget_settings: Mapping[str, Any]
    retain_settings: Mapping[str, Any]
    retain_weight: float
    forget_weight: float = 1.0
    schedule: Schedule = constant
    reference_head: OutputHead | None = None
    """The output layer that stored hidden states go through; set by `prepare`."""

    @property
    def retain_name(self) -> str:
        return self.retain_record.name

    @property
    def needs_retain(self) -> bool:
        return self.retain_name != "none" and self.retain_weight != 0.0

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that a batch must have."""
        needed = {*self.record.parts, *(self.retain_record.parts if self.needs_retain else ())}
        return tuple(part for part in PARTS if part in needed)

    @property
    def reference(self) -> dict[str, tuple[str, ...]]:
        """Part -> the quantities of the reference model that a batch must carry there."""
        needed: dict[str, tuple[str, ...]] = dict(self.record.reference)
        for part, names in (self.retain_record.reference if self.needs_retain else {}).items():
            needed[part] = tuple(dict.fromkeys((*needed.get(part, ()), *names)))
        return needed

    @property
    def alternative(self) -> Literal["refusal", "own"] | None:
        """What the part `alternative` holds, if there is one."""
        return self.record.alternative

    @property
    def layer(self) -> int | str | None:
        """The block that `layer_hidden` is taken after; a number once `prepare` has seen the model."""
        return {**self.retain_settings, **self.forget_settings}.get("layer")

    def prepare(self, model: Any, *, check: bool = True) -> None:
        """Look at the model before training, while it has the reference's weights and after it is known which of its
        parameters are trained: choose the layer, keep a copy of a trained output layer where the reference's is
        needed.

        Args:
            model: the model.
            check: whether it is run on two tokens, to see that its output layer gives its logits.

        Raises:
            UserError: the model has no such layer, or is of an architecture that cannot be read.
        """
        if self._uses("layer"):
            number = block_number(model, self.layer)
            for settings, term in ((self.forget_settings, self.record), (self.retain_settings, self.retain_record)):
                if term.hidden == "layer":
                    settings["layer"] = number  # type: ignore[index]
        if check and self._uses("label"):
            check_head(model)
        if any("hidden" in names for names in self.reference.values()):
            self.reference_head = reference_head(model)

    def trainable_pattern(self, model: Any) -> str | None:
        """A regular expression for the names of the parameters that the method trains; None: it says nothing."""
        if self.record.trainable is None:
            return None
        pattern: Callable[..., str] = load_target(self.record.trainable)
        wanted = settings_of(pattern, skip=("model",))
        return pattern(model, **{k: v for k, v in self.forget_settings.items() if k in wanted})

    def terms(self, model: Any, batch: Batch, part: str | None = None) -> dict[str, Tensor]:
        """The terms by name, each a scalar: "forget", and "retain" (not yet weighted) where there is one; only one of
        them where `part` names it."""
        wanted: list[tuple[str, TermRecord, Term, Mapping[str, Any]]] = []
        if part != "retain":
            wanted.append(("forget", self.record, self.forget_term, self.forget_settings))
        if part != "forget" and self.needs_retain:
            wanted.append(("retain", self.retain_record, self.retain_term, self.retain_settings))
        if not wanted:
            raise UserError(f"objective {self.record.name!r} has no retain term to take apart from the forget term")
        batch = joined(model, batch, [record for _, record, _, _ in wanted], self.layer)
        terms = {}
        for name, record, term, settings in wanted:
            terms[name] = term(model, *(batch[p] for p in record.parts), **settings, **self._head(record))
        return terms

    def retain_weight_at(self, progress: float) -> float:
        """λ s(p)."""
        return self.retain_weight * self.schedule(min(1.0, max(0.0, progress)))

    def total(self, terms: Mapping[str, Tensor], progress: float = 0.0) -> Tensor:
        """The loss that the terms add up to when this much of the run is over."""
        weights = {"forget": self.forget_weight, "retain": self.retain_weight_at(progress)}
        first, *rest = [term if weights[name] == 1.0 else weights[name] * term for name, term in terms.items()]
        return sum(rest, first)

    def __call__(self, model: Any, batch: Batch, progress: float = 0.0) -> Tensor:
        return self.total(self.terms(model, batch), progress)

    def _uses(self, hidden: str) -> bool:
        records = [self.record, *([self.retain_record] if self.needs_retain else [])]
        return any(record.hidden == hidden for record in records)

    def _head(self, record: TermRecord) -> dict[str, Any]:
        needs = any("hidden" in names for names in record.reference.values())
        return {"reference_head": self.reference_head} if needs else {}


def load_target(target: str) -> Any:
    """What "package.module:attribute" names."""
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)
