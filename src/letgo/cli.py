"""The command. Every subcommand is a thin mirror of one function of the library.

Exit codes: 0 success, 1 a failure of letgo's own, 2 a user's mistake, 130 Ctrl-C. `--json` prints one JSON document on
stdout and nothing else; progress and messages go to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from letgo.catalog import Catalog
    from letgo.progress import Reporter
    from letgo.results import Result

# Before torch is imported anywhere: busy-waiting threads of two processes on few cores starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    name="letgo",
    help="Make a language model forget what it must not know, and prove that it stays forgotten.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


@app.command()
def demo(
    tiny: Annotated[bool, typer.Option("--tiny", help="The shipped tiny model: no download, under a minute.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="A model directory or hub id instead of the demo's own.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the run and report.html.")] = Path(
        "letgo-runs"
    ),
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Unlearn something real from a real model, attack the result, and show what came of it."""
    from letgo.demo import demo as run_demo

    shown = run_demo(tiny=tiny, model=model, output=output, reporter=_reporter(quiet))
    if as_json:
        _print_json(shown.run.result.model_dump(mode="json", by_alias=True))
        return
    _print_run(shown.run.result, shown.run.directory)
    typer.echo(f"run:    {shown.run.directory}\nreport: {shown.report}\ntime:   {shown.seconds:.0f} s")


@app.command()
def unlearn(
    config: Annotated[Path | None, typer.Argument(help="A run's YAML; flags go over it.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Model directory, hub id, or built-in name.")] = None,
    benchmark: Annotated[str | None, typer.Option("--benchmark", help="NAME[:k=v,…]: sets data and scores.")] = None,
    forget: Annotated[str | None, typer.Option("--forget", help="Forget set: file or hub:ID:CONFIG:SPLIT.")] = None,
    retain: Annotated[str | None, typer.Option("--retain", help="Retain set: likewise.")] = None,
    objective: Annotated[str | None, typer.Option("--objective", help="NAME[:k=v,…]; see letgo list.")] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="NAME[:k=v,…]; see letgo list.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr", help="η.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps, instead of epochs.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the forget set.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Forget rows a step and device.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Data order and noise.")] = None,
    attack: Annotated[list[str] | None, typer.Option("--attack", help="NAME[:k=v,…] on the result; repeat.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="The run directory.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value for any other key; repeat.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Unlearn a forget set from a model: the main job."""
    from letgo.config import read_config
    from letgo.unlearning import unlearn as run_unlearn

    settings = read_config(
        config,
        assignments or (),
        model=model,
        benchmark=benchmark,
        forget=forget,
        retain=retain,
        objective=objective,
        optimizer=optimizer,
        learning_rate=learning_rate,
        max_steps=steps,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        seed=seed,
        attacks=attack or None,
        output_dir=output,
    )
    run = run_unlearn(settings, resume=resume, reporter=_reporter(quiet))
    if as_json:
        _print_json(run.result.model_dump(mode="json", by_alias=True))
    else:
        _print_run(run.result, run.directory)


@app.command()
def attack(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    attacks: Annotated[list[str], typer.Option("--attack", help="NAME[:k=v,…][,seeds=N][,threshold=SHARE]; repeat.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the result here, not into the run.")
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Attack a run's saved model, and record what came back."""
    from letgo.attacks.run import attack as run_attack
    from letgo.report.card import write_model_card

    result = run_attack(run, attacks, reporter=_reporter(quiet), output=output)
    # The card beside the result tells of all attacks, these too.
    write_model_card(output or run, result)
    if as_json:
        _print_json(result.model_dump(mode="json", by_alias=True))
    else:
        _print_run(result, output or run)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Model directory, hub id, or built-in name.")],
    benchmarks: Annotated[list[str], typer.Option("--benchmark", help="NAME[:k=v,…]; repeat.")],
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many items of each set.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the result.")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Score a model on benchmarks, without changing it."""
    from letgo.evaluation import evaluate as run_evaluate

    results = run_evaluate(model, benchmarks, limit=limit, output=output, reporter=_reporter(quiet))
    if as_json:
        _print_json({spec: result.model_dump(mode="json", by_alias=True) for spec, result in results.items()})
        return
    for spec, result in results.items():
        typer.echo(f"{model} on {spec}")
        for name, metric in result.after.items():
            typer.echo(f"  {name:<24} {metric.value:8.4f}  [{metric.ci95[0]:.4f}, {metric.ci95[1]:.4f}]  n={metric.n}")


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(help="Run directories, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about runs."""
    from letgo.report import write_report

    typer.echo(write_report(directories, output))


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="optimizers, objectives, attacks, benchmarks or metrics.")],
    pattern: Annotated[str, typer.Argument(help="Only names that match, such as '*adam*'.")] = "*",
    as_json: JsonFlag = False,
) -> None:
    """List what there is, each with its source and how it stands to it."""
    catalog = _catalog(kind)
    records = [catalog.record(name) for name in catalog.names(pattern)]
    if as_json:
        _print_json([record.as_dict() for record in records])
        return
    width = max((len(record.name) for record in records), default=0)
    for record in records:
        grade = f"[{record.as_dict()['grade']}] " if "grade" in record.as_dict() else ""
        typer.echo(f"{record.name:<{width}}  {grade}{record.summary}")
        note = f" ({record.note})" if record.note else ""
        typer.echo(f"{'':<{width}}  {record.faithfulness}: {record.source}{note}")


@app.command()
def show_config(
    config: Annotated[Path, typer.Argument(help="A run's YAML.")],
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value; repeat.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print what a run's YAML comes to, checked and resolved."""
    from letgo.config import dump_config, read_config, resolved_settings

    settings = read_config(config, assignments or ())
    if as_json:
        _print_json(resolved_settings(settings))
    else:
        typer.echo(dump_config(settings), nl=False)


def main() -> None:
    """The entry point: turns errors into messages and exit codes."""
    from letgo.errors import LetgoError

    try:
        app()
    except (KeyboardInterrupt, SystemExit) as stop:
        # Typer turns Ctrl-C into an exit of its own, without a word.
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        typer.echo("\nletgo: interrupted; what was finished is kept", err=True)
        sys.exit(130)
    except LetgoError as error:
        typer.echo(f"letgo: {error}", err=True)
        sys.exit(error.exit_code)


def _catalog(kind: str) -> Catalog[Any]:
    import importlib

    from letgo.catalog import did_you_mean
    from letgo.errors import UserError

    places = {
        "optimizers": ("letgo.optim", "OPTIMIZERS"),
        "objectives": ("letgo.objectives", "OBJECTIVES"),
        "attacks": ("letgo.attacks", "ATTACKS"),
        "benchmarks": ("letgo.benchmarks", "BENCHMARKS"),
        "metrics": ("letgo.metrics", "METRICS"),
    }
    if kind not in places:
        raise UserError(f"unknown kind {kind!r}{did_you_mean(kind, places)}; known: {', '.join(places)}")
    module, name = places[kind]
    catalog: Catalog[Any] = getattr(importlib.import_module(module), name)
    return catalog


def _reporter(quiet: bool) -> Reporter:
    from letgo.progress import Live, Quiet, quiet_libraries

    quiet_libraries()
    return Quiet() if quiet else Live()


def _print_run(result: Result, directory: Path) -> None:
    from rich.console import Console

    from letgo.report.terminal import print_answers, print_result
    from letgo.results import SAMPLES_FILE, read_json_lines

    console = Console()
    if (directory / SAMPLES_FILE).is_file():
        print_answers(read_json_lines(directory / SAMPLES_FILE), console, limit=4)
    print_result(result, console)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
