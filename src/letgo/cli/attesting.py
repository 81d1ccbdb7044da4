"""Commands that bind a record to its files, and check it: attest, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from letgo.cli.common import NOT_PASSED, JsonFlag, QuietFlag, app, print_json, reporter


@app.command()
def attest(
    directory: Annotated[Path, Argument(help="A run directory.")],
    sign: Annotated[Path | None, Option("--sign", help="Private key (PEM, P-256) to sign the statement with.")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write an in-toto statement of what a run's record says, and of what was not tried."""
    from letgo.runs.results import SIGNATURE_FILE, read_result

    # A mistake is told before torch is loaded.
    read_result(directory)
    if sign is not None:
        from letgo.report.signature import check_private_key

        check_private_key(sign)
    from letgo.report.attestation import attest as run_attest
    from letgo.report.attestation import read_statement

    path = run_attest(directory, sign_with=sign, reporter=reporter(quiet))
    statement = read_statement(directory)
    if as_json:
        print_json(statement)
        return
    typer.echo(f"{path}  ({len(statement['subject'])} files)")
    if sign is not None:
        typer.echo(directory / SIGNATURE_FILE)
    typer.echo("What it does not show:")
    for sentence in statement["predicate"]["limits"]:
        typer.echo(f"- {sentence}")


@app.command()
def verify(
    directory: Annotated[Path, Argument(help="A run directory.")],
    key: Annotated[
        Path | None, Option("--key", help="The signer's public key (PEM): a signature is then needed.")
    ] = None,
    data: Annotated[bool, Option("--data", help="Check the rows, with the owner's key.")] = False,
    base: Annotated[bool, Option("--base", help="Check the model before unlearning.")] = False,
    rescore: Annotated[bool, Option("--rescore", help="Score the model anew, and compare.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Check a run's files against its record, its statement and its signature; exit code 3 names what was changed."""
    from letgo.runs.results import STATEMENT_FILE, is_run, read_result

    if not is_run(directory) and not (directory / STATEMENT_FILE).exists():
        # A mistake is told before torch is loaded.
        read_result(directory)
    from letgo.report.verification import verify as run_verify

    found = run_verify(directory, key=key, data=data, base=base, rescore=rescore, reporter=reporter(quiet))
    if as_json:
        print_json(found.as_dict())
    else:
        for part, what in found.checked.items():
            typer.echo(f"✓ {part}: {what}")
        for problem in found.problems:
            typer.echo(f"✗ {problem}")
        for what in found.unchecked:
            typer.echo(f"– not checked: {what}")
    if not found.passed:
        raise typer.Exit(NOT_PASSED)
