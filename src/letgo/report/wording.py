"""In which words a run was asked for what it forgot, as its record has it (`config.scored.on`); and attacks in words
for everybody."""

from __future__ import annotations

from collections.abc import Sequence

from letgo.attacks import ATTACKS
from letgo.core.catalog import links_of, parse_chain
from letgo.core.errors import UserError
from letgo.runs.results import ON_TRAINED_ROWS, TRAINED_ROWS, Result

MEANS = {
    "weights": "changing the numbers that the model consists of",
    "data": "training the model again",
    "prompts": "asking it in ways made to get round its training",
    "scores": "looking at how likely it finds an answer",
}
"""What an attacker does, in words for everybody, by `AttackRecord.means`."""
FAMILIES = {"quantization": "storing the model's numbers more coarsely"}
"""The same by `AttackRecord.family`, where that says more."""
OTHER_MEANS = "other means"


def attackers_way(label: str) -> str:
    """What the attacker of an attack does."""
    try:
        names = [name for name, _ in links_of(*parse_chain(label))]
    except UserError:
        names = [label.partition(":")[0]]
    return ", then ".join(map(_closest, names))


def means_of(name: str) -> str:
    """By which means an attack of a name is made."""
    return MEANS[ATTACKS.record(name).means] if name in ATTACKS else OTHER_MEANS


def _closest(name: str) -> str:
    family = ATTACKS.record(name).family if name in ATTACKS else ""
    return FAMILIES.get(family) or means_of(name)


def wording_caution(result: Result) -> str:
    """A sentence for a result that is scored on the very rows that were trained on; "" for any other."""
    if _scored_on(result) != TRAINED_ROWS:
        return ""
    return f"{ON_TRAINED_ROWS.capitalize()}: whether other words bring the same facts back was not measured."


def wordings(results: Sequence[Result]) -> str:
    """In which words the runs were asked, to stand after "60 questions"; "" where a record does not say."""
    on = {_scored_on(result) for result in results}
    if "" in on:
        return ""
    if TRAINED_ROWS not in on:
        return " that were not trained on"
    return f" that were trained on{' in some runs' if len(on) > 1 else ''}"


def _scored_on(result: Result) -> str:
    return str((result.config.get("scored") or {}).get("on") or "")
