"""letgo audit: a model that anybody made, attacked from cheap to dear."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from letgo.cli.common import JsonFlag, QuietFlag, app, passed_on, print_json, print_run, reporter
from letgo.cli.running import TrustFlag


@app.command()
def audit(
    model: Annotated[str, Option("--model", help="The model to audit: directory, adapter, .gguf file or hub id.")],
    output: Annotated[Path, Option("--output", "-o", help="The audit's directory.")],
    base: Annotated[str | None, Option("--base", help="The model before unlearning; without it no shares.")] = None,
    benchmark: Annotated[str | None, Option("--benchmark", help="NAME[:k=v,…]: what it is judged by.")] = None,
    forget: Annotated[str | None, Option("--forget", help="Or your own rows: what was to be forgotten.")] = None,
    retain: Annotated[str | None, Option("--retain", help="Likewise: what was to be kept.")] = None,
    evaluate: Annotated[str | None, Option("--evaluate", help="Likewise: the forget set in other words.")] = None,
    control: Annotated[str | None, Option("--control", help="Likewise: facts that no model knew.")] = None,
    retrained: Annotated[str | None, Option("--retrained", help="The model that never saw the forget set.")] = None,
    suite: Annotated[str, Option("--suite", help="quick, standard or thorough.")] = "standard",
    attacks: Annotated[list[str] | None, Option("--attack", help="One more, NAME[:k=v,…]; repeat.")] = None,
    budget: Annotated[str | None, Option("--budget", help="30m, 2h: leaves the dearest attacks out.")] = None,
    threshold: Annotated[float, Option("--threshold", help="The least share of the forgetting kept to survive.")] = 0.5,
    limit: Annotated[int | None, Option("--limit", help="At most so many items of each set.")] = None,
    dtype: Annotated[str, Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    template: Annotated[str | None, Option("--template", help="How questions become prompts.")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on with an audit that was cut off.")] = False,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Audit a model that anybody made: what it still tells, and what attacks bring back."""
    options = passed_on(locals(), "model") | {"attacks": attacks or []}
    from letgo.training.settings import check_attacks_early

    check_attacks_early(attacks or ())
    from letgo.audit.audit import REPORT
    from letgo.audit.audit import audit as run_audit

    result = run_audit(model, reporter=reporter(quiet), **options)
    if as_json:
        print_json(result)
        return
    print_run(result, output)
    typer.echo(f"record: {output}\npage:   {output / REPORT}")
