"""A run that has begun: its config, its directory, and what is known of it so far."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letgo.core import processes
from letgo.core.environment import circumstances
from letgo.core.errors import LetgoError, UserError, WorldError
from letgo.core.progress import Quiet, Reporter, usual
from letgo.runs import record_run
from letgo.runs.results import Digests, Metrics, Result, Status, new_run_id, now, write_result
from letgo.training.config import UnlearnConfig, dump_config, resolved_settings
from letgo.training.trackers import Trackers


@dataclass
class Log:
    """What is known of a run so far: a run that fails records it too."""

    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    scored: dict[str, Any] = field(default_factory=dict)
    """What the scores are of, and by which rules (`Benchmark.identity`)."""
    headlines: dict[str, float] = field(default_factory=dict)
    before: Metrics = field(default_factory=dict)
    digests: Digests = field(default_factory=Digests)
    """Of what the run begins with, and then of the model that it has saved."""
    processes: dict[str, Any] = field(default_factory=dict)
    """How several processes trained together."""

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Opened:
    """A run that has begun: its config, which stays as it is, and where it goes."""

    config: UnlearnConfig
    settings: dict[str, Any]
    """The config's settings, as the record has them."""
    yaml: str
    directory: Path
    created: str
    run_id: str
    resume: bool
    shared_scores: Path | None
    reporter: Reporter
    log: Log
    trackers: Trackers


def open_run(
    config: UnlearnConfig,
    resume: bool,
    reporter: Reporter | None,
    shared_scores: str | Path | None,
    notes: Sequence[str],
) -> Opened:
    """Give the run its name and its time, in all processes: a failure is recorded by the first one alone."""
    created = processes.agreed(now())
    reporter = usual(reporter) if processes.is_first() else Quiet()
    return Opened(
        config=config,
        # Before a Trainer exists: making the default config to compare with resets accelerate's state.
        settings=resolved_settings(config),
        yaml=dump_config(config),
        directory=Path(str(config.output_dir)),
        created=created,
        run_id=processes.agreed(new_run_id(created)),
        resume=resume,
        shared_scores=None if shared_scores is None else Path(shared_scores),
        reporter=reporter,
        log=Log(notes=list(notes)),
        trackers=Trackers(config, reporter.say),
    )


@contextmanager
def failure_recorded(opened: Opened) -> Iterator[None]:
    """Within: an error that is neither the user's mistake nor the machine's failure is recorded in the directory before
    it goes on."""
    try:
        yield
    except LetgoError as error:
        if not isinstance(error, UserError | WorldError) and processes.is_first():
            write_result(opened.directory, result_of(opened, "failed", reasons=[str(error)]))
            record_run(opened.directory, opened.reporter.say)
        raise


def result_of(opened: Opened, status: Status, **values: Any) -> Result:
    """The record of what is known of a run by now."""
    log = opened.log
    return Result(
        run_id=opened.run_id,
        created=opened.created,
        seed=opened.config.seed,
        config=opened.settings | ({"scored": log.scored} if log.scored else {}),
        status=status,
        before=log.before,
        headlines=log.headlines,
        digests=log.digests,
        notes=log.notes,
        seconds={name: round(seconds, 3) for name, seconds in log.seconds.items()},
        processes=log.processes,
        **circumstances(),
        **values,
    )
