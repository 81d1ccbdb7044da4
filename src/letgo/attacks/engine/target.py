"""A run or a bare model, opened once: the target of attacks and analyses, and what they compare it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from letgo.attacks.engine.base import Probe, Victim
from letgo.attacks.engine.judge import Recorded
from letgo.benchmarks import benchmark_of, create_benchmark
from letgo.benchmarks.engine.base import RETRAINED, Benchmark, Sample, headlines_of
from letgo.benchmarks.engine.requests import calibrated
from letgo.core import processes
from letgo.core.environment import circumstances
from letgo.core.errors import UserError
from letgo.core.files import read_json, write_json_lines
from letgo.core.own import code_in_use
from letgo.core.progress import Quiet, Reporter
from letgo.data.encode import Template
from letgo.metrics.judgement import judge, judge_levels
from letgo.metrics.records import Headline
from letgo.metrics.robustness import collapse_reasons
from letgo.models.formats import EXPORT, MANIFEST
from letgo.models.load import resolve_model
from letgo.models.origin import kind_of_model, made_by
from letgo.runs import record_run
from letgo.runs.digests import check_bound, digests_of, with_model
from letgo.runs.results import (
    SAMPLES_FILE,
    Audit,
    CodeDigest,
    Digests,
    Metrics,
    Result,
    is_run,
    new_run_id,
    now,
    read_result,
    read_samples,
    write_result,
)
from letgo.scoring.resume_log import PARTIAL, ResumeLog
from letgo.scoring.server.calibration import in_words
from letgo.scoring.server.served import Served, identity_of, open_model, open_tokenizer

_STAGES = ("before", "after", f"reference:{RETRAINED}")


@dataclass(frozen=True)
class Target:
    """A run or a bare model, before and after unlearning.

    Attributes:
        name: its directory's, or what was given where two would have the same name.
        model: its directory, a hub id or a built-in name; or one behind a server.
        run: whether `model` is a run directory, to which results can be added.
        result: its record so far; of a bare model nothing but the circumstances until it is measured.
        benchmark, template: what it is scored on; `measured_on` is what the user calls it.
        dtype, limit: how it is scored.
        original: the model that the forgetting started from, if known.
        rows: of the samples that are recorded.
        weights: of a bare model that was measured, the fingerprint of each stage's weights.
        at_hand: of a served model, the weights that it is said to be, to compare its scores with.
    """

    name: str
    model: str | Served
    run: bool
    result: Result
    benchmark: Benchmark
    template: Template
    measured_on: str
    dtype: str = "float32"
    limit: int | None = None
    original: str | Served | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    at_hand: str | None = None
    reporter: Reporter = field(default_factory=Quiet)

    @property
    def directory(self) -> Path | None:
        """The run directory, where it is one."""
        return Path(str(self.model)) if self.run else None

    @property
    def exported(self) -> tuple[Any, ...] | None:
        """How the run was exported, where it was: what attacks on the exported model do to the others too."""
        path = None if self.directory is None else self.directory / EXPORT / MANIFEST
        if path is None or not path.is_file():
            return None
        manifest = read_json(path)
        return manifest["format"], manifest["rounding"], manifest["seed"]

    @cached_property
    def recorded(self) -> Recorded:
        """What an attack on it is judged against."""
        return Recorded(
            self.result.before,
            self.result.after,
            {name: [Sample.from_row(row) for row in self.rows if row["stage"] == name] for name in _STAGES},
            self.benchmark.headlines,
            self.benchmark.summarise,
            broken=self.result.status != "finished",
        )

    def load(self, dtype: str | None = None) -> Any:
        """The model in memory, in eval mode, adapters merged into the weights that they change."""
        return merged(open_model(self.model, dtype=dtype or self.dtype))

    def tokenizer(self) -> Any:
        return open_tokenizer(self.model)

    def check_original(self) -> None:
        """Raise a `UserError` where the original, which every attack is made on too, is not known or not there."""
        if not self.original:
            raise UserError(f"{self.model}: the original model is not known; name it with --original MODEL")
        if not isinstance(self.original, Served):
            resolve_model(self.original)

    def check_bound(self) -> None:
        """Raise a `UserError` where a run's files are not those that its record is bound to: what an attack then does
        would be recorded of another model."""
        if self.directory is not None:
            check_bound(self.directory, self.result, self.reporter)

    def victim(self, probe: Probe | None = None, directory: str | Served | None = None) -> Victim:
        """What an attack is given; of another `directory`, a reference to be attacked likewise."""
        return Victim(
            directory or self.model,
            self.benchmark,
            template=self.template,
            dtype=self.dtype,
            original=self.original,
            run=self.directory,
            unlearned=self.model,
            limit=self.limit,
            recorded=self.recorded.samples,
            probe=probe,
            reporter=self.reporter,
        )

    def samples(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        benchmark: Benchmark | None = None,
        log: ResumeLog | None = None,
    ) -> list[Sample]:
        """Score a model as this one is scored, or on another benchmark. `log` keeps what is scored."""
        return (benchmark or self.benchmark).samples(
            model, tokenizer, limit=self.limit, template=self.template, reporter=self.reporter, name=name, log=log
        )

    def with_rows(self, stage: str, rows: Sequence[Mapping[str, Any]]) -> Target:
        """The same with a stage's rows in the place of those that were there."""
        return replace(self, rows=[row for row in self.rows if row["stage"] != stage] + [dict(row) for row in rows])

    def write(self, folder: Path) -> None:
        """Write the samples, then the result, and note the run in the index."""
        write_json_lines(folder / SAMPLES_FILE, self.rows)
        write_result(folder, self.result)
        record_run(folder, self.reporter.say)


