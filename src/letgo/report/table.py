"""The metric table that page, terminal and card share: which rows, which columns, under which names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from letgo.report.numbers import percent
from letgo.runs.results import AttackResult, Metrics, Result

HEADLINE: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("forget_", ("accuracy", "probability", "verbmem", "knowmem", "quality", "privleak"), 2),
    ("retain_", ("accuracy", "knowmem"), 1),
    ("model_", ("utility",), 0),
    ("general_", ("perplexity",), 1),
)
"""Of each set: the metrics that the main table shows where some run has them, and how many others stand in where no
run has any."""
NOT_AMOUNTS = ("forget_quality", "forget_privleak", "forget_truth_ratio", "forget_membership_auc")
"""Metrics of the forget set that do not fall with what is known of it: they say how like a retrained model it is."""

EXPLAINED: dict[str, str] = {
    "accuracy": "share of questions where the right answer is likelier than every wrong one (choice of four)",
    "probability": "mean probability of the right answer's tokens",
    "rouge": "ROUGE-L recall of what the model writes against the right answer",
    "bleu": "BLEU, 0 to 100, of the continuation that the model writes against the true one",
    "toxic": "share of answers that the classifier scores above 0.5",
    "toxicity": "mean score of the answers by the classifier",
    "empty": "share of answers with nothing in them, which no classifier finds toxic",
    "cut": "share of texts that were too long for what scores them, and lost a part",
    "truth_ratio": "how likely wrong answers are against the right one, reworded",
    "extraction_strength": "share of the answer that the model foresees without a slip, to its end",
    "exact_memorization": "share of the answer's tokens that the model foresees",
    "quality": "p-value that truth ratios are as the retain model's; above 0.05 the two can't be told apart",
    "utility": "harmonic mean of probability, ROUGE and truth ratio on retain set, real authors and world facts",
    "verbmem": "ROUGE-L F1 × 100 of a continuation of the text against the text itself",
    "knowmem": "ROUGE-L F1 × 100 of the answer to a question about the texts",
    "privleak": "per cent by which the membership AUC is off the retrained model's; 0 is best, negative: remembered",
    "membership_auc": "how well forget texts can be told from unseen ones: 0.5 is chance, 1 certain",
    "perplexity": "perplexity on general text that has nothing to do with the forget set",
    "degenerate": "how much of the generated text is empty, repeated or not words",
}
_BETTER: dict[str, Literal["lower", "higher"]] = {
    "forget_accuracy": "lower",
    "forget_probability": "lower",
    "forget_rouge": "lower",
    "forget_bleu": "lower",
    "forget_toxic": "lower",
    "forget_toxicity": "lower",
    "retain_accuracy": "higher",
    "retain_probability": "higher",
    "retain_rouge": "higher",
    "retain_knowmem": "higher",
    "forget_verbmem": "lower",
    "forget_knowmem": "lower",
    "forget_extraction_strength": "lower",
    "forget_exact_memorization": "lower",
    "forget_quality": "higher",
    "model_utility": "higher",
    "general_perplexity": "lower",
    "general_degenerate": "lower",
}


@dataclass(frozen=True)
class Column:
    """A metric: `key` as in result.json."""

    key: str

    @property
    def title(self) -> str:
        return self.key.replace("_", " ")

    @property
    def better(self) -> str:
        return f"{_BETTER[self.key]} is better" if self.key in _BETTER else ""

    @property
    def meaning(self) -> str:
        return EXPLAINED.get(self.key.partition("_")[2], "")


@dataclass(frozen=True)
class Row:
    """A model, measured: `stage` is its name in samples.jsonl."""

    stage: str
    label: str
    kind: Literal["before", "after", "reference", "attack", "baseline"]
    metrics: Metrics
    detail: str = ""
    attack: AttackResult | None = None

    @property
    def kept(self) -> str | None:
        return None if self.attack is None else percent(self.attack.kept)

    @property
    def worst_seed(self) -> str | None:
        """What the worst seed kept, where there were several: it decides on survival, while `kept` is their mean."""
        kepts = [] if self.attack is None else [seed["kept"] for seed in self.attack.per_seed if "kept" in seed]
        return percent(min(kepts)) if len(kepts) > 1 else None

    @property
    def survived(self) -> Literal["yes", "no", "broken"] | None:
        """ "broken" where the attack itself broke the model: that proves neither."""
        if self.attack is None:
            return None
        return "broken" if self.attack.collapsed else "yes" if self.attack.survived else "no"


def columns(results: Iterable[Result]) -> list[Column]:
    """The main table's columns, of those in `HEADLINE` that some run has: forget accuracy and probability, retain
    accuracy, general perplexity; a benchmark's own headline metrics. Where no run has one of a set, the first others
    that there are stand in; where there are none at all, the set's first ones are shown as missing."""
    found = keys(results)
    chosen: list[Column] = []
    for prefix, usual, most in HEADLINE:
        if prefix == "retain_" and "model_utility" in found and "retain_accuracy" not in found:
            continue  # The retain set is one of the three that model utility is made of.
        present = [key for key in found if key.startswith(prefix)]
        picked = [prefix + name for name in usual if prefix + name in present] or present[:most]
        chosen += [Column(key) for key in picked or [prefix + name for name in usual][:most]]
    return chosen


def keys(results: Iterable[Result]) -> list[str]:
    """Every metric that the runs carry, forget first, then retain, general and the rest, else in order of meeting."""
    seen: dict[str, None] = {}
    for result in results:
        for row in rows(result):
            seen.update(dict.fromkeys(row.metrics))
    order = [prefix for prefix, _, _ in HEADLINE]
    return sorted(seen, key=lambda key: next((i for i, p in enumerate(order) if key.startswith(p)), len(order)))


def rows(result: Result) -> list[Row]:
    """Before, after, references, then each attack with, beneath it, the same held-out rows before and after."""
    out = [Row("before", "before", "before", result.before)] if result.before else []
    if result.after:
        out.append(Row("after", "evaluated" if result.evaluation else "after", "after", result.after))
    for name, metrics in result.references.items():
        detail = "never saw the forget set" if name in ("retrained", "retain") else ""
        out.append(Row(f"reference:{name}", f"{name} reference", "reference", metrics, detail))
    for attack in result.attacks:
        settings = attack.label.partition(":")[2].replace(",", ", ")
        out.append(Row(f"attack:{attack.label}", attack.name, "attack", attack.metrics, settings, attack))
        for name, metrics in attack.baseline.items():
            out.append(Row("", f"{name}, {attack.part}", "baseline", metrics, f"what {attack.name} is held against"))
    return out


def usual_n(shown: Sequence[Row], key: str) -> int | None:
    """The n that most rows of a column have, so that only the others need to carry their own."""
    counts = [row.metrics[key].n for row in shown if key in row.metrics]
    return max(counts, key=lambda n: (counts.count(n), n)) if counts else None
