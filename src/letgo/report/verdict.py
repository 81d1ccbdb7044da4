"""The sentence that a run comes down to: what was forgotten, what it cost, what came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from letgo.core.catalog import parse_spec
from letgo.core.errors import UserError
from letgo.report import audited
from letgo.report.numbers import number, percent, words
from letgo.report.table import Column, columns
from letgo.runs.results import AttackResult, Metric, Outcome, Result, Subjects

HEAVY_RETAIN_LOSS = 0.15
"""A retain metric that lost more than this share of its value is called a high cost."""
HEAVY_PERPLEXITY_RISE = 0.25
"""So is general perplexity that rose by more than this share."""
MOST_ATTACKS_NAMED = 3
MOST_RUNS_NAMED = 5
MOST_SUBJECTS_NAMED = 12
_NEVER = {"retrained": "the retrained model", "control": "facts that nobody knew", "chance": "chance"}

Tone = Literal["good", "warn", "bad"]
Kind = Literal[
    "survived",
    "attacked",
    "untested",
    "partly",
    "not",
    "nothing",
    "unmeasured",
    "learned",
    "collapsed",
    "failed",
    "levels",
]
KINDS: Mapping[Kind, str] = {
    "survived": "forgot and survived every attack made",
    "attacked": "forgot, but did not survive every attack",
    "untested": "forgot, but never attacked",
    "partly": "forgot partly",
    "not": "not forgotten",
    "nothing": "nothing to forget: the model did not know it",
    "unmeasured": "not measured both before and after",
    "learned": "only learned",
    "collapsed": "collapsed: broken, which is not forgetting",
    "failed": "failed",
    "levels": "audited without the model before unlearning: levels alone",
}


@dataclass(frozen=True)
class Verdict:
    """`headline` in one short sentence, then the figures behind it, a sentence each."""

    tone: Tone
    headline: str
    sentences: tuple[str, ...]
    kind: Kind

    @property
    def mark(self) -> str:
        """Says the tone without colour."""
        return {"good": "✓", "warn": "!", "bad": "✗"}[self.tone]

    @property
    def word(self) -> str:
        return {"good": "Good", "warn": "Mixed", "bad": "Bad"}[self.tone]


def verdict(result: Result, *, names: bool = True) -> Verdict:
    """The record's judgement in words; it mentions only what was measured. `names` says whether subjects are named."""
    judged = _verdict(result, names=names)
    about = _sentences([audited.subject(result)]), _sentences([audited.untried(result)])
    return replace(judged, sentences=(*about[0], *judged.sentences, *about[1]))


def _verdict(result: Result, *, names: bool) -> Verdict:
    reasons = _sentences(result.reasons)
    if result.status == "failed":
        return Verdict("bad", "Failed: the run did not finish, so there is nothing to judge.", reasons, "failed")
    measured = _sentences([_forgotten(result), _cost(result)])
    if result.status == "collapsed":
        headline = "Collapsed: the model is broken, which is not forgetting."
        return Verdict("bad", headline, (*reasons, *measured), "collapsed")
    if result.evaluation:
        return Verdict("warn", "An evaluation: the model as it is; nothing was unlearned.", reasons, "unmeasured")
    if result.without_original:
        return _levels(result, names=names)
    if not result.after or not result.before:
        missing = "after" if not result.after else "before"
        headline = f"Not judged: the model was not measured {missing} unlearning."
        return Verdict("warn", headline, (*reasons, *measured), "unmeasured")
    if _learned(str(result.config.get("benchmark") or "")):
        return Verdict("warn", "Fine-tuned: it learned; nothing was to be forgotten.", (*reasons, *measured), "learned")
    judgement = result.judgement
    if judgement is None:
        headline = "Not judged: the benchmark names no metric that forgetting is judged by."
        return Verdict("warn", headline, (*reasons, *measured), "unmeasured")
    why = _sentences([judgement.why])
    if judgement.word == "nothing to forget":
        return Verdict("bad", "Nothing to forget: the model did not know it.", (*why, *measured), "nothing")
    if judgement.word == "not forgotten":
        moot = ["Attacks on it therefore say nothing about robustness."] if result.attacks else []
        return Verdict("bad", "Not forgotten.", (*why, *measured, *moot), "not")
    tone, lasting = _lasting(result.attacks)
    heavy = ""
    if _heavy(result):
        heavy, tone = ", at a high cost to what it should keep", "warn" if tone == "good" else tone
    kind: Kind = "untested"
    if result.attacks:
        kind = "survived" if all(attack.survived for attack in result.attacks) else "attacked"
    if judgement.word == "partly forgotten":
        kind = "partly"
    revealed = _revealed(judgement.subjects, attacked=bool(result.attacks), names=names)
    if tone == "good" and (kind == "partly" or (judgement.subjects and judgement.subjects.worst)):
        tone = "warn"
    sentences = (*reasons, *why, *_sentences([revealed]), *measured, *_attack_sentences(result))
    return Verdict(tone, f"{judgement.word.capitalize()}{heavy}{lasting}", sentences, kind)


