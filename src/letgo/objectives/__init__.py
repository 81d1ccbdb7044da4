"""What to forget and what to keep, as pure functions of a model and a batch.

An objective is a forget term plus λ times a retain term; any of one goes with any of the other. A new forget term is
one file and one line here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from letgo.catalog import Catalog, Record, did_you_mean, settings_of
from letgo.errors import UserError

Term = Callable[..., Tensor]
Batch = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class ObjectiveRecord(Record):
    """`target` is the forget term; `retain` the retain term that this name brings along; `needs_reference` says
    whether the reference model's label log-probabilities must be there."""

    retain: str = "none"
    needs_reference: bool = False


_TOFU = "TOFU (arXiv 2401.06121), section 3"
_NPO = "NPO (arXiv 2404.05868), equation 3"

OBJECTIVES: Catalog[ObjectiveRecord] = Catalog(
    "objective",
    [
        ObjectiveRecord(
            name="ga",
            target="letgo.objectives.ga:gradient_ascent",
            summary="gradient ascent on the forget set's cross-entropy",
            source=_TOFU,
            faithfulness="faithful",
            aliases=("gradient_ascent",),
        ),
        ObjectiveRecord(
            name="graddiff",
            target="letgo.objectives.ga:gradient_ascent",
            summary="gradient ascent on the forget set, descent on the retain set",
            source=_TOFU,
            faithfulness="faithful",
            aliases=("gradient_difference", "ga_gdr"),
            retain="ce",
        ),
        ObjectiveRecord(
            name="npo",
            target="letgo.objectives.npo:npo",
            summary="negative preference optimization, forget term alone",
            source=_NPO,
            faithfulness="faithful",
            needs_reference=True,
        ),
        ObjectiveRecord(
            name="npo_gdr",
            target="letgo.objectives.npo:npo",
            summary="negative preference optimization with cross-entropy on the retain set",
            source=f"{_NPO}; MUSE (arXiv 2407.06460), NPO_GDR",
            faithfulness="faithful",
            aliases=("npo_rt",),
            retain="ce",
            needs_reference=True,
        ),
    ],
)

RETAIN_TERMS: Catalog[Record] = Catalog(
    "retain loss",
    [
        Record(
            name="none",
            target="letgo.objectives.retain:none",
            summary="nothing holds the model where it was",
            source="-",
            faithfulness="ours",
        ),
        Record(
            name="ce",
            target="letgo.objectives.retain:cross_entropy",
            summary="cross-entropy on the retain set",
            source=_TOFU,
            faithfulness="faithful",
            aliases=("gdr", "gd"),
        ),
    ],
)


@dataclass(frozen=True)
class Objective:
    """ℓ(θ) = ℓ_f(θ | D_f) + λ ℓ_r(θ | D_r), ready to be called with a model and a batch.

    A batch is {"forget": {...}, "retain": {...}}, each with `input_ids`, `attention_mask` and `labels` of shape
    (rows, length), the forget part with `reference_logps` of shape (rows,) where the term needs them.
    """

    record: ObjectiveRecord
    retain_name: str
    forget_term: Term
    retain_term: Term
    forget_settings: Mapping[str, Any]
    retain_weight: float

    @property
    def needs_retain(self) -> bool:
        return self.retain_name != "none" and self.retain_weight != 0.0

    def terms(self, model: Any, batch: Batch, part: str | None = None) -> dict[str, Tensor]:
        """The terms by name, each a scalar: "forget", and "retain" (not yet weighted) where there is one; only one of
        them where `part` names it."""
        terms = {}
        if part != "retain":
            terms["forget"] = self.forget_term(model, batch["forget"], **self.forget_settings)
        if part != "forget" and self.needs_retain:
            terms["retain"] = self.retain_term(model, batch["retain"])
        if not terms:
            raise UserError(f"objective {self.record.name!r} has no retain term to take apart from the forget term")
        return terms

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss that the terms add up to."""
        weights = {"forget": 1.0, "retain": self.retain_weight}
        first, *rest = [term if weights[name] == 1.0 else weights[name] * term for name, term in terms.items()]
        return sum(rest, first)

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        return self.total(self.terms(model, batch))


def create_objective(
    name: str, *, retain_loss: str | None = None, retain_weight: float = 1.0, **settings: Any
) -> Objective:
    """An objective by name. `retain_loss` takes the place of the one that the name brings along; the other settings
    go to the forget term (`npo`: beta). Unknown names and settings are `UserError`s."""
    record = OBJECTIVES.record(name)
    term = OBJECTIVES.load(name)
    known = settings_of(term, skip=("model", "batch"))
    for key in settings:
        if key not in known:
            raise UserError(
                f"objective {record.name!r} has no setting {key!r}{did_you_mean(key, known)}\n"
                f"  its settings: {', '.join(known) or 'none'}"
            )
    missing = [k for k, default in known.items() if default is inspect.Parameter.empty and k not in settings]
    if missing:
        raise UserError(f"objective {record.name!r} needs a value for {', '.join(missing)}")
    retain_name = RETAIN_TERMS.record(retain_loss or record.retain).name
    return Objective(
        record=record,
        retain_name=retain_name,
        forget_term=term,
        retain_term=RETAIN_TERMS.load(retain_name),
        forget_settings=dict(settings),
        retain_weight=float(retain_weight),
    )
