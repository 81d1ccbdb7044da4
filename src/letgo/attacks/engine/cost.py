"""About how much an attack asks of a model, beside being measured: for plans, which know no more than two digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from letgo.attacks import ATTACKS
from letgo.attacks.engine.spec import AttackSpec
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
    steps = settings["steps"] or math.ceil((settings["epochs"] or 0) * items / batch) or 20
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
    "suffix": _searched,
}
"""Of the attacks that do more than change the weights once, or ask once."""


def trains(plan: AttackSpec) -> bool:
    """Whether it takes gradients and an optimizer's state of all weights: the most memory that an attack needs."""
    return ATTACKS.record(plan.name).family == "relearning" and not plan.settings.get("lora")


def passes(plan: AttackSpec, items: int) -> float:
    """About how many passes over the forget items one model needs under all seeds and trials of an attack, beside those
    of a whole evaluation (`evaluations`)."""
    once = _PASSES.get(plan.name)
    settings = {**settings_of(ATTACKS.load(plan.name), skip=("victim",)), **plan.settings}
    if once is None:
        return 0.0 if evaluations(plan) else float(repeats(plan))
    return repeats(plan) * once(settings, max(1, items))


def evaluations(plan: AttackSpec) -> int:
    """How many whole evaluations of a model follow: none where the weights stay the same."""
    return 0 if ATTACKS.record(plan.name).means in ("prompts", "scores") else repeats(plan)


def repeats(plan: AttackSpec) -> int:
    """How often it is made: a search tries each setting under one seed."""
    return len(plan.seeds) + plan.search
