"""Commands that look around a model in weight space: analyze connectivity, landscape, sharpness, certificate,
depth, spectrum."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from letgo.cli.common import JsonFlag, QuietFlag, app, passed_on, print_json, reporter

analyze = typer.Typer(
    no_args_is_help=True,
    help="Look around a model in weight space: lines, planes, sharpness, a certificate, depth, spectra of changes.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(analyze, name="analyze")

RunArgument = Annotated[str, Argument(help="A run directory; or a model, with --benchmark.")]
LimitOption = Annotated[int | None, Option("--limit", help="At most so many rows or questions of each set.")]
SeedOption = Annotated[int, Option("--seed", help="Of all noise.")]


def _shared(
    limit: LimitOption = 32,
    benchmark: Annotated[str | None, Option("--benchmark", help="NAME[:k=v,…] to measure on, not the run's.")] = None,
    template: Annotated[str | None, Option("--template", help="auto, plain or chat, instead of the run's.")] = None,
    dtype: Annotated[str, Option("--dtype", help="The weights' type: float32, bfloat16, float16.")] = "float32",
    output: Annotated[Path | None, Option("--output", "-o", help="Folder for analysis-….json, not the run's.")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """The options that all analyses have."""


def _analysis(options: Callable[..., None], *, without: Sequence[str] = ()) -> None:
    """Add a subcommand: the analysis of the function's name, with the function's options, which are called as the
    analysis' arguments are, and the shared ones but those in `without`. What was not given is left to the analysis."""
    name = options.__name__

    def command(**given: Any) -> None:
        from letgo.training.settings import check_benchmarks_early

        check_benchmarks_early([given["benchmark"]])
        from letgo.analysis import ANALYSES
        from letgo.report.analyses import in_text

        options = {key: value for key, value in passed_on(given).items() if value is not None}
        entry = ANALYSES.load(name)(**options, reporter=reporter(given["quiet"]))
        print_json(entry) if given["as_json"] else typer.echo("\n".join(in_text(entry)))

    # An option of the function comes in place of a shared one of its name.
    specific, shared = (inspect.signature(source, eval_str=True).parameters for source in (options, _shared))
    merged = {**specific, **{key: each for key, each in shared.items() if key not in without}, **specific}
    command.__signature__ = inspect.Signature(list(merged.values()))  # type: ignore[attr-defined]
    analyze.command(name, help=options.__doc__)(command)


@_analysis
def connectivity(
    models: Annotated[list[str], Argument(help="Two or more run directories or models.")],
    points: Annotated[int, Option("--points", help="On each line, both ends among them.")] = 11,
    metrics: Annotated[bool, Option("--metrics/--no-metrics", help="Metrics too, not the losses alone.")] = True,
) -> None:
    """Losses and metrics on the straight line between models, and the barrier on it."""


@_analysis
def landscape(
    run: RunArgument,
    directions: Annotated[
        list[str] | None,
        Option("--direction", help="random, original, attack[:LABEL], a run or a model; once or twice."),
    ] = None,
    points: Annotated[int | None, Option("--points", help="On each axis: 25 on a line, 13 in a plane.")] = None,
    span: Annotated[tuple[float, float] | None, Option("--span", help="From where to where, such as -1 1.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Forget and retain loss on a line or a plane through a run's weights."""


@_analysis
def sharpness(
    run: RunArgument,
    radii: Annotated[
        list[float] | None, Option("--radius", help="ρ; repeat. Default: shares of what unlearning moved.")
    ] = None,
    relative: Annotated[bool, Option("--relative", help="Radii are shares of the weights' norm.")] = False,
    steps: Annotated[int, Option("--steps", help="Of the ascent; 1 is SAM's.")] = 5,
    draws: Annotated[int, Option("--draws", help="Pairs of Gaussian noise for the average.")] = 10,
    trace_draws: Annotated[int, Option("--trace-draws", help="For the Hessian's trace; 0 for none.")] = 10,
    seed: SeedOption = 0,
) -> None:
    """How the losses change within given radii, at worst and on average, and the Hessian's trace."""


@_analysis
def certificate(
    run: RunArgument,
    sigma: Annotated[
        list[float] | None,
        Option("--sigma", help="Of the noise on each weight; repeat. Default: what unlearning moved, over √d."),
    ] = None,
    draws: Annotated[int, Option("--draws", help="N, at each sigma.")] = 200,
    alpha: Annotated[float, Option("--alpha", help="1 − confidence.")] = 0.01,
    reveals: Annotated[str, Option("--reveals", help="auto, choice, greedy, SCORE>=T, or forget_METRIC>=T.")] = "auto",
    share: Annotated[float, Option("--share", help="Of the questions, for the set to count as revealed.")] = 0.5,
    relative: Annotated[bool, Option("--relative", help="Noise relative to each tensor's weights.")] = False,
    utility_draws: Annotated[int, Option("--utility-draws", help="Draws that utility is measured on.")] = 5,
    rerun: Annotated[bool, Option("--rerun/--no-rerun", help="Run attacks again for their displacement.")] = True,
    seed: SeedOption = 0,
    limit: LimitOption = 20,
) -> None:
    """A radius of weight changes within which the smoothed model does not reveal, with confidence."""


@_analysis
def depth(
    run: RunArgument,
    retrained: Annotated[
        str | None, Option("--retrained", help="A model that never saw the forget set; the benchmark's by default.")
    ] = None,
    threshold: Annotated[float, Option("--threshold", help="A layer counts above it, in nats a token.")] = 0.05,
) -> None:
    """In which layers the forget set's answers still are: states patched into the original."""


@partial(_analysis, without=("limit",))
def spectrum(
    run: RunArgument,
    top: Annotated[int, Option("--top", help="Components that the energy is over.")] = 8,
    rerun: Annotated[bool, Option("--rerun/--no-rerun", help="Run attacks again, for their changes.")] = True,
) -> None:
    """Over how many directions unlearning and each attack spread their change of every weight matrix."""
