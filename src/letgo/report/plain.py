"""The brief's answers in words for people who decide: settings are called by letters, attacks by what an attacker
does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import get_args

from letgo.core.catalog import parse_spec
from letgo.core.errors import UserError
from letgo.core.sizes import size
from letgo.core.statistics import LEAST_SEEDS
from letgo.report import audited
from letgo.report.comparison import MARGIN, Kept, Line, compare
from letgo.report.numbers import duration, number, percent
from letgo.report.table import Column
from letgo.report.verdict import verdict
from letgo.report.wording import attackers_way, wordings
from letgo.runs.results import Outcome, Result, Subjects, Word

UNMATCHED = 0.05
"""A setting whose forget metric is lower than all others by this much forgot more than they did."""
MOST_NAMED = 4
GONE: Mapping[Word, str] = {
    "collapsed": "No, the model broke, which is not forgetting",
    "not forgotten": "No",
    "can't tell": "Nobody can tell, for the model before unlearning is not known",
    "nothing to forget": "It was never there, the model did not know it before",
    "partly forgotten": "Only in part",
    "forgotten": "Yes, as far as these questions show",
}
"""The answer to whether it is gone, the worst word first."""
UNKNOWN: Mapping[Outcome, str] = {
    "can't tell": "Nobody can tell what {way} left: the model before unlearning {why}.",
    "collapsed": "{way} broke the model, which proves nothing.",
}
WHERE = {"retain": "On what it should still know", "model": "On what it is good for", "general": "On general text"}


@dataclass(frozen=True)
class BriefEntry:
    """One line of the brief's table."""

    letter: str
    line: Line
    grade: str
    runs: str
    metrics: Mapping[str, tuple[float | None, float]]
    """The columns' metrics with their means before (None where that is not known) and after."""
    seconds: float
    memory: int | None
    kept: Mapping[str, Kept]
    words: str
    """The runs' verdicts, each with its number of runs."""
    subjects: Subjects | None
    """Of the run that reveals most; None where that was not measured."""
    state: str
    """What is wrong with it: "" where nothing is."""

    @property
    def results(self) -> list[Result]:
        return [run.result for run in self.line.runs]

    @property
    def name(self) -> str:
        """What sentences call it."""
        audit = self.results[0].audit is not None
        return f"the model {audited.name_of_model(self.results[0])}" if audit else f"setting {self.letter}"

    @property
    def weakest(self) -> Kept | None:
        """Under the attack that left least."""
        return min(self.kept.values(), key=lambda kept: kept.value, default=None)

    @property
    def forgotten(self) -> dict[str, float]:
        """The forget metrics after unlearning."""
        return {key: after for key, (_, after) in self.metrics.items() if key.startswith("forget_")}


def chosen(entries: Sequence[BriefEntry], labels: Sequence[str]) -> list[BriefEntry]:
    """The settings that forgot cleanly and of which is known what each attack left, the most robust first."""
    able = [entry for entry in entries if not entry.state and entry.kept.keys() >= set(labels)]
    return sorted(able, key=lambda entry: -entry.weakest.value if entry.weakest else 0.0)


def what(results: Sequence[Result]) -> list[str]:
    """What was to be forgotten, and whose data that is; nobody is named."""
    data = sorted({_data(result) for result in results})
    measured = [result.before or result.after for result in results]
    counts = [metric.n for metrics in measured for key, metric in metrics.items() if key.startswith("forget_")]
    asked = f", asked in {max(counts)} questions{wordings(results)}" if counts else ""
    audits = sum(result.audit is not None for result in results)
    models = {PurePath(str(result.config.get("model") or "a model")).name for result in results}
    model = f"the model {models.pop()}" if len(models) == 1 else "models"
    runs = f"{len(results)} run{'s were' if len(results) > 1 else ' was'} to make {model} forget"
    if audits == len(results):
        runs = f"{audits} audit{'s' if audits > 1 else ''} looked for"
    sentences = [f"{runs} {', '.join(data)}{asked}."]
    if people := _most([result.judgement.subjects for result in results if result.judgement]):
        known = "" if people.before is None else f" The model gave away something of {people.before} of them before."
        sentences.append(
            f"These are the data of {people.of} subjects, whom the report names and this page does not.{known}"
        )
    return sentences


def gone(entry: BriefEntry, able: int) -> list[str]:
    """Whether it is gone: the word of the worst run, and how many subjects are still revealed."""
    words = [result.judgement.word for result in entry.results if result.judgement]
    if not words:
        return ["Nobody can tell: the benchmark names no metric that forgetting is judged by."]
    worst = next(word for word in GONE if word in words)
    best = f", the most robust of {able} that can be compared" if able > 1 else ""
    sentences = [f"{GONE[worst]}: so ended {words.count(worst)} of {len(words)} runs of {entry.name}{best}."]
    if people := entry.subjects:
        count = "none" if not people.worst else str(len(people.worst))
        sentences.append(
            f"Of {people.of} subjects {count} can still be brought out of the model, as it is or by some attack (its "
            f"worst run); by a one-sided 95 % bound at most {percent(people.bound)} of such subjects can."
        )
    return sentences


