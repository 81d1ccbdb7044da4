"""What a benchmark is: forget and retain rows to train on, and items and texts to score a model on.

Scoring makes samples (one a question or a text), and every metric is a pure function of samples, so that a metric can
be taken again over a part of them (the groups that an attacker never saw) without running a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from letgo.data.encode import Template, encode_prompt, encode_target, resolve_template, start_tokens, target_text
from letgo.data.rows import Row
from letgo.errors import EmptyScoreError, UserError
from letgo.metrics.memorization import probability, rouge_l_recall, truth_ratio
from letgo.metrics.metric import Metrics
from letgo.metrics.privacy import min_k
from letgo.metrics.scoring import Query, continuation_logps, greedy
from letgo.metrics.summary import auc_metric, mean_metric, perplexity_metric
from letgo.metrics.utility import choice_accuracy, degeneration
from letgo.progress import Quiet, Reporter

SetName = Literal["forget", "retain", "holdout", "general"]
MIN_K = 0.4
"""MUSE takes PrivLeak at Min-40 %."""
_MAX_ANSWER_TOKENS = 24
_GENERAL_PROMPT_WORDS = 12
_GENERAL_NEW_TOKENS = 40
_GENERAL_GENERATED = 12
"""General texts that are also continued, to see whether the model still writes text."""


@dataclass(frozen=True)
class Item:
    """A question with its answer, and what else is to be scored of it.

    `wrong` answers make a choice; `paraphrase` with `wrong_paraphrases` (or `wrong`) a truth ratio. `group` names what
    stands or falls together.
    """

    set: SetName
    id: str
    group: str
    row: Row
    wrong: tuple[str, ...] = ()
    paraphrase: str | None = None
    wrong_paraphrases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """A text to be scored as a whole: general prose for perplexity; forget and holdout texts for membership."""

    set: SetName
    id: str
    group: str
    text: str


@dataclass(frozen=True)
class Sample:
    """What one item or text scored under one model; a line of `samples.jsonl`."""

    set: str
    id: str
    group: str
    scores: Mapping[str, float]
    question: str = ""
    answer: str = ""
    generated: str = ""

    def as_row(self, stage: str, seed: int) -> dict[str, Any]:
        row: dict[str, Any] = {"stage": stage, "seed": seed, "set": self.set, "id": self.id, "group": self.group}
        row.update({k: v for k in ("question", "answer", "generated") if (v := getattr(self, k))})
        return row | {"scores": dict(self.scores)}

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Sample:
        return Sample(
            set=row["set"],
            id=row["id"],
            group=row["group"],
            scores=row["scores"],
            question=row.get("question", ""),
            answer=row.get("answer", ""),
            generated=row.get("generated", ""),
        )


@dataclass(frozen=True)
class Headline:
    """A metric that says whether something was forgotten; forgetting lowers it, `floor` is what ignorance scores."""

    metric: str
    floor: float = 0.0


@dataclass(frozen=True)
class Benchmark:
    """Data and scores under one name.

    Attributes:
        name: as in the catalog; `settings` are those that made it.
        forget, retain: rows to unlearn and to keep, for training.
        items, texts: what a model is scored on.
        headlines: the metrics by which forgetting, and what an attack leaves of it, are judged.
        template: how questions become prompts.
        generated: of each set, how many items are also answered by generation (spread over the set); None for all.
        references: other models' directories to be scored beside (the retrained model), by name.
    """

    name: str
    forget: Sequence[Row]
    retain: Sequence[Row]
    items: Sequence[Item]
    texts: Sequence[Text]
    headlines: tuple[Headline, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    template: Template = "auto"
    generated: int | None = None
    references: Mapping[str, str] = field(default_factory=dict)

    def groups(self) -> list[str]:
        """The groups of the forget rows, in order: what an attack may hold out."""
        return list(dict.fromkeys(row.group for row in self.forget))

    def template_for(self, asked: Template | None) -> Template:
        """The template that a run asks for; the benchmark's own where it leaves the choice."""
        return self.template if asked in (None, "auto") else asked

    def samples(
        self,
        model: Any,
        tokenizer: Any,
        *,
        limit: int | None = None,
        template: Template | None = None,
        reporter: Reporter | None = None,
        name: str = "scoring",
    ) -> list[Sample]:
        """Score a model: a sample for every item and text, at most `limit` of each set where one is given."""
        if limit is not None and limit < 1:
            raise UserError(f"limit must be at least 1, not {limit}")
        items = _limited(self.items, limit)
        texts = _limited(self.texts, limit)
        if not items and not texts:
            raise EmptyScoreError(f"benchmark {self.name!r} has nothing to score")
        form = resolve_template(tokenizer, self.template_for(template))
        general = [text for text in texts if text.set == "general"][:_GENERAL_GENERATED]
        questions = [index for index, item in enumerate(items) if item.row.form != ("text",)]
        asked = _spread(questions, items, self.generated)
        with (reporter or Quiet()).task(name, len(items) + len(asked) + len(texts) + len(general)) as task:
            samples = _score_items(model, tokenizer, items, asked, form, task.advance)
            samples += _score_texts(model, tokenizer, texts, general, task.advance)
        return samples

    def summarise(self, samples: Iterable[Sample]) -> Metrics:
        """The metrics of samples: a mean for every score of the forget and retain sets, general perplexity and
        degeneration, and the membership AUC where forget and holdout texts were scored."""
        by_set: dict[str, list[Sample]] = {}
        for sample in samples:
            by_set.setdefault(sample.set, []).append(sample)
        metrics: Metrics = {}
        for name in ("forget", "retain"):
            for score in ("accuracy", "probability", "rouge", "truth_ratio"):
                chosen = [s for s in by_set.get(name, []) if score in s.scores]
                if chosen:
                    metrics[f"{name}_{score}"] = mean_metric(
                        [s.scores[score] for s in chosen], [s.group for s in chosen]
                    )
        metrics.update(_general(by_set.get("general", [])))
        members, others = ([s.scores["min_k"] for s in by_set.get(n, []) if "min_k" in s.scores] for n in _MEMBERSHIP)
        if members and others:
            metrics["forget_membership_auc"] = auc_metric(members, others)
        if not metrics:
            raise EmptyScoreError(f"benchmark {self.name!r}: no sample had a score")
        return metrics


