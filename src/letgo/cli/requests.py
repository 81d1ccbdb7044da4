"""`letgo requests`: the register of erasure requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from letgo.cli.common import JsonFlag, QuietFlag, app, print_json, reporter

if TYPE_CHECKING:
    from letgo.runs.register import Request

requests = typer.Typer(
    help="A register of erasure requests: who asked, by when, and what became of it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(requests, name="requests")

RegisterOption = Annotated[Path, Option("--register", help="The register's file.")]
REGISTER = Path("requests.jsonl")


@requests.command("add")
def add_request(
    id: Annotated[str, Argument(help="The request's id: letters, digits and . _ -")],
    subjects: Annotated[list[str], Option("--subject", help="As the data's rows name it (group); repeat.")],
    received: Annotated[str | None, Option("--received", help="A date such as 2026-11-30; today by default.")] = None,
    deadline: Annotated[str | None, Option("--deadline", help="A date; a month later by default.")] = None,
    basis: Annotated[str, Option("--basis", help="Why, such as 'GDPR Art. 17(1)(b)'; no content.")] = "",
    register: RegisterOption = REGISTER,
    as_json: JsonFlag = False,
) -> None:
    """Write a request into the register. It holds names, dates and outcomes, and nothing to be forgotten."""
    from letgo.runs.register import add_request as add
    from letgo.runs.register import new_request

    request = new_request(id, subjects, received=received, deadline=deadline, basis=basis)
    add(register, request)
    if as_json:
        print_json(request)
        return
    typer.echo(f"{register}: {request.id}, due by {request.deadline}")


@requests.command("list")
def list_requests(register: RegisterOption = REGISTER, as_json: JsonFlag = False) -> None:
    """Show all requests, the most urgent first, and by how many days they are late."""
    from letgo.core.errors import UserError
    from letgo.runs.register import read_register, today

    if not register.exists():
        raise UserError(f"no register {register}: `letgo requests add` makes one; or name it with --register")
    known = sorted(read_register(register), key=lambda request: (request.state == "done", request.deadline))
    rows = [_row(request, request.overdue(today())) for request in known]
    if as_json:
        print_json(rows)
        return
    _print_table(rows)
    late = [row["id"] for row in rows if row["overdue"]]
    if late:
        typer.echo(f"overdue: {', '.join(late)}", err=True)


def _row(request: Request, late: int) -> dict[str, Any]:
    plain: dict[str, Any] = request.model_dump(mode="json", exclude={"schema_version"})
    return plain | {"state": request.state, "overdue": late}


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        typer.echo("no requests")
        return
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("id", "subjects", "received", "deadline", "state", "overdue", "basis"):
        table.add_column(name, overflow="fold")
    for row in rows:
        late = f"{row['overdue']} day{'s' if row['overdue'] > 1 else ''} late" if row["overdue"] else ""
        cells = (
            row["id"],
            ", ".join(row["subjects"]),
            row["received"],
            row["deadline"],
            row["state"],
            late,
            row["basis"],
        )
        table.add_row(*map(Text, cells), style="bold red" if late else None)
    Console().print(table)


@requests.command("run")
def run_requests(
    data: Annotated[str, Option("--data", help="Rows whose 'group' names the subject.")],
    output: Annotated[Path, Option("--output", "-o", help="A new folder for the sets and the run.")],
    config: Annotated[Path | None, Argument(help="A run's YAML, without data.")] = None,
    model: Annotated[str | None, Option("--model", help="Directory, .gguf file, hub id, or built-in name.")] = None,
    ids: Annotated[
        list[str] | None, Option("--request", help="Only these ids; repeat. All open ones by default.")
    ] = None,
    retain: Annotated[str | None, Option("--retain", help="Rows to keep, not the rest of the data.")] = None,
    everyone: Annotated[bool, Option("--all", help="Requests that are done on this model too.")] = False,
    attacks: Annotated[list[str] | None, Option("--attack", help="NAME[:k=v,…] on the result; repeat.")] = None,
    assignments: Annotated[list[str] | None, Option("--set", help="key=value for any key of the YAML; repeat.")] = None,
    register: RegisterOption = REGISTER,
    root: Annotated[Path | None, Option("--root", help="Folder of runs, for the models that are still to do.")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on with what was cut off in the output.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Make one forget set of all open requests, unlearn it, and write what became of each subject into the register."""
    from letgo.runs.register import check_requests
    from letgo.training.settings import check_early

    check_requests(register, ids or ())
    check_early(config, assignments or (), model=model, attacks=attacks)
    from letgo.training.config import read_config
    from letgo.training.erasure import run_requests as run

    settings = read_config(config, assignments or (), model=model, attacks=attacks)
    erased = run(
        register,
        data,
        output,
        settings,
        requests=ids or (),
        retain=retain,
        everyone=everyone,
        resume=resume,
        root=root,
        reporter=reporter(quiet),
    )
    if as_json:
        found = [_row(request, 0) for request in erased.requests]
        print_json({"run": str(erased.directory), "requests": found, "to_do": erased.to_do})
        return
    from letgo.cli.common import print_run

    print_run(erased.result, erased.directory)
    for request in erased.requests:
        typer.echo(f"{request.id}: {request.state}")
        for subject, outcome in request.outcomes[-1].subjects.items():
            told = "not asked" if outcome.revealed is None else "revealed" if outcome.revealed else "not revealed"
            by = f" ({'; '.join(outcome.by)})" if outcome.by else ""
            typer.echo(f"  {subject}: {told}{by}")
    for model_left in erased.to_do:
        typer.echo(f"still to do on {model_left}")
    if not erased.to_do:
        typer.echo(f"no other model of the same base in the index of runs ({erased.root or 'there is none'})")


@requests.command("letter")
def write_letter(
    id: Annotated[str, Argument(help="The request's id.")],
    output: Annotated[Path | None, Option("--output", "-o", help="An .html or .md file; letter-ID.html.")] = None,
    register: RegisterOption = REGISTER,
) -> None:
    """Write a page for the person who asked: what was done, what was found, and what that does not show."""
    from letgo.report.letter import write_letter as write

    typer.echo(write(register, id, output or Path(f"letter-{id}.html")))
