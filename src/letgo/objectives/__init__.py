"""What to forget and what to keep, as pure functions of a model and a batch.

An objective is a forget term plus λ times a retain term; every forget term goes with every retain term. A new forget
term is one function and one record here. Names with `_gdr` and `_klr` are presets: the same forget term with
cross-entropy on the retain set, or with its KL divergence to the reference. `ONE_SHOT` lists methods that change the
weights in one shot.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from letgo.core.catalog import Catalog, Own, Record, check_settings, settings_of
from letgo.core.errors import UserError
from letgo.core.values import Weight
from letgo.objectives.records import ObjectiveRecord, OneShotRecord, TermRecord
from letgo.objectives.schedules import Dual, parse_schedule

if TYPE_CHECKING:
    from letgo.objectives.objective import Objective as Objective

PART_NAMES = ("forget", "retain", "alternative")
"""Arguments of the terms that are parts of a batch."""
NOT_SETTINGS = ("model", *PART_NAMES, "reference_head", "components")
"""Arguments of the terms that a run gives, not its user."""

_TOFU = "TOFU (arXiv 2401.06121), section 3"
_NPO = "NPO (arXiv 2404.05868), equation 3"
_DPO_SOURCE = "DPO (arXiv 2305.18290), equation 7"
_MUSE = "MUSE (arXiv 2407.06460)"
_ITS_GRADIENT = "the source's gradient, as the gradient of a function, so that zeroth-order optimizers descend it too"
_LABELS_ALONE = "over the label tokens alone, not over prompt and padding too"
_RETAINED = {"ce": "cross-entropy on the retain set", "kl": "the retain set's KL divergence to the reference"}


def _presets(
    *, ce: tuple[str, ...] | None = None, kl: tuple[str, ...] | None = None, **fields: Any
) -> Iterator[ObjectiveRecord]:
    """A forget term made of hidden states at label tokens, by its record's fields: alone, and with the retain terms
    whose aliases are given (`ce` as NAME_gdr, `kl` as NAME_klr). It is faithful to its source unless a `note` says how
    it varies."""
    alone = ObjectiveRecord(hidden="label", faithfulness="variant" if "note" in fields else "faithful", **fields)
    yield alone
    for retain, suffix, aliases in (("ce", "gdr", ce), ("kl", "klr", kl)):
        if aliases is not None:
            name, summary = f"{alone.name}_{suffix}", f"{alone.summary}; {_RETAINED[retain]}"
            yield replace(alone, name=name, aliases=aliases, retain=retain, summary=summary)


_GA = ObjectiveRecord(
    name="ga",
    target="letgo.objectives.ga:gradient_ascent",
    summary="gradient ascent on the forget set's cross-entropy",
    source=_TOFU,
    faithfulness="faithful",
    aliases=("gradient_ascent",),
    hidden="label",
)
_DPO: dict[str, Any] = {
    "target": "letgo.objectives.preference:dpo",
    "parts": ("forget", "alternative"),
    "reference": {"forget": ("logps",), "alternative": ("logps",)},
}
_REFUSALS: dict[str, Any] = {
    "note": "a refusal list of our own; each row keeps its refusal over a run",
    "alternative": "refusal",
}


def _described(term: Any) -> dict[str, Any]:
    """The parts that somebody's own term is called with: the arguments behind `model`, as they are called."""
    first, *others = list(inspect.signature(term).parameters) or [""]
    parts = tuple(takewhile(lambda name: name in PART_NAMES, others))
    if first != "model" or not parts:
        raise UserError(
            f"must take the model and then the parts of a batch by their names, (model, forget, …), of "
            f"{', '.join(PART_NAMES)}; it takes ({', '.join([first, *others])})\n"
            "  a method that changes the weights in one shot takes (model, data, …)"
        )
    return {"parts": parts}


_OWN_OBJECTIVE: Own[Any] = Own("letgo.objectives", ObjectiveRecord, _described)

