"""Other weights beside a model's, and how far away: its original's, another model's, those that an attack leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from letgo.analysis.records import Displacement
from letgo.analysis.smoothing import Scale
from letgo.analysis.weights import Weights, WeightVector, check_same_shape, distance, named_weights, vector_norm
from letgo.attacks import ATTACKS
from letgo.attacks.engine.spec import AttackSpec, apply_attack, changes_weights, plan_attack
from letgo.attacks.engine.target import Target, merged
from letgo.core.errors import LetgoError, UserError, first_line
from letgo.core.own import check_recorded
from letgo.models.load import load_model
from letgo.runs.results import AttackResult

LEAVES_WEIGHTS = "asks or scores otherwise, and leaves the weights as they are"


def original_of(target: Target) -> str:
    """What the run's model was before it was unlearned."""
    if not target.original:
        raise UserError(f"{target.name} is not a run that names the model it began with")
    return str(target.original)


def other_weights(name: str, model: str, weights: Weights, target: Target, dtype: str) -> WeightVector:
    """Another model's weights, checked against the target's."""
    return named_weights(other_model(name, model, weights.originals, target, dtype))


def other_model(name: str, model: str, weights: WeightVector, target: Target, dtype: str) -> Any:
    """Another model, checked against the target's weights."""
    theirs = merged(load_model(model, dtype=dtype))
    check_same_shape(weights, named_weights(theirs), (target.name, name))
    return theirs


def check_tokenizers(named: Mapping[str, Any]) -> None:
    """Raise a `UserError` unless the tokenizers, by their models' names, have one vocabulary."""
    (first, tokenizer), *others = named.items()
    for name, other in others:
        if other.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"{first} and {name} have different tokenizers: the same numbers mean other tokens, so nothing can be "
                "measured between them"
            )


def planned(target: Target, text: str) -> tuple[AttackSpec, AttackResult | None]:
    """The attack that a text means: one of the run's own by label or name, with its saved settings and seeds, else a
    new one. An empty text means the attack that left least of the forgetting."""
    recorded = target.result.attacks
    if not text:
        if not recorded:
            raise UserError(f"{target.name} has no recorded attack; name one: attack:NAME:key=value,…")
        matches = [min(recorded, key=lambda attack: attack.order)]
    else:
        matches = [a for a in recorded if a.label == text] or [a for a in recorded if a.name == text]
    if len(matches) > 1:
        labels = "\n  ".join(attack.label for attack in matches)
        raise UserError(f"{target.name} has several attacks of the name {text!r}; give one in full:\n  {labels}")
    if not matches:
        return plan_attack(text), None
    [attack] = matches
    if attack.name not in ATTACKS:
        check_recorded("attack", attack.name)
    # A search is not run again: its strongest attacker is.
    settings = {key: value for key, value in attack.settings.items() if key not in ("search", "bound")}
    settings |= attack.did.get("strongest") or {}
    return AttackSpec(attack.name, settings, tuple(attack.seeds) or (0,), attack.threshold), attack


def attacked_weights(target: Target, weights: Weights, plan: AttackSpec) -> WeightVector:
    """The weights that an attack leaves, run again with its settings and its first seed; a `UserError` where it can't
    be run, or leaves other weights by name, shape or type than the run's."""
    if not plan.changes_weights:
        raise UserError(f"attack {plan.label} {LEAVES_WEIGHTS}")
    attacked = apply_attack(target.victim(), plan, plan.settings, plan.seeds[0])
    left = named_weights(merged(attacked.model))
    check_same_shape(weights.originals, left, (target.name, f"what {plan.label} left"))
    for name, tensor in left.items():
        if not tensor.is_floating_point():
            raise UserError(f"attack {plan.label} leaves packed weights ({name}: {tensor.dtype})")
    return left


def scales_of(weights: Weights) -> dict[str, float]:
    """s_l, the root mean square of each tensor's weights; that of all weights where a tensor is zero."""
    overall = weights.norm() / math.sqrt(weights.dimension)
    return {
        name: (vector_norm({name: tensor}) / math.sqrt(max(tensor.numel(), 1))) or overall
        for name, tensor in weights.originals.items()
    }


def unlearning_displacement(target: Target, weights: Weights, scale: Scale | None, dtype: str) -> Displacement | None:
    """‖θ_u − θ_o‖ of a run; None of a model that is no run."""
    if not target.run:
        return None
    value, note = None, "measured"
    try:
        theirs = other_weights("the model it began with", original_of(target), weights, target, dtype)
        value = distance(theirs, weights.originals, scale)
    except UserError as error:
        note = first_line(error)
    return Displacement(name="unlearning", what="unlearning", value=value, note=note)


def displacements_of(target: Target, weights: Weights, scale: Scale | None, *, rerun: bool) -> list[Displacement]:
    """‖θ_attacked − θ_u‖ of each recorded attack: as recorded, else of the attack run again. The record has the plain
    l2 norm, so with a scale every attack is run again."""
    displacements = []
    for attack in target.result.attacks:
        value, note = _displacement(attack, target, weights, scale, rerun=rerun)
        displacements.append(Displacement(name=attack.label, what="attack", value=value, note=note))
    return displacements


def _displacement(
    attack: AttackResult, target: Target, weights: Weights, scale: Scale | None, *, rerun: bool
) -> tuple[float | None, str]:
    """An attack's displacement, and where it is from or why there is none."""
    if not changes_weights(attack.name):
        return None, f"{LEAVES_WEIGHTS}: no radius speaks of it"
    recorded = attack.did.get("displacement")
    if scale is None and isinstance(recorded, int | float) and not isinstance(recorded, bool):
        return float(recorded), "recorded"
    if not rerun:
        return None, "not in the record, and not run again"
    try:
        plan, _ = planned(target, attack.label)
        left = attacked_weights(target, weights, plan)
    except LetgoError as error:
        return None, first_line(error)
    moved = distance(left, weights.originals, scale)
    return moved, f"run again, seed {plan.seeds[0]}" + ("" if moved else "; this attack does not change the weights")