def _levels(result: Result, *, names: bool) -> Verdict:
    """Of an audit without the model before unlearning: whom the model reveals, and nothing of what it forgot."""
    judgement = result.judgement
    people = judgement.subjects if judgement else None
    headline = "Nobody can tell what was forgotten: the model before unlearning is not known."
    tone: Tone = "warn"
    if people is not None and people.worst:
        headline, tone = f"{len(people.worst)} of {people.of} subjects are revealed, whatever was forgotten.", "bad"
    why = _sentences([judgement.why] if judgement else [])
    revealed = _sentences([_revealed(people, attacked=bool(result.attacks), names=names)])
    return Verdict(tone, headline, (*why, *revealed, *_attack_sentences(result)), "levels")


def _learned(benchmark: str) -> bool:
    try:
        return bool(benchmark) and "learn" in parse_spec(benchmark)[1]
    except UserError:
        return False  # one given as an object, whose settings no text can hold


def _revealed(people: Subjects | None, *, attacked: bool, names: bool) -> str:
    """How many subjects something is still given away of, and which."""
    if people is None or people.before == 0:
        return ""
    how = "by some wording, under some attack" if attacked else "by some wording"
    text = f"{len(people.worst)} of {people.of} subjects are revealed {how}"
    text += f" (by a one-sided 95 % bound at most {percent(people.bound)} of such subjects)"
    if not people.worst or not names:
        return text
    more = len(people.worst) - MOST_SUBJECTS_NAMED
    return f"{text}: {', '.join(people.worst[:MOST_SUBJECTS_NAMED])}{f' and {more} more' if more > 0 else ''}"


def overall(named: Sequence[tuple[str, Verdict]]) -> Verdict:
    """Of several runs: how many forgot for good, and what became of the others."""
    by_kind = {kind: [name for name, run in named if run.kind == kind] for kind in KINDS}
    sentences = []
    for kind, names in by_kind.items():
        if names:
            more = f" and {len(names) - MOST_RUNS_NAMED} more" if len(names) > MOST_RUNS_NAMED else ""
            sentences.append(f"{len(names)} {KINDS[kind]}: {', '.join(names[:MOST_RUNS_NAMED])}{more}.")
    survived, untested = len(by_kind["survived"]), len(by_kind["untested"])
    if untested and not survived and not by_kind["attacked"]:
        headline = f"{untested} of {len(named)} runs forgot; none was attacked, so whether it lasts is not known."
        return Verdict("warn", headline, _sentences(sentences), "untested")
    tone: Tone = "good" if survived == len(named) else "warn" if survived else "bad"
    headline = f"{survived or 'None'} of {len(named)} runs forgot and survived every attack made."
    return Verdict(tone, headline, _sentences(sentences), "survived" if survived else "attacked")


def _lasting(attacks: Sequence[AttackResult]) -> tuple[Tone, str]:
    if not attacks:
        return "warn", "; whether it lasts is not known, for nothing attacked it yet."
    by_outcome = {outcome: [a for a in attacks if a.outcome == outcome] for outcome in get_args(Outcome)}
    survived, lost, unclear, broken = (
        by_outcome[name] for name in ("survived", "not survived", "can't tell", "collapsed")
    )
    if lost:
        tone: Tone = "bad" if len(lost) == len(attacks) else "warn"
        return tone, f", but the forgetting did not survive {_names(lost)}."
    if broken:
        return "warn", f", but {_names(broken)} broke the model, which proves nothing."
    every = {1: "the attack on it", 2: "both attacks on it"}.get(len(attacks), f"all {len(attacks)} attacks on it")
    if not unclear:
        return "good", f", and the forgetting survived {every}."
    rest = f"; it survived {_names(survived)}" if survived else ""
    return "warn", f", but under {_names(unclear)} the original no longer knows either: nobody can tell{rest}."


def _names(attacks: Sequence[AttackResult]) -> str:
    if len(attacks) > MOST_ATTACKS_NAMED:
        return f"{len(attacks)} of the attacks on it"
    names = [attack.name for attack in attacks]
    return _joined(names if len(set(names)) == len(names) else [attack.label for attack in attacks])


