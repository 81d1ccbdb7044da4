"""`python -m research.d2u`: run, collect, analyse, page."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from letgo import LetgoError
from research.d2u.experiments import HERE, experiments, read_experiment

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The papers' claims held against our own runs.")
Names = Annotated[list[str] | None, typer.Argument(help="Such as biographies/npo; else all that name runs.")]
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder of the result files.")]


@app.command()
def run(names: Names = None) -> None:
    """Tune and attack experiments, and write their result files. What is finished is not run again."""
    from research.d2u.run import run as run_experiment

    for name in names or _with_runs():
        run_experiment(name)


@app.command()
def collect(names: Names = None) -> None:
    """Write the result files of experiments from the runs that are there."""
    from research.d2u.collect import collect as read_runs
    from research.d2u.collect import result_file
    from research.d2u.records import write_record

    for name in names or _with_runs():
        write_record(result_file(name), read_runs(read_experiment(name)))
        typer.echo(str(result_file(name)), err=True)


@app.command()
def analyse(results: ResultsOption = HERE / "results") -> None:
    """Analyse where the solutions of NPO on biographies lie."""
    from research.d2u.run import analyse as analyse_runs

    analyse_runs(results)


@app.command()
def page(
    results: ResultsOption = HERE / "results",
    output: Annotated[Path, typer.Option("--output", "-o", help="The page; its drawings go beside it.")] = HERE
    / "evidence.md",
) -> None:
    """Write the page and its drawings from the result files."""
    from research.d2u.page import write_page

    write_page(results, output)
    typer.echo(str(output), err=True)


def _with_runs() -> list[str]:
    return [name for name in experiments() if read_experiment(name).runs]


def main() -> None:
    try:
        app(standalone_mode=True)
    except LetgoError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from error


if __name__ == "__main__":
    main()
