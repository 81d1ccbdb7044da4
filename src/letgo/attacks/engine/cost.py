"""About how much an attack asks of a model, beside being measured: for plans, which know no more than two digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from letgo.attacks import ATTACKS
from letgo.attacks.engine.spec import AttackSpec, changes_weights
from letgo.attacks.jailbreak import INSTRUCTIONS, PARAPHRASES, PREFILLS
from letgo.core.catalog import settings_of

BACKWARD = 2.0
"""What a backward pass takes, in forward passes."""
Passes = Callable[[Mapping[str, Any], int], float]
"""From an attack's settings and the number of forget items (at least one) to passes over all of them."""


def _ways(templates: Mapping[str, tuple[str, ...]]) -> Passes:
    return lambda settings, items: float(max(map(len, templates.values())))


def _trained(settings: Mapping[str, Any], items: int) -> float:
    batch = settings["batch_size"]
    steps = settings["steps"] or math.ceil((settings.get("epochs") or 0) * items / batch) or 20
    return (1.0 + BACKWARD) * steps * batch / items


def _searched(settings: Mapping[str, Any], items: int) -> float:
    asked = min(settings["items"], items)
    return 1.0 + settings["steps"] * (settings["candidates"] + 1.0 + BACKWARD) * asked / items


_PASSES: Mapping[str, Passes] = {
    "paraphrase": _ways(PARAPHRASES),
    "instruct": _ways(INSTRUCTIONS),
    "prefill": _ways(PREFILLS),
    # Each prompt is as much longer as there are pairs before the question.
    "in_context": lambda settings, items: 1.0 + settings["shots"],
    # Each round is answered and then scored, and as much longer as there were rounds before it.
    "multi_turn": lambda settings, items: sum(2.0 * number + 1.0 for number in range(1, settings["rounds"] + 1)),
    "sample": lambda settings, items: float(settings["samples"] or settings["k"]),
    "relearn": _trained,
    # The teacher answers each batch too.
    "distill": lambda settings, items: _trained(settings, items) * (2.0 + BACKWARD) / (1.0 + BACKWARD),
    "perturb_latent": _trained,
    # Its prompt then asks once more.
    "perturb_embedding": lambda settings, items: 1.0 + _trained(settings, items),
    "suffix": _searched,
    # Each prompt goes through the model and, to compare, through another one, or another prompt does.
    "ablate_direction": lambda settings, items: 2.0 * min(settings["prompts"], items) / items,
}
"""Of the attacks that do more than change the weights once, or ask once."""


def trains(plan: AttackSpec) -> bool:
    """Whether it takes gradients and an optimizer's state of all weights: the most memory that an attack needs."""
    return any(
        name == "distill" or (ATTACKS.record(name).family == "relearning" and not settings.get("lora"))
        for name, settings in plan.links
    )


def passes(plan: AttackSpec, items: int) -> float:
    """About how many passes over the forget items one model needs under all seeds and trials of an attack, beside those
    of a whole evaluation (`evaluations`)."""
    once = sum(_passes(name, settings, max(1, items)) for name, settings in plan.links)
    return repeats(plan) * once


def _passes(name: str, given: Mapping[str, Any], items: int) -> float:
    if name not in _PASSES:
        return 0.0 if changes_weights(name) else 1.0
    return _PASSES[name]({**settings_of(ATTACKS.load(name), skip=("victim",)), **given}, items)


def evaluations(plan: AttackSpec) -> int:
    """How many whole evaluations of a model follow: none where the weights stay the same."""
    return repeats(plan) if plan.changes_weights else 0


def repeats(plan: AttackSpec) -> int:
    """How often it is made: a search tries each setting under one seed."""
    return len(plan.seeds) + plan.search