OBJECTIVES: Catalog[ObjectiveRecord] = Catalog(
    "objective",
    [
        _GA,
        replace(
            _GA,
            name="graddiff",
            summary="gradient ascent on the forget set, descent on the retain set",
            aliases=("gradient_difference", "ga_gdr"),
            retain="ce",
        ),
        replace(
            _GA,
            name="ga_klr",
            summary=f"gradient ascent on the forget set; {_RETAINED['kl']}",
            source=f"{_TOFU}: KL minimization",
            faithfulness="variant",
            note=f"KL {_LABELS_ALONE}",
            aliases=("kl_minimization",),
            retain="kl",
        ),
        *_presets(
            name="npo",
            target="letgo.objectives.npo:npo",
            summary="negative preference optimization",
            source=f"{_NPO}; with a retain term: {_MUSE}",
            reference={"forget": ("logps",)},
            ce=("npo_rt",),
            kl=("npo_kl",),
        ),
        *_presets(
            name="simnpo",
            target="letgo.objectives.npo:simnpo",
            summary="NPO against the answer's length, without a reference",
            source="SimNPO (arXiv 2410.07163)",
            ce=(),
            kl=(),
        ),
        *_presets(
            name="dpo",
            summary="the row's own alternative answer preferred to the one to forget",
            source=_DPO_SOURCE,
            alternative="own",
            ce=(),
            kl=(),
            **_DPO,
        ),
        ObjectiveRecord(
            name="altpo",
            summary=f"an invented answer preferred to the one to forget; {_RETAINED['ce']}",
            source="AltPO (arXiv 2409.13474)",
            faithfulness="variant",
            note="the row's field `alternative` is its invented answer; several a question are several rows",
            alternative="own",
            hidden="label",
            retain="ce",
            **_DPO | {"target": "letgo.objectives.preference:altpo"},
        ),
        *_presets(
            name="idk_dpo",
            summary="a refusal preferred to the answer to forget",
            source=f"{_DPO_SOURCE}, without NPO's factor 2/β; with refusals: {_NPO.split(',')[0]}",
            aliases=("idkdpo",),
            ce=(),
            kl=(),
            **_DPO,
            **_REFUSALS,
        ),
        *_presets(
            name="po",
            target="letgo.objectives.preference:preference_optimization",
            summary=f"refusals taught in place of the answers; {_RETAINED['ce']}",
            source=f"{_TOFU}: preference optimization; SOUL (arXiv 2404.18239)",
            aliases=("idk", "po_gdr", "preference_optimization"),
            parts=("alternative",),
            retain="ce",
            **_REFUSALS,
        ),
        *_presets(
            name="random_label",
            target="letgo.objectives.random_label:random_label",
            summary="random tokens taught in place of the answers",
            source="Yao et al. (arXiv 2402.15159), random labels",
            note="a row's random labels stay the same over a run",
            aliases=("random_labels",),
            ce=(),
        ),
        ObjectiveRecord(
            name="rmu",
            target="letgo.objectives.rmu:rmu",
            summary="hidden states of the forget set steered to a random direction, the retain set's held",
            source="RMU (arXiv 2403.03218), section 4",
            faithfulness="faithful",
            retain="embedding",
            retain_weight=1200.0,
            hidden="layer",
            trainable="letgo.objectives.rmu:trainable_pattern",
        ),
        ObjectiveRecord(
            name="rmu_lat",
            target="letgo.objectives.rmu_lat:rmu_lat",
            summary="rmu while an adversary shifts the forget set's hidden states to bring its words back",
            source="latent adversarial training (arXiv 2407.15549), on RMU (arXiv 2403.03218)",
            faithfulness="variant",
            note="the adversary attacks every step anew, on the forget set alone; one control vector for the whole run",
            retain="embedding",
            retain_weight=1200.0,
            hidden="layer",
            trainable="letgo.objectives.rmu:trainable_pattern",
            adversary="letgo.objectives.rmu_lat:adversary",
        ),
        ObjectiveRecord(
            name="mcu",
            target="letgo.objectives.mcu:mcu",
            summary="rmu on the hidden states without the mean and the leading components of the forget set",
            source="MCU (arXiv 2605.11685), its RMU",
            faithfulness="variant",
            note="P is a projection, which it is not in the public code; of that code's run only this loss: with RMU's "
            "retain term and optimizer, without its own collapse of gradients (CIR)",
            reference={"forget": ("layer_hidden",)},
            retain="embedding",
            retain_weight=1200.0,
            hidden="layer",
            trainable="letgo.objectives.rmu:trainable_pattern",
            components="letgo.objectives.mcu:shared_components",
        ),
        ObjectiveRecord(
            name="pdu",
            target="letgo.objectives.pdu:logit_margin",
            summary=f"the highest logit drawn down to the mean of all; {_RETAINED['ce']}, its weight a dual variable",
            source="PDU (arXiv 2506.05314)",
            faithfulness="variant",
            note="λ moves once a step of the optimizer, not once a micro-batch; the warm-up is a share of the run",
            hidden="label",
            retain="ce",
            retain_weight=100.0,
            schedule="dual",
        ),
        *_presets(
            name="undial",
            target="letgo.objectives.distillation:undial",
            summary="self-distillation with the labels' logits taken down",
            source="UNDIAL (arXiv 2402.10052)",
            reference={"forget": ("hidden",)},
            ce=(),
        ),
        *_presets(
            name="wga",
            target="letgo.objectives.reweighted:wga",
            summary="gradient ascent weighted by the labels' probability",
            source="WGA (arXiv 2502.19301)",
            note=_ITS_GRADIENT,
            ce=(),
            kl=(),
        ),
        *_presets(
            name="satimp",
            target="letgo.objectives.reweighted:satimp",
            summary="gradient ascent weighted by saturation and importance",
            source="SatImp (arXiv 2505.11953), section 5",
            note=_ITS_GRADIENT,
            ce=(),
            kl=(),
        ),
        *_presets(
            name="ce_u",
            target="letgo.objectives.distillation:ce_u",
            summary="cross-entropy to the model's own distribution without the label",
            source="CE-U (arXiv 2503.01224)",
            note=f"{_ITS_GRADIENT}: without the entropy of that distribution; the mean is over all label tokens, those "
            "that are left out too",
            aliases=("ceu",),
            ce=("ceu_gdr",),
        ),
        ObjectiveRecord(
            name="undo",
            target="letgo.objectives.undo:undo",
            summary="an unlearned model distilled into a copy of it whose weights were damaged",
            source="UNDO (arXiv 2506.06278)",
            faithfulness="variant",
            note=f"KL {_LABELS_ALONE}; the noise has a seed",
            parts=(),
            retain="kl",
            start="letgo.objectives.undo:damage",
        ),
        ObjectiveRecord(
            name="ft",
            target="letgo.objectives.likelihood:no_term",
            summary="fine-tuning on the retain set alone",
            source="FT, as in SOUL (arXiv 2404.18239)",
            faithfulness="faithful",
            aliases=("fine_tuning",),
            parts=(),
            retain="ce",
        ),
        ObjectiveRecord(
            name="ft_l1",
            target="letgo.objectives.fine_tuning:l1_sparsity",
            summary="fine-tuning on the retain set with an L1 penalty on the weights",
            source="l1-sparse machine unlearning (arXiv 2304.04934)",
            faithfulness="variant",
            note="the penalty's weight stays constant; over the trained parameters only",
            aliases=("l1_sparse",),
            parts=(),
            retain="ce",
        ),
    ],
    _OWN_OBJECTIVE,
)

