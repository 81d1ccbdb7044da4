"""Reading a sweep's runs into a small result file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from letgo.attacks.engine.robustness_scores import robustness
from letgo.attacks.engine.spec import plan_attack
from letgo.core.errors import UserError
from letgo.evidence.records import METRICS, Attacked, Cell, Group, Record
from letgo.evidence.settle import read_attacks
from letgo.evidence.subjects import subject_name, subject_of
from letgo.optim import OPTIMIZERS
from letgo.planning.optimizers import optimizer_cost
from letgo.runs.results import AttackResult, Metrics, Result, read_result
from letgo.runs.sweeps import CellState, GroupState, TrialState, read_sweep
from letgo.sweep.cell import ERROR_FILE

_MATRICES = r"proj\.weight$"


def collect(
    folder: Path,
    *,
    attacks: Path | None = None,
    kind: str = "ladder",
    supersedes: bool = False,
    controls: Sequence[str] = (),
) -> Record:
    """A sweep's folder as a record. Cells that are not finished yet are left out; failed ones are kept as such.

    Args:
        folder: of the sweep.
        attacks: the YAML whose `held_back` attacks take no part in R and Q.
        kind: "ladder" or "ideas"; a sweep that was tuned and not attacked is "tuning".
        controls: groups that are controls, other rates of grades that the ladder has too: "OPTIMIZER@RATE".
        supersedes: its groups stand for those of the same name in the objective's other files.

    Raises:
        UserError: nothing of the sweep has been run.
    """
    sweep = read_sweep(folder)
    held_back = [plan_attack(spec).label for spec in (read_attacks(attacks)["held_back"] if attacks else ())]
    groups, results = [], list[Result]()
    usual = sweep.document.get("base", {}).get("max_steps")
    for state in sweep.groups:
        trials = [_trial(folder, state, one) for one in state.trials]
        cells = [_cell(folder, one) for one in state.cells if one.status != "pending" and not state.trials]
        found = [result for _, result in [*trials, *cells] if result is not None]
        if not found:
            continue
        results += found
        made = [_with_robustness(cell, result, held_back) for cell, result in cells]
        group = _group(state, found[0], [cell for cell, _ in trials], made, usual)
        control = f"{group.optimizer}@{group.learning_rate:g}" in controls if group.learning_rate else False
        groups.append(group.model_copy(update={"control": control}))
    if not groups:
        raise UserError(f"{folder}: nothing of this sweep has been run yet")
    tuning = any(group.trials for group in groups)
    first = results[0]
    return Record(
        kind="tuning" if tuning else "ideas" if kind == "ideas" else "ladder",
        source=sweep.source,
        git=first.git,
        objective=str(first.config["objective"]),
        benchmark=_benchmark(first),
        target=sweep.target,
        bound=sweep.bound,
        before=_values(first.before),
        retrained=_values(first.references.get("retrained", {})),
        held_back=held_back if not tuning else [],
        supersedes=supersedes,
        groups=groups,
    )


def passes(optimizer: str, settings: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Forward and backward passes of a run of so many steps, counted by stepping the optimizer on small matrices. One
    over the forget or the retain rows alone, as smoothing with `on="forget"` takes them, counts half."""
    cost = optimizer_cost(optimizer, settings, torch.float32)
    share = 0.5 if settings.get("on") == "forget" else 1.0
    forward = steps * share * (cost.forwards + cost.backwards)
    return {"forward": round(forward, 3), "backward": round(steps * share * cost.backwards, 3)}


def _group(
    state: GroupState, result: Result, trials: Sequence[Cell], cells: Sequence[Cell], usual: int | None
) -> Group:
    config = result.config
    optimizer = OPTIMIZERS.record(str(config["optimizer"])).name
    settings = dict(config.get("optimizer_args") or {})
    steps = int(config["max_steps"])
    counted = passes(optimizer, settings, steps)
    # Muon takes matrices only; of the others it is a choice.
    if config.get("trainable") == _MATRICES and "muon" not in (optimizer, settings.get("fo")):
        settings["only"] = "matrices"
    # Other steps than the rest of its sweep has make it another thing than the grade.
    if usual is not None and steps != usual:
        settings["steps"] = steps
    chosen = state.chosen.get("learning_rate")
    return Group(
        objective=str(config["objective"]),
        optimizer=optimizer,
        settings=settings,
        grade=OPTIMIZERS.record(optimizer).grade,
        learning_rate=chosen if trials else float(config["learning_rate"]),
        steps=steps,
        passes=counted,
        reached=state.reached,
        trials=list(trials),
        verdicts=[one.verdict for one in state.trials],
        cells=list(cells),
    )


def _trial(folder: Path, state: GroupState, trial: TrialState) -> tuple[Cell, Result | None]:
    rate = trial.changes.get("learning_rate")
    if trial.verdict == "failed":
        path = folder / trial.run / ERROR_FILE
        said = json.loads(path.read_text(encoding="utf-8"))["error"] if path.is_file() else ""
        return Cell(seed=state.cells[0].seed, status="failed", reason=said, learning_rate=rate), None
    result = read_result(folder / trial.run)
    return _of(result), result


def _cell(folder: Path, state: CellState) -> tuple[Cell, Result | None]:
    if state.run is None:
        return Cell(seed=state.seed, status=state.status, reason=state.reason), None
    result = read_result(folder / state.run)
    return _of(result), result


def _of(result: Result) -> Cell:
    return Cell(
        seed=result.seed,
        status=result.status,
        reason="; ".join(result.reasons),
        run_id=result.run_id,
        learning_rate=float(result.config["learning_rate"]),
        after=_values(result.after),
        unlearn_seconds=result.seconds.get("unlearn"),
        attacks={attack.label: _attacked(attack) for attack in result.attacks},
    )


def _attacked(attack: AttackResult) -> Attacked:
    return Attacked(
        kept=attack.kept,
        kept_ci95=attack.kept_ci95,
        R=None if "R_by_kept" in attack.scores else attack.scores.get("R"),
        collapsed=attack.collapsed,
        utility_loss=attack.utility_loss,
        metrics={
            name: metric.value
            for name, metric in attack.metrics.items()
            if name in METRICS or name in ("seen_accuracy", "seen_probability")
        },
    )


def _with_robustness(cell: Cell, result: Result | None, held_back: Sequence[str]) -> Cell:
    """R and Q over the attacks that are not held back; R of those alone that the retrained model is the measure of,
    where it is known."""
    if result is None or result.status != "finished":
        return cell
    retrained = subject_of(_benchmark(result)).retrained
    counted = [a for a in result.attacks if a.label not in held_back and not (retrained and "R_by_kept" in a.scores)]
    return cell.model_copy(update={"robustness": robustness(counted)})


def _benchmark(result: Result) -> str:
    return subject_name(str(result.config["benchmark"]))


def _values(metrics: Metrics) -> dict[str, float]:
    return {name: metrics[name].value for name in METRICS if name in metrics}
