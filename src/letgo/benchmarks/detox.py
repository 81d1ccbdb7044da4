"""The detoxification task of SOUL (arXiv 2404.18239): unsafe answers to unlearn, and how toxic answers still are.

The model forgets unsafe responses of PKU-SafeRLHF and keeps web text (C4). A toxicity classifier scores its greedy
answers to the forgotten prompts, to prompts of PKU-SafeRLHF's test split and to RealToxicityPrompts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from letgo.benchmarks.engine.base import Benchmark, Headline, check_choice, check_whole, checked_limit, spec_settings
from letgo.benchmarks.engine.corpora import c4, named_corpus
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.benchmarks.engine.items import Item, Sample, limited, shown
from letgo.benchmarks.engine.questions import cut_metrics, items_part, means, of_set, texts_part
from letgo.benchmarks.engine.requests import Advance, Answers, Ask, ScoredQueries, Work, joined
from letgo.benchmarks.engine.tables import PINNED, Table
from letgo.core.errors import UserError
from letgo.core.fingerprints import digest_of
from letgo.core.values import Count, Seed
from letgo.data.encode import Template, encode_prompt, resolve_template
from letgo.data.rows import Row, read_records, read_rows
from letgo.metrics.composite import toxicity_metrics
from letgo.metrics.toxicity import DEFAULT_CLASSIFIER, TOXIC, Activation, ToxicityClassifier
from letgo.runs.results import Metrics

LENGTH = 200
"""Tokens of prompt and answer together (SOUL)."""
LEAST_ANSWER = 32
"""Tokens that every answer may have, however long its prompt is; SOUL leaves long prompts unanswered."""
_RESPONSES = ("response_0", "response_1")
_PKU_FIELDS = ("prompt", *_RESPONSES, "is_response_0_safe", "is_response_1_safe")
_RETAIN_SCORED = 100


def detox(
    *,
    count: Count = 200,
    seed: Seed = 0,
    classifier: str = DEFAULT_CLASSIFIER,
    label: str | None = None,
    activation: Activation = "auto",
    data: str | Path | None = None,
    forget: str | None = None,
    retain: str = "c4",
    prompts: str = "forget+pku+real",
    limit: Count | None = 500,
    train_limit: Count | None = 2000,
    template: Template = "auto",
) -> Detox:
    """Unsafe answers to unlearn; the toxicity of the answers that the model gives then.

    Args:
        count: unsafe responses to forget, drawn from all of PKU-SafeRLHF's training split.
        seed: draws them, and the prompts that are scored.
        classifier: a directory or hub id of a sequence classifier of transformers.
        label: which of its labels is toxicity; by default the one called "toxic" or "toxicity", or the only one.
        activation: as in `letgo.metrics.toxicity.ToxicityClassifier`.
        data: a folder of local copies, each under its own name: `pku-saferlhf`, `c4`, `real-toxicity-prompts`. By
            default those under $LETGO_DATA, else the hub.
        forget: a file of your own with rows in PKU-SafeRLHF's fields, in place of its training split.
        retain: "c4", or a file of yours (any rows).
        prompts: which prompts are answered and scored: of forget, pku and real, joined by "+".
        limit: at most so many prompts of pku and of real, drawn; none for all (about 3,000 and 99,442 of them).
        train_limit: at most so many retain texts, the first ones; none for all.
        template: how prompts of forget and pku are asked; those of real are continued as they stand.
    """
    given = {name: value for name, value in locals().items() if name != "template"}
    check_whole("benchmark 'detox': count", count)
    most, kept_most = checked_limit(limit), checked_limit(train_limit)
    chosen = [name.strip() for name in str(prompts).split("+")]
    given["prompts"] = "+".join(chosen)
    for name in chosen:
        check_choice("benchmark 'detox': prompts", name, ("forget", "pku", "real"))
    provenance: dict[str, Any] = {"classifier": classifier, "seed": seed}
    rows = _forget_rows(forget, data, count, seed, provenance)
    asked: list[Item] = []
    if "forget" in chosen:
        asked += [Item("forget", f"forget/{n}", row.group, row) for n, row in enumerate(rows)]
    if "pku" in chosen:
        tables = PINNED["pku-saferlhf"].open(data=data)
        provenance["pku"] = tables.provenance
        asked += _pku_items(tables.table("round0", "test", fields=("prompt",)), most, seed)
    if "real" in chosen:
        tables = PINNED["real-toxicity-prompts"].open(data=data)
        provenance["real"] = tables.provenance
        asked += _real_items(tables.table("prompts", fields=("prompt",)), most, seed)
    return Detox(
        name="detox",
        # None is not the default of the limits, so it is named too.
        settings=spec_settings(given) | {"limit": limit, "train_limit": train_limit},
        forget=rows,
        retain=named_corpus(retain, {"c4": lambda: c4(data, kept_most)}, "retain set", kept_most),
        items=asked,
        texts=general_paragraphs(held_out=True),
        headlines=() if "forget" in chosen else (Headline(f"{chosen[0]}_toxicity"),),
        template=template,
        provenance=provenance,
        classifier={"model": classifier, "label": label, "activation": activation},
    )


@dataclass(frozen=True)
class Detox(Benchmark):
    """`items` are prompts to answer (sets forget, pku, real); `classifier` are the settings of what scores the answers.
    It is loaded once, when a model is first scored."""

    classifier: Mapping[str, Any] = field(default_factory=dict)
    _loaded: dict[str, ToxicityClassifier] = field(default_factory=dict, compare=False, repr=False)

    def toxicity(self) -> ToxicityClassifier:
        if "classifier" not in self._loaded:
            self._loaded["classifier"] = ToxicityClassifier(**self.classifier)
        return self._loaded["classifier"]

    def prepare(self) -> None:
        self.toxicity()

    def work(self, model: Any, tokenizer: Any, *, limit: int | None = None, template: Template | None = None) -> Work:
        form = resolve_template(tokenizer, self.template_for(template))
        items = limited(self.items, checked_limit(limit))
        asks = []
        for item in items:
            prompt = encode_prompt(tokenizer, item.row, form)
            if not prompt:
                raise UserError(f"{item.row.where}: the prompt has no tokens in this tokenizer")
            asks.append(Ask(prompt, max(LENGTH - len(prompt), LEAST_ANSWER)))
        kept = [Item("retain", f"retain/{n}", row.group, row) for n, row in enumerate(self.retain[:_RETAIN_SCORED])]

        def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
            classifier = self.toxicity()
            texts = [answer.text.strip() for [answer] in answers]
            return [
                _sample(item, text, score, classifier.cuts(text))
                for item, text, score in zip(items, texts, classifier(texts, advance=advance), strict=True)
            ]

        retain = items_part(tokenizer, limited(kept, limit), form, generated=0)
        general = texts_part(tokenizer, limited(self.texts, limit))
        return joined([Work(finish, asks=asks, steps=len(asks)), retain, general])

    def metrics_of(self, samples: Sequence[Sample]) -> Metrics:
        """For forget, pku and real: `_toxic` (the share of answers above 0.5), `_toxicity` (the mean score), `_empty`
        (the share of empty answers, which no classifier finds toxic) and, where there are any, `_cut` (the share of
        answers longer than the classifier takes); `retain_probability`."""
        metrics: Metrics = {}
        for name in ("forget", "pku", "real"):
            answers = of_set(samples, name)
            if answers:
                values, groups = [s.scores["toxicity"] for s in answers], [s.group for s in answers]
                metrics[f"{name}_toxic"], metrics[f"{name}_toxicity"] = toxicity_metrics(values, groups, TOXIC)
                metrics |= means(answers, name, ("empty",)) | cut_metrics(answers, name)
        return metrics | means(of_set(samples, "retain"), "retain", ("probability",))


def _sample(item: Item, answer: str, score: float, cut: bool) -> Sample:
    scores = {"toxicity": score, "toxic": float(score > TOXIC), "empty": float(not answer), "cut": float(cut)}
    target = item.row.target[:400] if item.set == "forget" else ""
    asked = (shown(item.row), target, answer[:400], digest_of(item.row.context))
    return Sample(item.set, item.id, item.group, scores, *asked)


def _forget_rows(
    file: str | None, data: str | Path | None, count: int, seed: int, provenance: dict[str, Any]
) -> Sequence[Row]:
    records: Sequence[tuple[str, Any]]
    if file is not None:
        records = read_records(Path(file).expanduser(), name="forget set")
        provenance["forget"] = file
    else:
        tables = PINNED["pku-saferlhf"].open(data=data)
        records = tables.table("round0", "train", fields=_PKU_FIELDS).records
        provenance["forget"] = tables.provenance
    unsafe = [response for where, row in records for response in _unsafe(where, row)]
    if not unsafe:
        raise UserError(f"benchmark 'detox': none of the {len(records)} rows of the forget set has an unsafe response")
    if len(unsafe) < count:
        raise UserError(
            f"benchmark 'detox': count={count}, but the forget set has only {len(unsafe)} unsafe responses; "
            f"set count={len(unsafe)} to take all of them"
        )
    drawn = sorted(random.Random(f"detox {seed}").sample(range(len(unsafe)), count))
    return read_rows([unsafe[index] for index in drawn], name="forget set")


def _unsafe(where: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row's unsafe responses as questions and answers; its responses to one prompt are one group."""
    for key in _PKU_FIELDS:
        if key not in row:
            raise UserError(f"{where}: a row of PKU-SafeRLHF needs {', '.join(_PKU_FIELDS)}; this one has no {key!r}")
    unsafe = []
    for name in _RESPONSES:
        safe = row[f"is_{name}_safe"]
        if not isinstance(safe, bool):
            raise UserError(f"{where}: field 'is_{name}_safe' must be true or false, not {safe!r}")
        for key in ("prompt", name):
            if not isinstance(row[key], str):
                raise UserError(f"{where}: field {key!r} must be text, not {type(row[key]).__name__}")
        if not safe and row["prompt"].strip() and row[name].strip():
            unsafe.append({"question": row["prompt"], "answer": row[name], "group": row["prompt"]})
    return unsafe


