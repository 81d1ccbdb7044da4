"""Run attacks on a saved model, and record what they leave of the forgetting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from letgo.attacks.engine.base import Attacked, Judged, Probe, Role, Victim
from letgo.attacks.engine.judge import (
    Answered,
    Ends,
    judge_curve,
    judge_measured,
    judge_samples,
    judge_scored,
    judge_ways,
    relearning_score,
)
from letgo.attacks.engine.outcome import Seed, family_of, result_of, robustness
from letgo.attacks.engine.prompts import only
from letgo.attacks.engine.search import search
from letgo.attacks.engine.served import ANSWERS, answers_kept, check_served, open_served
from letgo.attacks.engine.spec import THRESHOLD, AttackSpec, apply_attack, check_attacks, plan_attack, plan_attacks
from letgo.attacks.engine.target import Target, about_audit, code_now, measured, open_target
from letgo.benchmarks.engine.base import RETRAINED, Benchmark, Sample
from letgo.core import processes
from letgo.core.catalog import check_arguments
from letgo.core.errors import UserError
from letgo.core.files import read_json, write_json
from letgo.core.fingerprints import digest_of, remembered_digest
from letgo.core.locks import LOCK_FILE, check_unused, only_writer
from letgo.core.own import code_in_use, expect, noted, recorded_code
from letgo.core.progress import Quiet, Reporter, usual
from letgo.core.values import Count, Share
from letgo.data.encode import Template
from letgo.metrics.judgement import FORGOTTEN_SETS, with_attacks
from letgo.models.files import remote_code
from letgo.models.load import BUILTIN, arithmetic_of, weights_fingerprint
from letgo.runs.documents import validated
from letgo.runs.results import (
    SAMPLES_FILE,
    AttackResult,
    Metrics,
    Result,
    SampleRow,
    is_run,
    read_result,
    read_samples,
)
from letgo.scoring.resume_log import content_key
from letgo.scoring.server.calibration import check_weights, in_words
from letgo.scoring.server.served import Served, same_engine

__all__ = ["THRESHOLD", "AttackSpec", "attack", "plan_attack", "run_attack"]

JUDGED_SETS = ("forget", "control")
"""What is asked of an attacked reference: all that the judge needs of it."""
MOST_REFERENCES = 16
"""How many a process remembers."""
_REMEMBERED: dict[str, Answered] = {}


@noted()
def attack(
    directory: Path | str | Served,
    attacks: Sequence[str],
    *,
    benchmark: str | None = None,
    original: str | Served | None = None,
    retrained: Served | None = None,
    template: Template | None = None,
    limit: Count | None = None,
    dtype: str | None = None,
    seeds: Count | None = None,
    threshold: Share = THRESHOLD,
    reporter: Reporter | None = None,
    output: Path | None = None,
    shared_scores: str | Path | None = None,
    weights: str | None = None,
    trust_remote_code: bool | None = None,
) -> Result:
    """Attack a saved model, and add what came of it to the run's record.

    Args:
        directory: a run directory; or, with `benchmark` and `original`, any model: a directory, a hub id, a built-in
            name, or one behind a server (`letgo.scoring.server.served.connect`). Both models are then measured first.
        attacks: each "NAME:key=value,…"; beside the attack's own settings `seeds=N`, `threshold=SHARE`, `search=N`,
            `bound=SHARE`; or "ATTACK then ATTACK", a chain (`letgo.attacks.engine.spec.plan_attack`).
        benchmark: what a bare model is judged by.
        original: the model before unlearning, which every attack is made on too; by default, of a run, the one that its
            record names.
        retrained: beside a served model, the one that never saw the forget set, behind the same kind of server.
        template: for a bare model, how questions become prompts, where the benchmark leaves the choice.
        limit, dtype: for a bare model, at most so many items of each set, and the weights' type.
        weights: of a served model, where its weights are at hand: some items are scored by both, and the differences
            recorded (`config.calibration`).
        seeds: of each attack in which anything is random and that names none; by default the catalog's.
        threshold: the least share of the forgetting kept to have survived, for attacks that name none.
        reporter: where progress goes.
        output: write the result here, and leave the run directory as it is. Without it, a bare model's is not written.
        shared_scores: a folder for runs under the same attack (a sweep's): the first leaves there what the attack left
            of the original and of the retrained model, and the others read it.
        trust_remote_code: whether the models' own Python code may run, and a benchmark or metrics that the run's record
            names by a path; not by default, whatever the record says: it may come from somebody else.

    In several processes of a launcher, each scores a part and takes a part of the rows of a relearning step; the first
    one writes.

    Returns:
        The run's result with the attacks in it.
    """
    if not attacks:
        raise UserError("no attack named; see `letgo list attacks`")
    check_arguments(attack, limit=limit, seeds=seeds, threshold=threshold, template=template)
    plans = plan_attacks(attacks, seeds=seeds, threshold=threshold)
    processes.start()
    processes.first_does(lambda: _check_output(output))
    reporter = usual(reporter) if processes.is_first() else Quiet()
    settings: dict[str, Any] = {"benchmark": benchmark, "original": original, "limit": limit, "template": template}
    folder = output or run_directory(directory)
    # Two that read the record, add to it and write it would lose what the other one added.
    trusted = (remote_code(trust_remote_code), recorded_code(trust_remote_code or None))
    with only_writer(folder, make=True), trusted[0], trusted[1], ExitStack() as kept:
        if isinstance(directory, Served):
            check_served(plans, directory, dtype=None if weights else dtype, shared_scores=shared_scores)
            compared: dict[str, Any] = {"at_hand": weights, "dtype": dtype}
            target = open_served(directory, **settings, **compared, retrained=retrained, reporter=reporter)
            kept.enter_context(answers_kept(target, output))
        else:
            check_weights(directory, weights)
            same_engine([directory, *(each for each in (original, retrained) if isinstance(each, Served))])
            target = open_target(directory, **settings, dtype=dtype, reporter=reporter)
            expect(target.result.code_digests)
            target.check_original()
            processes.first_does(target.check_bound)
        check_attacks(plans, target.victim())
        target = _with_earlier(_measured(target, plans, threshold), output)
        for plan in plans:
            target = with_attack(target, plan, None if shared_scores is None else Path(shared_scores))
            if folder is not None:
                # Written after every attack, so that what is finished is kept if the next one fails.
                processes.first_does(partial(target.write, folder))
        return target.result


def run_directory(model: Path | str | Served) -> Path | None:
    """A run's directory; None of any other model."""
    return None if isinstance(model, Served) or not is_run(Path(model)) else Path(model)


def _measured(target: Target, plans: Sequence[AttackSpec], threshold: float) -> Target:
    """A target with its metrics; a bare one also with what its record says of the model, which letgo did not make."""
    if target.run:
        return target
    target = measured(target)
    about = about_audit(target, [plan.label for plan in plans], threshold)
    return replace(target, result=target.result.model_copy(update={"audit": about}))


def with_attack(target: Target, plan: AttackSpec, shared_scores: Path | None = None) -> Target:
    """The target with an attack that was made now in its record."""
    outcome, rows = run_attack(target, plan, shared_scores)
    merged = target.result.with_attacks([outcome])
    update = {
        "robustness": robustness(merged.attacks),
        "judgement": with_attacks(merged.judgement, merged.attacks),
        "code": code_now(merged),
    }
    return replace(target.with_rows(f"attack:{plan.label}", rows), result=merged.model_copy(update=update))


def _check_output(output: Path | None) -> None:
    """Raise a `UserError` unless an output is still unused, or holds what an earlier call has written."""
    names = {path.name for path in output.iterdir()} if output is not None and output.is_dir() else set()
    if any(name.endswith(ANSWERS) for name in names) and output is not None and not is_run(output):
        return  # Cut off before its first record: what a server has answered so far.
    if output is not None and names - {LOCK_FILE} == {SAMPLES_FILE}:
        # Cut off before its first record: these are its samples, or no samples of ours.
        read_samples(output)
    elif output is not None and not is_run(output):
        check_unused(output)


def _with_earlier(target: Target, output: Path | None) -> Target:
    """The target with the attacks on it that an earlier call, which may have been killed, has written to the output."""
    if output is None or not is_run(output):
        return target
    earlier, ours = read_result(output), target.result
    # A calibration is no setting: it may be made in one call and not in the other one.
    before, now = ({**result.config, "calibration": None} for result in (earlier, ours))
    if (before, earlier.after) != (now, ours.after):
        raise UserError(f"output directory {output} holds the attacks on another model; name another one")
    then, calibration = (result.config.get("calibration") for result in (earlier, ours))
    if calibration is not None and (then is None or then["weights"] != calibration["weights"]):
        notes = [*earlier.notes, in_words(calibration)]
        earlier = earlier.model_copy(update={"config": ours.config, "notes": notes})
    return replace(target, result=earlier, rows=read_samples(output))


def run_attack(
    target: Target, plan: AttackSpec, shared_scores: Path | None = None
) -> tuple[AttackResult, list[dict[str, Any]]]:
    """Run one attack under all its seeds; returns its result and the samples' rows."""
    start = time.perf_counter()
    settings, trials = dict(plan.settings), list[dict[str, Any]]()
    if plan.search:
        best, trials = search(
            plan, lambda s, seed: _run_seed(target, plan, s, seed, shared_scores).judged, target.reporter
        )
        settings |= best
    seeds = [_run_seed(target, plan, settings, number, shared_scores) for number in plan.seeds]
    outcome = result_of(target.recorded, plan, settings, seeds, trials, time.perf_counter() - start)
    rows = []
    for seed in seeds:
        for sample in seed.judged.samples:
            given = sample.set in FORGOTTEN_SETS and sample.group in seed.judged.seen
            seen = {"seen": True} if given else {}
            rows.append(sample.as_row(f"attack:{plan.label}", seed.seed) | seen)
    return outcome, rows


def _run_seed(
    target: Target, plan: AttackSpec, settings: Mapping[str, Any], number: int, shared_scores: Path | None
) -> Seed:
    """Attack under one seed the unlearned model, then the original and the retrained one alike; judge."""
    label, recorded = f"{plan.label}, seed {number}", target.recorded
    attacked = apply_attack(target.victim(_probe(target)), plan, settings, number)
    plain = _plain(target, plan, attacked)
    if attacked.measured is not None:
        return Seed(number, replace(attacked, model=None), judge_measured(recorded, attacked.measured, plain))
    mine = _answered(target, plan, attacked, target.benchmark)
    # Of each seed, only the numbers stay in memory.
    attacked = replace(attacked, model=None, asked={}, scored=())
    ends = _ends(target, plan, settings, number, shared_scores)
    seen = attacked.seen
    if attacked.headlines:
        judged = judge_scored(recorded, mine.ways[""], ends, attacked.headlines, plain)
    elif "" in mine.ways:
        judged = judge_samples(recorded, mine.ways[""], ends, seen, label)
    else:
        judged = judge_ways(recorded, mine.ways, ends, seen, label, plain)
    judged = replace(
        judged,
        curve=judge_curve(recorded.headlines, mine.curve, ends),
        gain=_gain(target, plan, settings, judged, ends),
    )
    return Seed(number, attacked, judged)


def _plain(target: Target, plan: AttackSpec, attacked: Attacked) -> Metrics | None:
    """The metrics of a model whose weights were changed before an attack asked it otherwise; None of all others, which
    are scored as they are, or still have the weights that are recorded."""
    asks = attacked.asked or attacked.headlines or attacked.measured is not None
    if not (asks and plan.changes_weights):
        return None
    name = "measuring what the links before left"
    return target.recorded.summarise(target.samples(attacked.model, target.tokenizer(), name))


def _answered(target: Target, plan: AttackSpec, attacked: Attacked, benchmark: Benchmark) -> Answered:
    """Score what an attack left, in each of its ways of asking where it has several."""
    tokenizer = attacked.tokenizer or target.tokenizer()
    if attacked.headlines:
        ways: dict[str, Sequence[Sample]] = {"": attacked.scored}
    elif attacked.asked:
        ways = {
            name: target.samples(attacked.model, tokenizer, f"asking: {name}", asked)
            for name, asked in attacked.asked.items()
        }
    else:
        ways = {"": target.samples(attacked.model, tokenizer, f"measuring after {plan.name}", benchmark)}
    return Answered(ways, attacked.curve)


def _ends(target: Target, plan: AttackSpec, settings: Mapping[str, Any], seed: int, shared_scores: Path | None) -> Ends:
    """The original (where it is known) and the retrained model (where there is one) under the same attack and seed."""
    original = Answered({})
    if target.original is not None:
        original = _attacked_reference(target, plan, settings, seed, "original", target.original, shared_scores)
    path = target.benchmark.references.get(RETRAINED)
    if path is None or not plan.reference:
        return Ends(original)
    return Ends(original, _attacked_reference(target, plan, settings, seed, "retrained", path, shared_scores))


def _attacked_reference(
    target: Target,
    plan: AttackSpec,
    settings: Mapping[str, Any],
    seed: int,
    role: Role,
    directory: str | Served,
    shared_scores: Path | None,
) -> Answered:
    benchmark = only(target.benchmark, [item for item in target.benchmark.items if item.set in JUDGED_SETS])
    quiet = replace(target, reporter=Quiet())
    victim = replace(quiet.victim(_probe(target), directory), role=role)

    def make() -> Answered:
        target.reporter.say(f"  the same on the {role} model, to compare with")
        return _answered(quiet, plan, apply_attack(victim, plan, settings, seed), benchmark)

    read = digest_of(target.benchmark.contents, [_content(value) for _, value in sorted(settings.items())])
    code = sorted((name, each.sha256) for name, each in code_in_use().items())
    scored = (target.benchmark.name, target.benchmark.settings, read, target.template, target.dtype, target.limit)
    # The original's own format is that to which the retrained model is rounded too.
    format = (target.exported, (target.original, _state(target.original)) if role == "retrained" else None)
    pair = weights_fingerprint(target.load()) if plan.of_pair else None
    circumstances = (role, plan.name, sorted(settings.items()), seed, scored, format, pair, code)
    return attacked_reference(victim, circumstances, make, shared_scores)


def _gain(target: Target, plan: AttackSpec, settings: Mapping[str, Any], judged: Judged, ends: Ends) -> float | None:
    """R of a relearning seed, from the same attack on the retrained model, where there is one."""
    retrained = ends.retrained.ways.get("")
    if family_of(plan.name, dict(settings)) != "relearning" or plan.name == "external" or not judged.seen:
        return None
    if not retrained or not target.recorded.stage(f"reference:{RETRAINED}") or target.recorded.without_original:
        return None
    return relearning_score(target.recorded, judged.samples, retrained, judged.seen)


def attacked_reference(
    victim: Victim, circumstances: Sequence[object], make: Callable[[], Answered], folder: Path | None
) -> Answered:
    """What an attacked reference answered: attacked and scored (`make`) where neither this process nor the folder, in
    which runs leave it for each other, has it.

    `circumstances` are what it depends on beside the weights: values that differ by their `repr`. A file's name depends
    on the weights, not on their directory, and on what the last bits depend on.
    """
    key = repr((str(victim.directory), _state(victim.directory), *circumstances))
    if key in _REMEMBERED:
        return _REMEMBERED[key]
    path: Path | None = None
    if folder is not None and processes.count() == 1:
        model = victim.load()
        name = content_key(weights_fingerprint(model), arithmetic_of(model), repr(circumstances))
        path = folder / f"attacked-{name}.json"
    answered = None if path is None else _left_at(path)
    if answered is None:
        answered = make()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            document = {way: [sample.as_row(way, 0) for sample in samples] for way, samples in answered.ways.items()}
            write_json(path, {"ways": document, "curve": [dict(point) for point in answered.curve]})
    while len(_REMEMBERED) >= MOST_REFERENCES:
        del _REMEMBERED[next(iter(_REMEMBERED))]
    _REMEMBERED[key] = answered
    return answered


def _state(model: object) -> list[tuple[str, int, int]]:
    """The files of a model's directory, with what changes when one is written anew; of another model none."""
    folder = str(BUILTIN[str(model)]() if str(model) in BUILTIN else model)
    files = [file for file in sorted(Path(folder).iterdir()) if file.is_file()] if os.path.isdir(folder) else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _content(setting: object) -> object:
    """What a setting of an attack stands for: of a file its content, of a model's directory its files' state."""
    if not isinstance(setting, str):
        return None
    # Unlike a Path these take any text: a prompt may be longer than a file's name can be.
    return remembered_digest(Path(setting)) if os.path.isfile(setting) else _state(setting)


class _AnsweredFile(BaseModel):
    ways: dict[str, list[SampleRow]]
    curve: list[dict[str, float]]


def _left_at(path: Path) -> Answered | None:
    """What another run left; None where there is nothing, or nothing whole: it is made again."""
    try:
        written = read_json(path)
        validated(path, _AnsweredFile, written)
    except UserError:
        return None
    ways = {way: [Sample.from_row(row) for row in rows] for way, rows in written["ways"].items()}
    return Answered(ways, written["curve"])


def _probe(target: Target) -> Probe | None:
    """A look during an attack: the headlines on a few forget items, those held out where there are any, and on as many
    controls."""
    benchmark = target.benchmark
    if not any(item.set in JUDGED_SETS for item in benchmark.items):
        return None
    tokenizer, quiet = target.tokenizer(), replace(target, reporter=Quiet())
    names = [h.metric.replace("forget_", f"{name}_", 1) for h in benchmark.headlines for name in JUDGED_SETS]

    def probe(model: Any, seen: frozenset[str]) -> dict[str, float]:
        small = replace(benchmark.few(target.limit, sets=JUDGED_SETS, without=seen), texts=())
        metrics = small.summarise(quiet.samples(model, tokenizer, "probing", small))
        return {name: metrics[name].value for name in names if name in metrics}

    return probe
