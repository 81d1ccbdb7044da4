"""Each attack in a few lines for the terminal: intervals, utility, displacements, the search, R and Q."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from letgo.core.terminal import visible
from letgo.report.numbers import kept_text, number, percent, words
from letgo.runs.results import AttackResult, Result, hardest_first

MOST_TRIALS = 5
LEAST_LEARNED = 0.1
"""An attacker whose own loss fell by a smaller share has hardly attacked."""


def print_attacks(result: Result, labels: Collection[str], console: Console | None = None) -> None:
    """A few lines for each attack of these labels, then the literature's R, Q and their harmonic mean over all."""
    console = console or Console()
    for attack in (attack for attack in result.attacks if attack.label in labels):
        console.print(Text(visible(attack.label), "bold"))
        for line in lines(attack):
            console.print(Text(f"  {visible(line)}"))
    if result.robustness:
        names = {"R": "R (relearning)", "Q": "Q (quantization)", "harmonic_mean": "harmonic mean"}
        scores = ", ".join(f"{names.get(key, key)} {number(value)}" for key, value in result.robustness.items())
        console.print(Text(f"scores of the literature, no verdict: {scores}", "dim"))


def lines(attack: AttackResult) -> list[str]:
    """What the record has of an attack, a sentence each."""
    did = attack.did
    sentences = [_kept(attack), _utility(attack), _steps(attack), *_displacement(did), _data(did), _scores(attack)]
    if len(attack.ways) > 1:
        ways = sorted(attack.ways, key=lambda way: hardest_first(way["kept"]))
        kept = "; ".join(f"{way['way']} kept {kept_text(way['kept'])}" for way in ways)
        sentences.append(f"{len(ways)} ways of asking; strongest first: {kept}")
    links = [_link(number, link) for number, link in enumerate(attack.links, start=1)]
    return [sentence for sentence in (*sentences, *links, *_trials(attack)) if sentence]


def _link(number: int, link: Mapping[str, Any]) -> str:
    did = "; ".join(sentence for sentence in (*_displacement(link), _data(link)) if sentence)
    return f"link {number}, {link['attack']}{': ' if did else ''}{did}"


def _kept(attack: AttackResult) -> str:
    text = f"kept {kept_text(attack.kept)}"
    if attack.kept_ci95:
        text += f" (95 % interval {percent(attack.kept_ci95[0])} to {percent(attack.kept_ci95[1])})"
    seeds = [row["kept"] for row in attack.per_seed if "kept" in row]
    if len(seeds) > 1:
        text += f", over {len(seeds)} seeds; worst {percent(min(seeds))}, best {percent(max(seeds))}"
    return f"{text}; {attack.outcome}: {attack.why}"


def _utility(attack: AttackResult) -> str:
    before, after = (attack.utility.get(stage, {}) for stage in ("before", "after"))
    changes = [
        f"{words(name)} {number(before[name].value)} → {number(metric.value)} (n={metric.n})"
        for name, metric in after.items()
        if name in before
    ]
    if not changes:
        return ""
    loss = "" if attack.utility_loss is None else f"; largest loss {percent(attack.utility_loss)}"
    return f"utility: {', '.join(changes)}{loss}"


def _steps(attack: AttackResult) -> str:
    if "steps_to_half" not in attack.did:
        return ""
    steps, never = number(attack.did["steps_to_half"]), attack.did.get("steps_to_half_censored", 0)
    seeds = max(len(attack.seeds), 1)
    if never == seeds:
        return f"half of the forgetting was not gone after {steps} steps"
    bound = f" at least; in {never} of {seeds} seeds it never was" if never else ""
    return f"half of the forgetting was gone after {steps} steps{bound}"


def _displacement(did: Mapping[str, Any]) -> list[str]:
    if "displacement" not in did:
        return []
    text = f"the weights moved by {number(did['displacement'])} ({percent(did['relative_displacement'])} of their norm)"
    if "unlearning_displacement" in did:
        text += f"; unlearning had moved them by {number(did['unlearning_displacement'])}"
    elif "original" in did:
        text += f"; not compared with unlearning: {did['original']}"
    if "same_bin" not in did:
        return [text]
    undone = f", {percent(did['undone'])} of those that unlearning changed" if "undone" in did else ""
    sentences = [text, f"{percent(did['same_bin'])} of the weights fall into the original's bin{undone}"]
    if "carried" in did:
        times = f"a bin is {number(did['bins_per_change'])} times as wide as the average change"
        sentences.append(f"{percent(did['carried'])} of the update is left; {times}")
    return sentences


def _data(did: Mapping[str, Any]) -> str:
    parts = []
    if "rows" in did and "last_loss" in did:
        rate = f" at a learning rate of {did['learning_rate']:g}" if "learning_rate" in did else ""
        parts.append(f"{did['rows']} rows, {did.get('steps')} steps{rate}")
    if did.get("groups_held_out"):
        parts.append(f"{did['groups_held_out']} groups held out")
    if "suffix" in did:
        parts.append(f"the string: {did['suffix']!r}")
    if "last_loss" in did:
        parts.append(f"the attacker's loss {number(did['first_loss'])} → {number(did['last_loss'])}")
    if looks := did.get("looks"):
        shown = ("; ".join(f"{words(name)} {number(value)}" for name, value in look.items()) for look in looks.values())
        parts.append(", ".join(f"{what}: {look}" for what, look in zip(looks, shown, strict=True)))
    if did.get("learned", 1.0) < LEAST_LEARNED:
        parts.append("which hardly fell: surviving this proves little; raise learning_rate or steps, or search=N")
    return ", ".join(parts)


def _scores(attack: AttackResult) -> str:
    scores = attack.scores
    if "Q" in scores:
        return f"Q {number(scores['Q'])}"
    if "R_by_kept" in scores:
        return f"R {number(scores['R'])} (no retrained model to hold it against: the share kept)"
    return f"R {number(scores['R'])} (against the retrained model, on the rows trained on)" if "R" in scores else ""


def _trials(attack: AttackResult) -> list[str]:
    if not attack.trials:
        return []
    did = attack.did
    summary = f"searched {did.get('trials')} settings, {did.get('within_bound')} within the bound on utility"
    if "kept_strongest" in did:
        summary += (
            f"; kept {percent(did['kept_strongest'])} under the strongest, {percent(did['kept_mean'])} in the mean, "
            f"{percent(did['kept_weakest'])} under the weakest"
        )
    sentences = [summary]
    within = sorted((trial for trial in attack.trials if trial.get("within_bound")), key=lambda trial: trial["kept"])
    for trial in within[:MOST_TRIALS]:
        settings = ", ".join(f"{key}={value}" for key, value in trial["settings"].items())
        sentences.append(f"  kept {percent(trial['kept'])}, utility loss {percent(trial['utility_loss'])}: {settings}")
    return sentences