RETAIN_TERMS: Catalog[TermRecord] = Catalog(
    "retain loss",
    [
        TermRecord(
            name="none",
            target="letgo.objectives.likelihood:no_term",
            summary="nothing holds the model where it was",
            source="-",
            faithfulness="ours",
            parts=(),
        ),
        TermRecord(
            name="ce",
            target="letgo.objectives.retain:cross_entropy",
            summary="cross-entropy on the retain set",
            source=_TOFU,
            faithfulness="faithful",
            aliases=("gdr", "gd"),
            parts=("retain",),
            hidden="label",
        ),
        TermRecord(
            name="kl",
            target="letgo.objectives.retain:kl_to_reference",
            summary=_RETAINED["kl"],
            source=f"{_TOFU}: KL minimization; {_MUSE}, KLR",
            faithfulness="variant",
            note=_LABELS_ALONE,
            aliases=("klr",),
            parts=("retain",),
            reference={"retain": ("hidden",)},
            hidden="label",
        ),
        TermRecord(
            name="embedding",
            target="letgo.objectives.retain:embedding_difference",
            summary="distance of hidden states from the reference's",
            source="RMU (arXiv 2403.03218), section 4",
            faithfulness="faithful",
            aliases=("embed_diff", "embedding_difference"),
            parts=("retain",),
            reference={"retain": ("layer_hidden",)},
            hidden="layer",
        ),
    ],
    Own("letgo.retain_terms", TermRecord, _described),
)

ONE_SHOT: Catalog[OneShotRecord] = Catalog(
    "one-shot method",
    [
        OneShotRecord(
            name="task_vector",
            target="letgo.objectives.one_shot.task_vector:task_vector",
            summary="the change that fine-tuning on the forget set makes, subtracted",
            source=f"Task arithmetic (arXiv 2212.04089); {_MUSE}",
            faithfulness="faithful",
            aliases=("tv",),
        ),
        OneShotRecord(
            name="whp",
            target="letgo.objectives.one_shot.whos_harry_potter:whos_harry_potter",
            summary="who's Harry Potter: taught what a model made fonder of the forget set would not say",
            source="Who's Harry Potter? (arXiv 2310.02238), section 2.1",
            faithfulness="variant",
            note="without the dictionary of anchored terms, which another model has to write",
            aliases=("whos_harry_potter",),
        ),
        OneShotRecord(
            name="influence",
            target="letgo.objectives.one_shot.influence:influence",
            summary="influence unlearning: one Newton step away from the forget set",
            source="SOUL (arXiv 2404.18239), section 4; WoodFisher (arXiv 2004.14340)",
            faithfulness="faithful",
            aliases=("influence_unlearning", "iu", "woodfisher"),
        ),
        OneShotRecord(
            name="repselect",
            target="letgo.objectives.one_shot.repselect:repselect",
            summary="one step up the forget set's loss, the dominant components of its gradient damped",
            source="RepSelect (arXiv 2606.17168), its simple form, with the adaptive step",
            faithfulness="variant",
            note="decompositions are exact, the step is bounded on the retain set; the default rank is assumed to be "
            "an eighth of the smaller side for every width",
            aliases=("rep_select",),
            adapters=False,
        ),
    ],
)
"""Methods that give weights, not a loss: each target is a function of a model and its data."""


