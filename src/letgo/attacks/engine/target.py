"""What is attacked and what it is held against: a run with its record, or a bare model measured for the occasion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letgo.attacks.engine.base import Probe, Victim
from letgo.benchmarks import benchmark_of, create_benchmark
from letgo.benchmarks.engine.base import Benchmark, Sample
from letgo.core.environment import circumstances
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.core.progress import Reporter
from letgo.metrics.robustness import collapse_reasons
from letgo.models.load import load_model, load_tokenizer, resolve_model
from letgo.runs.results import SAMPLES_FILE, Metrics, Result, is_run, new_run_id, now, read_result

RETRAINED = "retrained"
"""The reference that never saw the forget set."""


@dataclass
class Subject:
    """A model under attack.

    Attributes:
        place: its directory (or, of a bare model, what it is called).
        benchmark, template, dtype, limit: how it is scored.
        result: its record so far; `recorded` the rows of its samples.
        original: the model that the forgetting started from, if known.
        run: whether `place` is a run directory, to which results can be added.
        shared_scores: a folder in which runs leave each other what was scored of the models that they have in common.
    """

    place: str
    benchmark: Benchmark
    result: Result
    recorded: list[dict[str, Any]]
    original: str | None
    template: Any
    dtype: str
    limit: int | None
    reporter: Reporter
    run: bool
    shared_scores: Path | None = None
    _stages: dict[str, list[Sample]] = field(default_factory=dict)

    def stage(self, name: str) -> list[Sample]:
        """The samples of "before", "after" or "reference:NAME"."""
        if name not in self._stages:
            self._stages[name] = [Sample.from_row(row) for row in self.recorded if row["stage"] == name]
        return self._stages[name]

    def victim(self, probe: Probe | None = None, directory: str | None = None) -> Victim:
        """What an attack is given; of another `directory`, a reference to be attacked likewise."""
        return Victim(
            directory or self.place,
            self.benchmark,
            template=self.template,
            dtype=self.dtype,
            original=self.original,
            limit=self.limit,
            recorded={name: self.stage(name) for name in ("before", "after", f"reference:{RETRAINED}")},
            probe=probe,
            reporter=self.reporter,
        )

    def samples(self, model: Any, tokenizer: Any, name: str, benchmark: Benchmark | None = None) -> list[Sample]:
        return (benchmark or self.benchmark).samples(
            model, tokenizer, limit=self.limit, template=self.template, reporter=self.reporter, name=name
        )

    def note(self, stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put a stage's rows in the place of those that were there."""
        self.recorded = [row for row in self.recorded if row["stage"] != stage] + [dict(row) for row in rows]
        self._stages.pop(stage, None)


def open_run(directory: Path, *, original: str | None, reporter: Reporter) -> Subject:
    """A run directory as what is attacked."""
    result = read_result(directory)
    if result.status == "failed":
        raise UserError(f"{directory}: the run failed ({'; '.join(result.reasons)}); there is nothing to attack")
    config = result.config
    if not result.before or not result.after:
        raise UserError(f"{directory}: the record has no metrics of before and after unlearning to judge an attack by")
    benchmark: Benchmark = benchmark_of(config)
    recorded = read_json_lines(directory / SAMPLES_FILE) if (directory / SAMPLES_FILE).exists() else []
    return Subject(
        str(directory),
        benchmark,
        result,
        recorded,
        original or config.get("model"),
        benchmark.template_for(config.get("template")),
        config.get("dtype") or "float32",
        config.get("eval_limit"),
        reporter,
        run=True,
    )


def open_model(
    model: str, *, benchmark: str, original: str, limit: int | None, dtype: str, reporter: Reporter
) -> Subject:
    """A bare model as what is attacked: it and the original are measured first."""
    resolve_model(model)
    resolve_model(original)
    made: Benchmark = create_benchmark(benchmark)
    created = now()
    config = {"model": original, "unlearned": model, "benchmark": benchmark, "dtype": dtype, "eval_limit": limit}
    shell = Result(
        run_id=new_run_id(created, "attack-"),
        created=created,
        seed=0,
        config=config,
        status="finished",
        headlines=made.headline_floors,
        **circumstances(),
    )
    template = made.template_for(None)
    subject = Subject(model, made, shell, [], original, template, dtype, limit, reporter, run=False)
    stages = {"before": original, "after": model} | {f"reference:{k}": v for k, v in made.references.items()}
    metrics: dict[str, Metrics] = {}
    for stage, name in stages.items():
        tokenizer = load_tokenizer(model if stage == "after" else name)
        samples = subject.samples(load_model(name, dtype=dtype), tokenizer, f"measuring {stage}")
        subject.note(stage, [sample.as_row(stage, 0) for sample in samples])
        metrics[stage] = made.summarise(samples)
    reasons = collapse_reasons(metrics["before"], metrics["after"])
    subject.result = shell.model_copy(
        update={
            "before": metrics["before"],
            "after": metrics["after"],
            "references": {name: metrics[f"reference:{name}"] for name in made.references},
            "status": "collapsed" if reasons else "finished",
            "reasons": reasons,
        }
    )
    return subject


def open_subject(
    place: str | Path,
    *,
    benchmark: str | None,
    original: str | None,
    limit: int | None,
    dtype: str | None,
    reporter: Reporter,
) -> Subject:
    """A run, or a bare model with what is needed to judge it; the `UserError` otherwise says what is missing."""
    directory = Path(place)
    if directory.is_dir() and is_run(directory):
        given = [name for name, value in (("benchmark", benchmark), ("limit", limit), ("dtype", dtype)) if value]
        if given:
            raise UserError(f"{place} is a run, which has its own {given[0]}; leave --{given[0]} out")
        return open_run(directory, original=original, reporter=reporter)
    if benchmark is None or original is None:
        if directory.is_dir() and not (directory / "config.json").exists():
            if not (directory / "adapter_config.json").exists():
                raise UserError(f"{place} is not a run directory (it has no result.json), nor a model's")
        elif not directory.is_dir():
            resolve_model(str(place))
        missing = " and ".join(
            flag for flag, value in (("--benchmark NAME", benchmark), ("--original MODEL", original)) if value is None
        )
        raise UserError(
            f"{place} is not a run directory: it has no result.json that says what was forgotten\n"
            f"  to attack a bare model, give {missing}: an attack is judged against the model before unlearning"
        )
    return open_model(
        str(place), benchmark=benchmark, original=original, limit=limit, dtype=dtype or "float32", reporter=reporter
    )
