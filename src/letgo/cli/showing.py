"""Commands that show what there is: report, brief, push, list, show-config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from letgo.cli.common import JsonFlag, app, print_json, reporter, warn

if TYPE_CHECKING:
    from letgo.core.catalog import Catalog


@app.command()
def report(
    directories: Annotated[list[Path], Argument(help="Run directories, or folders of them.")],
    output: Annotated[Path, Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about runs."""
    from letgo.report import write_report

    typer.echo(write_report(directories, output, say=warn))


@app.command()
def brief(
    directories: Annotated[list[Path], Argument(help="Run directories, folders of them, or sweeps.")],
    output: Annotated[Path, Option("--output", "-o", help="brief.md; brief.html goes beside it.")] = Path("brief.md"),
) -> None:
    """Write one page for people who decide: what survived, what it cost, what to take."""
    from letgo.report.brief import write_brief

    for path in write_brief(directories, output, say=warn):
        typer.echo(path)


@app.command()
def view(
    directory: Annotated[
        Path | None, Argument(help="A folder of runs or sweeps, or a run; by default letgo-runs, else this folder.")
    ] = None,
    port: Annotated[int, Option("--port", min=0, max=65535, help="By default any that is free.")] = 0,
) -> None:
    """Show runs and sweeps on a local page, live while they are under way. Ctrl-C ends it."""
    import contextlib

    from letgo.report.viewer import Viewer

    usual = Path("letgo-runs")
    with Viewer(directory or (usual if usual.is_dir() else Path()), port) as viewer:
        typer.echo(f"{viewer.address}  (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            viewer.serve_forever()


@app.command()
def push(
    run: Annotated[Path, Argument(help="A run directory.")],
    repo: Annotated[str, Option("--repo", help="OWNER/NAME on the hub; made if it is not there.")],
    public: Annotated[bool, Option("--public", help="A repository made now can be seen by all.")] = False,
) -> None:
    """Push a run's model, tokenizer and card to the hub; its samples and settings stay here."""
    from letgo.report.publish import push_to_hub

    typer.echo(push_to_hub(run, repo, private=not public, reporter=reporter(False)))


@app.command("list")
def list_(
    kind: Annotated[str, Argument(help="optimizers, objectives, retain-losses, attacks, …")],
    pattern: Annotated[
        str, Argument(help="One name (or path of your own): all its settings. Or a pattern, such as '*adam*'.")
    ] = "*",
    as_json: JsonFlag = False,
) -> None:
    """List what there is, each with its source and how it stands to it; of one, its settings too."""
    catalog = _catalog(kind)
    if not set(pattern) & set("*?["):
        from letgo.core.explain import explained

        shown = explained(catalog, pattern, *_beside(kind, catalog, pattern))
        print_json([shown]) if as_json else _print_explained(shown)
        return
    records = [catalog.record(name) for name in catalog.names(pattern)]
    if as_json:
        print_json([record.as_dict() for record in records])
        return
    installed = catalog.installed() if pattern == "*" else {}
    width = max(map(len, [*(record.name for record in records), *installed]), default=0)
    for record in records:
        grade = f"[{record.as_dict()['grade']}] " if "grade" in record.as_dict() else ""
        typer.echo(f"{record.name:<{width}}  {grade}{record.summary}")
        note = f" ({record.note})" if record.note else ""
        typer.echo(f"{'':<{width}}  {record.faithfulness}: {record.source}{note}")
    for name, path in installed.items():
        typer.echo(f"{name:<{width}}  yours: {path}")
    if catalog.note:
        typer.echo(catalog.note)


def _beside(kind: str, catalog: Catalog[Any], name: str) -> tuple[tuple[str, ...] | None, list[Any]]:
    """The arguments of a thing that are not a user's to set (None for all), and other callables whose settings stand
    among its own."""
    if kind in ("metrics", "formats", "suites") and name in catalog:
        return None, []
    if kind in ("objectives", "retain-losses"):
        from letgo.objectives import NOT_SETTINGS, RETAIN_TERMS

        retain = getattr(catalog.record(name), "retain", "none")
        return (*NOT_SETTINGS, "data"), [] if retain == "none" else [RETAIN_TERMS.load(retain)]
    if kind == "attacks":
        from letgo.attacks.engine.spec import Options

        return ("victim",), [Options]
    return ("sample",), []


def _print_explained(shown: dict[str, Any]) -> None:
    import shutil
    import textwrap

    width = max(40, min(100, shutil.get_terminal_size().columns))

    def echo(text: str, indent: int) -> None:
        typer.echo(textwrap.fill(text, width, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2)))

    grade = f" [{shown['grade']}]" if shown.get("grade") else ""
    echo(f"{shown['name']}{grade}: {shown['summary']}", 0)
    note = f" ({shown['note']})" if shown["note"] else ""
    echo(f"{shown['faithfulness']}: {shown['source']}{note}", 2)
    if shown["aliases"]:
        echo(f"also called {', '.join(shown['aliases'])}", 2)
    if shown["file"]:
        typer.echo(f"  {shown['file']}")
    typer.echo(f"  {'settings:' if shown['settings'] else 'no settings'}")
    for setting in shown["settings"]:
        default = "must be given" if setting["default"] is None else f"= {setting['default'] or repr('')}"
        echo(f"{setting['name']} {default}   ({setting['type']})", 4)
        if setting["meaning"]:
            echo(setting["meaning"], 6)