def under(entry: BriefEntry, signs: Mapping[str, str]) -> list[str]:
    """What each attack left, the hardest first."""
    if not signs or not entry.line.attacks:
        return ["Nobody has attacked it yet, so nothing can be said about what lasts."]
    sentences = []
    why = "is not known" if entry.results[0].without_original else "no longer knows it then either"
    for label in sorted(signs, key=lambda label: entry.kept[label].value if label in entry.kept else 2.0):
        way, attacks = f"{attackers_way(label)} ({signs[label]})", entry.line.attacks_of(label)
        outcomes = [attack.outcome for attack in attacks]
        if kept := entry.kept.get(label):
            left = f"{_capital(way)} left {percent(kept.value)} of the forgetting{interval(kept)}"
            sentences.append(f"{left}; {kept.survived} of {kept.of} runs count as having survived it.")
        for outcome in (outcome for outcome in get_args(Outcome) if outcome in UNKNOWN and outcome in outcomes):
            text = UNKNOWN[outcome].format(way=way, why=why)
            where = "" if len(outcomes) == 1 else f" (in {outcomes.count(outcome)} of {len(outcomes)} runs)"
            sentences.append(f"{_capital(text[:-1])}{where}.")
    return sentences


def cost(entry: BriefEntry) -> list[str]:
    """What it took, and what it cost of what the model should keep."""
    memory = f" and up to {size(entry.memory)} of memory" if entry.memory else ""
    sentences = [f"{_capital(entry.name)} took {duration(entry.seconds)}{memory}."] if entry.seconds or memory else []
    for key, (before, after) in entry.metrics.items():
        prefix = key.partition("_")[0]
        if prefix not in WHERE or before is None:
            continue
        column = Column(key)
        went = f"({column.title} {number(before)} before, {number(after)} now)"
        change = (after - before) / before if before else 0.0
        if not column.better or number(before) == number(after):
            sentences.append(
                f"{WHERE[prefix]} it is as before {went}." if column.better else f"{WHERE[prefix]}: {went}."
            )
            continue
        worse = (change < 0) == column.better.startswith("higher")
        sentences.append(f"{WHERE[prefix]} it is {percent(abs(change))} {'worse' if worse else 'better'} {went}.")
    return sentences


def more_robust(able: Sequence[BriefEntry], entries: Sequence[BriefEntry]) -> list[str]:
    """What the most robust setting costs more than the fastest one, in time and utility; and what can't be told."""
    best, *others = able
    if best.weakest is None:
        return ["Without attacks nobody knows which setting is more robust."]
    hardest = min(best.kept, key=lambda label: best.kept[label].value)
    fastest = min(able, key=lambda entry: entry.seconds)
    sentences = []
    if not others:
        sentences.append(
            f"No other setting that forgot cleanly met every attack, so there is none to compare with {best.name}."
        )
    elif fastest is best:
        sentences.append(
            f"None that was tried and can be compared: {best.name} kept most, and none of them was faster."
        )
    elif fastest.weakest:
        more = round(100 * (best.weakest.value - fastest.weakest.value))
        sentences.append(
            f"{_capital(best.name)} kept {more} points more under its hardest attack than the fastest, {fastest.name}, "
            f"and took {duration(best.seconds)} instead of {duration(fastest.seconds)}.{_utility(best, fastest)}"
        )
    sentences += _as_good(best, others, hardest) if others else []
    missed = [e for e in entries if e.state and e.weakest and e.weakest.value > best.weakest.value]
    if missed:
        sentences.append(f"{_capital(_names(missed))} kept more, but can't be compared (see under the table).")
    return sentences


def to_do(able: Sequence[BriefEntry], labels: Sequence[str]) -> list[str]:
    """What to do, with all that speaks against relying on it."""
    if not labels:
        return ["No run was attacked, so nothing can be said about what lasts: attack them first (letgo attack)."]
    if not able:
        return ["No setting forgot cleanly and met every attack: none of them can be recommended."]
    best, *others = able
    survived = sum(kept.survived for kept in best.kept.values())
    of = sum(kept.of for kept in best.kept.values())
    partly = any(result.judgement and result.judgement.word != "forgotten" for result in best.results)
    sentences = [f"Take {best.name}{' if one must be taken' if partly or survived < of else ''}."]
    if partly:
        sentences.append("It forgot only partly: the best of these settings is not good enough to rely on.")
    if survived < of:
        sentences.append(f"It survived {survived} of {of} attacks: what it forgot may not stay hidden.")
    if others:
        sentences.append(
            f"It is the best of {len(able)} settings by these same figures, and what is chosen so looks better than it "
            "is: run it once more with new seeds before you rely on its figure. No test holds it against the others."
        )
        sentences += _unmatched(best, others)
    few = min(len(entry.line.runs) for entry in able)
    if few < LEAST_SEEDS:
        sentences.append(
            f"The figures rest on {few} run{'s' if few > 1 else ''} a setting: with fewer than {LEAST_SEEDS} no "
            "difference between settings can be tested."
        )
    return sentences


