"""`letgo sweep`: grids of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from letgo.cli.common import JsonFlag, QuietFlag, app, print_json, reporter

if TYPE_CHECKING:
    from collections.abc import Collection

    from letgo.runs.sweeps import Sweep
    from letgo.sweep.grid import Grid, SweepPart


@app.command()
def sweep(
    grid: Annotated[Path, Argument(help="The grid's YAML.")],
    output: Annotated[Path | None, Option("--output", "-o", help="In place of its output_dir.")] = None,
    workers: Annotated[int | None, Option("--workers", help="Processes, in place of its own number.")] = None,
    backend: Annotated[str | None, Option("--backend", help="local or ray, in place of its own.")] = None,
    ray_address: Annotated[
        str | None,
        Option("--ray-address", help="HOST:PORT, auto or local; by default RAY_ADDRESS, else local."),
    ] = None,
    cells: Annotated[
        str | None, Option("--cells", help="Run one part, such as 3/8; the table is whole once all have run.")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Go on with what lies in the output folder.")] = False,
    retry_failed: Annotated[bool, Option("--retry-failed", help="Try failed cells again.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="List the cells and what they would take.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Run a grid of objectives, optimizers, seeds …, tuned to matched forgetting, and attack each."""
    from letgo.training.settings import check_grid_early

    check_grid_early(grid)
    from letgo.sweep.execute import sweep as run_sweep
    from letgo.sweep.grid import parse_part, read_grid

    part = parse_part(cells) if cells else None
    read = read_grid(grid, output=output, workers=workers, backend=backend, ray_address=ray_address)
    mine = part.cells(read) if part else {cell.name for cell in read.cells}
    if dry_run:
        _list_cells(read, mine, as_json)
        return
    state = run_sweep(read, resume=resume, retry_failed=retry_failed, part=part, reporter=reporter(quiet))
    if as_json:
        print_json(state)
    elif part:
        _print_part(state, read, part, mine)
    else:
        _print_table(state, read)
    if any(cell.name in mine for cell in state.cells("failed")):
        raise typer.Exit(1)


def _list_cells(grid: Grid, mine: Collection[str], as_json: bool) -> None:
    from letgo.core.sizes import size
    from letgo.report.numbers import duration
    from letgo.sweep.cost import cost

    rows, workers = [row for row in cost(grid) if row["cell"] in mine], grid.workers or 1
    runs, seconds = (sum(row[key] for row in rows) for key in ("runs", "seconds"))
    if as_json:
        print_json({"cells": rows, "runs": runs, "seconds": seconds / workers, "workers": workers})
        return
    width = max((len(row["cell"]) for row in rows), default=0)
    for row in rows:
        memory = ", ".join(f"{name} {size(count)}" for name, count in row["memory_bytes"].items())
        plural = "run" if row["runs"] == 1 else "runs"
        typer.echo(f"{row['cell']:<{width}}  {row['runs']:>3} {plural:<4}  {memory}  {duration(row['seconds'])}")
    each = f", {workers} at a time" if workers > 1 else ""
    typer.echo(
        f"{len(rows)} cells, {runs} runs{each}: about {duration(seconds / workers)}, and "
        f"{len(grid.attacks)} attacks on each cell beside that"
    )


def _print_part(state: Sweep, grid: Grid, part: SweepPart, mine: Collection[str]) -> None:
    cells = [cell for group in state.groups for cell in group.cells if cell.name in mine]
    statuses = [cell.status for cell in cells]
    counts = {s: statuses.count(s) for s in ("finished", "collapsed", "failed", "pending") if s in statuses}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    typer.echo(f"cells {part}: {summary or 'none: there are fewer cells, or tuned groups, than parts'}")
    for cell in (cell for cell in cells if cell.status == "failed"):
        typer.echo(f"failed: {cell.name} ({cell.reason})")
    typer.echo(f"once all parts have run: letgo sweep {grid.source} --output {grid.output} --resume")


def _print_table(state: Sweep, grid: Grid) -> None:
    from statistics import fmean

    from letgo.report.table import attack_labels, columns, short_labels
    from letgo.report.terminal import print_columns
    from letgo.sweep.table import lines

    rows = lines(state, grid.output)
    results = [run.result for line in rows for run in line.runs]
    metrics, labels = columns(results) if rows else [], attack_labels(results)
    shown = {
        "group": [line.name + (" *" if line.reached is False else "") for line in rows],
        "seeds": [str(len(line.runs)) for line in rows],
    }
    for column in metrics:
        means = [line.metric(column.key) for line in rows]
        shown[column.title] = ["–" if m is None else f"{m[0]:.3g}\n{m[1]:.2g}–{m[2]:.2g}" for m in means]
    short = {label: f"kept: {name}" for label, name in short_labels(labels).items()}
    for label in labels:
        each = [[a.kept for a in line.attacks_of(label) if a.kept is not None] for line in rows]
        shown[short[label]] = [f"{fmean(kept):.0%}\nworst {min(kept):.0%}" if kept else "–" for kept in each]
    forget = [column.title for column in metrics if column.key.startswith("forget_")]
    print_columns(shown, [*reversed(short.values()), *reversed(forget), "group"])
    if labels:
        typer.echo(f"attacks: {'; '.join(labels)}")
    if state.unreached():
        typer.echo(f"* never reached {state.target}" + (f" with {state.bound}" if state.bound else ""))
    for status in ("collapsed", "failed", "pending"):
        for cell in state.cells(status):
            typer.echo(f"{status}: {cell.name}" + (f" ({cell.reason})" if cell.reason else ""))
    typer.echo(f"table: {grid.output / 'table.csv'}   runs: {grid.output / 'runs'}")
