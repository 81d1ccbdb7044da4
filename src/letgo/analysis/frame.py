"""What every analysis does before and after it measures: open, keep what is finished, and write."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

from letgo.analysis import ANALYSES
from letgo.analysis.losses import RowLosses
from letgo.analysis.records import AnalysisEntry, write_analysis
from letgo.analysis.weights import Weights
from letgo.attacks.engine.target import Target, open_targets
from letgo.core.environment import circumstances
from letgo.core.errors import UserError
from letgo.core.fingerprints import digest_of
from letgo.core.progress import Reporter, usual
from letgo.data.encode import Template
from letgo.models.load import resolve_model
from letgo.runs.results import RESULT_FILE, is_run, now
from letgo.scoring.resume_log import ResumeLog

Entry = TypeVar("Entry", bound=AnalysisEntry)


class AnalysisOptions(TypedDict, total=False):
    """The keywords that every analysis takes."""

    benchmark: str | None
    """What to measure on; by default the first run's."""
    template: Template | None
    """How questions become prompts; by default the first run's."""
    dtype: str
    """The weights' type while they are moved: float32 by default. In a short type, noise is rounded with them."""
    output: Path | None
    """A directory for `analysis-KIND.json`; by default the first run's, if there is one."""
    reporter: Reporter | None


class Analysis(Generic[Entry]):
    """One analysis at work.

    Args:
        record: the class of its entry.
        models: a run directory, or a model where `benchmark` is named; or several of either.
        settings: of this kind of analysis, all that its figures depend on.
        limit: at most so many rows of each set; None for all.
        others: see `AnalysisOptions`.

    Attributes:
        targets: the models, opened; `target` is the first one.
        settings: what the entry records: the given ones and those that every analysis has.
    """

    def __init__(
        self,
        record: type[Entry],
        models: str | Path | Sequence[str | Path],
        settings: Mapping[str, Any],
        limit: int | None,
        *,
        benchmark: str | None = None,
        template: Template | None = None,
        dtype: str = "float32",
        output: Path | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.start = time.perf_counter()
        # An analysis of weights alone has no rows, and no limit.
        of_rows = {} if limit is None else {"limit": limit}
        ANALYSES.check_settings(record.__name__, {**settings, **of_rows}, skip=("run", "models"))
        if isinstance(models, str | Path):
            _check_run(models, benchmark)
            models = [models]
        self.record, self.kind = record, record.__name__.lower()
        self.dtype, self.limit, self.reporter = dtype, limit, usual(reporter)
        self.targets = open_targets(models, benchmark=benchmark, template=template, reporter=self.reporter)
        self.target = self.targets[0]
        self.folder = _folder(self.targets, output)
        measured = {"benchmark": self.target.measured_on, "template": self.target.template}
        self.settings: dict[str, Any] = measured | dict(settings) | {"limit": limit, "dtype": dtype}
        self._logs: list[Path] = []

    @cached_property
    def weights(self) -> Weights:
        """The first model's, loaded when they are first asked for."""
        return Weights(self.target.load(self.dtype))

    @cached_property
    def tokenizer(self) -> Any:
        return self.target.tokenizer()

    def losses(self, model: Any) -> RowLosses:
        """The losses over the rows to measure on, cut to a model's context length."""
        target = self.target
        return RowLosses(model, self.tokenizer, target.benchmark, template=target.template, limit=self.limit)

    def measure(
        self, name: str, depends_on: Mapping[str, Any], points: Sequence[Any], function: Callable[[Any], Any]
    ) -> list[Any]:
        """The function's value at each point, as JSON values. A log keeps them if the analysis is killed; it is read
        again where everything that they depend on is the same."""
        log: Path | None = None
        if self.folder is not None:
            log = self.folder / f".analysis-{self.kind}-{digest_of(depends_on)}.jsonl"
            self._logs.append(log)
        values = []
        with ResumeLog(log, depends_on) as finished, self.reporter.task(name, len(points)) as task:
            for point in points:
                values.append(finished.value(json.dumps(point), partial(function, point)))
                task.advance()
        return values

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


def _check_run(model: str | Path, benchmark: str | None) -> None:
    path = Path(model)
    if benchmark is not None or (path.is_dir() and is_run(path)):
        return
    problem = "is not a run directory"
    if not path.exists():
        with contextlib.suppress(UserError):
            resolve_model(model)
            problem = "is a model"
    raise UserError(
        f"{model} {problem}: it has no {RESULT_FILE}\n  name a run directory, or a model with --benchmark NAME beside"
    )


def _folder(targets: Sequence[Target], output: Path | None) -> Path | None:
    """Where an analysis is written: the output named, else the first run's directory, else nowhere."""
    if output is None:
        return next((target.directory for target in targets if target.directory is not None), None)
    if output.exists() and not output.is_dir():
        raise UserError(f"output {output} is a file; name a directory")
    return output