def audit(entry: BriefEntry, signs: Mapping[str, str]) -> list[str]:
    """What an audit comes to, without names of subjects."""
    return [verdict(entry.results[0], names=False).headline, *gone(entry, 1)[1:], *under(entry, signs)]


def not_tried(result: Result) -> list[str]:
    name = audited.name_of_model(result)
    reasons = [f"{name}, {each.attack}: {each.reason}." for each in audited.not_tried(result)]
    return [*reasons, f"{name}: {audited.limits(result)}"]


def interval(kept: Kept) -> str:
    if kept.interval is None:
        return ""
    low, high = map(percent, kept.interval)
    return f" (95 % interval {low} to {high})"


def most_revealing(results: Sequence[Result]) -> Subjects | None:
    return _most([result.judgement.subjects for result in results if result.judgement])


def _most(people: Sequence[Subjects | None]) -> Subjects | None:
    return max((each for each in people if each is not None), key=lambda each: (each.bound, each.of), default=None)


def _data(result: Result) -> str:
    """What the data are called: a benchmark without its settings, a file without its folder."""
    benchmark, forget = result.config.get("benchmark"), result.config.get("forget")
    if benchmark:
        try:
            name = parse_spec(str(benchmark))[0]
        except UserError:
            name = str(benchmark).partition(":")[0]
        if name != "rows":
            return name
    return PurePath(str(forget or benchmark or "?")).name


def _utility(best: BriefEntry, other: BriefEntry) -> str:
    """How the two differ in what the model should still know."""
    for key in best.metrics:
        column = Column(key)
        if key.startswith(("retain_", "model_")) and key in other.metrics and column.better:
            ours, theirs = best.metrics[key][1], other.metrics[key][1]
            if number(ours) == number(theirs):
                return " What it should still know it knows as well."
            worse = (ours < theirs) == column.better.startswith("higher")
            word = "worse" if worse else "better"
            return (
                f" What it should still know it knows {word} ({column.title} {number(ours)} against {number(theirs)})."
            )
    return ""


def _as_good(best: BriefEntry, others: Sequence[BriefEntry], label: str) -> list[str]:
    """The settings that are alike with the best one under an attack, and those that can't be told apart from it: the
    interval of their difference over paired seeds reaches zero."""
    gaps = {kept.line: kept for kept in compare([entry.line for entry in others], label, best.line)}
    alike = [entry for entry in others if gaps[entry.line].alike]
    open_ = [entry for entry in others if entry not in alike and _open(gaps[entry.line])]
    sentences = []
    if alike:
        sentences.append(
            f"Under that attack {_names(alike, label)} {'is' if len(alike) == 1 else 'are'} as good: the whole 95 % "
            f"interval of the difference over paired seeds lies within {percent(MARGIN)}."
        )
    if open_:
        sentences.append(f"Under that attack it can't be told apart from {_names(open_, label)} over these seeds.")
    if not alike and not open_:
        sentences.append("Under that attack every other setting kept less over the same seeds.")
    return sentences


def _open(kept: Kept) -> bool:
    return kept.difference is None or kept.difference.high >= 0.0


def _names(entries: Sequence[BriefEntry], label: str | None = None) -> str:
    ordered = sorted(entries, key=lambda entry: entry.seconds)
    names = [f"{e.letter} ({percent(e.kept[label].value)})" if label else e.letter for e in ordered]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"setting{'s' if len(names) > 1 else ''} {', '.join(names[:MOST_NAMED])}{more}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _unmatched(best: BriefEntry, others: Sequence[BriefEntry]) -> list[str]:
    """A warning where the best setting also forgot more than all others: then more was to be brought back."""
    for key, after in best.forgotten.items():
        rest = [entry.forgotten[key] for entry in others if key in entry.forgotten]
        if Column(key).better.startswith("lower") and rest and after <= min(rest) - UNMATCHED:
            span = " to ".join(dict.fromkeys((number(min(rest)), number(max(rest)))))
            return [
                f"It also forgot more than every other setting ({Column(key).title} {number(after)}; the others "
                f"{span}): part of what it kept may come of that, not of its method."
            ]
    return []