def _changes(result: Result, *prefixes: str) -> list[tuple[Column, Metric, Metric]]:
    """The main table's metrics of some sets, before and after unlearning."""
    before, after = result.before, result.after
    shown = [c for prefix in prefixes for c in columns([result]) if c.key.startswith(prefix)]
    return [(c, before[c.key], after[c.key]) for c in shown if c.key in before and c.key in after]


def _heavy(result: Result) -> bool:
    changes = [(old.value, new.value) for _, old, new in _changes(result, "retain_", "model_")]
    if any(before - after > HEAVY_RETAIN_LOSS * before for before, after in changes):
        return True
    before, after = (metrics.get("general_perplexity") for metrics in (result.before, result.after))
    if before is None or after is None:
        return False
    return after.value > (1 + HEAVY_PERPLEXITY_RISE) * before.value


def _forgotten(result: Result) -> str:
    parts = []
    for column, before, after in _changes(result, "forget_"):
        text = f"{column.title} {_went(before.value, after.value)}"
        # Times lower is plainer than a difference where a value fell to a small part of itself.
        if "probability" in column.key and after.value > 0 and before.value / after.value >= 2:
            ratio = before.value / after.value
            times = f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}" if ratio < 1e6 else number(ratio)
            text += f" ({times} times lower)"
        overlap = before.ci95[0] <= after.ci95[1] and after.ci95[0] <= before.ci95[1]
        if after.value < before.value and overlap:
            text += " (their 95 % intervals overlap)"
        parts.append(text)
    return _joined(parts)


def _cost(result: Result) -> str:
    parts = []
    for column, old, new in _changes(result, "retain_", "model_", "general_"):
        before, after = old.value, new.value
        text = f"{column.title} {_went(before, after)}"
        if "perplexity" in column.key and before > 0 and number(before) != number(after):
            change = after / before - 1
            sign = "+" if change >= 0 else ""
            text += f" ({sign}{percent(change)})" if abs(change) < 10 else f" ({number(change + 1)} times)"
        parts.append(text)
    return _joined(parts)


def _attack_sentences(result: Result) -> list[str]:
    sentences = []
    if result.without_original:
        worst = sorted(result.attacks, key=lambda attack: _level(attack, result), reverse=True)
        return [audited.attack_levels(attack, result) for attack in worst[:MOST_ATTACKS_NAMED]]
    if len(result.attacks) > MOST_ATTACKS_NAMED:
        held = sum(attack.survived for attack in result.attacks)
        sentences.append(f"Of {len(result.attacks)} attacks {held} were survived; the hardest:")
    hardest = sorted(result.attacks, key=lambda attack: attack.order)[:MOST_ATTACKS_NAMED]
    return sentences + [_attack_sentence(attack) for attack in hardest]


def _level(attack: AttackResult, result: Result) -> float:
    return sum(attack.metrics[metric].value for metric in result.headlines if metric in attack.metrics)


def _attack_sentence(attack: AttackResult) -> str:
    """What the attack brings back, each headline between the attacked original and a model that never knew."""
    scales = [
        f"{words(s.metric)} {number(s.unlearned)}, the original attacked likewise {number(s.original)}, "
        f"{_NEVER[s.floor_of]} {number(s.floor)}"
        for s in attack.shares
    ]
    held_out = f" on {attack.part}" if attack.baseline else ""
    figures = f" ({'; '.join(scales)}{held_out})" if scales else ""
    if attack.kept is None:
        return f"Nobody can tell what the attack {attack.label} leaves: the original no longer knows either{figures}."
    if attack.collapsed:
        return f"The attack {attack.label} broke the model{figures}: not counted as survived."
    back = 1.0 - attack.kept
    amount = "nothing" if back <= 0 else "all" if back >= 1 else percent(back)
    of = "" if back <= 0 else " of the forgetting"
    word = "survived" if attack.survived else "not survived"
    bound = "" if attack.bound is None else f", for {percent(attack.bound)} is sure to be kept"
    asked = f" and {percent(attack.threshold)} is asked" if bound else ""
    return f"The attack {attack.label} brings back {amount}{of}{figures}: {word}{bound}{asked}."


def _went(before: float, after: float) -> str:
    old, new = number(before), number(after)
    if old == new:
        return f"stayed at {new}"
    return f"{'fell' if after < before else 'rose'} from {old} to {new}"


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def _sentences(texts: Sequence[str]) -> tuple[str, ...]:
    stripped = [text.strip() for text in texts if text.strip()]
    return tuple(t[0].upper() + t[1:] + ("" if t[-1] in ".!?" else ".") for t in stripped)