_MEMBERSHIP = ("forget", "holdout")


def _general(samples: Sequence[Sample]) -> Metrics:
    metrics: Metrics = {}
    texts = [s for s in samples if "total_logp" in s.scores]
    if texts:
        totals, tokens = [s.scores["total_logp"] for s in texts], [int(s.scores["tokens"]) for s in texts]
        metrics["general_perplexity"] = perplexity_metric(totals, tokens, [s.group for s in texts])
    written = [s for s in samples if "degenerate" in s.scores]
    if written:
        metrics["general_degenerate"] = mean_metric(
            [s.scores["degenerate"] for s in written], [s.group for s in written]
        )
    return metrics


def _score_items(
    model: Any, tokenizer: Any, items: Sequence[Item], asked: Sequence[int], form: Any, advance: Callable[[int], None]
) -> list[Sample]:
    if not items:
        return []
    prompts = [encode_prompt(tokenizer, item.row, form) for item in items]
    queries, places = [], []
    for item, prompt in zip(items, prompts, strict=True):
        # An answer that stands in for its own paraphrase is scored once.
        answers = list(dict.fromkeys(_answers(item)))
        continuations = [encode_target(tokenizer, target_text(item.row, form, answer)) for answer in answers]
        if not prompt:
            # A tokenizer without a start token gives a `text` row no prefix: its own first token serves.
            prompt, continuations = continuations[0][:1], [continuations[0][1:]]
            if not continuations[0]:
                raise UserError(f"{item.row.where}: a text of one token can't be scored")
        queries.append(Query(prompt, continuations))
        places.append({answer: place for place, answer in enumerate(answers)})
    scored = continuation_logps(model, queries, advance=advance)
    longest = max((len(queries[i].continuations[0]) for i in asked), default=0)
    room = min(max(2 * longest, 8), max(_MAX_ANSWER_TOKENS, longest))
    texts = greedy(model, tokenizer, [prompts[i] for i in asked], max_new_tokens=room, advance=advance)
    generated = dict(zip(asked, texts, strict=True))
    samples = []
    for index, (item, found) in enumerate(zip(items, scored, strict=True)):
        right, *others = [found[places[index][answer]] for answer in _answers(item)]
        wrong, reworded = others[: len(item.wrong)], others[len(item.wrong) :]
        answer = _first_line(generated.get(index, ""))
        scores = {"probability": probability(right)}
        if index in generated:
            scores["rouge"] = rouge_l_recall(item.row.target, answer)
        if wrong:
            scores["accuracy"] = choice_accuracy(right, wrong)
        if reworded:
            scores["truth_ratio"] = truth_ratio(reworded[0], reworded[1:])
        samples.append(
            Sample(item.set, item.id, item.group, scores, _shown(item.row), item.row.target[:400], answer[:400])
        )
    return samples