def _own_one_shot(method: Any) -> type[Record] | None:
    """Somebody's own one-shot method is a function of (model, data, …)."""
    return OneShotRecord if list(inspect.signature(method).parameters)[:2] == ["model", "data"] else None


METHODS: Catalog[Record] = Catalog(
    "objective", [*OBJECTIVES, *ONE_SHOT], replace(_OWN_OBJECTIVE, record_of=_own_one_shot)
)
"""All that a run's `objective` may name."""


def is_one_shot(name: str) -> bool:
    """Whether a method gives weights, not a loss. One of somebody's own is imported."""
    return isinstance(METHODS.record(name), OneShotRecord)


def create_objective(
    name: str,
    *,
    retain_loss: str | None = None,
    retain_weight: Weight | None = None,
    retain_weight_schedule: str | None = None,
    forget_weight: Weight = 1.0,
    **settings: Any,
) -> Objective:
    """An objective by name.

    Args:
        name: of the forget term, or of a preset that has a retain term too (`npo_gdr`); or the path of a function of
            one's own, (model, forget, *, settings) -> loss ("mypackage.losses.mine").
        retain_loss: the retain term, in place of the preset's; or the path of one's own, (model, retain, …).
        retain_weight: λ; by default the record's (1, except for methods whose source has another).
        retain_weight_schedule: what λ is multiplied by over the run: "constant", "linear:start=0,end=1", "cosine:…",
            "step:at=0.5,…"; or "dual:bound=0.3,…", by which λ follows the retain loss. By default the record's.
        forget_weight: w, the forget term's weight.
        settings: of the forget term or the retain term (`npo`: beta); one that both know goes to both.

    Raises:
        UserError: an unknown name, setting or schedule, or a setting that is missing.
    """
    if name not in OBJECTIVES and is_one_shot(name):
        raise UserError(f"{METHODS.record(name).name!r} changes the weights in one shot: it has no loss to train with")
    record = OBJECTIVES.record(name)
    own = {key: value for key, value in locals().items() if key in settings_of(create_objective, skip=("name",))}
    check_settings(f"objective {record.name!r}", [create_objective], own, skip=("name",))
    term = OBJECTIVES.load(name)
    retain_record = RETAIN_TERMS.record(retain_loss or record.retain)
    retain_term = RETAIN_TERMS.load(retain_record.name)
    foreign = "yours" in (record.faithfulness, retain_record.faithfulness)
    check_settings(f"objective {record.name!r}", [term, retain_term], settings, skip=NOT_SETTINGS, foreign=foreign)
    known, of_retain = (settings_of(t, skip=NOT_SETTINGS) for t in (term, retain_term))
    # The record's weight and schedule are meant for its own retain term, not for any other.
    its_own = retain_record.name == record.retain
    usual = record.retain_weight if its_own else 1.0
    schedule = parse_schedule(retain_weight_schedule or (record.schedule if its_own else "constant"))
    if isinstance(schedule, Dual) and retain_record.name == "none":
        raise UserError(
            f"retain_weight_schedule {retain_weight_schedule!r} follows the retain loss, and objective "
            f"{record.name!r} has no retain term here: name a retain_loss (letgo list retain-losses)"
        )
    from letgo.objectives.objective import Objective, Term

    return Objective(
        record=record,
        forget=Term(record, term, {k: v for k, v in settings.items() if k in known}),
        retain=Term(retain_record, retain_term, {k: v for k, v in settings.items() if k in of_retain}),
        retain_weight=usual if retain_weight is None else float(retain_weight),
        forget_weight=float(forget_weight),
        schedule=schedule,
    )


def __getattr__(name: str) -> Any:
    # Listing what there is must not import torch.
    if name == "Objective":
        from letgo.objectives.objective import Objective

        return Objective
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