def merged(model: Any) -> Any:
    """A model with its adapters merged into it, else the model itself."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def open_targets(
    models: Sequence[str | Path],
    *,
    benchmark: str | None = None,
    template: Template | None = None,
    purpose: str = "analyse",
    reporter: Reporter | None = None,
) -> list[Target]:
    """Runs or models, all to be measured on the benchmark named, else on that of the first run.

    Args:
        models: run directories, models' directories, hub ids or built-in names.
        template: how questions become prompts; by default the run's, or the named benchmark's.
        purpose: a verb, for errors.

    Raises:
        UserError: for what is no model, or a failed run; or none is a run and no benchmark is named.
    """
    names, results = zip(*(_read(model, purpose) for model in models), strict=True)
    config = next((result.config for result in results if result is not None), None)
    if benchmark is not None:
        data: Benchmark = create_benchmark(benchmark)
        asked, measured_on = template, benchmark
    elif config is not None:
        data = benchmark_of(config, recorded=True)
        asked, measured_on = template or config.get("template"), str(config.get("benchmark") or "the run's own rows")
    else:
        raise UserError("none of these is a run, so what to measure on is not known: name a --benchmark")
    targets = []
    for model, name, result in zip(models, names, results, strict=True):
        run: Mapping[str, Any] = result.config if result else {}
        targets.append(
            Target(
                name if names.count(name) == 1 else str(model),
                str(model),
                result is not None,
                result or _unmeasured(),
                data,
                data.template_for(asked),
                measured_on,
                dtype=run.get("dtype") or "float32",
                limit=run.get("eval_limit"),
                original=run.get("model"),
                reporter=reporter or Quiet(),
            )
        )
    return targets


def name_of(model: str | Path) -> str:
    """What a run or a model is called."""
    return _read(model, "analyse")[0]


def _read(model: str | Path, purpose: str) -> tuple[str, Result | None]:
    """The name of a run or a model, and a run's record."""
    path = Path(model)
    result = None
    if path.is_dir() and is_run(path):
        result = read_result(path)
        if result.status == "failed":
            raise UserError(f"{model}: the run failed ({'; '.join(result.reasons)}); there is nothing to {purpose}")
    else:
        resolve_model(model)
    return (path.resolve().name if path.is_dir() else str(model)), result


def _unmeasured(prefix: str = "attack-", config: Mapping[str, Any] | None = None) -> Result:
    """The record of a bare model before it is measured."""
    created = now()
    run_id, settings = new_run_id(created, prefix), dict(config or {})
    return Result(run_id=run_id, created=created, seed=0, config=settings, status="finished", **circumstances())


