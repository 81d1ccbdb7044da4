"""What every analysis does before and after it measures: open, keep what is finished, and write."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from letgo.analysis.losses import RowLosses
from letgo.analysis.records import AnalysisEntry, write_analysis
from letgo.analysis.weights import Weights
from letgo.attacks.engine.target import Target, open_targets
from letgo.core.environment import circumstances
from letgo.core.errors import UserError
from letgo.core.fingerprints import digest_of
from letgo.core.progress import Quiet, Reporter
from letgo.data.encode import Template
from letgo.models.load import resolve_model
from letgo.runs.results import RESULT_FILE, is_run, now
from letgo.scoring.resume_log import ResumeLog

Entry = TypeVar("Entry", bound=AnalysisEntry)


class Analysis(Generic[Entry]):
    """One analysis at work.

    Args:
        record: the class of its entry.
        models: a run directory, or a model where `benchmark` is named; or several of either.
        settings: of this kind of analysis, all that its figures depend on.
        dtype: the weights' type.
        limit: at most so many rows of each set.
        benchmark, template: what to measure on; by default the first run's.
        output: where the entry is written; by default the first run's directory, if there is one.
        reporter: where progress goes.

    Attributes:
        targets: the models, opened; `target` is the first one.
        settings: what the entry records: the given ones and those that every analysis has.
    """

    def __init__(
        self,
        record: type[Entry],
        models: str | Path | Sequence[str | Path],
        *,
        settings: Mapping[str, Any],
        dtype: str,
        limit: int | None,
        benchmark: str | None,
        template: Template | None,
        output: Path | None,
        reporter: Reporter | None,
    ) -> None:
        self.start = time.perf_counter()
        if isinstance(models, str | Path):
            _check_run(models, benchmark)
            models = [models]
        self.record, self.kind = record, record.__name__.lower()
        self.dtype, self.limit, self.reporter = dtype, limit, reporter or Quiet()
        self.targets = open_targets(models, benchmark=benchmark, template=template, reporter=self.reporter)
        self.folder = _folder(self.targets, output)
        measured = {"benchmark": self.target.measured_on, "template": self.target.template}
        self.settings: dict[str, Any] = measured | dict(settings) | {"limit": limit, "dtype": dtype}
        self._logs: list[Path] = []

    @property
    def target(self) -> Target:
        return self.targets[0]

    @cached_property
    def weights(self) -> Weights:
        """The first model's, loaded when they are first asked for."""
        return Weights(self.target.load(self.dtype))

    @cached_property
    def tokenizer(self) -> Any:
        return self.target.tokenizer()

    def losses(self, model: Any) -> RowLosses:
        """The losses over the rows to measure on, by a model's context length."""
        target = self.target
        return RowLosses(model, self.tokenizer, target.benchmark, template=target.template, limit=self.limit)

    def log(self, depends_on: Mapping[str, Any]) -> ResumeLog:
        """What is finished of a part of the analysis: of the same settings and weights, found again after a kill."""
        if self.folder is None:
            return ResumeLog(None, depends_on)
        self._logs.append(self.folder / f".analysis-{self.kind}-{digest_of(depends_on)}.jsonl")
        return ResumeLog(self._logs[-1], depends_on)

    def finish(self, **fields: Any) -> Entry:
        """The entry, written; nothing is then left to resume."""
        around = circumstances()
        entry = self.record(
            subject=" ".join(target.name for target in self.targets),
            settings=self.settings,
            **fields,
            created=now(),
            seconds=round(time.perf_counter() - self.start, 3),
            **{key: around[key] for key in ("letgo", "versions", "git")},
        )
        if self.folder is not None:
            write_analysis(self.folder, entry)
        for log in self._logs:
            ResumeLog.remove(log)
        return entry


def check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"seed must be at least 0, not {seed}")


def _check_run(place: str | Path, benchmark: str | None) -> None:
    path = Path(place)
    if benchmark is not None or (path.is_dir() and is_run(path)):
        return
    what = "is a model" if not path.exists() and _is_model(place) else "is not a run directory"
    raise UserError(
        f"{place} {what}: it has no {RESULT_FILE}\n  name a run directory, or a model with --benchmark NAME beside"
    )


def _is_model(place: str | Path) -> bool:
    try:
        resolve_model(place)
    except UserError:
        return False
    return True


def _folder(targets: Sequence[Target], output: Path | None) -> Path | None:
    """Where an analysis is written: the output named, else the first run's directory, else nowhere."""
    if output is None:
        return next((target.directory for target in targets if target.directory is not None), None)
    if output.exists() and not output.is_dir():
        raise UserError(f"output {output} is a file; name a directory")
    return output
