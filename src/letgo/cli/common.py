"""What every subcommand shares: the application, its flags, and how results are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

if TYPE_CHECKING:
    from letgo.core.progress import Reporter
    from letgo.runs.results import Result

app = typer.Typer(
    name="letgo",
    help="Make a language model forget what it must not know, and prove that it stays forgotten.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from letgo.core.environment import versions

        typer.echo(f"letgo {versions(('letgo',))['letgo']}")
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version, and nothing else.")
    ] = False,
) -> None:
    pass


JsonFlag = Annotated[bool, Option("--json", help="Print one JSON document on stdout, and nothing else.")]
QuietFlag = Annotated[bool, Option("--quiet", "-q", help="No progress.")]
NOT_PASSED = 3
"""The exit code of a check that was asked for and is not passed."""

ServerFlag = Annotated[
    str | None, Option("--server", help="Ask an OpenAI-compatible server: http://HOST:PORT; see docs/served.md.")
]
TokenizerFlag = Annotated[
    str | None, Option("--tokenizer", help="Of a served model: directory or hub id; for log-probabilities.")
]
KeyFlag = Annotated[str | None, Option("--key-env", help="The environment variable that holds the server's key.")]
AtOnceFlag = Annotated[int | None, Option("--at-once", help="Requests to a server at a time; 8 by default.")]
WeightsFlag = Annotated[
    str | None, Option("--weights", help="Of a served model, where they are at hand: compare 32 items with torch.")
]
SERVER_FLAGS = ("server", "tokenizer", "key_env", "at_once")


def connected(model: str | None, flags: dict[str, Any], *, server: str | None = None) -> Any:
    """The model that a command names: behind the server where one is named, else by its own name.

    Args:
        flags: the command's options, with `SERVER_FLAGS` among them.
        server: of this model, where it is another one than `--server`.
    """
    from letgo.core.errors import UserError

    if flags["server"] is None:
        if given := [name for name in SERVER_FLAGS[1:] if flags[name] is not None]:
            raise UserError(f"--{given[0].replace('_', '-')} is of a server: give --server URL too")
        return model
    from letgo.scoring.server.served import connect

    served = connect(
        server or flags["server"],
        model,
        tokenizer=flags["tokenizer"],
        key_env=flags["key_env"],
        at_once=flags["at_once"] or 8,
    )
    warn(served.describe())
    return served


def passed_on(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """A command's options that its library function takes by the same names: all but `names`, and lists not given."""
    apart = ("as_json", "quiet", *names)
    return {name: value for name, value in given.items() if name not in apart and value != []}


def reporter(quiet: bool) -> Reporter:
    """Where a command reports its progress. To be called when its imports are done and its work begins."""
    from letgo.core.environment import freeze_imports
    from letgo.core.progress import Live, Quiet, quiet_libraries

    quiet_libraries()
    freeze_imports()
    return Quiet() if quiet else Live()


def print_run(result: Result, directory: Path) -> None:
    from rich.console import Console

    from letgo.report.load import LoadedRun
    from letgo.report.terminal import print_answers, print_result

    console, run = Console(), LoadedRun(directory, result)
    print_answers(run.samples(), console, limit=4)
    print_result(result, console)
    for problem in run.problems:
        warn(f"left out: {problem}")


def warn(text: str) -> None:
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """Print plain values, and results or other pydantic models among them."""

    from letgo.core.terminal import escaped

    def as_plain(model: Any) -> Any:
        return model.model_dump(mode="json", by_alias=True)

    # JSON has no NaN: what is none in a record comes out as null.
    plain = json.loads(json.dumps(value, default=as_plain), parse_constant=lambda name: None)
    typer.echo(escaped(json.dumps(plain, ensure_ascii=False, indent=2)))
