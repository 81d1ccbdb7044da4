"""Scoring a model on benchmarks, without changing it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.base import Benchmark, headlines_of
from letgo.benchmarks.engine.items import Sample
from letgo.benchmarks.engine.requests import Work, calibrated, run_works
from letgo.core import processes
from letgo.core.catalog import check_arguments, format_spec
from letgo.core.environment import circumstances
from letgo.core.errors import UserError
from letgo.core.files import write_json_lines
from letgo.core.locks import check_unused
from letgo.core.own import noted
from letgo.core.progress import Quiet, Reporter, usual
from letgo.core.values import Count
from letgo.data.encode import Template
from letgo.models.files import remote_code
from letgo.runs import record_run
from letgo.runs.digests import digests_of, with_model
from letgo.runs.results import EVALUATION, SAMPLES_FILE, Digests, Result, new_run_id, now, write_result
from letgo.scoring.scoring import ResumeLog
from letgo.scoring.server.calibration import check_weights, in_words
from letgo.scoring.server.served import Served, identity_of, open_model, open_tokenizer

PARTIAL_FILE = "scores.partial.jsonl"
"""In an output directory: what an evaluation has scored so far; removed when it is finished."""


@noted()
def evaluate(
    model: str | Path | Served,
    benchmarks: Sequence[str | Benchmark],
    *,
    metrics: Sequence[str] = (),
    limit: Count | None = None,
    output: Path | None = None,
    dtype: str = "float32",
    template: Template | None = None,
    resume: bool = False,
    trust_remote_code: bool | None = None,
    weights: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Result]:
    """Score a model on benchmarks: load it once, and answer all of them in one pass over it.

    Args:
        model: a directory, a hub id, or a built-in model's name; or one behind a server
            (`letgo.scoring.server.served.connect`), which is asked as far as it can be.
        benchmarks: each "NAME:key=value,…", or a `Benchmark`.
        metrics: of one's own, each "package.module.name:key=value,…": taken of every sample too.
        limit: at most so many items of each set.
        output: a directory for `result.json` and `samples.jsonl`, in a folder a benchmark where there are several.
        dtype: the weights' type.
        template: how questions become prompts, where a benchmark leaves the choice.
        resume: go on with an evaluation into `output` that was cut off, to the same scores as without a break.
        trust_remote_code: whether the model's own Python code may run; not by default.
        weights: of a served model, where its weights are at hand: some items are scored by both, and the differences
            recorded (`config.calibration`).
        reporter: where progress goes.

    Where a launcher starts several processes, each scores a part, and the first one writes.

    Returns:
        A result for each benchmark by its spec: the metrics in `after`, and in `config.scored` what was scored.

    Raises:
        UserError: for benchmarks, data or a model that can't be used; an output directory that is not empty.
    """
    if not benchmarks:
        raise UserError("no benchmark named; see `letgo list benchmarks`")
    check_arguments(evaluate, limit=limit, template=template)
    processes.start()
    processes.first_does(lambda: _check_output(output, resume))
    built = _built(benchmarks, metrics)
    reporter = usual(reporter) if processes.is_first() else Quiet()
    for benchmark in built.values():
        benchmark.prepare()
    check_weights(model, weights)
    with remote_code(trust_remote_code):
        tokenizer, loaded = open_tokenizer(model), open_model(model, dtype=dtype)
    start, created = time.perf_counter(), processes.agreed(now())
    # Checks before anything is run for long: answers without tokens, a reference of other rows, a context too short.
    works = [benchmark.asked(loaded, tokenizer, limit=limit, template=template) for benchmark in built.values()]
    name = "scoring " + ", ".join(dict.fromkeys(benchmark.name for benchmark in built.values()))
    resumed: AbstractContextManager[ResumeLog | None] = nullcontext()
    if output is not None:
        resumed = ResumeLog(output / PARTIAL_FILE, identity_of(loaded, dtype))
    with resumed as log:
        engine, remarks = _engine(loaded, weights, works, dtype, log)
        with reporter.task(name, sum(work.size for work in works)) as task:
            scored = run_works(loaded, tokenizer, works, advance=task.advance, log=log)
    seconds = round(time.perf_counter() - start, 3)
    digests: dict[str, Digests] = {}
    if output is not None:
        digests = processes.first_does(lambda: _digests(model, built, reporter)) or {}
    folders = _folders(output, built)
    results: dict[str, Result] = {}
    for (spec, benchmark), samples in zip(built.items(), scored, strict=True):
        notes = [*remarks, *benchmark.notes_for(tokenizer), *benchmark.limit_notes(limit)]
        after = benchmark.summarise(samples)
        if len(built) > 1:
            notes.append(f"evaluated in one pass with {', '.join(s for s in built if s != spec)}; the time is of all")
        settings = {
            "model": str(model),
            "dtype": dtype,
            "benchmark": spec,
            "eval_limit": limit,
            "template": template,
            **({"metrics": list(metrics)} if metrics else {}),
        } | engine
        results[spec] = Result(
            run_id=processes.agreed(new_run_id(created, EVALUATION)),
            created=created,
            seed=0,
            config=settings | {"scored": benchmark.identity(tokenizer, template)},
            status="finished",
            after=after,
            references=benchmark.reference_metrics(),
            headlines=headlines_of(benchmark, after) if engine else benchmark.headline_floors,
            digests=digests.get(spec),
            notes=notes,
            seconds={"evaluate": seconds},
            **circumstances(),
        )
        if output is not None:
            _write(folders[spec], results[spec], samples, reporter)
    if output is not None:
        processes.first_does(lambda: ResumeLog.remove(output / PARTIAL_FILE))
    return results


def _digests(model: str | Path | Served, built: Mapping[str, Benchmark], reporter: Reporter) -> dict[str, Digests]:
    """What the record of each benchmark speaks of."""
    # Of a server's weights nothing is known.
    scored = Digests() if isinstance(model, Served) else with_model(Digests(), model, reporter)
    data = {spec: digests_of(None, benchmark.contents, reporter) for spec, benchmark in built.items()}
    both = {"model": scored.model, "tokenizer": scored.tokenizer}
    return {spec: digests.model_copy(update=both) for spec, digests in data.items()}


def _engine(
    loaded: Any, weights: str | None, works: Sequence[Work], dtype: str, log: ResumeLog | None
) -> tuple[dict[str, Any], list[str]]:
    """For the record and its notes: the server that was asked, what it was not asked, and how far it is from torch."""
    if not isinstance(loaded, Served):
        return {}, []
    engine: dict[str, Any] = {"engine": loaded.engine, "dtype": None}
    remarks = [loaded.describe()]
    if weights is not None:
        engine["calibration"] = calibrated(loaded, works, weights, dtype, log)
        remarks.append(in_words(engine["calibration"]))
    return engine, remarks


def _built(benchmarks: Sequence[str | Benchmark], metrics: Sequence[str]) -> dict[str, Benchmark]:
    built: dict[str, Benchmark] = {}
    for given in benchmarks:
        benchmark = given if isinstance(given, Benchmark) else create_benchmark(given, metrics=metrics)
        spec = given if isinstance(given, str) else format_spec(benchmark.name, benchmark.settings)
        if spec in built:
            raise UserError(f"benchmark {spec!r} is named twice")
        built[spec] = benchmark
    return built


def _check_output(output: Path | None, resume: bool) -> None:
    if output is None:
        if resume:
            raise UserError("nothing to resume from: give the output directory (--output DIR)")
        return
    if (output / PARTIAL_FILE).is_file():
        if not resume:
            raise UserError(
                f"output directory {output} holds an evaluation that was cut off; go on with --resume, or remove it"
            )
    else:
        check_unused(output)


def _folders(output: Path | None, built: Mapping[str, Benchmark]) -> dict[str, Path]:
    """Where each result goes: for one benchmark the output itself; else a folder named after the benchmark, and after
    the settings in which benchmarks of one name differ."""
    if output is None:
        return {}
    if len(built) == 1:
        return dict.fromkeys(built, output)
    folders: dict[str, Path] = {}
    for spec, benchmark in built.items():
        alike = [other.settings for other in built.values() if other.name == benchmark.name]
        keys = [key for key in dict.fromkeys(chain(*alike)) if len({str(s.get(key)) for s in alike}) > 1]
        settings = [f"{key}={Path(str(benchmark.settings[key])).name}" for key in keys if key in benchmark.settings]
        name = re.sub(r"[^\w.=-]+", "-", "-".join([benchmark.name, *settings]))[:80]
        taken = {path.name for path in folders.values()}
        free = next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(built) + 2))) if n not in taken)
        folders[spec] = output / free
    return folders


def _write(directory: Path, result: Result, samples: Sequence[Sample], reporter: Reporter) -> None:
    def write() -> None:
        write_json_lines(directory / SAMPLES_FILE, (sample.as_row("after", 0) for sample in samples))
        write_result(directory, result)
        record_run(directory, reporter.say)

    processes.first_does(write)
