"""Commands that run a model or write it: demo, unlearn, attack, eval, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from letgo.cli.common import (
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

TrustFlag = Annotated[
    bool, Option("--trust-remote-code", help="Let the model's own Python code run, and code that a run's record names.")
]


@app.command()
def demo(
    tiny: Annotated[bool, Option("--tiny", help="The shipped tiny model: no download, under a minute.")] = False,
    model: Annotated[str | None, Option("--model", help="Model directory or hub id instead of the demo's own.")] = None,
    output: Annotated[Path, Option("--output", "-o", help="Folder for the run and report.html.")] = Path("letgo-runs"),
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Unlearn something real from a real model, attack the result, and show what came of it."""
    from letgo.cli.demo import demo as run_demo

    shown = run_demo(tiny=tiny, model=model, output=output, reporter=reporter(quiet))
    if as_json:
        print_json(shown.run.result)
        return
    print_run(shown.run.result, shown.run.directory)
    typer.echo(f"run:    {shown.run.directory}\nreport: {shown.report}")


@app.command()
def unlearn(
    config: Annotated[Path | None, Argument(help="A run's YAML; flags go over it.")] = None,
    model: Annotated[str | None, Option("--model", help="Directory, .gguf file, hub id, or built-in name.")] = None,
    benchmark: Annotated[str | None, Option("--benchmark", help="NAME[:k=v,…]: sets data and scores.")] = None,
    forget: Annotated[str | None, Option("--forget", help="Forget set: file or hub:OWNER/NAME:CONFIG:SPLIT.")] = None,
    retain: Annotated[str | None, Option("--retain", help="Retain set: likewise.")] = None,
    evaluate: Annotated[
        str | None, Option("--evaluate", help="Likewise: the forget set in other words, to score.")
    ] = None,
    control: Annotated[str | None, Option("--control", help="Likewise: facts that no model knew, to score.")] = None,
    objective: Annotated[str | None, Option("--objective", help="NAME[:k=v,…]; see letgo list.")] = None,
    optimizer: Annotated[str | None, Option("--optimizer", help="NAME[:k=v,…]; see letgo list.")] = None,
    learning_rate: Annotated[float | None, Option("--learning-rate", "--lr", help="η.")] = None,
    max_steps: Annotated[int | None, Option("--steps", help="Optimizer steps, instead of epochs.")] = None,
    num_train_epochs: Annotated[float | None, Option("--epochs", help="Passes over the forget set.")] = None,
    per_device_train_batch_size: Annotated[
        int | None, Option("--batch-size", help="Forget rows a step and device.")
    ] = None,
    seed: Annotated[int | None, Option("--seed", help="Data order and noise.")] = None,
    attacks: Annotated[list[str] | None, Option("--attack", help="NAME[:k=v,…] on the result; repeat.")] = None,
    output_dir: Annotated[str | None, Option("--output", "-o", help="The run directory.")] = None,
    assignments: Annotated[list[str] | None, Option("--set", help="key=value for any other key; repeat.")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Unlearn a forget set from a model: the main job."""
    flags = passed_on(locals(), "config", "assignments", "resume")
    from letgo.training.settings import check_early

    check_early(config, assignments or (), **flags)
    from letgo.training.config import read_config
    from letgo.training.requests import sequence_of, unlearn_sequence
    from letgo.training.unlearn import unlearn as run_unlearn

    settings = read_config(config, assignments or (), **flags)
    if sequence_of(settings) is not None:
        results = unlearn_sequence(settings, resume=resume, reporter=reporter(quiet))
        if as_json:
            print_json({str(directory): result for directory, result in results.items()})
            return
        for directory, result in results.items():
            typer.echo(directory)
            print_run(result, directory)
        return
    run = run_unlearn(settings, resume=resume, reporter=reporter(quiet))
    print_json(run.result) if as_json else print_run(run.result, run.directory)


@app.command()
def attack(
    run: Annotated[
        str,
        Argument(help="A run directory; or a model (with --server its name there), with --benchmark and --original."),
    ],
    attacks: Annotated[
        list[str],
        Option(
            "--attack",
            help="NAME[:k=v,…][,seeds=N][,threshold=SHARE][,search=N[,bound=SHARE]]; or a chain, 'NAME then NAME'; "
            "repeat.",
        ),
    ],
    benchmark: Annotated[str | None, Option("--benchmark", help="For a bare model: judged by NAME[:k=v,…].")] = None,
    original: Annotated[str | None, Option("--original", help="The model before unlearning; a run knows it.")] = None,
    limit: Annotated[int | None, Option("--limit", help="For a bare model: at most so many items of each set.")] = None,
    dtype: Annotated[str | None, Option("--dtype", help="For a bare model: the weights' type.")] = None,
    seeds: Annotated[int | None, Option("--seeds", help="Of attacks with anything random that name none.")] = None,
    threshold: Annotated[float, Option("--threshold", help="The least share of the forgetting kept to survive.")] = 0.5,
    template: Annotated[
        str | None, Option("--template", help="For a bare model: how questions become prompts.")
    ] = None,
    server: ServerFlag = None,
    original_server: Annotated[
        str | None, Option("--original-server", help="Where the original is served, if elsewhere.")
    ] = None,
    retrained: Annotated[
        str | None, Option("--retrained", help="With --server: the model that never saw the forget set, by its name.")
    ] = None,
    tokenizer: TokenizerFlag = None,
    key_env: KeyFlag = None,
    at_once: AtOnceFlag = None,
    weights: WeightsFlag = None,
    output: Annotated[Path | None, Option("--output", "-o", help="Write the result here, not into the run.")] = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Attack a saved model, and record what came back. `letgo list attacks` names them all."""
    given = dict(locals())
    options = passed_on(given, "run", "attacks", "original_server", *SERVER_FLAGS)
    from letgo.core.errors import UserError
    from letgo.training.settings import check_attacks_early, check_benchmarks_early

    check_attacks_early(attacks)
    check_benchmarks_early([benchmark])
    model = connected(run, given)
    if server is not None and (original is not None or original_server is not None):
        options["original"] = connected(original, given, server=original_server)
    if retrained is not None:
        if server is None:
            raise UserError("--retrained is of a server; of models in memory the benchmark names it (retrained=MODEL)")
        options["retrained"] = connected(retrained, given)
    from letgo.attacks.engine.spec import plan_attack
    from letgo.report.attacks import print_attacks
    from letgo.training.attack import attack as run_attack

    result = run_attack(model, attacks, reporter=reporter(quiet), **options)
    if as_json:
        print_json(result)
        return
    print_run(result, output or Path(run))
    print_attacks(result, {plan_attack(spec).label for spec in attacks})


@app.command("eval")
def evaluate(
    benchmarks: Annotated[list[str], Option("--benchmark", help="NAME[:k=v,…]; repeat.")],
    model: Annotated[
        str | None,
        Argument(help="Model directory, .gguf file, hub id, or built-in name; with --server its name there."),
    ] = None,
    metrics: Annotated[
        list[str] | None, Option("--metric", help="One of your own, package.module.name[:k=v,…]; repeat.")
    ] = None,
    limit: Annotated[int | None, Option("--limit", help="At most so many items of each set.")] = None,
    output: Annotated[Path | None, Option("--output", "-o", help="Folder for the result.")] = None,
    dtype: Annotated[str, Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    template: Annotated[str | None, Option("--template", help="How questions become prompts.")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on with what was cut off in the output.")] = False,
    server: ServerFlag = None,
    tokenizer: TokenizerFlag = None,
    key_env: KeyFlag = None,
    at_once: AtOnceFlag = None,
    weights: WeightsFlag = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Score a model on benchmarks in one pass, without changing it. `letgo list benchmarks` names them all."""
    given = dict(locals())
    from letgo.core.errors import UserError

    options = passed_on(given, "model", "benchmarks", *SERVER_FLAGS)
    if model is None and server is None:
        raise UserError("name a model, or a server that has it (--server URL)")
    from letgo.training.settings import check_benchmarks_early

    check_benchmarks_early(benchmarks)
    from letgo.benchmarks.engine.evaluate import evaluate as run_evaluate
    from letgo.report.numbers import interval, number

    scored = connected(model, given)
    results = run_evaluate(scored, benchmarks, reporter=reporter(quiet), **options)
    if as_json:
        print_json(results)
        return
    for spec, result in results.items():
        typer.echo(f"{scored} on {spec}")
        for name, metric in result.after.items():
            typer.echo(f"  {name:<28} {number(metric.value):>9}  [{interval(metric)}]  n={metric.n}")
        for note in result.notes:
            typer.echo(f"  {note}")


@app.command()
def export(
    run: Annotated[str, Argument(help="A run directory; or a model: directory, hub id, built-in name.")],
    format: Annotated[str, Option("--format", "-f", help="q4_k_m, q8_0, own, …; see letgo list formats.")],
    output: Annotated[Path, Option("--output", "-o", help="A new directory for the file and its manifest.")],
    rounding: Annotated[str, Option("--rounding", help="nearest, stochastic or error_feedback.")] = "nearest",
    seed: Annotated[int, Option("--seed", help="Of stochastic rounding.")] = 0,
    original: Annotated[str | None, Option("--original", help="The model before unlearning; a run knows it.")] = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write a model in the format in which it will be served, and say how much of the forgetting the format keeps."""
    options = passed_on(locals(), "run", "format", "output")
    from letgo.models.formats import export_settings

    export_settings({"format": format, "rounding": rounding, "seed": seed})
    from letgo.core.sizes import size
    from letgo.report.numbers import number, percent
    from letgo.training.export import export as run_export

    manifest = run_export(run, format, output, reporter=reporter(quiet), **options)
    if as_json:
        print_json(manifest)
        return
    did = manifest["did"]
    typer.echo(f"{output / manifest['file']}  ({size(manifest['bytes'])})")
    if "carried" in did:
        typer.echo(
            f"{percent(1 - did['undone'])} of the weights that unlearning changed are in another bin than before; "
            f"{percent(did['carried'])} of the update is left. A bin is {number(did['bins_per_change'])} times as wide "
            "as the average change."
        )
    typer.echo(f"record: {output / 'export.json'}")
