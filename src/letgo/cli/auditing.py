"""letgo audit and letgo check: a model that anybody made, attacked from cheap to dear; and a gate on any record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from letgo.cli.common import (
    NOT_PASSED,
    SERVER_FLAGS,
    AtOnceFlag,
    JsonFlag,
    KeyFlag,
    QuietFlag,
    ServerFlag,
    TokenizerFlag,
    WeightsFlag,
    app,
    connected,
    passed_on,
    print_json,
    print_run,
    reporter,
)
from letgo.cli.running import TrustFlag

if TYPE_CHECKING:
    from letgo.runs.results import Result

RequireOption = Annotated[
    str | None, Option("--require", help="'forgotten and survived(*) and retain >= 0.95*before'; else exit code 3.")
]
JunitOption = Annotated[Path | None, Option("--junit", help="Write the gate's clauses as JUnit XML.")]


@app.command()
def audit(
    model: Annotated[str, Option("--model", help="A directory, adapter, .gguf file, hub id; or its name on --server.")],
    output: Annotated[Path, Option("--output", "-o", help="The audit's directory.")],
    base: Annotated[str | None, Option("--base", help="The model before unlearning; without it no shares.")] = None,
    benchmark: Annotated[str | None, Option("--benchmark", help="NAME[:k=v,…]: what it is judged by.")] = None,
    forget: Annotated[str | None, Option("--forget", help="Or your own rows: what was to be forgotten.")] = None,
    retain: Annotated[str | None, Option("--retain", help="Likewise: what was to be kept.")] = None,
    evaluate: Annotated[str | None, Option("--evaluate", help="Likewise: the forget set in other words.")] = None,
    control: Annotated[str | None, Option("--control", help="Likewise: facts that no model knew.")] = None,
    retrained: Annotated[str | None, Option("--retrained", help="The model that never saw the forget set.")] = None,
    suite: Annotated[str, Option("--suite", help="quick, standard or thorough; see letgo list suites.")] = "standard",
    attacks: Annotated[list[str] | None, Option("--attack", help="One more, NAME[:k=v,…]; repeat.")] = None,
    budget: Annotated[str | None, Option("--budget", help="30m, 2h: leaves the dearest attacks out.")] = None,
    threshold: Annotated[float, Option("--threshold", help="The least share of the forgetting kept to survive.")] = 0.5,
    require: RequireOption = None,
    junit: JunitOption = None,
    limit: Annotated[int | None, Option("--limit", help="At most so many items of each set.")] = None,
    dtype: Annotated[str, Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    template: Annotated[str | None, Option("--template", help="How questions become prompts.")] = None,
    server: ServerFlag = None,
    base_server: Annotated[str | None, Option("--base-server", help="Where the base is served, if elsewhere.")] = None,
    tokenizer: TokenizerFlag = None,
    key_env: KeyFlag = None,
    at_once: AtOnceFlag = None,
    weights: WeightsFlag = None,
    resume: Annotated[bool, Option("--resume", help="Go on with an audit that was cut off.")] = False,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Audit a model that anybody made: what it still tells, and what attacks bring back."""
    flags = dict(locals())
    options = passed_on(flags, "model", "junit", "base_server", *SERVER_FLAGS) | {"attacks": attacks or []}
    _check_gate(require, junit)
    from letgo.auditing.early import check_asked, seconds_asked, tries_asked
    from letgo.training.settings import check_benchmarks_early

    given = {"benchmark": benchmark, "forget": forget, "retain": retain, "evaluate": evaluate, "control": control}
    check_asked([model, base], {name for name, value in given.items() if value is not None})
    check_benchmarks_early([benchmark])
    tries_asked(suite, attacks or ())
    seconds_asked(budget)
    audited = connected(model, flags)
    if server is not None:
        options["base"] = None if base is None else connected(base, flags, server=base_server)
        options["retrained"] = None if retrained is None else connected(retrained, flags)
    from letgo.auditing.audit import REPORT
    from letgo.auditing.audit import audit as run_audit

    result = run_audit(audited, reporter=reporter(quiet), **options)
    if not as_json:
        print_run(result, output)
        typer.echo(f"record: {output}\npage:   {output / REPORT}")
    _pass(result, require, junit, as_json)


@app.command()
def check(
    run: Annotated[Path, Argument(help="The directory of a run or an audit.")],
    require: Annotated[str, Option("--require", help="'forgotten and survived(*) and subjects_revealed <= 0'")],
    junit: JunitOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Hold a record to what is required of it: exit code 0 if it passes, 3 if it does not."""
    _check_gate(require, junit)
    from letgo.runs.results import read_result

    _pass(read_result(run), require, junit, as_json, alone=True)


def _check_gate(require: str | None, junit: Path | None) -> None:
    """Raise a `UserError` for an expression that is none, before anything is loaded."""
    from letgo.core.errors import UserError

    if require is None:
        if junit is not None:
            raise UserError("--junit writes what came of --require: give both")
        return
    from letgo.auditing.early import requirement

    requirement(require)


def _pass(result: Result, require: str | None, junit: Path | None, as_json: bool, *, alone: bool = False) -> None:
    """Print the record and the gate, and end with 3 where it is not passed."""
    if require is None:
        if as_json:
            print_json({"result": result, "gate": None})
        return
    from letgo.auditing.gate import check as check_gate
    from letgo.auditing.junit import write_junit

    gate = check_gate(result, require)
    if junit is not None:
        write_junit(junit, gate, result)
    if as_json:
        print_json(gate.as_dict() if alone else {"result": result, "gate": gate.as_dict()})
    else:
        typer.echo(gate.text())
    if not gate.passed:
        raise typer.Exit(NOT_PASSED)
