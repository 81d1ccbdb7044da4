"""Choice among four letters, scored by lm-eval or by letgo's own engine to the same picks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from letgo.benchmarks.engine.base import Benchmark, checked_limit
from letgo.benchmarks.engine.choices import LETTERS, Choice, encode_choice
from letgo.benchmarks.engine.items import Sample, limited
from letgo.benchmarks.engine.lm_eval_tasks import Answered, load_tasks, run_task
from letgo.benchmarks.engine.questions import Part, general_metrics, joined, means, texts_part
from letgo.benchmarks.engine.requests import Work
from letgo.core.errors import EmptyScoreError, LetgoError, UserError
from letgo.core.extras import need
from letgo.core.fingerprints import digest_of
from letgo.data.encode import Template
from letgo.models.load import context_length
from letgo.runs.results import Metrics
from letgo.scoring.scoring import Generation, Query, Scores

Engine = Literal["letgo", "lm_eval"]
ENGINES = ("letgo", "lm_eval")


@dataclass(frozen=True)
class Question:
    """A choice of a set ("forget": hazardous topics; "retain": MMLU). `task` is lm-eval's name of what it is part of,
    `group` what stands or falls together."""

    set: str
    id: str
    group: str
    task: str
    choice: Choice


@dataclass(frozen=True)
class FourWay(Benchmark):
    """Questions of four choices, next to what every benchmark has.

    Attributes:
        questions: in the order they are scored.
        engine: "letgo" scores log p(" A") … log p(" D") after the exact prompt, the first of the likeliest being
            picked; "lm_eval" has lm-eval's own task do it on the same rows.
        batch_size: lm-eval's rows a forward pass.
    """

    questions: Sequence[Question] = ()
    engine: Engine = "letgo"
    batch_size: int = 8
    _tasks: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UserError(f"benchmark {self.name!r}: engine is {self.engine!r}; known: {', '.join(ENGINES)}")

    def work(self, model: Any, tokenizer: Any, *, limit: int | None = None, template: Template | None = None) -> Work:
        """Prompts are the benchmark's own, whatever the template: it is part of what is measured."""
        questions = limited(self.questions, checked_limit(limit))
        general = texts_part(tokenizer, limited(self.texts, limit))
        if self.engine == "letgo":
            return joined([_part(model, tokenizer, questions), general])
        need("lm_eval", "eval", what="engine lm_eval")
        base = joined([general])

        def finish(
            scored: list[list[Scores]], generated: list[list[Generation]], advance: Callable[[int], None]
        ) -> list[Sample]:
            return [*self._by_lm_eval(model, tokenizer, questions, advance), *base.finish(scored, generated, advance)]

        return Work(finish, base.queries, base.asks, steps=len(questions))

    def scored_counts(self) -> dict[str, int]:
        return dict(Counter(question.task for question in self.questions))

    def _by_lm_eval(
        self, model: Any, tokenizer: Any, questions: Sequence[Question], advance: Callable[[int], None]
    ) -> list[Sample]:
        samples: dict[str, Sample] = {}
        by_task: dict[str, list[Question]] = {}
        for question in questions:
            by_task.setdefault(question.task, []).append(question)
        for name, own in by_task.items():
            rows = [question.choice.row() for question in own]
            key = f"{name} {digest_of(rows)}"
            if key not in self._tasks:
                self._tasks[key] = load_tasks([_on_rows(name, rows)])[name]
            answered = run_task(model, tokenizer, self._tasks[key], batch_size=self.batch_size, advance=advance)
            for question, one in zip(own, answered, strict=True):
                samples[question.id] = _from_lm_eval(question, one)
        return [samples[question.id] for question in questions]

    def summarise(self, samples: Iterable[Sample]) -> Metrics:
        """`forget_accuracy`, `retain_accuracy` (every question counts once, as in lm-eval's groups) and the right
        answers' share of probability; accuracies of each hazardous topic where there are several; general text."""
        every = list(samples)
        metrics: Metrics = {}
        for name in ("forget", "retain"):
            own = [s for s in every if s.set == name]
            metrics |= means(own, name, ("accuracy", "probability"))
            parts: dict[str, list[Sample]] = {}
            for sample in own:
                parts.setdefault(sample.id.partition("/")[0], []).append(sample)
            if name == "forget" and len(parts) > 1:
                for part, chosen in parts.items():
                    metrics |= means(chosen, f"forget_{part.rpartition('-')[2]}", ("accuracy",))
            if any(s.scores.get("cut") for s in own):
                metrics |= means(own, name, ("cut",))
        metrics |= general_metrics(every)
        if not metrics:
            raise EmptyScoreError(f"benchmark {self.name!r}: no sample had a score")
        return metrics


def _part(model: Any, tokenizer: Any, questions: Sequence[Question]) -> Part:
    encoded = [encode_choice(tokenizer, q.choice.prompt(), max_length=context_length(model)) for q in questions]
    queries = [Query(prefix, answers) for prefix, answers, _ in encoded]

    def make(scored: list[list[Scores]], generated: list[list[Generation]]) -> list[Sample]:
        return [
            _sample(question, [float(one.logps.double().sum()) for one in found], cut)
            for question, found, (_, _, cut) in zip(questions, scored, encoded, strict=True)
        ]

    return queries, [], make


def _sample(question: Question, logps: Sequence[float], cut: bool) -> Sample:
    choice = question.choice
    # Of equal ones the first, as numpy's argmax, which lm-eval takes.
    picked = max(range(len(LETTERS)), key=lambda place: logps[place])
    top = max(logps)
    share = math.exp(logps[choice.answer] - top) / sum(math.exp(one - top) for one in logps)
    scores = {"accuracy": float(picked == choice.answer), "probability": share, "picked": float(picked)}
    scores |= {f"logp_{letter}": one for letter, one in zip(LETTERS, logps, strict=True)}
    # What is measured stands in the prompt, so a prompt that lost its beginning is said.
    scores |= {"cut": float(cut)}
    answer, given = (f"{LETTERS[p]}. {choice.choices[p]}" for p in (choice.answer, picked))
    return Sample(
        question.set,
        question.id,
        question.group,
        scores,
        question=choice.question[-400:],
        answer=answer[:400],
        generated=given[:400],
        digest=digest_of(choice.prompt(), choice.answer),
    )


def _from_lm_eval(question: Question, answered: Answered) -> Sample:
    sample = _sample(question, answered.logps, answered.cut)
    if answered.prompt != question.choice.prompt() or answered.scores["acc"] != sample.scores["accuracy"]:
        raise LetgoError(
            f"lm-eval's task {answered.task!r} asked or scored question {question.id!r} in another way than WMDP's "
            "tasks do; use engine letgo, or another version of lm-eval"
        )
    return sample


def _on_rows(task: str, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
    """lm-eval's task as it stands in its library, but on these rows and without worked examples."""

    def custom_dataset(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    return {"task": task, "custom_dataset": custom_dataset, "fewshot_split": None, "num_fewshot": 0}
