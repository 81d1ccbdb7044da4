"""Several requests to forget from one model: one after another (sustainability), or each by itself (scalability)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.base import Benchmark
from letgo.core import processes
from letgo.core.catalog import parse_spec
from letgo.core.errors import UserError
from letgo.core.progress import Quiet, Reporter, usual
from letgo.runs.results import Result
from letgo.training.config import UnlearnConfig, make_config, resolved_settings
from letgo.training.run_directory import finished_result, left_to_do
from letgo.training.unlearn import unlearn


def sequence_of(config: UnlearnConfig) -> Benchmark | None:
    """The benchmark that a config names, where it stands for a sequence of requests (`muse:request=sust`)."""
    if not config.benchmark or "request" not in parse_spec(config.benchmark)[1]:
        return None
    benchmark: Benchmark = create_benchmark(config.benchmark)
    return benchmark if benchmark.sequence else None


def unlearn_sequence(
    config: UnlearnConfig | None = None, *, resume: bool = False, reporter: Reporter | None = None, **settings: Any
) -> dict[Path, Result]:
    """Unlearn every request of a benchmark that stands for several; a run directory each, in the output directory.

    Where the requests are chained each run starts from the model that the one before it saved, and "before" in its
    result is how that model scored; else each starts from the same model. A run that collapsed is gone on from all the
    same: that a method breaks under repeated requests is what a sequence is to show.

    Args:
        config: as of `unlearn`, with a benchmark such as `muse:corpus=news,request=sust`; or its fields as keyword
            arguments.
        resume: go on with a sequence that was cut off: finished runs are kept.
        reporter: where progress goes.

    Returns:
        The runs' directories, in order, with their results.

    Raises:
        UserError: the benchmark is no sequence, or as of `unlearn`.
    """
    if config is not None and settings:
        raise UserError("give unlearn_sequence() either a config or settings, not both")
    args = config if config is not None else make_config(settings, where="unlearn_sequence()")
    benchmark = sequence_of(args)
    if benchmark is None:
        raise UserError(f"benchmark {args.benchmark!r} is no sequence of requests; muse:request=sust is one")
    if not args.output_dir:
        raise UserError("no output directory: give output_dir (--output DIR)")
    processes.start(args.processes)
    output, reporter = Path(args.output_dir), usual(reporter) if processes.is_first() else Quiet()
    if output.is_file():
        raise UserError(f"output {output} is a file; name a directory")
    if processes.is_first() and not resume and output.is_dir() and any(output.iterdir()):
        raise UserError(f"output directory {output} is not empty; name another one, or resume it with --resume")
    done: dict[Path, Result] = {}
    settled, model = resolved_settings(args), args.model
    for number, spec in enumerate(benchmark.sequence, start=1):
        directory = output / f"{number}-{_request(spec)}"
        reporter.say(f"request {number} of {len(benchmark.sequence)}: {spec}")
        step = make_config({**settled, "benchmark": spec, "model": model, "output_dir": str(directory)}, where=spec)
        finished = finished_result(directory)
        if finished is not None and processes.agreed(not left_to_do(directory, step, finished)):
            done[directory] = finished
        else:
            going_on = processes.agreed(resume and directory.is_dir() and any(directory.iterdir()))
            done[directory] = unlearn(step, resume=going_on, reporter=reporter).result
        if benchmark.chained:
            model = str(directory)
    return done


def _request(spec: str) -> str:
    settings: Mapping[str, Any] = parse_spec(spec)[1]
    return str(settings["request"])
