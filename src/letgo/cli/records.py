"""`letgo runs`: the record of every run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from letgo.cli.common import JsonFlag, app, print_json

if TYPE_CHECKING:
    from letgo.runs import Index, RunRecord

runs = typer.Typer(help="The record of every run: find, compare, tag.", no_args_is_help=True)
app.add_typer(runs, name="runs")

RootOption = Annotated[
    Path | None,
    Option("--root", help="The folder of runs; by default LETGO_RUNS, or the nearest one with an index."),
]
_SHOWN = ("name", "status", "verdict", "objective", "optimizer", "grade", "learning_rate", "seed", "data", "attacks")


@runs.command("list")
def list_runs(
    root: RootOption = None,
    where: Annotated[str | None, Option("--where", help="optimizer=fozo and survived(quantize4)")] = None,
    sort: Annotated[str | None, Option("--sort", help="Fields; '-kept(relearn),created'.")] = None,
    show: Annotated[str | None, Option("--show", help="More fields, such as forget_accuracy.")] = None,
    limit: Annotated[int | None, Option("--limit", min=1, help="At most so many.")] = None,
    as_csv: Annotated[bool, Option("--csv", help="Comma-separated values on stdout.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Name the runs that match, with what they were run with and what they survived."""
    from letgo.core.files import csv_text
    from letgo.runs.query import MISSING, check_field, parse_field

    index = _index(root)
    records = index.select(where, sort)[:limit]
    extra = [parse_field(name.strip()) for name in (show or "").split(",") if name.strip()]
    for field in extra:
        check_field(field, records)
    values = []
    for record in records:
        shown = {str(field): field.of(record) for field in extra}
        values.append({name: None if value is MISSING else value for name, value in shown.items()})
    if as_json or as_csv:
        rows = [record.fields | record.kept | more for record, more in zip(records, values, strict=True)]
        if not as_csv:
            print_json(rows)
            return
        flat = [{k: " ".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        typer.echo(csv_text(flat), nl=False)
        return
    _print_table(records, [str(field) for field in extra], values)
    if gone := index.gone():
        typer.echo(f"{len(gone)} recorded runs are no longer there ({gone[0]}, …): letgo runs rebuild", err=True)


@runs.command("show")
def show_run(
    run: Annotated[str, Argument(help="Path, directory name, or the beginning of an id.")],
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show one run: its settings, cost, results and what it survived."""
    from letgo.cli.common import print_run
    from letgo.runs.results import read_result

    index = _index(root)
    record = index.find(run)
    result = read_result(index.root / record.path)
    if as_json:
        print_json({"record": record.fields, "result": result})
        return
    for key, value in record.fields.items():
        if value not in (None, [], ""):
            typer.echo(f"{key:<14} {_shown(', '.join(value) if isinstance(value, list) else value)}")
    print_run(result, index.root / record.path)


@runs.command("tag")
def tag_run(
    run: Annotated[str, Argument(help="Path, directory name, or the beginning of an id.")],
    tags: Annotated[list[str], Argument(help="Words to add.")],
    remove: Annotated[bool, Option("--remove", help="Take them away instead.")] = False,
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Add words to a run, or take them away. They lie in the run's own directory."""
    record = _index(root).tag(run, () if remove else tags, tags if remove else ())
    print_json(record.fields) if as_json else typer.echo(f"{record.name}: {', '.join(record.tags) or 'no tags'}")


@runs.command("diff")
def diff_runs(
    first: Annotated[str, Argument(help="A run.")],
    second: Annotated[str, Argument(help="Another.")],
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """What differs between two runs: settings, versions, metrics, and what they survived."""
    from letgo.runs.record import difference

    index = _index(root)
    before, after = index.find(first), index.find(second)
    rows = difference(before, after)
    if as_json:
        print_json([{"field": name, before.path: a, after.path: b} for name, a, b in rows])
        return
    if not rows:
        typer.echo("no difference")
        return
    width = max(len(name) for name, _, _ in rows)
    for name, a, b in (("", before.name, after.name), *rows):
        typer.echo(f"{name:<{width}}  {_shown(a)}  |  {_shown(b)}")


@runs.command("convert")
def convert_run(
    run: Annotated[str, Argument(help="Path, directory name, or the beginning of an id.")],
    tool: Annotated[
        str, Option("--to", help="open-unlearning (TOFU_EVAL.json, MUSE_EVAL.json), or lm-eval (results_*.json).")
    ],
    output: Annotated[Path, Option("--output", "-o", help="The folder that the file goes into.")] = Path(),
    stage: Annotated[str, Option("--stage", help="Whose scores: after, before, or a reference's.")] = "after",
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a run's or an evaluation's scores as another tool's file."""
    from letgo.report.score_files import write_scores
    from letgo.runs.results import is_run

    directory = Path(run)
    if not is_run(directory):
        index = _index(root)
        directory = index.root / index.find(run).path
    path = write_scores(directory, tool, output, stage=stage)
    print_json({"file": str(path)}) if as_json else typer.echo(path)


@runs.command("rebuild")
def rebuild(root: Annotated[Path | None, Argument(help="Folder of runs.")] = None, as_json: JsonFlag = False) -> None:
    """Make the index again from the run directories alone."""
    from letgo.runs import Index

    index = Index(root) if root else _index(None)
    count, problems = index.rebuild()
    if as_json:
        print_json({"index": str(index.file), "runs": count, "problems": problems})
        return
    typer.echo(f"{index.file}: {count} runs")
    for problem in problems:
        typer.echo(f"not recorded: {problem}", err=True)


def _index(root: Path | None) -> Index:
    from letgo.core.errors import UserError
    from letgo.runs import Index, root_of
    from letgo.runs.index import INDEX_FILE

    if root is not None and not root.is_dir():
        raise UserError(f"no such folder: {root}")
    usual = Path("letgo-runs")
    root = root or root_of(Path.cwd()) or (usual if (usual / INDEX_FILE).is_file() else None)
    if root is None:
        raise UserError(
            f"no index of runs ({INDEX_FILE}) in this folder or above it\n"
            "  give the folder that your runs lie in with --root, or make an index: letgo runs rebuild FOLDER"
        )
    return Index(root)


def _print_table(records: list[RunRecord], extra: list[str], values: list[dict[str, Any]]) -> None:
    from letgo.report.numbers import kept_text
    from letgo.report.table import OUTCOMES
    from letgo.report.terminal import print_columns

    if not records:
        typer.echo("no run matches")
        return
    shown = {
        name.replace("_", " "): [_shown((record.fields | {"name": record.path})[name]) for record in records]
        for name in _SHOWN[:-1]
    }
    shown["attacks"] = [
        "\n".join(_shown(f"{OUTCOMES[a.outcome][0]} {a.label} {kept_text(a.kept)}") for a in record.attacks)
        for record in records
    ]
    shown |= {name.replace("_", " "): [_shown(more[name]) for more in values] for name in extra}
    # What was asked for goes last, but for what tells the runs apart and how they ended.
    asked = [name.replace("_", " ") for name in reversed(extra)]
    print_columns(shown, [*asked, "optimizer", "attacks", "verdict", "name"])


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
