"""Looks at a model while it unlearns: how far it has forgotten by now, and how useful it still is.

A look scores a few items of the run's benchmark (`Benchmark.few`), with the weights that the run would end with if it
ended there. It moves neither the weights nor the global random generators, so a run with looks takes the same steps as
one without. What a look measured is a row of Trainer's log, which checkpoints hold: where a run stops and which weights
it keeps follow from the rows alone, so a run that goes on after a kill decides the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from letgo.benchmarks.engine.base import Benchmark
from letgo.benchmarks.engine.items import FEW
from letgo.core import processes
from letgo.core.errors import LetgoError, UserError
from letgo.core.files import written_whole
from letgo.metrics.judgement import plain_share
from letgo.metrics.robustness import utility_loss, utility_names
from letgo.models.adapters import has_adapters
from letgo.models.load import in_shards, whole
from letgo.optim.base import OptimizerProtocol, adapt
from letgo.optim.engine.shards import forget_gathered, gathering_anew, local, piece_of
from letgo.report.numbers import percent
from letgo.runs.results import Metric, Metrics
from letgo.training.config import UnlearnConfig
from letgo.training.run_plan import trial_optimizer

BEST = "best-{}.safetensors"
"""In an unfinished run: the trained parameters as they were at the look of this step."""

Row = Mapping[str, Any]
"""A look: the step, `forgotten` (F), `utility_loss`, and the metrics that they are made of. F or the loss is None where
the benchmark has nothing to measure it by."""


def looks_of(args: UnlearnConfig, benchmark: Benchmark, tokenizer: Any) -> Looks | None:
    """The looks that a config asks for, if any."""
    return Looks(args, benchmark, tokenizer) if args.evaluate_every else None


def look_limit(args: UnlearnConfig) -> int:
    """At most so many of each set are scored, also where a benchmark has other things to score than items."""
    return min(FEW, args.eval_limit or FEW)


def most_looks(args: UnlearnConfig, steps: int) -> int:
    """How many looks a run of so many steps takes if it does not stop before."""
    if not args.evaluate_every:
        return 0
    at = {*range(0, steps, args.evaluate_every), steps}
    fit = adapt(trial_optimizer(args)).fit_total_steps
    if args.stop and fit(1) > 1:
        at |= set(range(0, steps, fit(1)))
    return len(at)


def is_look(row: Row) -> bool:
    """Whether a row of the log, or of `history.jsonl`, is a look."""
    return "forgotten" in row


def looks_in(log: Sequence[Row]) -> list[Row]:
    """The looks of a log, in order."""
    return [row for row in log if is_look(row)]


def look_of(row: Row) -> dict[str, Any]:
    """A look without what Trainer adds to a row of its log."""
    return {"step": row["step"]} | {k: v for k, v in row.items() if k not in ("epoch", "num_input_tokens_seen")}


class Looks:
    """When a run is looked at, what a look finds, and what follows from it. `log` is Trainer's, everywhere.

    Args:
        args: the run's config.
        benchmark: the run's.
        tokenizer: the model's.

    Raises:
        UserError: the benchmark has no metric by which to stop, or to tell the best weights.
    """

    def __init__(self, args: UnlearnConfig, benchmark: Benchmark, tokenizer: Any) -> None:
        self.args, self.tokenizer = args, tokenizer
        self.benchmark = benchmark.few(args.eval_limit)
        self.directory = Path(str(args.output_dir))
        self.fit = adapt(trial_optimizer(args)).fit_total_steps
        self.levels: dict[str, float] = {}
        """What a model that never knew scores, where it is known better than by guessing."""
        self._safe: set[int] = set()
        """Steps whose weights a resumed run may need."""
        if not benchmark.headlines and (setting := self._decides_by):
            raise UserError(f"{setting} needs a measure of forgetting, and benchmark {benchmark.name!r} has none")

    @property
    def _decides_by(self) -> str:
        """The setting that goes by what the looks find, if any."""
        return "stop: target" if self.args.stop else "keep: best" if self.args.keep == "best" else ""

    # -- when ---------------------------------------------------------------------------------------------------------

    def due(self, step: int, last: int, log: Sequence[Row]) -> bool:
        """Whether to look after this step: every so many, after the last one, and, where the target was reached in the
        middle of an optimizer's round, at the round's end."""
        looks = looks_in(log)
        if looks and looks[-1]["step"] >= step:
            return False
        every = step % int(self.args.evaluate_every or 1) == 0
        return every or step == last or (self._reached(looks) and step == self.fit(looks[-1]["step"]))

    def over(self, log: Sequence[Row]) -> bool:
        """Whether the run is to end: its last look found the target reached, at a step at which a run may end."""
        looks = looks_in(log)
        return self._reached(looks) and self._may_end(looks[-1])

    def _reached(self, looks: Sequence[Row]) -> bool:
        return bool(self.args.stop and looks) and looks[-1]["forgotten"] >= self.args.target

    def _may_end(self, look: Row) -> bool:
        return bool(self.fit(look["step"]) == look["step"])

    # -- what ---------------------------------------------------------------------------------------------------------

    def take(self, model: Any, optimizer: OptimizerProtocol, step: int, log: Sequence[Row]) -> Row:
        """Look at the model, and keep its weights if they are the best so far. All processes must call it.

        Args:
            model: as it is trained, without what DDP wraps around it.
            optimizer: whose `finished` says with which weights the run would end.
        """
        parameters = list(in_shards(model).parameters())
        devices = [parameters[0].device] if parameters[0].device.type == "cuda" else []
        with optimizer.finished(), gathering_anew(parameters), torch.random.fork_rng(devices):
            row = self._row(self._metrics(model), step, looks_in(log))
            if self.args.keep == "best" and self.best([*log, row]) is row:
                self._keep(model, step)
        return row

    def _metrics(self, model: Any) -> Metrics:
        samples = self.benchmark.samples(
            # What adapters were put into: the same object that is measured before and after.
            model.get_base_model() if has_adapters(model) else model,
            self.tokenizer,
            limit=look_limit(self.args),
            template=self.args.template,  # type: ignore[arg-type]
        )
        return self.benchmark.summarise(samples)

    def _row(self, metrics: Metrics, step: int, looks: Sequence[Row]) -> Row:
        headlines = self.benchmark.headlines
        names = [h.metric for h in headlines if h.metric in metrics] + utility_names(headlines, metrics)
        values = {name: metrics[name].value for name in dict.fromkeys(names)}
        first = looks[0] if looks else values
        judged = {
            "forgotten": plain_share(headlines, first, values, self.levels),
            "utility_loss": utility_loss(headlines, _as_metrics(first), _as_metrics(values)),
        }
        self._check(judged)
        return {"step": step, **judged, **values}

    def _check(self, judged: Mapping[str, float | None]) -> None:
        if judged["forgotten"] is None and (setting := self._decides_by):
            raise UserError(
                f"{setting} needs something to forget, but the model is not above chance in any headline metric of "
                f"{self.benchmark.name!r} on the items that a look scores: leave {setting} out"
            )
        if judged["utility_loss"] is None and self.args.keep == "best":
            raise UserError(
                f"keep: best needs a measure of usefulness, and a look at {self.benchmark.name!r} has none: give a "
                "retain set, or leave keep: best out"
            )

    @staticmethod
    def text(look: Row) -> str:
        """A look in a few words, for the line of progress."""
        shares = {"forgotten": look["forgotten"], "utility lost": look["utility_loss"]}
        return ", ".join(f"{name} {percent(share)}" for name, share in shares.items() if share is not None)

    # -- the best weights ---------------------------------------------------------------------------------------------

    def best(self, log: Sequence[Row]) -> Row | None:
        """The look that forgot most (the first of equals) among those within the utility bound, at steps at which a run
        may end; the one before the first step does not count."""
        within = [look for look in looks_in(log)[1:] if look["utility_loss"] <= self.args.utility_bound]
        return max(filter(self._may_end, within), key=lambda look: look["forgotten"], default=None)

    def begin(self, log: Sequence[Row]) -> None:
        """At the beginning of a run, or of its going on, and when a checkpoint has been written: of the weights that
        were kept, leave those that the run needs if it goes on from there."""
        if self.args.keep == "best":
            best = self.best(log)
            self._safe = set() if best is None else {best["step"]}
            processes.first_does(lambda: self._remove_all_but(self._safe))

    def _keep(self, model: Any, step: int) -> None:
        from safetensors.torch import save_file

        state: dict[str, torch.Tensor] = {}
        for name, parameter in in_shards(model).named_parameters():
            if parameter.requires_grad:
                # Gathered by all processes together; the first one writes.
                gathered = whole(parameter.detach())
                state |= {name: gathered.cpu().contiguous()} if processes.is_first() else {}

        def write() -> None:
            with written_whole(self.directory / BEST.format(step)) as temporary:
                save_file(state, temporary)
            self._remove_all_but({*self._safe, step})

        processes.first_does(write)

    def _remove_all_but(self, steps: Collection[int]) -> None:
        kept = {BEST.format(step) for step in steps}
        for path in self.directory.glob(BEST.format("*")):
            if path.name not in kept:
                path.unlink()

    @torch.no_grad()
    def _restore(self, model: Any, step: int) -> None:
        from safetensors.torch import load_file

        path = self.directory / BEST.format(step)
        if not path.is_file():
            raise LetgoError(f"{path} with the weights to keep is gone; begin the run anew")
        state = load_file(path)
        parameters = {name: p for name, p in in_shards(model).named_parameters() if name in state}
        for name, parameter in parameters.items():
            local(parameter).copy_(piece_of(parameter).of(state[name]))
        forget_gathered(parameters.values())

    # -- the end ------------------------------------------------------------------------------------------------------

    def end(self, model: Any, log: Sequence[Row], last: int) -> list[str]:
        """After the optimizer's `finish`: give the model the weights to keep. Returns notes for the record.

        Args:
            last: the step at which the run was to end.
        """
        notes, looks, keep_best = [], looks_in(log), self.args.keep == "best"
        if self.args.stop:
            ended, target = looks[-1], f"the target of {percent(self.args.target)}"
            if self.over(log):
                notes.append(f"stopped at step {ended['step']} of {last}: {self.text(ended)}; {target} is reached")
            else:
                notes.append(f"ran to its last step, {last}: {self.text(ended)}; {target} was not reached")
        if keep_best and (best := self.best(log)) is not None:
            self._restore(model, best["step"])
            notes.append(f"kept the weights of step {best['step']}, the best look: {self.text(best)}")
        elif keep_best:
            bound = percent(self.args.utility_bound)
            notes.append(f"kept the last weights: no look was within the utility bound of {bound}")
        return notes


def _as_metrics(values: Row) -> Metrics:
    """The values of a look as metrics, whose intervals nobody asks for."""
    return {
        name: Metric(value=value, n=1, ci95=(value, value))
        for name, value in values.items()
        if name not in ("step", "epoch", "num_input_tokens_seen", "forgotten", "utility_loss")
    }
