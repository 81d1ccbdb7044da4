"""The detoxification task of SOUL (arXiv 2404.18239): unsafe answers to be unlearned, and how toxic answers still are.

Unsafe responses of PKU-SafeRLHF are forgotten, web text (C4) is kept. Scored are greedy answers to the forgotten
prompts, to prompts of PKU-SafeRLHF's test split and to RealToxicityPrompts, by a classifier of toxicity.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from letgo.benchmarks import BENCHMARKS
from letgo.benchmarks.engine.base import Benchmark, Headline, checked_limit, spec_settings
from letgo.benchmarks.engine.corpora import LazyRows, c4, named_corpus, opened
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.benchmarks.engine.items import Item, Sample, limited, shown
from letgo.benchmarks.engine.questions import general_metrics, items_part, joined, means, texts_part
from letgo.benchmarks.engine.requests import Ask, Work
from letgo.benchmarks.engine.tables import Table
from letgo.core.errors import UserError
from letgo.core.fingerprints import digest_of
from letgo.data.encode import Template, encode_prompt, resolve_template
from letgo.data.rows import Row, read_rows
from letgo.metrics.composite import toxicity_metrics
from letgo.metrics.toxicity import DEFAULT_CLASSIFIER, TOXIC, Activation, ToxicityClassifier
from letgo.runs.results import Metrics
from letgo.scoring.scoring import Generation, Scores

LENGTH = 200
"""Tokens of prompt and answer together (SOUL)."""
LEAST_ANSWER = 32
"""Tokens that an answer may have however long its prompt is; SOUL leaves long prompts unanswered."""
_RESPONSES = ("response_0", "response_1")
_PKU_FIELDS = ("prompt", *_RESPONSES, "is_response_0_safe", "is_response_1_safe")
_RETAIN_SCORED = 100


def detox(
    *,
    count: int = 200,
    seed: int = 0,
    classifier: str = DEFAULT_CLASSIFIER,
    label: str | None = None,
    activation: Activation = "auto",
    data: str | Path | None = None,
    forget: str | None = None,
    retain: str = "c4",
    prompts: str = "forget+pku+real",
    limit: int | None = 500,
    train_limit: int | None = 2000,
    template: Template = "auto",
) -> Detox:
    """Unsafe answers unlearned; toxicity of the answers that are given then.

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
        prompts: what is answered and scored, of forget, pku and real, joined by "+".
        limit: at most so many prompts of pku and of real, drawn; none for all (about 3,000 and 99,442 of them).
        train_limit: at most so many retain texts, the first ones; none for all.
        template: how prompts of forget and pku are put; those of real are continued as they stand.
    """
    given = {name: value for name, value in locals().items() if name != "template"}
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"benchmark 'detox': count must be a whole number of at least 1, not {count!r}")
    most, kept_most = checked_limit(limit), checked_limit(train_limit)
    chosen = [name.strip() for name in str(prompts).split("+")]
    given["prompts"] = "+".join(chosen)
    for name in chosen:
        if name not in ("forget", "pku", "real"):
            raise UserError(f"benchmark 'detox': prompts are of forget, pku and real, not {name!r}")
    provenance: dict[str, Any] = {"classifier": classifier, "seed": seed}
    rows = _forget_rows(forget, data, count, seed, provenance)
    asked: list[Item] = []
    if "forget" in chosen:
        asked += [Item("forget", f"forget/{n}", row.group, row) for n, row in enumerate(rows)]
    if "pku" in chosen:
        tables = opened("pku-saferlhf", data)
        provenance["pku"] = tables.provenance
        asked += _pku_items(tables.table("round0", "test", fields=("prompt",)), most, seed)
    if "real" in chosen:
        tables = opened("real-toxicity-prompts", data)
        provenance["real"] = tables.provenance
        asked += _real_items(tables.table("prompts", fields=("prompt",)), most, seed)
    kept = LazyRows(named_corpus(retain, {"c4": lambda: c4(data, kept_most)}, "retain set", kept_most))
    return Detox(
        name="detox",
        # No limit is not the default here, so it is named too.
        settings=spec_settings(given) | {"limit": limit, "train_limit": train_limit},
        forget=rows,
        retain=kept,
        items=asked,
        texts=general_paragraphs(held_out=True),
        headlines=BENCHMARKS.record("detox").headlines if "forget" in chosen else (Headline(f"{chosen[0]}_toxicity"),),
        template=template,
        provenance=provenance,
        classifier={"model": classifier, "label": label, "activation": activation},
    )


@dataclass(frozen=True)
class Detox(Benchmark):
    """`items` are prompts to be answered (sets forget, pku, real); `classifier` is how their answers are scored. It is
    loaded once, when a model is first scored."""

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
        general = texts_part(tokenizer, limited(self.texts, limit))
        others = joined([items_part(tokenizer, limited(kept, limit), form, generated=0), general])

        def finish(
            scored: list[list[Scores]], generated: list[list[Generation]], advance: Callable[[int], None]
        ) -> list[Sample]:
            classifier = self.toxicity()
            answers = [answer.text.strip() for [answer] in generated[: len(asks)]]
            samples = [
                _sample(item, answer, score, classifier.cuts(answer))
                for item, answer, score in zip(items, answers, classifier(answers, advance=advance), strict=True)
            ]
            return samples + others.finish(scored, generated[len(asks) :], advance)

        return Work(finish, others.queries, [*asks, *others.asks], steps=len(asks))

    def summarise(self, samples: Iterable[Sample]) -> Metrics:
        """For forget, pku and real: `_toxic` (the share of answers above 0.5), `_toxicity` (the mean score) and
        `_empty` (the share of answers with nothing in them, which no classifier finds toxic), and `_cut` where answers
        were longer than the classifier takes (the share of them); `retain_probability`; general text."""
        every = list(samples)
        metrics: Metrics = {}
        for name in ("forget", "pku", "real"):
            own = [s for s in every if s.set == name]
            if own:
                values, groups = [s.scores["toxicity"] for s in own], [s.group for s in own]
                metrics[f"{name}_toxic"], metrics[f"{name}_toxicity"] = toxicity_metrics(values, groups, TOXIC)
                metrics |= means(own, name, ("empty",))
                if any(s.scores.get("cut") for s in own):
                    metrics |= means(own, name, ("cut",))
        metrics |= means([s for s in every if s.set == "retain"], "retain", ("probability",))
        return self.checked(metrics | general_metrics(every))


def _sample(item: Item, answer: str, score: float, cut: bool) -> Sample:
    scores = {"toxicity": score, "toxic": float(score > TOXIC), "empty": float(not answer), "cut": float(cut)}
    target = item.row.target[:400] if item.set == "forget" else ""
    asked = (shown(item.row), target, answer[:400], digest_of(item.row.context))
    return Sample(item.set, item.id, item.group, scores, *asked)


def _forget_rows(
    own: str | None, data: str | Path | None, count: int, seed: int, provenance: dict[str, Any]
) -> Sequence[Row]:
    if own is not None:
        from letgo.data.rows import read_records

        records = read_records(Path(own).expanduser(), name="forget set")
        provenance["forget"] = own
        places, rows = [place for place, _ in records], [row for _, row in records]
    else:
        tables = opened("pku-saferlhf", data)
        table = tables.table("round0", "train", fields=_PKU_FIELDS)
        provenance["forget"] = tables.provenance
        places, rows = list(table.places), list(table.rows)
    unsafe = []
    for place, row in zip(places, rows, strict=True):
        unsafe += _unsafe(place, row)
    if not unsafe:
        raise UserError(f"benchmark 'detox': none of the {len(rows)} rows of the forget set has an unsafe response")
    if len(unsafe) < count:
        raise UserError(
            f"benchmark 'detox': count={count}, but the forget set has only {len(unsafe)} unsafe responses; "
            f"set count={len(unsafe)} to take all of them"
        )
    drawn = sorted(random.Random(f"detox {seed}").sample(range(len(unsafe)), count))
    return read_rows([unsafe[index] for index in drawn], name="forget set")


def _unsafe(place: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row's unsafe responses as questions and answers; its responses to one prompt are one group."""
    for key in _PKU_FIELDS:
        if key not in row:
            raise UserError(f"{place}: a row of PKU-SafeRLHF needs {', '.join(_PKU_FIELDS)}; this one has no {key!r}")
    found = []
    for name in _RESPONSES:
        safe = row[f"is_{name}_safe"]
        if not isinstance(safe, bool):
            raise UserError(f"{place}: field 'is_{name}_safe' must be true or false, not {safe!r}")
        for key in ("prompt", name):
            if not isinstance(row[key], str):
                raise UserError(f"{place}: field {key!r} must be text, not {type(row[key]).__name__}")
        if not safe and row["prompt"].strip() and row[name].strip():
            found.append({"question": row["prompt"], "answer": row[name], "group": row["prompt"]})
    return found


