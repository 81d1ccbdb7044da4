"""The main job: a config in; a model directory and a result record out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from letgo.benchmarks import benchmark_of
from letgo.benchmarks.engine.base import RETRAINED, Benchmark, Sample
from letgo.core import processes
from letgo.core.environment import give_back_memory
from letgo.core.errors import UserError
from letgo.core.files import write_json_lines, write_text
from letgo.core.locks import only_writer
from letgo.core.own import expect, noted, recorded_code
from letgo.core.progress import Reporter
from letgo.data import check_disjoint
from letgo.metrics.judgement import judge, levels, nothing_to_forget
from letgo.metrics.robustness import collapse_reasons
from letgo.models.adapters import MERGED, Base, quick_fingerprint
from letgo.models.files import remote_code
from letgo.models.load import BUILTIN, arithmetic_of, context_length, load_model, load_tokenizer, weights_fingerprint
from letgo.models.save import save_model
from letgo.report.load import LoadedRun
from letgo.runs.digests import digests_of, with_model
from letgo.runs.results import (
    CONFIG_FILE,
    HISTORY_FILE,
    LIVE_FILE,
    SAMPLES_FILE,
    Result,
    write_result,
)
from letgo.scoring.resume_log import PARTIAL, ResumeLog, content_key
from letgo.training.afterwards import attack, export_saved, publish, settle
from letgo.training.beforehand import check_beforehand
from letgo.training.checkpoints import facts_of, whole_checkpoint
from letgo.training.config import UnlearnConfig, make_config
from letgo.training.distributed import exchange_note
from letgo.training.looks import looks_of
from letgo.training.one_shot import OneShot
from letgo.training.opened import Opened, failure_recorded, open_run, result_of
from letgo.training.prepare import Circumstances, prepare_data, prepare_model, take_references
from letgo.training.reference_store import ReferenceStore
from letgo.training.run_directory import (
    bind_to_beginning,
    check_complete,
    check_directory,
    code_begun_with,
    finished_result,
    output_directory,
)
from letgo.training.run_plan import RunPlan, objective_of, plan_run, planned_steps
from letgo.training.trainer import UnlearnTrainer


@dataclass(frozen=True, repr=False)
class Run(LoadedRun):
    """A finished run: where it lies, its result, and the model that was saved (still in memory)."""

    model: Any = None
    tokenizer: Any = None


@noted()
def unlearn(
    config: UnlearnConfig | None = None,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    shared_scores: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Unlearn a forget set from a model, measure before and after, and save everything in one directory.

    The directory gets the model and tokenizer, `config.yaml` (run it again with `letgo unlearn`), `samples.jsonl`,
    `history.jsonl`, a model card, and last, when all else is there, `result.json`. Attacks named in the config run on
    the saved model.

    Args:
        config: an `UnlearnConfig`; or give its fields as keyword arguments.
        resume: go on from the last whole checkpoint in the output directory, to the same bits as without a break (on
            another number of processes: to the same trajectory within rounding; the same bits where they share
            directions).
        reporter: where progress goes; silent by default.
        shared_scores: a folder in which runs leave each other what was scored of the models that they have in common
            (the one before unlearning, the retrained one, that one attacked), so that each is measured once; as a
            sweep's do.
        settings: fields of `UnlearnConfig`, as in a run's YAML.

    Returns:
        The run. `run.result.status` is "collapsed" where the model is broken rather than forgetful.

    Started by `torchrun` or `accelerate launch` it runs in all their processes; the first one writes.

    Raises:
        UserError: for settings or data that can't be used.
        NonFiniteLossError: if the loss becomes NaN or infinite; `result.json` then says "failed".
    """
    if config is not None and settings:
        raise UserError("give unlearn() either a config or settings, not both")
    config = config if config is not None else make_config(settings, where="unlearn()")
    processes.start(config.processes)
    directory = output_directory(config)
    # What the config names is the user's own, also where an attack reads it in the record.
    with only_writer(directory, make=True), remote_code(config.trust_remote_code), recorded_code(True):
        notes = processes.first_does(lambda: check_directory(directory, config, resume=resume)) or []
        expect(code_begun_with(directory) if resume else {})
        opened = open_run(config, resume, reporter, shared_scores, notes)
        with contextlib.closing(opened.trackers):
            run = recorded_run(opened) or unlearned(opened)
            processes.first_does(lambda: export_saved(opened))
            result = attack(opened, run.result)
            processes.first_does(lambda: publish(opened, result))
            return replace(run, result=result)


