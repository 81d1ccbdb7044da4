"""From the sweeps of an experiment to its result file, and from its tuning to the list of its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from letgo import Result, UserError, optimizer_cost, plan_attack, read_result, read_sweep, robustness
from research.d2u.experiments import HERE, Experiment, Sweep
from research.d2u.records import METRICS, AttackScore, Record, SeedRun, Setting, Trial, Tuning

_SEEN = ("seen_accuracy", "seen_probability")


def collect(experiment: Experiment) -> Record:
    """The sweeps of an experiment as a record. Runs that are not finished yet are left out; failed ones are kept.

    Raises:
        UserError: nothing of the experiment has been run.
    """
    held_back = [plan_attack(spec).label for spec in experiment.testbed.held_back]
    results: list[Result] = []
    settings = [
        _setting(sweep, entry, group, held_back, experiment, results)
        for sweep in experiment.run_sweeps()
        for entry, group in _groups(sweep)
        if any(cell.status != "pending" for cell in group.cells)
    ]
    tunings = [
        _tuning(sweep, entry, group, results)
        for sweep in experiment.tuning_sweeps()
        for entry, group in _groups(sweep)
        if group.trials
    ]
    if not results:
        raise UserError(f"nothing of {experiment.name} has been run yet; sh research/d2u/run.sh {experiment.name}")
    order = [(entry["name"], entry["learning_rate"]) for entry in experiment.runs]
    return Record(
        testbed=experiment.testbed.name,
        objective=experiment.objective,
        before=_values(results[0].before),
        retrained=_values(results[0].references.get("retrained", {})),
        held_back=held_back,
        settings=sorted(settings, key=lambda setting: order.index((setting.name, setting.learning_rate))),
        tuning=tunings,
    )


def freeze(experiment: Experiment) -> list[str]:
    """Append to an experiment's file the runs that its tuning chose, on the testbed's seeds.

    Returns:
        The names that did not reach the target within the bound.

    Raises:
        UserError: runs are named already, a seed was used in tuning, the tuning is not finished, or nothing reached the
            target.
    """
    bed = experiment.testbed
    if experiment.runs:
        raise UserError(f"{experiment.name} names its runs already")
    if bed.tuning["seed"] in bed.seeds:
        raise UserError(f"seed {bed.tuning['seed']} was tuned on; the runs need other seeds")
    chosen, missed = [], []
    for sweep in experiment.tuning_sweeps():
        groups = _groups(sweep)
        pending = [entry["name"] for entry, group in groups if group.reached is None]
        if pending or not groups:
            state = ", ".join(pending) or "nothing was run"
            raise UserError(f"the tuning is not finished ({state}); letgo sweep {sweep.path} --resume")
        for entry, group in groups:
            if group.reached:
                chosen.append({**entry, **group.chosen, "seeds": list(bed.seeds)})
            else:
                missed.append(str(entry["name"]))
    if not chosen:
        raise UserError(f"no candidate of {experiment.name} reached the target within the bound")
    lines = [yaml.safe_dump(entry, default_flow_style=True, width=1000, sort_keys=False).strip() for entry in chosen]
    with (HERE / f"{experiment.name}.yaml").open("a", encoding="utf-8") as file:
        file.write("\n# Chosen in tuning.\nruns:\n" + "".join(f"  - {line}\n" for line in lines))
    return missed


def passes(optimizer: str, settings: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Forward and backward passes of a run, counted by stepping the optimizer on small matrices. A pass over the forget
    or the retain rows alone, which smoothing with `on="forget"` takes, counts half."""
    cost = optimizer_cost(optimizer, settings, torch.float32)
    share = 0.5 if settings.get("on") == "forget" else 1.0
    forward = steps * share * (cost.forwards + cost.backwards)
    return {"forward": round(forward, 3), "backward": round(steps * share * cost.backwards, 3)}


def _groups(sweep: Sweep) -> list[tuple[Mapping[str, Any], Any]]:
    """Each entry of a grid with the state of its group; nothing if the sweep was not begun."""
    if not (sweep.folder / "sweep.json").is_file():
        return []
    return list(zip(sweep.entries, read_sweep(sweep.folder).groups, strict=True))


def _setting(
    sweep: Sweep,
    entry: Mapping[str, Any],
    group: Any,
    held_back: Sequence[str],
    experiment: Experiment,
    results: list[Result],
) -> Setting:
    runs = []
    config: Mapping[str, Any] = {**experiment.settings, **entry}
    for cell in group.cells:
        if cell.run is None:
            if cell.status != "pending":
                runs.append(SeedRun(seed=cell.seed, status=cell.status, reason=cell.reason))
            continue
        result = read_result(sweep.folder / cell.run)
        results.append(result)
        config = result.config
        counted = [
            attack
            for attack in result.attacks
            if attack.label not in held_back and not (experiment.testbed.retrained and "R_by_kept" in attack.scores)
        ]
        scores = robustness(counted) if result.status == "finished" else {}
        runs.append(SeedRun(**_run(result), robustness=scores))
    steps = int(config["max_steps"])
    return Setting(
        name=entry["name"],
        optimizer=entry["optimizer"],
        trainable=entry.get("trainable"),
        learning_rate=entry["learning_rate"],
        steps=steps,
        passes=passes(str(config["optimizer"]), config.get("optimizer_args") or {}, steps),
        superseded=entry.get("superseded", False),
        control=entry.get("control", False),
        runs=runs,
    )


def _tuning(sweep: Sweep, entry: Mapping[str, Any], group: Any, results: list[Result]) -> Tuning:
    base, tune = sweep.document["base"], sweep.document["tune"]
    trials = []
    for state in group.trials:
        rate = state.changes["learning_rate"]
        chosen = state.verdict == "reached" and rate == group.chosen.get("learning_rate")
        about = {"learning_rate": rate, "verdict": state.verdict, "chosen": chosen}
        if state.verdict == "failed":
            trials.append(Trial(seed=group.cells[0].seed, status="failed", reason=_error(sweep, state.run), **about))
            continue
        result = read_result(sweep.folder / state.run)
        results.append(result)
        trials.append(Trial(**_run(result), **about))
    return Tuning(
        name=entry["name"],
        optimizer=entry["optimizer"],
        trainable=entry.get("trainable"),
        steps=entry.get("max_steps", base["max_steps"]),
        eval_limit=base.get("eval_limit"),
        target=tune["target"],
        bound=tune["bound"],
        trials=trials,
    )


def _error(sweep: Sweep, run: str) -> str:
    path = sweep.folder / run / "error.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["error"]) if path.is_file() else ""


def _run(result: Result) -> dict[str, Any]:
    return {
        "seed": result.seed,
        "status": result.status,
        "reason": "; ".join(result.reasons),
        "run_id": result.run_id,
        "git": result.git,
        "after": _values(result.after),
        "unlearn_seconds": result.seconds.get("unlearn"),
        "attacks": {attack.label: _score(attack) for attack in result.attacks},
    }


def _score(attack: Any) -> AttackScore:
    return AttackScore(
        kept=attack.kept,
        kept_ci95=attack.kept_ci95,
        R=None if "R_by_kept" in attack.scores else attack.scores.get("R"),
        collapsed=attack.collapsed,
        utility_loss=attack.utility_loss,
        metrics=_values(attack.metrics, (*METRICS, *_SEEN)),
    )


def _values(metrics: Mapping[str, Any], names: Sequence[str] = METRICS) -> dict[str, float]:
    return {name: metrics[name].value for name in names if name in metrics}


def result_file(name: str) -> Path:
    return HERE / "results" / f"{name.replace('/', '-')}.json"