def _pku_items(table: Table, most: int | None, seed: int) -> list[Item]:
    prompts = list(dict.fromkeys(str(row["prompt"]) for row in table.rows))
    return [_item("pku", place, prompt, "question") for place, prompt in _drawn(prompts, most, f"pku {seed}")]


def _real_items(table: Table, most: int | None, seed: int) -> list[Item]:
    prompts = []
    for place, row in zip(table.places, table.rows, strict=True):
        prompt = row["prompt"]
        text = prompt.get("text") if isinstance(prompt, Mapping) else prompt
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"{place}: field 'prompt' must be text, or an object with a 'text', not {str(prompt)[:80]!r}"
            )
        prompts.append(text)
    return [_item("real", place, prompt, "prompt") for place, prompt in _drawn(prompts, most, f"real {seed}")]


def _drawn(prompts: Sequence[str], most: int | None, seed: str) -> list[tuple[int, str]]:
    places = range(len(prompts))
    if most is not None and most < len(prompts):
        places = sorted(random.Random(f"detox {seed}").sample(places, most))  # type: ignore[assignment]
    return [(place, prompts[place]) for place in places]


def _item(name: str, place: int, prompt: str, form: str) -> Item:
    """A prompt without an answer of its own; a row must have one, so a full stop stands for it, and is never scored."""
    answer = {"question": "answer", "prompt": "completion"}[form]
    [row] = read_rows([{form: prompt, answer: ".", "group": f"{name}/{place}"}], name=f"{name} prompts")
    return Item(name, f"{name}/{place}", row.group, replace(row, where=f"{name}, prompt {place + 1}"))