def open_target(
    model: str | Path,
    *,
    benchmark: str | None,
    original: str | None,
    limit: int | None,
    dtype: str | None,
    reporter: Reporter,
    template: Template | None = None,
) -> Target:
    """The target of an attack: a run with its record, or a bare model, which is still to be `measured`. A `UserError`
    says what is missing to judge it."""
    directory = Path(model)
    if directory.is_dir() and is_run(directory):
        settings = {"benchmark": benchmark, "limit": limit, "dtype": dtype, "template": template}
        given = [name for name, value in settings.items() if value]
        if given:
            raise UserError(f"{model} is a run, which has its own {given[0]}; leave --{given[0]} out")
        [target] = open_targets([model], purpose="attack", reporter=reporter)
        if not target.result.before or not target.result.after:
            raise UserError(f"{model}: the record has no metrics of before and after unlearning to judge an attack by")
        return replace(target, original=original or target.original, rows=read_samples(directory))
    if benchmark is not None and original is not None:
        return open_bare(
            model,
            create_benchmark(benchmark),
            {"benchmark": benchmark},
            original=original,
            limit=limit,
            dtype=dtype,
            template=template,
            reporter=reporter,
        )
    if not directory.is_dir():
        resolve_model(str(model))
    elif not any((directory / name).exists() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"{model} is not a run directory (it has no result.json), nor a model's")
    needed = (("--benchmark NAME", benchmark), ("--original MODEL", original))
    missing = " and ".join(flag for flag, value in needed if value is None)
    raise UserError(
        f"{model} is not a run directory: it has no result.json that says what was forgotten\n"
        f"  to attack a bare model, give {missing}: an attack is judged against the model before unlearning"
    )


