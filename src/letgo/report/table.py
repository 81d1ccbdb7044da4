"""The metric table that page, terminal and card share: which rows, which columns, under which names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from letgo.core.catalog import parse_chain
from letgo.core.errors import UserError
from letgo.metrics import METRICS, record_of
from letgo.metrics.records import MetricRecord
from letgo.report.numbers import kept_text, percent, words
from letgo.runs.results import AttackResult, Metrics, Outcome, Result

SETS = {"forget_": 2, "trained_": 0, "retain_": 1, "model_": 0, "general_": 1}
"""The sets that the main table shows, and how many others stand in where no run has any headline metric of one."""

OUTCOMES: Mapping[Outcome, str] = {
    "survived": "✓ survived",
    "not survived": "✗ not survived",
    "can't tell": "? can't tell",
    "collapsed": "✗ broke the model",
}


@dataclass(frozen=True)
class Column:
    """A metric: `key` as in result.json."""

    key: str

    @property
    def record(self) -> MetricRecord | None:
        return record_of(self.key)

    @property
    def title(self) -> str:
        return words(self.key)

    @property
    def better(self) -> str:
        better = self.record.better.get(self.key.partition("_")[0]) if self.record else None
        return f"{better} is better" if better else ""

    @property
    def meaning(self) -> str:
        return self.record.meaning if self.record else ""

    @property
    def amount(self) -> bool:
        """Of the forget set: whether it falls with what is known of it."""
        return self.record is None or self.record.amount


@dataclass(frozen=True)
class TableRow:
    """A model, measured: `stage` is its name in samples.jsonl."""

    stage: str
    label: str
    kind: Literal["before", "after", "reference", "attack", "baseline"]
    metrics: Metrics
    detail: str = ""
    attack: AttackResult | None = None

    @property
    def kept(self) -> str | None:
        return None if self.attack is None else kept_text(self.attack.kept)

    @property
    def worst_seed(self) -> str | None:
        """What the worst seed kept, where there were several: its bound decides on survival, while `kept` is of all."""
        kepts = [] if self.attack is None else [seed["kept"] for seed in self.attack.per_seed if "kept" in seed]
        return percent(min(kepts)) if len(kepts) > 1 else None

    @property
    def outcome(self) -> str | None:
        """With a mark that says it without colour; None of what is no attack."""
        return None if self.attack is None else OUTCOMES[self.attack.outcome]


def columns(results: Iterable[Result]) -> list[Column]:
    """The main table's columns: of each set the headline metrics that some run has (forget accuracy and probability,
    retain accuracy, general perplexity; a benchmark's own). Where no run has one of a set, the first others that there
    are stand in; where there are none at all, the set's first ones are shown as missing."""
    measured = keys(results)
    chosen: list[Column] = []
    for prefix, most in SETS.items():
        if prefix == "retain_" and "model_utility" in measured and "retain_accuracy" not in measured:
            continue  # The retain set is one of the three that model utility is made of.
        names = [record.name for record in METRICS if prefix.rstrip("_") in record.headline]
        usual = [name if name.startswith(prefix) else prefix + name for name in names]
        present = [key for key in measured if key.startswith(prefix)]
        picked = [key for key in usual if key in present] or present[:most] or usual[:most]
        chosen += map(Column, picked)
    return chosen


def is_share(key: str, prefix: str) -> bool:
    """Whether a metric of one set is an amount between 0 and 1 that main tables show (of some set)."""
    record = record_of(key) if key.startswith(prefix) else None
    return record is not None and bool(record.headline) and record.amount and record.ceiling == 1.0


def keys(results: Iterable[Result]) -> list[str]:
    """Every metric that the runs have: forget first, then retain, model, general and the rest."""
    seen = dict.fromkeys(key for result in results for row in rows(result) for key in row.metrics)
    return sorted(seen, key=lambda key: [not key.startswith(prefix) for prefix in SETS])


def rows(result: Result) -> list[TableRow]:
    """Before, after, references, then each attack with, beneath it, the same held-out rows before and after."""
    table = [TableRow("before", "before", "before", result.before)] if result.before else []
    if result.after:
        label = {"eval": "evaluated", "audit": "audited", "unlearn": "after"}[result.kind]
        table.append(TableRow("after", label, "after", result.after))
    for name, metrics in result.references.items():
        detail = "never saw the forget set" if name in ("retrained", "retain") else ""
        table.append(TableRow(f"reference:{name}", f"{name} reference", "reference", metrics, detail))
    for attack in result.attacks:
        settings = attack.label.partition(":")[2].replace(",", ", ")
        table.append(TableRow(f"attack:{attack.label}", attack.name, "attack", attack.metrics, settings, attack))
        for name, metrics in attack.baseline.items():
            table.append(
                TableRow("", f"{name}, {attack.part}", "baseline", metrics, f"what {attack.name} is held against")
            )
    return table


def usual_n(shown: Sequence[TableRow], key: str) -> int | None:
    """The n that most rows of a column have, so that only the others need to carry their own."""
    counts = [row.metrics[key].n for row in shown if key in row.metrics]
    return max(counts, key=lambda n: (counts.count(n), n)) if counts else None


def attack_labels(results: Iterable[Result]) -> list[str]:
    """The labels of the attacks on some runs, each once."""
    return list(dict.fromkeys(attack.label for result in results for attack in result.attacks))


def short_labels(labels: Sequence[str]) -> dict[str, str]:
    """A name for each label: the attack's own, with those settings alone by which attacks of one name differ."""
    by_name: dict[str, list[str]] = defaultdict(list)
    given: dict[str, dict[str, Any]] = {}
    for label in dict.fromkeys(labels):
        try:
            name, given[label] = parse_chain(label)
        except UserError:
            return {label: label for label in labels}  # a value of theirs has the signs that part settings
        by_name[name].append(label)
    short = {}
    for name, members in by_name.items():
        settings = {label: {key: str(value) for key, value in given[label].items()} for label in members}
        keys = dict.fromkeys(key for known in settings.values() for key in known)
        differing = [key for key in keys if len({known.get(key) for known in settings.values()}) > 1]
        for label, known in settings.items():
            short[label] = f"{name} {', '.join(f'{key}={known[key]}' for key in differing if key in known)}".strip()
    if len(set(short.values())) < len(short):
        return {label: label for label in short}
    return short