@app.command()
def show_config(
    config: Annotated[Path | None, Argument(help="A run's YAML.")] = None,
    assignments: Annotated[list[str] | None, Option("--set", help="key=value; repeat.")] = None,
    of: Annotated[
        str | None, Option("--from", help="open-unlearning: translate its composed config, or its overrides (--set).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print what a run's YAML comes to, checked and resolved; or another tool's experiment as such a YAML."""
    from letgo.core.errors import UserError

    if of is not None:
        _show_translated(of, config, assignments or (), as_json)
        return
    if config is None:
        raise UserError("give a run's YAML: letgo show-config run.yaml")
    from letgo.training.settings import check_early

    check_early(config, assignments or ())
    from letgo.training.config import dump_config, read_config, resolved_settings

    settings = read_config(config, assignments or ())
    print_json(resolved_settings(settings)) if as_json else typer.echo(dump_config(settings), nl=False)


def _show_translated(tool: str, path: Path | None, overrides: Sequence[str], as_json: bool) -> None:
    from letgo.core.errors import UserError
    from letgo.training.open_unlearning import translate

    if tool != "open-unlearning":
        raise UserError(f"--from {tool!r}: letgo translates experiments of open-unlearning alone")
    made = translate(path, overrides)
    if as_json:
        print_json({"settings": made.settings, "left_out": [vars(left) for left in made.left_out]})
        return
    typer.echo(made.text(), nl=False)


def _catalog(kind: str) -> Catalog[Any]:
    import pkgutil

    from letgo.core.catalog import did_you_mean
    from letgo.core.errors import UserError

    catalogs = {
        "optimizers": "letgo.optim:OPTIMIZERS",
        "objectives": "letgo.objectives:METHODS",
        "retain-losses": "letgo.objectives:RETAIN_TERMS",
        "attacks": "letgo.attacks:ATTACKS",
        "benchmarks": "letgo.benchmarks:BENCHMARKS",
        "metrics": "letgo.metrics:METRICS",
        "analyses": "letgo.analysis:ANALYSES",
        "formats": "letgo.models.formats:FORMATS",
        "suites": "letgo.auditing.suites:SUITES",
    }
    if kind not in catalogs:
        raise UserError(f"unknown kind {kind!r}{did_you_mean(kind, catalogs)}; known: {', '.join(catalogs)}")
    catalog: Catalog[Any] = pkgutil.resolve_name(catalogs[kind])
    return catalog