def _answers(item: Item) -> list[str]:
    """The right answer, the wrong ones, then the reworded right one and the wrong ones that go with it."""
    answers = [item.row.target, *item.wrong]
    if item.paraphrase is not None:
        answers += [item.paraphrase, *(item.wrong_paraphrases or item.wrong)]
    return answers


def _spread(indices: Sequence[int], items: Sequence[Item], most: int | None) -> list[int]:
    """At most `most` of each set's indices, evenly spread over the set."""
    chosen = []
    for name in dict.fromkeys(items[index].set for index in indices):
        own = [index for index in indices if items[index].set == name]
        step = 1.0 if most is None else max(1.0, len(own) / most)
        chosen += [own[int(place * step)] for place in range(int(len(own) / step + 1e-9))]
    return chosen


def _score_texts(
    model: Any, tokenizer: Any, texts: Sequence[Text], general: Sequence[Text], advance: Callable[[int], None]
) -> list[Sample]:
    if not texts:
        return []
    queries = []
    for text in texts:
        ids = encode_target(tokenizer, text.text)
        ids = start_tokens(tokenizer) + ids
        if len(ids) < 2:
            raise UserError(f"text {text.id!r} of benchmark has fewer than two tokens")
        queries.append(Query(ids[:1], [ids[1:]]))
    scored = [logps[0] for logps in continuation_logps(model, queries, advance=advance)]
    prompts = [" ".join(text.text.split()[:_GENERAL_PROMPT_WORDS]) for text in general]
    continued = greedy(
        model,
        tokenizer,
        [start_tokens(tokenizer) + encode_target(tokenizer, prompt) for prompt in prompts],
        max_new_tokens=_GENERAL_NEW_TOKENS,
        advance=advance,
    )
    written = {text.id: (prompt, out) for text, prompt, out in zip(general, prompts, continued, strict=True)}
    samples = []
    for text, logps in zip(texts, scored, strict=True):
        scores = {"total_logp": float(logps.double().sum()), "tokens": float(len(logps))}
        if text.set in _MEMBERSHIP:
            scores["min_k"] = min_k(logps, MIN_K)
        prompt, out = written.get(text.id, ("", ""))
        if prompt:
            scores["degenerate"] = degeneration(out)
        samples.append(Sample(text.set, text.id, text.group, scores, question=prompt, generated=out[:400]))
    return samples


def _limited(things: Sequence[Any], limit: int | None) -> list[Any]:
    counts: dict[str, int] = {}
    chosen = []
    for thing in things:
        counts[thing.set] = counts.get(thing.set, 0) + 1
        if limit is None or counts[thing.set] <= limit:
            chosen.append(thing)
    return chosen


def _first_line(text: str) -> str:
    """A generated answer ends where the model begins a new question of its own."""
    return text.strip().split("\n")[0].strip()


def _shown(row: Row) -> str:
    if isinstance(row.context, str):
        return row.context[-400:]
    return row.context[-1][1][-400:] if row.context else ""
