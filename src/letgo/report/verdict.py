"""The sentence that a run comes down to: what was forgotten, what it cost, what came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from letgo.core.catalog import parse_spec
from letgo.metrics.robustness import LEAST_FORGETTING
from letgo.report.numbers import Measured, number, percent
from letgo.report.table import Column, columns
from letgo.runs.results import AttackResult, Metrics, Result

HEAVY_RETAIN_LOSS = 0.15
"""A retain metric that lost more than this share of its value is called a high cost."""
HEAVY_PERPLEXITY_RISE = 0.25
"""So is general perplexity that rose by more than this share."""
MOST_ATTACKS_TOLD = 3
MOST_RUNS_NAMED = 5

Tone = Literal["good", "warn", "bad"]
Kind = Literal["survived", "attacked", "untested", "nothing", "unmeasured", "learned", "collapsed", "failed"]


@dataclass(frozen=True)
class Verdict:
    """`headline` in one short sentence, then the figures that it stands on, a sentence each."""

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

    @property
    def text(self) -> str:
        return " ".join((self.headline, *self.sentences))


def verdict(result: Result) -> Verdict:
    """Computed from the result alone; what was not measured is not spoken of."""
    reasons = _sentences(result.reasons)
    if result.status == "failed":
        return Verdict("bad", "Failed: the run did not finish, so there is nothing to judge.", reasons, "failed")
    measured = tuple(filter(None, (_forgotten(result), _cost(result))))
    if result.status == "collapsed":
        headline = "Collapsed: the model is broken, which is not forgetting."
        return Verdict("bad", headline, (*reasons, *measured), "collapsed")
    if result.evaluation:
        return Verdict("warn", "An evaluation: the model as it is; nothing was unlearned.", reasons, "unmeasured")
    if not result.after or not result.before:
        missing = "after" if not result.after else "before"
        headline = f"Not judged: the model was not measured {missing} unlearning."
        return Verdict("warn", headline, (*reasons, *measured), "unmeasured")
    benchmark = result.config.get("benchmark")
    if benchmark and "learn" in parse_spec(str(benchmark))[1]:
        return Verdict("warn", "Fine-tuned: it learned; nothing was to be forgotten.", (*reasons, *measured), "learned")
    if not _has_forgotten(result):
        told = (*measured, *_attacks_on_nothing(result))
        return Verdict("bad", "Hardly anything was forgotten.", told, "nothing")
    heavy = ", at a high cost to what it should keep" if _heavy(result) else ""
    tone, lasting = _lasting(result.attacks)
    if heavy and tone == "good":
        tone = "warn"
    kind: Kind = "untested"
    if result.attacks:
        kind = "survived" if all(attack.survived for attack in result.attacks) else "attacked"
    return Verdict(tone, f"Forgotten{heavy}{lasting}", (*reasons, *measured, *_attack_sentences(result)), kind)


def overall(named: Sequence[tuple[str, Verdict]]) -> Verdict:
    """Of several runs: how many forgot for good, and what became of the others."""
    told: dict[Kind, str] = {
        "survived": "forgot and survived every attack made",
        "attacked": "forgot, but did not survive every attack",
        "untested": "forgot, but never attacked",
        "nothing": "forgot hardly anything",
        "unmeasured": "not measured both before and after",
        "learned": "only learned",
        "collapsed": "collapsed: broken, which is not forgetting",
        "failed": "failed",
    }
    lasting = [name for name, found in named if found.kind == "survived"]
    sentences = []
    for kind, what in told.items():
        names = [name for name, found in named if found.kind == kind]
        if names:
            more = f" and {len(names) - MOST_RUNS_NAMED} more" if len(names) > MOST_RUNS_NAMED else ""
            sentences.append(f"{len(names)} {what}: {', '.join(names[:MOST_RUNS_NAMED])}{more}.")
    forgot = [name for name, found in named if found.kind in ("survived", "attacked", "untested")]
    if forgot and all(found.kind != "survived" and found.kind != "attacked" for _, found in named):
        headline = f"{len(forgot)} of {len(named)} runs forgot; none was attacked, so whether it lasts is not known."
        return Verdict("warn", headline, _sentences(sentences), "untested")
    tone: Tone = "good" if len(lasting) == len(named) else "warn" if lasting else "bad"
    headline = f"{len(lasting) or 'None'} of {len(named)} runs forgot and survived every attack made."
    return Verdict(tone, headline, _sentences(sentences), "survived" if lasting else "attacked")


def _lasting(attacks: Sequence[AttackResult]) -> tuple[Tone, str]:
    lost = [attack for attack in attacks if not attack.survived]
    if not attacks:
        return "warn", "; whether it lasts is not known, for nothing attacked it yet."
    if not lost:
        every = {1: "the attack on it", 2: "both attacks on it"}.get(len(attacks), f"all {len(attacks)} attacks on it")
        return "good", f", and the forgetting survived {every}."
    if all(attack.collapsed for attack in lost):
        return "warn", f", but {_names(lost)} broke the model, which proves nothing."
    return ("bad" if len(lost) == len(attacks) else "warn"), f", but the forgetting did not survive {_names(lost)}."


def _names(attacks: Sequence[AttackResult]) -> str:
    if len(attacks) > MOST_ATTACKS_TOLD:
        return f"{len(attacks)} of the attacks on it"
    names = [attack.name for attack in attacks]
    labels = names if len(set(names)) == len(names) else [attack.label for attack in attacks]
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _headline_keys(result: Result, prefix: str) -> list[Column]:
    return [
        column
        for column in columns([result])
        if column.key.startswith(prefix) and column.key in result.before and column.key in result.after
    ]


def _has_forgotten(result: Result) -> bool:
    for column in _headline_keys(result, "forget_"):
        if not column.amount:
            continue
        before, after = result.before[column.key].value, result.after[column.key].value
        if before - after > LEAST_FORGETTING * before:
            return True
    return False


def _heavy(result: Result) -> bool:
    for column in [*_headline_keys(result, "retain_"), *_headline_keys(result, "model_")]:
        before, after = result.before[column.key].value, result.after[column.key].value
        if before - after > HEAVY_RETAIN_LOSS * before:
            return True
    perplexity = "general_perplexity"
    if perplexity not in result.before or perplexity not in result.after:
        return False
    return result.after[perplexity].value > (1 + HEAVY_PERPLEXITY_RISE) * result.before[perplexity].value


def _forgotten(result: Result) -> str:
    parts = []
    for column in _headline_keys(result, "forget_"):
        before, after = result.before[column.key], result.after[column.key]
        text = f"{column.title} {_went(before.value, after.value)}"
        # Times lower is plainer than a difference where a value fell to a small part of itself.
        if "probability" in column.key and after.value > 0 and before.value / after.value >= 2:
            text += f" ({_times(before.value / after.value)} times lower)"
        if after.value < before.value and _overlap(before, after):
            text += " (their 95 % intervals overlap)"
        parts.append(text)
    return _sentence(parts)


def _cost(result: Result) -> str:
    parts = []
    kinds = ("retain_", "model_", "general_")
    for column in (column for kind in kinds for column in _headline_keys(result, kind)):
        before, after = result.before[column.key].value, result.after[column.key].value
        text = f"{column.title} {_went(before, after)}"
        if "perplexity" in column.key and before > 0 and number(before) != number(after):
            text += f" ({_change(after / before - 1)})"
        parts.append(text)
    return _sentence(parts)


def _attack_sentences(result: Result) -> list[str]:
    told = sorted(result.attacks, key=lambda attack: attack.kept)[:MOST_ATTACKS_TOLD]
    out = []
    if len(told) < len(result.attacks):
        held = sum(attack.survived for attack in result.attacks)
        out.append(f"Of {len(result.attacks)} attacks {held} were survived; the hardest:")
    return out + [_attack_sentence(result, attack) for attack in told]


def _attack_sentence(result: Result, attack: AttackResult) -> str:
    against: Metrics = attack.baseline.get("after", result.after)
    held_out = f" on {attack.part}" if attack.baseline else ""
    moved = [
        f"{column.title} {number(against[column.key].value)} → {number(attack.metrics[column.key].value)}{held_out}"
        for column in _headline_keys(result, "forget_")
        if column.key in against and column.key in attack.metrics
    ]
    figures = f" ({'; '.join(moved)})" if moved else ""
    if attack.collapsed:
        return f"The attack {attack.label} broke the model{figures}: not counted as survived."
    back = 1.0 - attack.kept
    amount = "nothing" if back <= 0 else "all" if back >= 1 else percent(back)
    of = "" if back <= 0 else " of the forgetting"
    return f"The attack {attack.label} brought back {amount}{of}{figures}: {'' if attack.survived else 'not '}survived."


def _attacks_on_nothing(result: Result) -> list[str]:
    return ["Attacks on it therefore say nothing about robustness."] if result.attacks else []


def _went(before: float, after: float) -> str:
    old, new = number(before), number(after)
    if old == new:
        return f"stayed at {new}"
    return f"{'fell' if after < before else 'rose'} from {old} to {new}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}" if ratio < 1e6 else number(ratio)


def _change(relative: float) -> str:
    return (
        f"{'+' if relative >= 0 else ''}{percent(relative)}" if abs(relative) < 10 else f"{number(relative + 1)} times"
    )


def _overlap(first: Measured, second: Measured) -> bool:
    return first.ci95[0] <= second.ci95[1] and second.ci95[0] <= first.ci95[1]


def _sentence(parts: Sequence[str]) -> str:
    if not parts:
        return ""
    joined = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{joined[0].upper()}{joined[1:]}."


def _sentences(texts: Sequence[str]) -> tuple[str, ...]:
    stripped = [text.strip() for text in texts if text.strip()]
    return tuple(t[0].upper() + t[1:] + ("" if t[-1] in ".!?" else ".") for t in stripped)
