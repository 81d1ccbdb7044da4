"""Run attacks on a saved model, and record what they leave of the forgetting."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from letgo.attacks import ATTACKS
from letgo.attacks.engine.base import RETRAINED, Attacked, Probe, Victim
from letgo.attacks.engine.judge import judge_measured, judge_samples, judge_ways, relearning_score
from letgo.attacks.engine.outcome import Seed, family_of, result_of, robustness
from letgo.attacks.engine.search import search
from letgo.attacks.engine.spec import THRESHOLD, AttackSpec, plan_attack
from letgo.attacks.engine.target import Target, open_target
from letgo.benchmarks.engine.base import Sample
from letgo.benchmarks.engine.items import limited
from letgo.core import processes
from letgo.core.errors import LetgoError, UserError
from letgo.core.files import read_json_lines, write_json_lines
from letgo.core.locks import only_writer
from letgo.core.progress import Quiet, Reporter
from letgo.models.load import arithmetic_of, weights_fingerprint
from letgo.runs.results import AttackResult, Result, check_unused, is_run
from letgo.scoring.resume_log import content_key

__all__ = ["THRESHOLD", "AttackSpec", "attack", "plan_attack", "run_attack"]

PROBED_ITEMS = 24
"""Forget items that a look during an attack scores."""
MOST_REFERENCES = 16
"""How many a process remembers."""
_REMEMBERED: dict[str, Sequence[Sample]] = {}


def attack(
    directory: Path | str,
    attacks: Sequence[str],
    *,
    benchmark: str | None = None,
    original: str | None = None,
    limit: int | None = None,
    dtype: str | None = None,
    seeds: int | None = None,
    threshold: float = THRESHOLD,
    reporter: Reporter | None = None,
    output: Path | None = None,
    shared_scores: str | Path | None = None,
) -> Result:
    """Attack a saved model, and add what came of it to the run's record.

    Args:
        directory: a run directory; or, with `benchmark` and `original`, any model: a directory, a hub id, a built-in
            name. Both models are then measured first.
        attacks: each "NAME:key=value,…"; beside the attack's own settings `seeds=N`, `threshold=SHARE`, `search=N`,
            `bound=SHARE` (`letgo.attacks.engine.spec.plan_attack`).
        benchmark: what a bare model is judged by.
        original: the model before unlearning; by default, of a run, the one that its record names.
        limit, dtype: for a bare model, at most so many items of each set, and the weights' type.
        seeds: of each attack in which anything is random and that names none; by default the catalog's.
        threshold: the least share of the forgetting kept to have survived, for attacks that name none.
        reporter: where progress goes.
        output: write the result here, and leave the run directory as it is. Without it, a bare model's is not written.
        shared_scores: a folder for runs under the same attack (a sweep's): the first leaves there what the attack left
            of the retrained model, and the others read it.

    In several processes of a launcher, each scores a part and takes a part of the rows of a relearning step; the first
    one writes.

    Returns:
        The run's result with the attacks in it.
    """
    if not attacks:
        raise UserError("no attack named; see `letgo list attacks`")
    plans = [plan_attack(spec, seeds=seeds, threshold=threshold) for spec in attacks]
    labels = [plan.label for plan in plans]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"attack {twice[0]!r} is named twice; for several seeds give seeds=N")
    processes.start()
    processes.first_does(lambda: check_unused(output))
    reporter = (reporter or Quiet()) if processes.is_first() else Quiet()
    settings: dict[str, Any] = {"benchmark": benchmark, "original": original, "limit": limit, "dtype": dtype}
    folder = output or (Path(directory) if is_run(Path(directory)) else None)
    # Two that read the record, add to it and write it would lose what the other one added.
    with only_writer(folder if output is None else None):
        target = open_target(directory, **settings, reporter=reporter)
        for plan in plans:
            outcome, rows = run_attack(target, plan, None if shared_scores is None else Path(shared_scores))
            merged = target.result.with_attacks([outcome])
            result = merged.model_copy(update={"robustness": robustness(merged.attacks)})
            target = replace(target.with_rows(f"attack:{plan.label}", rows), result=result)
            if folder is not None:
                # Written after every attack, so that what is finished is kept if the next one fails.
                processes.first_does(partial(target.write, folder))
        return target.result


def run_attack(
    target: Target, plan: AttackSpec, shared_scores: Path | None = None
) -> tuple[AttackResult, list[dict[str, Any]]]:
    """Run one attack under all its seeds; returns its result and the samples' rows."""
    start = time.perf_counter()
    settings, trials = dict(plan.settings), list[dict[str, Any]]()
    if plan.search:
        best, trials = search(plan, lambda s, seed: _run_seed(target, plan, s, seed).judged, target.reporter)
        settings |= best
    seeds = []
    for number in plan.seeds:
        seed = _run_seed(target, plan, settings, number)
        gain = _gain(target, plan, settings, seed, shared_scores) if plan.reference else None
        # Of each seed, only the numbers stay in memory.
        numbers = replace(seed.attacked, model=None, asked={})
        seeds.append(replace(seed, attacked=numbers, judged=replace(seed.judged, gain=gain)))
    outcome = result_of(target.recorded, plan, settings, seeds, trials, time.perf_counter() - start)
    rows = []
    for seed in seeds:
        for sample in seed.judged.samples:
            seen = {"seen": True} if sample.set == "forget" and sample.group in seed.judged.seen else {}
            rows.append(sample.as_row(f"attack:{plan.label}", seed.seed) | seen)
    return outcome, rows


def _run_seed(target: Target, plan: AttackSpec, settings: Mapping[str, Any], number: int) -> Seed:
    """Attack under one seed; score what the attack left, in each of its ways of asking where it has several; judge."""
    label, recorded = f"{plan.label}, seed {number}", target.recorded
    attacked = apply_attack(target.victim(_probe(target, label)), plan, settings, number)
    if attacked.measured is not None:
        return Seed(number, attacked, judge_measured(recorded, attacked.measured))
    tokenizer = target.tokenizer()
    if not attacked.asked:
        samples = target.samples(attacked.model, tokenizer, f"measuring after {plan.name}")
        return Seed(number, attacked, judge_samples(recorded, samples, attacked.seen, label))
    ways = [
        (name, target.samples(attacked.model, tokenizer, f"asking: {name}", benchmark))
        for name, benchmark in attacked.asked.items()
    ]
    return Seed(number, attacked, judge_ways(recorded, ways, attacked.seen, label))


def apply_attack(victim: Victim, plan: AttackSpec, settings: Mapping[str, Any], seed: int) -> Attacked:
    """What an attack leaves; settings that it does not take are a `UserError`."""
    try:
        attacked: Attacked = ATTACKS.load(plan.name)(victim, seed=seed, **settings)
        return attacked
    except (TypeError, ValueError) as error:
        if isinstance(error, LetgoError):
            raise
        raise UserError(f"attack {plan.label}: {error}") from error


def _gain(
    target: Target, plan: AttackSpec, settings: Mapping[str, Any], seed: Seed, shared_scores: Path | None
) -> float | None:
    """R of a relearning seed, from the same attack on the retrained model, where there is one."""
    path, judged = target.benchmark.references.get(RETRAINED), seed.judged
    if family_of(plan.name, dict(settings)) != "relearning" or plan.name == "external" or not judged.seen:
        return None
    if path is None or not target.recorded.stage(f"reference:{RETRAINED}"):
        return None
    victim = target.victim(directory=path)

    def make() -> list[Sample]:
        target.reporter.say("  the same on the retrained model, for R")
        other = apply_attack(victim, plan, settings, seed.seed)
        return target.samples(other.model, victim.tokenizer(), "measuring the retrained model")

    scored = (target.benchmark.name, target.benchmark.settings, target.template, target.dtype, target.limit)
    circumstances = (plan.name, sorted(settings.items()), seed.seed, scored)
    reference = attacked_reference(victim, circumstances, make, shared_scores)
    return relearning_score(target.recorded, judged.samples, reference, judged.seen)


def attacked_reference(
    victim: Victim, circumstances: Sequence[object], make: Callable[[], Sequence[Sample]], folder: Path | None
) -> Sequence[Sample]:
    """The samples of the attacked reference: attacked and scored (`make`) where neither this process nor the folder, in
    which runs leave them for each other, has them.

    `circumstances` are what the samples depend on beside the weights: values that differ by their `repr`. A file's name
    depends on the weights, not on their directory, and on what the last bits depend on.
    """
    key = repr((str(victim.directory), *circumstances))
    if key in _REMEMBERED:
        return _REMEMBERED[key]
    path: Path | None = None
    if folder is not None and processes.count() == 1:
        model = victim.load()
        name = content_key(weights_fingerprint(model), arithmetic_of(model), repr(circumstances))
        path = folder / f"attacked-{name}.jsonl"
    if path is not None and path.is_file():
        samples: Sequence[Sample] = [Sample.from_row(row) for row in read_json_lines(path)]
    else:
        samples = make()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_lines(path, (sample.as_row("reference", 0) for sample in samples))
    while len(_REMEMBERED) >= MOST_REFERENCES:
        del _REMEMBERED[next(iter(_REMEMBERED))]
    _REMEMBERED[key] = samples
    return samples


def _probe(target: Target, label: str) -> Probe | None:
    """A look during an attack: the headlines and `kept` on a few forget items, those held out where there are any."""
    recorded, benchmark = target.recorded, target.benchmark
    known = {s.id for s in recorded.stage("after") if s.set == "forget"}
    items = [i for i in limited(benchmark.items, target.limit) if i.set == "forget" and i.id in known]
    if not items or not recorded.stage("before"):
        return None
    tokenizer, quiet = target.tokenizer(), replace(target, reporter=Quiet())

    def probe(model: Any, seen: frozenset[str]) -> dict[str, float]:
        chosen = [item for item in items if item.group not in seen] or items
        step = max(1.0, len(chosen) / PROBED_ITEMS)
        few = [chosen[int(number * step)] for number in range(int(len(chosen) / step + 1e-9))]
        # One item is answered by generation, for no headline: the scorer wants at least one.
        small = replace(benchmark, items=few, texts=(), generated=1)
        samples = quiet.samples(model, tokenizer, "probing", small)
        judged = judge_samples(replace(recorded, summarise=small.summarise), samples, frozenset(), label)
        names = [h.metric for h in benchmark.headlines if h.metric in judged.metrics]
        return {"kept": judged.kept} | {name: judged.metrics[name].value for name in names}

    return probe
