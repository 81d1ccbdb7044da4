"""What each process of a launched pair does: jobs out of a file, one after another; what came of each goes to another
file. One launch for many jobs, because starting two processes takes longer than most of the jobs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from letgo.core import processes
from letgo.core.environment import freeze_imports


class Stopped(Exception):
    """Raised in a run that is to be cut off."""


@contextlib.contextmanager
def stop_at(step: int) -> Iterator[None]:
    """Cut every run off after the log of this step, as a kill would (checkpoints up to it are written)."""
    from letgo.training.trainer import UnlearnTrainer

    log = UnlearnTrainer.log

    def stopping(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step > step:
            raise Stopped
        log(self, *args, **kwargs)

    UnlearnTrainer.log = stopping  # type: ignore[method-assign]
    try:
        yield
    finally:
        UnlearnTrainer.log = log  # type: ignore[method-assign]


def unlearn(settings: dict[str, Any], resume: bool = False, stop: int | None = None) -> dict[str, Any]:
    import letgo

    with stop_at(stop) if stop else contextlib.nullcontext():
        try:
            run = letgo.unlearn(resume=resume, **settings)
        except Stopped:
            return {"stopped": stop}
    return {"after": {name: metric.value for name, metric in run.result.after.items()}, "notes": run.result.notes}


def differ(settings: dict[str, Any]) -> dict[str, Any]:
    """A run in which one process's weights are changed behind the others' backs."""
    from letgo.training.trainer import UnlearnTrainer

    step = UnlearnTrainer.training_step

    def tampered(self: Any, *args: Any, **kwargs: Any) -> Any:
        if processes.number() == 1 and self.state.global_step == 1:
            next(self.model.parameters()).data.view(-1)[0] += 1e-3
        return step(self, *args, **kwargs)

    UnlearnTrainer.training_step = tampered  # type: ignore[method-assign]
    try:
        return unlearn(settings)
    finally:
        UnlearnTrainer.training_step = step  # type: ignore[method-assign]


def evaluate(model: str, benchmark: str, limit: int, output: str) -> dict[str, Any]:
    from letgo.benchmarks.engine.evaluate import evaluate as run_evaluate
    from letgo.scoring import in_memory

    ran: list[int] = []
    inner = in_memory._score

    def counted(model: Any, queries: Any, *args: Any) -> Any:
        ran.append(len(queries))
        return inner(model, queries, *args)

    in_memory._score = counted
    try:
        [result] = run_evaluate(model, [benchmark], limit=limit, output=Path(output)).values()
    finally:
        in_memory._score = inner
    counts = processes.exchange(sum(ran))
    return {"after": {n: [m.value, m.n] for n, m in result.after.items()}, "queries_by_process": counts}


def attack(run: str, attacks: list[str]) -> dict[str, Any]:
    from letgo.attacks.engine.run import attack as run_attack

    result = run_attack(run, attacks)
    return {"kept": {one.label: one.kept for one in result.attacks}, "did": [one.did for one in result.attacks]}


JOBS = {"unlearn": unlearn, "differ": differ, "evaluate": evaluate, "attack": attack}


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch

    import letgo.attacks.engine.run
    import letgo.training.unlearn  # noqa: F401

    torch.set_num_threads(1)
    processes.start()
    freeze_imports()
    told: dict[str, Any] = {}
    for name, (kind, arguments) in jobs.items():
        print(f"job: {name}", file=sys.stderr, flush=True)
        try:
            told[name] = JOBS[kind](**arguments)
        except Exception as error:
            traceback.print_exc()
            told[name] = {"error": f"{type(error).__name__}: {error}"}
        # None begins before all have ended.
        processes.exchange(name)
    Path(f"{sys.argv[2]}.{processes.number()}").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
    processes.end()
