"""`python -m letgo.evidence`: settle, collect, page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from letgo.core.errors import LetgoError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The papers' claims held against runs of our own.")
AttacksOption = Annotated[Path | None, typer.Option("--attacks", help="YAML with attacks, and held_back.")]


@app.command()
def settle(
    tuned: Annotated[Path, typer.Argument(help="Folder of the tuned sweep.")],
    attacks: Annotated[Path, typer.Option("--attacks", help="YAML with attacks, and held_back.")],
    seeds: Annotated[str, typer.Option("--seeds", help="Of the evidence, such as 0,1,2; none of tuning's.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The grid that is written.")],
    first: Annotated[str, typer.Option("--first", help="Optimizers that are run before the others.")] = "",
) -> None:
    """Write the grid of what was chosen in a tuned sweep."""
    from letgo.evidence.settle import settle as make

    chosen, order = [int(one) for one in seeds.split(",")], [one for one in first.split(",") if one]
    missed = make(tuned, attacks, seeds=chosen, output=output, first=order)
    typer.echo(f"{output}; did not reach the target: {', '.join(missed) or 'none'}", err=True)


@app.command()
def collect(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The result file.")],
    attacks: AttacksOption = None,
    kind: Annotated[str, typer.Option("--kind", help="ladder or ideas.")] = "ladder",
    control: Annotated[list[str] | None, typer.Option("--control", help="OPTIMIZER@RATE of a control.")] = None,
    supersedes: Annotated[bool, typer.Option("--supersedes", help="Stands for groups of the same name.")] = False,
) -> None:
    """Read a sweep's runs into a result file."""
    from letgo.evidence.collect import collect as read
    from letgo.evidence.records import write_record

    chosen: Literal["ladder", "ideas"] = "ideas" if kind == "ideas" else "ladder"
    record = read(folder, attacks=attacks, kind=chosen, supersedes=supersedes, controls=control or [])
    write_record(output, record)
    cells = sum(len(group.cells) + len(group.trials) for group in record.groups)
    typer.echo(f"{output}: {len(record.groups)} groups, {cells} runs", err=True)


@app.command()
def page(
    results: Annotated[Path, typer.Argument(help="Folder of result files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page; drawings go beside it.")],
) -> None:
    """Write the page and its drawings from the result files."""
    from letgo.evidence.page import write_page

    write_page(results, output)
    typer.echo(str(output), err=True)


def main() -> None:
    try:
        app(standalone_mode=True)
    except LetgoError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