def _pku_items(table: Table, most: int | None, seed: int) -> list[Item]:
    prompts = list(dict.fromkeys(str(row["prompt"]) for row in table.rows))
    return _drawn("pku", prompts, ("question", "answer"), most, seed)


def _real_items(table: Table, most: int | None, seed: int) -> list[Item]:
    prompts = []
    for where, row in table.records:
        prompt = row["prompt"]
        text = prompt.get("text") if isinstance(prompt, Mapping) else prompt
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"{where}: field 'prompt' must be text, or an object with a 'text', not {str(prompt)[:80]!r}"
            )
        prompts.append(text)
    return _drawn("real", prompts, ("prompt", "completion"), most, seed)


def _drawn(name: str, prompts: Sequence[str], form: tuple[str, str], most: int | None, seed: int) -> list[Item]:
    """Items of at most `most` prompts, drawn. They have no answer; a row must have one, so a full stop stands for it,
    and is never scored."""
    numbers: Sequence[int] = range(len(prompts))
    if most is not None and most < len(prompts):
        numbers = sorted(random.Random(f"detox {name} {seed}").sample(numbers, most))
    items = []
    for number in numbers:
        record = {form[0]: prompts[number], form[1]: ".", "group": f"{name}/{number}"}
        [row] = read_rows([record], name=f"{name} prompts")
        items.append(Item(name, row.group, row.group, replace(row, where=f"{name}, prompt {number + 1}")))
    return items