def recorded_run(opened: Opened) -> Run | None:
    """The run that an earlier process recorded in the directory, and did not come to attack or to publish."""
    result = finished_result(opened.directory) if opened.resume else None
    if result is None:
        return None
    opened.reporter.say("  unlearned and measured already: its attacks and its card go on")
    processes.first_does(lambda: settle(opened))
    model = load_model(opened.directory, dtype=opened.config.dtype)
    return Run(opened.directory, result, model=model, tokenizer=load_tokenizer(opened.directory))


def unlearned(opened: Opened) -> Run:
    """Measure, unlearn, save, measure again, judge, and record."""
    with failure_recorded(opened):
        prepared = prepare(opened)
        with opened.log.clock("evaluate"):
            before = measure(prepared, prepared.model, "measuring before", common=True)
            opened.log.before = prepared.benchmark.summarise(before)
            references = measure_references(prepared)
            prepare_to_judge(prepared, before, references)
            give_back_memory()
        with opened.log.clock("unlearn"):
            model = train(prepared)
        with opened.log.clock("save"):
            model = save(prepared, model)
            processes.first_does(lambda: bind_saved(opened))
        with opened.log.clock("evaluate"):
            after = measure(prepared, model, "measuring after")
        result = judge_run(prepared, before, after, references)
        stages = {"before": before, "after": after} | {f"reference:{name}": r for name, r in references.items()}
        processes.first_does(lambda: record(prepared, result, stages))
        return Run(opened.directory, result, model=model, tokenizer=prepared.tokenizer)


@dataclass(frozen=True)
class Prepared:
    """A run with all that its training needs."""

    opened: Opened
    plan: RunPlan
    benchmark: Benchmark
    tokenizer: Any
    model: Any
    base: Base | None
    """What adapters are trained on."""
    work: UnlearnTrainer | OneShot
    """A trainer with the objective and the optimizer, or a one-shot method."""


def prepare(opened: Opened) -> Prepared:
    """Check the config, load the model and the data, and make what changes the model."""
    config, log = opened.config, opened.log
    if config.push_to_hub:
        from letgo.report.publish import check_repository

        check_repository(config.hub_model_id)
    plan = plan_run(config)
    benchmark = benchmark_of(opened.settings)
    if benchmark.sequence:
        raise UserError(
            f"benchmark {config.benchmark!r} stands for {len(benchmark.sequence)} requests: `letgo unlearn` and "
            "letgo.unlearn_sequence run them, a directory each"
        )
    check_disjoint(benchmark.forget, benchmark.retain)
    check_beforehand(config, benchmark)
    with log.clock("load"):
        tokenizer = load_tokenizer(config.model)
        model = load_model(config.model, dtype=config.dtype, quantization=config.base_quantization, shards=plan.shards)
    log.notes += [*benchmark.notes_for(tokenizer), *benchmark.limit_notes(config.eval_limit)]
    begun_with = processes.first_does(lambda: digests_of(config.model, benchmark.contents, opened.reporter))
    log.digests = begun_with or log.digests
    processes.first_does(lambda: bind_to_beginning(opened.directory, log.digests))
    log.scored = benchmark.identity(tokenizer, config.template)
    log.headlines = benchmark.headline_floors
    base = adapter_base(config, model) if config.lora_rank else None
    work = make_work(opened, benchmark, tokenizer, model)
    processes.first_does(lambda: write_text(opened.directory / CONFIG_FILE, opened.yaml))
    return Prepared(opened, plan, benchmark, tokenizer, model, base, work)


def adapter_base(config: UnlearnConfig, model: Any) -> Base:
    """What the adapters of this run are trained on, as their directory will name it."""
    name = config.model
    if Path(name).exists() and name not in BUILTIN:
        name = str(Path(name).resolve())
    return Base(name, config.dtype, config.base_quantization, quick_fingerprint(model))


