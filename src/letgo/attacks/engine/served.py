"""Attacks on a model that is only served: those that ask questions. Before, after and attack are of one engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from letgo.attacks import ATTACKS
from letgo.attacks.engine.spec import AttackSpec
from letgo.attacks.engine.target import Target, open_bare
from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.base import RETRAINED, Benchmark
from letgo.core.errors import UserError
from letgo.core.fingerprints import text_fingerprint
from letgo.core.progress import Reporter
from letgo.data.encode import Template
from letgo.scoring.resume_log import ResumeLog
from letgo.scoring.server.calibration import check_weights
from letgo.scoring.server.probe import LEVELS
from letgo.scoring.server.served import Served, same_engine

ANSWERS = ".answers.partial.jsonl"
"""The end of the name of a file that holds what a server has answered so far."""


def check_served(plans: Sequence[AttackSpec], model: Served, **of_weights: Any) -> None:
    """Raise a `UserError` for an attack that can't be made through this server, and for a setting that is of models in
    memory (`of_weights`) and is given."""
    if given := [name for name, value in of_weights.items() if value is not None]:
        raise UserError(f"{model} is behind a server: {given[0]} is for models in memory; leave it out")
    for plan in plans:
        if (needs := needed(plan, model)) is None:
            continue
        possible = ", ".join(each.name for each in ATTACKS if each.served >= model.level)
        raise UserError(
            f"attack {plan.label!r} can't be made through {model} (level {model.level}): {needs}\n"
            f"  attacks that can: {possible}"
        )


def needed(plan: AttackSpec, model: Served) -> str | None:
    """What an attack needs that this server does not give; None where it can be made."""
    # A chain of several has a link that changes the weights.
    last = 0 if plan.changes_weights else ATTACKS.record(plan.name).served
    if last >= model.level:
        return None
    return f"it needs a server that gives {LEVELS[last]}" if last else "it needs the model's weights"


def open_served(
    model: Served,
    *,
    benchmark: str | None,
    original: str | Served | None,
    retrained: Served | None,
    template: Template | None,
    limit: int | None,
    reporter: Reporter,
    at_hand: str | None = None,
    dtype: str | None = None,
) -> Target:
    """A served model as the target of attacks, still to be measured.

    Raises:
        UserError: what it is judged by is not given, or is asked by another engine.
    """
    if benchmark is None or original is None:
        missing = "--benchmark NAME" if benchmark is None else "--original NAME"
        raise UserError(
            f"{model}: give {missing}: an attack on a served model is judged against the model before unlearning"
        )
    return served_target(
        model,
        create_benchmark(benchmark),
        {"benchmark": benchmark},
        original=original,
        retrained=retrained,
        template=template,
        limit=limit,
        reporter=reporter,
        at_hand=at_hand,
        dtype=dtype,
    )


def served_target(
    model: Served,
    benchmark: Benchmark,
    data: Mapping[str, Any],
    *,
    original: str | Served | None,
    retrained: Served | None,
    template: Template | None,
    limit: int | None,
    reporter: Reporter,
    prefix: str = "attack-",
    at_hand: str | None = None,
    dtype: str | None = None,
) -> Target:
    """A served model, still to be measured; arguments as of `open_bare`. The retrained model is compared with only if
    it is served too. `at_hand` are the weights that are said to be served, to be compared with in `dtype`."""
    check_weights(model, at_hand)
    same_engine([each for each in (model, original, retrained) if each is not None])
    for role, other in (("original", original), ("retrained model", retrained)):
        if str(other) == str(model):
            raise UserError(
                f"{model} is given as the unlearned model and as the {role}; name another one, or its server"
            )
    notes = [model.describe(), *([] if original is None else [f"the original is {original}"])]
    if RETRAINED in benchmark.references and retrained is None:
        notes.append("the retrained model is not served: what was never learned is taken to score the floor")
    benchmark = replace(benchmark, references={} if retrained is None else {RETRAINED: retrained})
    target = open_bare(
        model,
        benchmark,
        data,
        original=original,
        limit=limit,
        dtype=dtype,
        template=template,
        prefix=prefix,
        notes=notes,
        reporter=reporter,
    )
    return replace(target, at_hand=at_hand)


@contextmanager
def answers_kept(target: Target, output: Path | None) -> Iterator[None]:
    """Within: what the servers answer is kept in the output directory, and is not asked again after a kill. At the end
    of all attacks the files go."""
    served = [target.model, target.original, *target.benchmark.references.values()]
    paths: list[Path] = []
    with ExitStack() as logs:
        for model in served:
            if isinstance(model, Served) and output is not None:
                paths.append(output / f"{text_fingerprint(str(model))[:12]}{ANSWERS}")
                logs.enter_context(model.keeping(ResumeLog(paths[-1], model.identity)))
        yield
    for path in paths:
        ResumeLog.remove(path)
