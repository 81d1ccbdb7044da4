"""How far attacks, and unlearning itself, moved the weights: what a certified radius is held against."""

from __future__ import annotations

import math

from letgo.analysis.neighbours import (
    LEAVES_WEIGHTS,
    attacked_weights,
    changes_weights,
    original_of,
    other_weights,
    planned,
)
from letgo.analysis.records import Displacement
from letgo.analysis.smoothing import Scale
from letgo.analysis.weights import Weights, distance, vector_norm
from letgo.attacks.engine.target import Target
from letgo.core.errors import LetgoError, UserError, first_line
from letgo.runs.results import AttackResult


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
    """‖θ_attacked − θ_u‖ of each recorded attack: as recorded, else of the attack run again.

    A recorded one is of the plain l2 norm, so with a scale every attack is run again.
    """
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