def make_work(opened: Opened, benchmark: Benchmark, tokenizer: Any, model: Any) -> UnlearnTrainer | OneShot:
    config, log = opened.config, opened.log
    objective = objective_of(config)
    context = context_length(model)
    model, about_model = prepare_model(model, config, objective)
    dataset, about_data = prepare_data(benchmark, tokenizer, config, objective, context=context)
    log.notes += about_model + about_data
    for note in log.notes:
        opened.reporter.say(f"  {note}")
    common: dict[str, Any] = {"pad_id": tokenizer.pad_token_id, "reporter": opened.reporter}
    if objective is None:
        return OneShot(model, config, dataset, **common)
    looks = looks_of(config, benchmark, tokenizer)
    trainer = UnlearnTrainer(model, config, dataset, objective=objective, looks=looks, **common)
    # A setting that the optimizer has not is refused before anything is measured.
    trainer.create_optimizer()
    trainer.live = opened.directory / LIVE_FILE
    opened.trackers.hold(trainer)
    return trainer


def measure(prepared: Prepared, model: Any, name: str, *, common: bool = False) -> list[Sample]:
    """The benchmark's samples. What is scored is kept in the directory till the run is finished, so that a killed
    one that is resumed scores nothing twice; under the weights' name, for before and after have other ones.

    Args:
        common: the model is not of this run's making: other runs that share their scores measure it too.
    """
    opened, config = prepared.opened, prepared.opened.config
    weights = weights_fingerprint(model)
    identity = {"weights": weights, "dtype": config.dtype}
    path, shared = opened.directory / PARTIAL.format(weights), None
    # Several processes score a part each.
    if common and opened.shared_scores is not None and processes.count() == 1:
        shared = opened.shared_scores / f"{content_key(identity, arithmetic_of(model))}.jsonl"
        ResumeLog.begin_with(path, shared)
    with ResumeLog(path, identity) as log:
        samples = prepared.benchmark.samples(
            model,
            prepared.tokenizer,
            log=log,
            name=name,
            limit=config.eval_limit,
            template=config.template,  # type: ignore[arg-type]
            reporter=opened.reporter,
        )
    if shared is not None:
        ResumeLog.leave_at(path, shared)
    return samples


def measure_references(prepared: Prepared) -> dict[str, list[Sample]]:
    """The samples of the benchmark's reference models, by their names."""
    samples = {}
    for name, reference in prepared.benchmark.references.items():
        model = load_model(str(reference), dtype=prepared.opened.config.dtype)
        samples[name] = measure(prepared, model, f"measuring {name}", common=True)
    return samples


def train(prepared: Prepared) -> Any:
    """Unlearn; returns the model as it is then, and lets go of what only training needs."""
    opened, work = prepared.opened, prepared.work
    if isinstance(work, OneShot):
        work.run()
        opened.log.notes += work.notes
        return work.model
    reporter, log = opened.reporter, opened.log
    take_references_once(prepared, work)
    checkpoint = checkpoint_to_go_on_from(opened) if opened.resume else None
    if opened.resume and checkpoint is None:
        reporter.say("  no whole checkpoint to resume from: starting anew")
    if checkpoint is not None and (note := work.training_ranks.fit_window(facts_of(checkpoint)["forget_rows_a_step"])):
        work.notes.append(note)
        reporter.say(f"  {note}")
    work.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if work.training_ranks.count > 1:
        log.processes = work.training_ranks.describe()
        log.notes.append(exchange_note(log.processes, work.state.global_step))
        reporter.say(f"  {log.notes[-1]}")
    work.release()
    give_back_memory()
    log.notes += work.notes
    return work.model


def checkpoint_to_go_on_from(opened: Opened) -> Path | None:
    """The newest whole checkpoint, if any; the first process looks, and tells the others."""
    found = processes.first_does(lambda: whole_checkpoint(opened.directory, opened.reporter.say))
    name = processes.agreed(None if found is None else found.name)
    return None if name is None else opened.directory / name