def open_bare(
    model: str | Path | Served,
    benchmark: Benchmark,
    data: Mapping[str, Any],
    *,
    original: str | Served | None,
    limit: int | None = None,
    dtype: str | None = None,
    template: Template | None = None,
    prefix: str = "attack-",
    notes: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Target:
    """Any model, run or not, as it lies there: still to be `measured`.

    Args:
        data: the settings that name the benchmark, or the user's own rows, for the record.
        original: None where it is not known; there are then levels and no shares.
        prefix: of the record's id; `notes`: of the record.
    """
    for each in (model, original):
        if each is not None and not isinstance(each, Served):
            resolve_model(each)
    asked = {name: value for name, value in data.items() if value is not None}
    settings = {"model": None if original is None else str(original), "unlearned": str(model)} | asked
    named = isinstance(model, Served) or not Path(model).exists()
    return Target(
        str(model) if named else Path(str(model)).resolve().name,
        model if isinstance(model, Served) else str(model),
        False,
        _unmeasured(prefix, settings).model_copy(update={"notes": list(notes)}),
        benchmark,
        benchmark.template_for(template),
        str(data.get("benchmark") or "the user's own rows"),
        dtype=dtype or "float32",
        limit=limit,
        original=original,
        reporter=reporter or Quiet(),
    )


def measured(target: Target, folder: Path | None = None) -> Target:
    """A bare model with its metrics, those of the original and of the benchmark's references; a run has them.

    Args:
        folder: where what is scored is kept, so that a killed process that goes on scores nothing twice.
    """
    if target.run:
        return target
    served = isinstance(target.model, Served)
    calibration = _calibration(target)
    stages = {"before": target.original, "after": target.model}
    stages |= {f"reference:{name}": path for name, path in target.benchmark.references.items()}
    metrics: dict[str, Metrics] = {"before": {}}
    samples: dict[str, list[Sample]] = {}
    tokenizers: dict[str, Any] = {}
    weights: dict[str, str] = {}
    for stage, name in stages.items():
        if name is None:
            continue
        tokenizers[stage] = open_tokenizer(name)
        model = open_model(name, dtype=target.dtype)
        # What a server answers is kept by whoever opened it.
        kept: AbstractContextManager[ResumeLog | None] = nullcontext()
        if not isinstance(model, Served):
            identity = identity_of(model, target.dtype)
            weights[stage] = identity["weights"]
            kept = ResumeLog(None if folder is None else folder / PARTIAL.format(weights[stage]), identity)
        with kept as log:
            samples[stage] = target.samples(model, tokenizers[stage], f"measuring {stage}", log=log)
        target = target.with_rows(stage, [sample.as_row(stage, 0) for sample in samples[stage]])
        metrics[stage] = target.benchmark.summarise(samples[stage])
    reasons = collapse_reasons(metrics["before"], metrics["after"])
    tokenizer = tokenizers.get("before", tokenizers["after"])
    floors = headlines_of(target.benchmark, metrics["after"]) if served else target.benchmark.headline_floors
    benchmark = replace(target.benchmark, headlines=tuple(Headline(name, floor) for name, floor in floors.items()))
    target = replace(target, benchmark=benchmark)
    settings = {
        "dtype": None if served else target.dtype,
        "eval_limit": target.limit,
        "template": target.template,
        "scored": target.benchmark.identity(tokenizer, target.template),
        **({"engine": target.model.engine} if isinstance(target.model, Served) else {}),
        **({} if calibration is None else {"calibration": calibration}),
    }
    retrained = samples.get(f"reference:{RETRAINED}", [])
    if target.original is None:
        judgement = judge_levels(target.benchmark.headlines, samples["after"], retrained=retrained)
    else:
        judgement = judge(
            target.benchmark.headlines, samples["before"], samples["after"], retrained=retrained, broken=reasons
        )
    compared = [] if calibration is None else [in_words(calibration)]
    update = {
        "config": target.result.config | settings,
        "notes": [*target.result.notes, *compared, *target.benchmark.notes_for(tokenizer)],
        "before": metrics["before"],
        "after": metrics["after"],
        "references": target.benchmark.reference_metrics()
        | {name: metrics[f"reference:{name}"] for name in target.benchmark.references},
        "status": "collapsed" if reasons else "finished",
        "reasons": reasons,
        "headlines": floors,
        "digests": processes.first_does(lambda: _digests(target)),
        "judgement": judgement,
        "code": code_now(target.result),
    }
    return replace(target, weights=weights, result=target.result.model_copy(update=update))


def _calibration(target: Target) -> dict[str, Any] | None:
    """How far a served model is from the weights at hand; None where there are none. Said before long work begins."""
    if target.at_hand is None or not isinstance(target.model, Served):
        return None
    target.benchmark.prepare()
    how: dict[str, Any] = {"limit": target.limit, "template": target.template}
    work = target.benchmark.asked(target.model, target.model.tokenizer, **how)
    calibration = calibrated(target.model, [work], target.at_hand, target.dtype, None)
    target.reporter.say(in_words(calibration))
    return calibration


def code_now(result: Result) -> dict[str, CodeDigest]:
    """The code that is not letgo's own by which a record was made, with what was imported since."""
    return result.code | {name: CodeDigest(**asdict(code)) for name, code in code_in_use().items()}


def begun_with(target: Target) -> Digests:
    """What the work on a bare model begins with: the model before unlearning and the data."""
    # Of a server's weights nothing is known.
    original = None if isinstance(target.original, Served) else target.original
    return digests_of(original, target.benchmark.contents, target.reporter)


def _digests(target: Target) -> Digests:
    """What the record of a bare model speaks of."""
    known = begun_with(target)
    return known if isinstance(target.model, Served) else with_model(known, target.model, target.reporter)


def about_audit(target: Target, attacks: Sequence[str], threshold: float, suite: str = "", **asked: Any) -> Audit:
    """What the record of a bare model that was `measured` says of it, and of what was asked.

    Args:
        attacks: labels, in the order in which they are made.
        suite: "" where they were named one by one.
        asked: other fields of `Audit`.
    """
    served = isinstance(target.model, Served)
    return Audit(
        model=str(target.model),
        kind="served model" if served else kind_of_model(str(target.model)),
        weights=target.weights.get("after", ""),
        made_by={} if served else made_by(str(target.model)),
        base=None if target.original is None else str(target.original),
        base_weights=target.weights.get("before"),
        suite=suite,
        threshold=threshold,
        attacks=list(attacks),
        **asked,
    )
