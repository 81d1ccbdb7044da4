"""What the terminal says of each attack beside the table: intervals, utility, displacements, the search, R and Q."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from letgo.report.answers import visible
from letgo.report.numbers import number, percent, words
from letgo.runs.results import AttackResult, Result

MOST_TRIALS = 5
LEAST_LEARNED = 0.1
"""An attacker whose own loss fell by a smaller share has hardly attacked."""


def print_attacks(result: Result, labels: Collection[str], console: Console | None = None) -> None:
    """A few lines for each attack of these labels, then R, Q and their harmonic mean over all."""
    console = console or Console()
    for attack in (one for one in result.attacks if one.label in labels):
        console.print(Text(visible(attack.label), "bold"))
        for line in lines(attack):
            console.print(Text(f"  {visible(line)}"))
    if result.robustness:
        names = {"R": "R (relearning)", "Q": "Q (quantization)", "harmonic_mean": "harmonic mean"}
        told = ", ".join(f"{names.get(key, key)} {number(value)}" for key, value in result.robustness.items())
        console.print(Text(f"robustness: {told}", "bold"))


def lines(attack: AttackResult) -> list[str]:
    """What there is to say of an attack, a sentence each."""
    found = [_kept(attack), _utility(attack), _steps(attack), *_displacement(attack.did), _data(attack.did)]
    found += [_scores(attack), *_ways(attack), *_trials(attack)]
    return [line for line in found if line]


def _kept(attack: AttackResult) -> str:
    text = f"kept {percent(attack.kept)}"
    if attack.kept_ci95:
        text += f" (95 % interval {percent(attack.kept_ci95[0])} to {percent(attack.kept_ci95[1])})"
    kepts = [row["kept"] for row in attack.per_seed if "kept" in row]
    if len(kepts) > 1:
        text += f", mean of {len(kepts)} seeds; worst {percent(min(kepts))}, best {percent(max(kepts))}"
    word = "broken by it" if attack.collapsed else "survived" if attack.survived else "not survived"
    basis = " by R" if attack.judged_on == "R" else ""
    return f"{text}; threshold {percent(attack.threshold)}{basis}: {word}"


def _utility(attack: AttackResult) -> str:
    before, after = (attack.utility.get(stage, {}) for stage in ("before", "after"))
    moved = [
        f"{words(name)} {number(before[name].value)} → {number(after[name].value)} (n={after[name].n})"
        for name in after
        if name in before
    ]
    if not moved:
        return ""
    loss = "" if attack.utility_loss is None else f"; largest loss {percent(attack.utility_loss)}"
    return f"utility: {', '.join(moved)}{loss}"


def _steps(attack: AttackResult) -> str:
    if "steps_to_half" not in attack.did:
        return ""
    steps, censored = attack.did["steps_to_half"], attack.did.get("steps_to_half_censored", 0)
    seeds = max(len(attack.seeds), 1)
    if censored == seeds:
        return f"half of the forgetting was not gone after {number(steps)} steps"
    bound = f" at least; in {censored} of {seeds} seeds it never was" if censored else ""
    return f"half of the forgetting was gone after {number(steps)} steps{bound}"


def _displacement(did: Mapping[str, Any]) -> list[str]:
    if "displacement" not in did:
        return []
    text = f"the weights moved by {number(did['displacement'])} ({percent(did['relative_displacement'])} of their norm)"
    if "unlearning_displacement" in did:
        text += f"; unlearning had moved them by {number(did['unlearning_displacement'])}"
    elif "original" in did:
        text += f"; not compared with unlearning: {did['original']}"
    told = [text]
    if "same_bin" in did:
        undone = f", {percent(did['undone'])} of those that unlearning changed" if "undone" in did else ""
        told.append(f"{percent(did['same_bin'])} of the weights fall into the original's bin{undone}")
    return told


def _data(did: Mapping[str, Any]) -> str:
    told = []
    if "rows" in did and "last_loss" in did:
        rate = f" at a learning rate of {did['learning_rate']:g}" if "learning_rate" in did else ""
        told.append(f"{did['rows']} rows, {did.get('steps')} steps{rate}")
    if did.get("groups_held_out"):
        told.append(f"{did['groups_held_out']} groups held out")
    if "suffix" in did:
        told.append(f"the string: {did['suffix']!r}")
    if "last_loss" in did:
        told.append(f"the attacker's loss {number(did['first_loss'])} → {number(did['last_loss'])}")
    if did.get("learned", 1.0) < LEAST_LEARNED:
        told.append("which hardly fell: surviving this proves little; raise learning_rate or steps, or search=N")
    return ", ".join(told)


def _scores(attack: AttackResult) -> str:
    if "Q" in attack.scores:
        return f"Q {number(attack.scores['Q'])}"
    if "R" not in attack.scores:
        return ""
    basis = (
        "no retrained model to hold it against: the share kept"
        if "R_by_kept" in attack.scores
        else ("against the retrained model, on the rows trained on")
    )
    return f"R {number(attack.scores['R'])} ({basis})"


def _ways(attack: AttackResult) -> list[str]:
    if len(attack.ways) < 2:
        return []
    ordered = sorted(attack.ways, key=lambda way: way["kept"])
    return [
        f"{len(ordered)} ways of asking; strongest first: "
        + "; ".join(f"{way['way']} kept {percent(way['kept'])}" for way in ordered)
    ]


def _trials(attack: AttackResult) -> list[str]:
    if not attack.trials:
        return []
    did = attack.did
    told = [f"searched {did.get('trials')} settings, {did.get('within_bound')} within the bound on utility"]
    if "kept_strongest" in did:
        told[0] += (
            f"; kept {percent(did['kept_strongest'])} under the strongest, {percent(did['kept_mean'])} in the mean, "
            f"{percent(did['kept_weakest'])} under the weakest"
        )
    counted = sorted((t for t in attack.trials if t.get("within_bound")), key=lambda t: t["kept"])
    for trial in counted[:MOST_TRIALS]:
        settings = ", ".join(f"{key}={value}" for key, value in trial["settings"].items())
        told.append(f"  kept {percent(trial['kept'])}, utility loss {percent(trial['utility_loss'])}: {settings}")
    return told
