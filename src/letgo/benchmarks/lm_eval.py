"""Any of lm-eval's tasks, to see what else a model can still do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letgo.benchmarks.engine.base import Benchmark, check_whole, checked_limit, spec_settings
from letgo.benchmarks.engine.corpora import nothing_to_unlearn
from letgo.benchmarks.engine.items import Sample
from letgo.benchmarks.engine.lm_eval_tasks import Answered, documents_of, load_tasks, run_task
from letgo.benchmarks.engine.questions import cut_metrics, means
from letgo.benchmarks.engine.requests import Advance, Answers, ScoredQueries, Work
from letgo.core.errors import EmptyScoreError
from letgo.core.fingerprints import digest_of
from letgo.core.values import Count, Natural
from letgo.data.encode import Template
from letgo.metrics.summary import perplexity_metric
from letgo.runs.results import Metric, Metrics

ZERO_SHOT = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "rte", "winogrande")
"""The tasks whose mean accuracy is SOUL's utility on detoxification and copyright."""


def lm_eval(
    *,
    tasks: str = "zero_shot",
    folder: str | Path | None = None,
    fewshot: Natural | None = None,
    batch_size: Count = 8,
    limit: Count | None = None,
) -> LMEval:
    """Tasks of lm-eval, by their names there: only to score a model, they hold nothing to unlearn.

    Every number that a task gives each document becomes `retain_TASK_METRIC`, a mean over documents; perplexities are
    over all words. `retain_zero_shot_acc` is the mean of the eight tasks' accuracies where all were run.

    Args:
        tasks: joined by "+"; "zero_shot" stands for SOUL's eight. A group of lm-eval gives its tasks.
        folder: a folder with task files of your own (on local data, say), in place of lm-eval's library.
        fewshot: worked examples before each question; by default what each task says.
        batch_size: rows of a forward pass.
        limit: at most so many documents of each task.
    """
    settings = spec_settings(locals())
    check_whole("benchmark 'lm_eval': batch_size", batch_size)
    if fewshot is not None:
        check_whole("benchmark 'lm_eval': fewshot", fewshot, 0)
    names: dict[str, None] = {}
    for name in (name.strip() for name in str(tasks).split("+")):
        names |= dict.fromkeys(ZERO_SHOT if name == "zero_shot" else (name,))
    loaded = load_tasks(list(names), folder=folder)
    return LMEval(
        name="lm_eval",
        settings=settings,
        forget=nothing_to_unlearn("lm_eval"),
        provenance={
            "lm_eval": {name: str(task.VERSION) for name, task in loaded.items()},
            "filters": {name: _first_filter(task) for name, task in loaded.items()},
            "fewshot": fewshot,
        },
        tasks=loaded,
        fewshot=fewshot,
        batch_size=batch_size,
        most=checked_limit(limit),
    )


@dataclass(frozen=True)
class LMEval(Benchmark):
    """`tasks` are lm-eval's own task objects by name, with their data; `most` bounds the documents of each."""

    tasks: Mapping[str, Any] = field(default_factory=dict, compare=False)
    fewshot: int | None = None
    batch_size: int = 8
    most: int | None = None

    def work(self, model: Any, tokenizer: Any, *, limit: int | None = None, template: Template | None = None) -> Work:
        """Prompts are the tasks' own, whatever the template."""
        most = min((n for n in (self.most, checked_limit(limit)) if n is not None), default=None)

        def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
            settings: dict[str, Any] = {"batch_size": self.batch_size, "num_fewshot": self.fewshot}
            samples = []
            for task in self.tasks.values():
                documents = run_task(model, tokenizer, task, limit=most, advance=advance, **settings)
                samples += [_sample(document) for document in documents]
            return samples

        return Work(finish, steps=sum(documents_of(task, most) for task in self.tasks.values()))

    def scored_counts(self) -> dict[str, int]:
        return {name: documents_of(task, self.most) for name, task in self.tasks.items()}

    def metrics_of(self, samples: Sequence[Sample]) -> Metrics:
        by_task: dict[str, list[Sample]] = {}
        for sample in samples:
            by_task.setdefault(sample.set, []).append(sample)
        metrics: Metrics = {}
        for task, documents in by_task.items():
            keys = documents[0].scores
            metrics |= means(documents, f"retain_{task}", [key for key in keys if "/" not in key and key != "cut"])
            for key in (key.removesuffix("/total") for key in keys if key.endswith("/total")):
                totals = [document.scores[f"{key}/total"] for document in documents]
                words = [int(document.scores[f"{key}/weight"]) for document in documents]
                metrics[f"retain_{task}_{key}"] = perplexity_metric(totals, words, [d.group for d in documents])
            metrics |= cut_metrics(documents, f"retain_{task}")
        if all(f"retain_{task}_acc" in metrics for task in ZERO_SHOT):
            metrics["retain_zero_shot_acc"] = _mean([metrics[f"retain_{task}_acc"] for task in ZERO_SHOT])
        return metrics


def _first_filter(task: Any) -> str:
    """The way of reading an answer that the scores are of: lm-eval's name of it, "none" where the task has no other."""
    filters = task.config.filter_list
    return str(filters[0]["name"]) if filters else "none"


def _sample(document: Answered) -> Sample:
    scores = dict(document.scores)
    for metric, (total, weight) in document.weights.items():
        # A perplexity is a mean over words, not over documents. Bits per byte is the same figure in another form.
        if metric.endswith("perplexity"):
            scores |= {f"{metric}/total": total, f"{metric}/weight": weight}
    if not scores:
        raise EmptyScoreError(
            f"lm-eval: task {document.task!r} gives its documents no score of their own, only one over all of them; "
            "letgo can't give that an interval"
        )
    name, scores = f"{document.task}/{document.index}", scores | {"cut": float(document.cut)}
    prompt = document.prompt
    return Sample(document.task, name, name, scores, question=prompt[-400:], digest=digest_of(prompt))


def _mean(metrics: list[Metric]) -> Metric:
    """The mean of independent means: the squares of their intervals' halves add up, on each side by itself."""
    value = sum(metric.value for metric in metrics) / len(metrics)
    down, up = (sum((m.ci95[end] - m.value) ** 2 for m in metrics) ** 0.5 / len(metrics) for end in (0, 1))
    return Metric(value=value, n=sum(metric.n for metric in metrics), ci95=(value - down, value + up))
