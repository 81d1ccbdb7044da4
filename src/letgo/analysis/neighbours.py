"""Other weights that a model's are held against: its original's, another model's, those that an attack leaves."""

from __future__ import annotations

from letgo.analysis.weights import Vector, Weights, check_same_shape, named_weights
from letgo.attacks import ATTACKS
from letgo.attacks.engine.run import apply_attack
from letgo.attacks.engine.spec import Plan, plan_attack
from letgo.attacks.engine.target import Target, merged
from letgo.core.errors import UserError
from letgo.models.load import load_model
from letgo.runs.results import AttackResult

LEAVES_WEIGHTS = "asks or scores otherwise, and leaves the weights as they are"


def original_of(target: Target) -> str:
    """What the run's model was before it was unlearned."""
    if not target.original:
        raise UserError(f"{target.name} is not a run that names the model it began with")
    return str(target.original)


def other_weights(name: str, model: str, weights: Weights, target: Target, dtype: str) -> Vector:
    """Another model's weights, checked against the target's."""
    theirs = named_weights(merged(load_model(model, dtype=dtype)))
    check_same_shape(weights.originals, theirs, (target.name, name))
    return theirs


def planned(target: Target, text: str) -> tuple[Plan, AttackResult | None]:
    """The attack that a text means: one of the run's own by label or name, with its saved settings and seeds, else a
    new one. An empty text means the attack that left least of the forgetting."""
    recorded = target.result.attacks
    if not text:
        if not recorded:
            raise UserError(f"{target.name} has no recorded attack; name one: attack:NAME:key=value,…")
        matches = [min(recorded, key=lambda attack: attack.kept)]
    else:
        matches = [a for a in recorded if a.label == text] or [a for a in recorded if a.name == text]
    if len(matches) > 1:
        labels = "\n  ".join(attack.label for attack in matches)
        raise UserError(f"{target.name} has several attacks of the name {text!r}; give one in full:\n  {labels}")
    if not matches:
        return plan_attack(text), None
    [attack] = matches
    # A search is not run again: its strongest attacker is.
    settings = {key: value for key, value in attack.settings.items() if key not in ("search", "bound")}
    settings |= attack.did.get("strongest") or {}
    return Plan(attack.name, settings, tuple(attack.seeds) or (0,), attack.threshold), attack


def changes_weights(attack: str) -> bool:
    return ATTACKS.record(attack).means in ("weights", "data")


def attacked_weights(target: Target, weights: Weights, plan: Plan) -> Vector:
    """The weights that an attack leaves, run again with its settings and its first seed.

    Raises:
        UserError: the attack can't be run, or leaves other weights by name, shape or type than the run's.
    """
    if not changes_weights(plan.name):
        raise UserError(f"attack {plan.label} {LEAVES_WEIGHTS}")
    attacked = apply_attack(target.victim(), plan, plan.settings, plan.seeds[0])
    left = named_weights(merged(attacked.model))
    check_same_shape(weights.originals, left, (target.name, f"what {plan.label} left"))
    for name, tensor in left.items():
        if not tensor.is_floating_point():
            raise UserError(f"attack {plan.label} leaves packed weights ({name}: {tensor.dtype})")
    return left