def take_references_once(prepared: Prepared, trainer: UnlearnTrainer) -> None:
    """Give the dataset what the objective needs of the model before training, from letgo's cache or into it."""
    config, tokenizer = prepared.opened.config, prepared.tokenizer
    template = prepared.benchmark.template_for(config.template)  # type: ignore[arg-type]
    # One process of a machine computes, the others read; a model that is shared out runs in all at once.
    alone = contextlib.nullcontext() if trainer.training_ranks.sharded else config.main_process_first(desc="reference")
    with alone:
        take_references(
            trainer.model,
            trainer.train_dataset,
            trainer.objective,
            pad_id=tokenizer.pad_token_id,
            epochs=planned_steps(config, len(trainer.train_dataset))[1],
            store=ReferenceStore(),
            circumstances=Circumstances.of(tokenizer, template, config.max_length, trainer.model),
            reporter=prepared.opened.reporter,
        )


def save(prepared: Prepared, model: Any) -> Any:
    """Save what was trained; returns the model that it stands for, which is what is scored and attacked."""
    config, directory, tokenizer = prepared.opened.config, prepared.opened.directory, prepared.tokenizer
    save_model(model, tokenizer, directory, base=prepared.base)
    if prepared.base is None:
        return model
    if config.base_quantization is None:
        model = model.merge_and_unload(safe_merge=True).eval()
    else:
        # Merged into what the quantized base stands for, which is read anew: the layers trained on are packed.
        model = load_model(directory, dtype=config.dtype)
    if config.save_merged:
        save_model(model, tokenizer, directory / MERGED)
    return model


def bind_saved(opened: Opened) -> None:
    """Bind the record to the files that were saved."""
    opened.log.digests = with_model(opened.log.digests, opened.directory, opened.reporter)


def prepare_to_judge(prepared: Prepared, before: Sequence[Sample], references: Mapping[str, Sequence[Sample]]) -> None:
    """Say before anything is trained where the model does not know what it is to forget; and tell the looks during
    training the level of a model that never knew."""
    headlines, retrained = prepared.benchmark.headlines, references.get(RETRAINED, ())
    if why := nothing_to_forget(headlines, before, retrained):
        prepared.opened.log.notes.append(f"nothing to forget: {why}")
        prepared.opened.reporter.say(f"  {prepared.opened.log.notes[-1]}")
    if isinstance(prepared.work, UnlearnTrainer) and prepared.work.looks is not None:
        prepared.work.looks.levels = levels(headlines, before, retrained)


def judge_run(
    prepared: Prepared,
    before: Sequence[Sample],
    after: Sequence[Sample],
    references: Mapping[str, Sequence[Sample]],
) -> Result:
    """The run's result: collapsed where the model is broken rather than forgetful."""
    benchmark, summarise = prepared.benchmark, prepared.benchmark.summarise
    metrics = summarise(after)
    reasons = collapse_reasons(prepared.opened.log.before, metrics)
    measured = {name: summarise(samples) for name, samples in references.items()}
    judgement = None
    if benchmark.headlines:
        retrained, target = references.get(RETRAINED, ()), prepared.opened.config.target
        judgement = judge(benchmark.headlines, before, after, retrained=retrained, target=target, broken=reasons)
    return result_of(
        prepared.opened,
        "collapsed" if reasons else "finished",
        reasons=reasons,
        after=metrics,
        references=benchmark.reference_metrics() | measured,
        judgement=judgement,
    )


def record(prepared: Prepared, result: Result, stages: Mapping[str, Sequence[Sample]]) -> None:
    """Write the record of the run, `result.json` last; what only an unfinished one needs is then removed."""
    directory = prepared.opened.directory
    check_complete(directory)
    write_json_lines(directory / HISTORY_FILE, prepared.work.history)
    write_samples(directory, stages, result.seed)
    write_result(directory, result)
    settle(prepared.opened)


def write_samples(directory: Path, stages: Mapping[str, Sequence[Sample]], seed: int) -> None:
    rows = [sample.as_row(stage, seed) for stage, samples in stages.items() for sample in samples]
    write_json_lines(directory / SAMPLES_FILE, rows)
