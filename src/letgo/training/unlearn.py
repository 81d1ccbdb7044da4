"""The main job: a config in; a model directory and a result record out."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letgo.benchmarks import benchmark_of
from letgo.benchmarks.engine.base import Benchmark, Sample
from letgo.core import processes
from letgo.core.environment import circumstances, give_back_memory
from letgo.core.errors import LetgoError, UserError
from letgo.core.files import write_json_lines, write_text
from letgo.core.progress import Quiet, Reporter
from letgo.data import check_disjoint
from letgo.metrics.robustness import collapse_reasons
from letgo.models.adapters import MERGED, Base, quick_fingerprint
from letgo.models.load import BUILTIN, arithmetic_of, context_length, load_model, load_tokenizer, weights_fingerprint
from letgo.models.running import is_sharded_by_zero
from letgo.models.save import save_model
from letgo.runs import record_run
from letgo.runs.results import (
    CONFIG_FILE,
    HISTORY_FILE,
    SAMPLES_FILE,
    Metrics,
    Result,
    Status,
    is_run,
    new_run_id,
    now,
    read_result,
    write_result,
)
from letgo.scoring.resume_log import ScoreLog, content_key
from letgo.training.config import UnlearnConfig, dump_config, make_config, resolved_settings
from letgo.training.distributed import check_deepspeed, out_of_deepspeed, said_of, strategy_of, uses_deepspeed
from letgo.training.one_shot import OneShot, is_one_shot
from letgo.training.prepare import Circumstances, prepare_data, prepare_model, take_references
from letgo.training.reference_store import ReferenceStore
from letgo.training.trainer import UnlearnTrainer, last_checkpoint, objective_of, planned_steps, rows_of_checkpoint

PARTIAL = "scores-{}.partial.jsonl"
"""In an unfinished run: what has been scored of the model whose weights have this fingerprint."""


@dataclass(frozen=True)
class Run:
    """A finished run: where it lies, its result, and the model that was saved (still in memory)."""

    directory: Path
    result: Result
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)


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
    args = config if config is not None else make_config(settings, where="unlearn()")
    processes.start(args.processes)
    reporter = (reporter or Quiet()) if processes.is_first() else Quiet()
    processes.first_does(lambda: prepare_directory(args.output_dir, resume=resume))
    job = _Job(args, Path(str(args.output_dir)), reporter, None if shared_scores is None else Path(shared_scores))
    try:
        return job.run(resume)
    except LetgoError as error:
        if not isinstance(error, UserError) and processes.is_first():
            job.write_failure(error)
        raise


def prepare_directory(output: str | None, *, resume: bool = False) -> Path:
    """The output directory, made and tried; one that holds another run is refused."""
    if not output:
        raise UserError("no output directory: give output_dir (--output DIR)")
    directory = Path(output)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"output {directory} is a file; name a directory")
    if directory.is_dir() and any(directory.iterdir()):
        if not resume:
            what = "holds another run" if is_run(directory) or (directory / CONFIG_FILE).exists() else "is not empty"
            raise UserError(
                f"output directory {directory} {what}; name another one, remove it, or resume it with --resume"
            )
        if is_run(directory) and read_result(directory).status == "finished":
            raise UserError(f"output directory {directory} holds a finished run; there is nothing to resume")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"output directory {directory} can't be written to ({error.strerror})") from error
    return directory


class _Job:
    """One call of `unlearn`, with its clock."""

    def __init__(
        self, args: UnlearnConfig, directory: Path, reporter: Reporter, shared_scores: Path | None = None
    ) -> None:
        self.args, self.directory, self.reporter = args, directory, reporter
        self.shared_scores = shared_scores
        # Before a Trainer exists: making the default config to compare with resets accelerate's state.
        self.settings, self.yaml = resolved_settings(args), dump_config(args)
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        # Here, where all processes are: a failure is written by the first one alone.
        self.created = processes.agreed(now())
        self.run_id = processes.agreed(new_run_id(self.created))
        self.before: Metrics = {}
        self.base: Base | None = None
        self.zero: Any = None
        """The whole weights, in the first process, where ZeRO-3 has trained them in parts."""
        self.ranks: dict[str, Any] = {}
        """How several processes trained together, for the record."""
        self.scored: dict[str, Any] = {}
        """What the scores are of, and by which rules (`Benchmark.identity`)."""
        self.headlines: dict[str, float] = {}

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def run(self, resume: bool) -> Run:
        args, reporter = self.args, self.reporter
        if args.push_to_hub:
            from letgo.report.publish import check_repository

            check_repository(args.hub_model_id)
        check_deepspeed(args)
        if uses_deepspeed(args) and args.save_strategy != "no":
            args.save_strategy = "no"
            self.notes.append("no checkpoints: DeepSpeed's are pickles, which letgo does not read; FSDP2 has some")
        benchmark: Benchmark = benchmark_of(self.settings)
        if benchmark.sequence:
            raise UserError(
                f"benchmark {args.benchmark!r} stands for {len(benchmark.sequence)} requests: `letgo unlearn` and "
                "letgo.unlearn_sequence run them, a directory each"
            )
        check_disjoint(benchmark.forget, benchmark.retain)
        with self.clock("load"):
            tokenizer = load_tokenizer(args.model)
            model = self.loaded()
        self.notes += [*benchmark.notes_for(tokenizer), *benchmark.limit_notes(args.eval_limit)]
        self.scored = benchmark.identity(tokenizer, args.template)  # type: ignore[arg-type]
        self.headlines = benchmark.headline_floors
        work = self.work(model, tokenizer, benchmark)
        processes.first_does(lambda: write_text(self.directory / CONFIG_FILE, self.yaml))
        limits: dict[str, Any] = {"limit": args.eval_limit, "template": args.template, "reporter": reporter}
        with self.clock("evaluate"):
            before = self.measured(benchmark, model, tokenizer, common=True, name="measuring before", **limits)
            self.before = benchmark.summarise(before)
            give_back_memory()
        with self.clock("unlearn"):
            self.unlearned(work, tokenizer, benchmark, resume)
        self.notes += work.notes
        model = work.model
        if is_sharded_by_zero(model):
            work.model = None
            model = out_of_deepspeed(self.zero, self.loaded())
        with self.clock("save"):
            save_model(model, tokenizer, self.directory, base=self.base)
            if self.base is not None:
                model = self.merged(model)
                if args.save_merged:
                    save_model(model, tokenizer, self.directory / MERGED)
        with self.clock("evaluate"):
            after = self.measured(benchmark, model, tokenizer, name="measuring after", **limits)
            stages = {"before": before, "after": after}
            references = benchmark.reference_metrics()
            for name, reference in benchmark.references.items():
                other = load_model(reference, dtype=args.dtype)
                stages[f"reference:{name}"] = self.measured(
                    benchmark, other, tokenizer, common=True, name=f"measuring {name}", **limits
                )
                references[name] = benchmark.summarise(stages[f"reference:{name}"])
        metrics = benchmark.summarise(after)
        reasons = collapse_reasons(self.before, metrics)
        result = self.result(
            "collapsed" if reasons else "finished", reasons=reasons, after=metrics, references=references
        )
        processes.first_does(lambda: self.write(result, work, stages))
        result = self.attacked(result)
        return Run(self.directory, result, model, tokenizer)

    def loaded(self) -> Any:
        """The model to be unlearned; shared out over the processes where the config asks for it."""
        args = self.args
        shards = processes.count() if strategy_of(args) == "fsdp2" else 1
        return load_model(args.model, dtype=args.dtype, quantization=args.base_quantization, shards=shards)

    def write(self, result: Result, work: UnlearnTrainer | OneShot, stages: Mapping[str, Sequence[Sample]]) -> None:
        """The record of the run, `result.json` last; what only an unfinished one needs is then removed."""
        write_json_lines(self.directory / HISTORY_FILE, work.history)
        write_samples(self.directory, stages, self.args.seed)
        write_result(self.directory, result)
        record_run(self.directory, self.reporter.say)
        for path in self.directory.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.directory.glob(PARTIAL.format("*")):
            ScoreLog.remove(path)

    def measured(
        self, benchmark: Benchmark, model: Any, tokenizer: Any, *, common: bool = False, **how: Any
    ) -> list[Sample]:
        """The benchmark's samples. What is scored is kept in the directory till the run is finished, so that a killed
        one that is resumed scores nothing twice; under the weights' name, for before and after have other ones.

        Args:
            common: the model is not of this run's making: other runs that share their scores measure it too.
        """
        weights = weights_fingerprint(model)
        identity = {"weights": weights, "dtype": self.args.dtype}
        path, shared = self.directory / PARTIAL.format(weights), None
        # Several processes score a part each.
        if common and self.shared_scores is not None and processes.count() == 1:
            shared = self.shared_scores / f"{content_key(identity, arithmetic_of(model))}.jsonl"
            ScoreLog.begin_with(path, shared)
        with ScoreLog(path, identity) as log:
            samples = benchmark.samples(model, tokenizer, log=log, **how)
        if shared is not None:
            ScoreLog.leave_at(path, shared)
        return samples

    def merged(self, model: Any) -> Any:
        """The model that the saved adapter stands for, which is what is scored and attacked."""
        if self.args.base_quantization is None:
            return model.merge_and_unload(safe_merge=True).eval()
        # Merged into what the quantized base stands for, which is read anew: the layers trained on are packed.
        return load_model(self.directory, dtype=self.args.dtype)

    def attacked(self, result: Result) -> Result:
        from letgo.attacks.engine.run import attack
        from letgo.report.card import write_model_card

        if self.args.attacks:
            result = attack(self.directory, self.args.attacks, reporter=self.reporter, shared_scores=self.shared_scores)
        processes.first_does(lambda: write_model_card(self.directory, result))
        if self.args.push_to_hub:
            processes.first_does(lambda: self.published(result))
        return result

    def published(self, result: Result) -> None:
        """Push the model where the config asks for it: at the very end, so that its card tells of the attacks."""
        from letgo.report.publish import push_to_hub

        if result.status != "finished":
            self.reporter.say(f"  not pushed to {self.args.hub_model_id}: the run is {result.status}")
            return
        # What the settings leave open is answered the careful way.
        private = self.args.hub_private_repo is not False
        address = push_to_hub(
            self.directory,
            str(self.args.hub_model_id),
            private=private,
            reporter=self.reporter,
        )
        self.reporter.say(f"  pushed to {address}")

    def work(self, model: Any, tokenizer: Any, benchmark: Benchmark) -> UnlearnTrainer | OneShot:
        """What is to be run on the model: a trainer with the objective and the optimizer, or a one-shot method."""
        args = self.args
        objective = None if is_one_shot(args.objective) else objective_of(args)
        self.base = self._base(model) if args.lora_rank else None
        context = context_length(model)
        model, about_model = prepare_model(model, args, objective)
        dataset, about_data = prepare_data(benchmark, tokenizer, args, objective, context=context)
        self.notes += about_model + about_data
        for note in self.notes:
            self.reporter.say(f"  {note}")
        common: dict[str, Any] = {"pad_id": tokenizer.pad_token_id, "reporter": self.reporter}
        if objective is None:
            return OneShot(model, args, dataset, **common)
        trainer = UnlearnTrainer(model, args, dataset, objective=objective, **common)
        # Found out before anything is measured: a setting that the optimizer has not.
        trainer.create_optimizer()
        return trainer

    def unlearned(self, work: UnlearnTrainer | OneShot, tokenizer: Any, benchmark: Benchmark, resume: bool) -> None:
        if isinstance(work, OneShot):
            work.run()
            return
        self.references(work, tokenizer, benchmark)
        checkpoint = last_checkpoint(self.directory) if resume else None
        if resume and checkpoint is None:
            self.reporter.say("  no whole checkpoint to resume from: starting anew")
        if checkpoint is not None and (said := work.together.fit_window(rows_of_checkpoint(checkpoint))):
            work.notes.append(said)
            self.reporter.say(f"  {said}")
        work.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if work.together.count > 1:
            plugin = getattr(work.accelerator.state, "deepspeed_plugin", None)
            self.ranks = work.together.describe(None if plugin is None else f"zero{plugin.zero_stage}")
            self.notes.append(said_of(self.ranks, work.state.global_step))
            self.reporter.say(f"  {self.notes[-1]}")
        self.zero = work.accelerator.get_state_dict(work.model_wrapped) if is_sharded_by_zero(work.model) else None
        work.release()
        give_back_memory()

    def references(self, trainer: UnlearnTrainer, tokenizer: Any, benchmark: Benchmark) -> None:
        """What the objective needs of the model as it is now, from letgo's cache or into it."""
        args = self.args
        circumstances = Circumstances.of(
            tokenizer,
            benchmark.template_for(args.template),  # type: ignore[arg-type]
            args.max_length,
            trainer.model,
        )
        # One process of a machine computes, the others read; a model that is shared out runs in all at once.
        alone = contextlib.nullcontext() if trainer.together.sharded else args.main_process_first(desc="reference")
        with alone:
            take_references(
                trainer.model,
                trainer.train_dataset,
                trainer.objective,
                pad_id=tokenizer.pad_token_id,
                epochs=planned_steps(args, len(trainer.train_dataset))[1],
                store=ReferenceStore(),
                circumstances=circumstances,
                reporter=self.reporter,
            )

    def _base(self, model: Any) -> Base:
        """What the adapters of this run are trained on, as their directory will name it."""
        name = self.args.model
        if Path(name).is_dir() and name not in BUILTIN:
            name = str(Path(name).resolve())
        return Base(name, self.args.dtype, self.args.base_quantization, quick_fingerprint(model))

    def result(self, status: Status, **values: Any) -> Result:
        return Result(
            run_id=self.run_id,
            created=self.created,
            seed=self.args.seed,
            config=self.settings | ({"scored": self.scored} if self.scored else {}),
            status=status,
            before=self.before,
            headlines=self.headlines,
            notes=self.notes,
            seconds={k: round(v, 3) for k, v in self.seconds.items()},
            processes=self.ranks,
            **circumstances(),
            **values,
        )

    def write_failure(self, error: LetgoError) -> None:
        write_result(self.directory, self.result("failed", reasons=[str(error)]))
        record_run(self.directory, self.reporter.say)


def write_samples(directory: Path, stages: Mapping[str, Sequence[Sample]], seed: int) -> None:
    rows = [sample.as_row(stage, seed) for stage, samples in stages.items() for sample in samples]
    write_json_lines(directory / SAMPLES_FILE, rows)
