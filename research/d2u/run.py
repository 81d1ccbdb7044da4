"""Making an experiment from nothing: its models, its tuning, its runs, its result file. Each step resumes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from letgo import UserError, read_sweep
from research.d2u.collect import collect, freeze, result_file
from research.d2u.experiments import RUNS, Experiment, Sweep, read_experiment
from research.d2u.records import write_record

ANALYSED = ("AdamW", "SignAdam", "Sophia", "FOZO", "SAM", "4-bit", "RS", "Muon")
"""The grades of NPO on biographies whose solutions are analysed, on seed 0."""


def run(name: str) -> None:
    """Tune, freeze and attack one experiment, and write its result file."""
    experiment = read_experiment(name)
    make_models(experiment)
    for sweep in experiment.tuning_sweeps():
        run_sweep(sweep)
    if not experiment.runs:
        freeze(experiment)
        experiment = read_experiment(name)
    for sweep in experiment.run_sweeps():
        run_sweep(sweep)
    write_record(result_file(name), collect(experiment))


def make_models(experiment: Experiment) -> None:
    """Fine-tune the testbed's models that are not there yet, and score the retrained one."""
    bed = experiment.testbed
    folder = RUNS / bed.name
    for model, config in bed.models.items():
        if not (folder / model / "result.json").is_file():
            _write(folder / f"{model}.yaml", {**config, "output_dir": str(folder / model)})
            call_letgo("unlearn", str(folder / f"{model}.yaml"))
    if bed.scores and not (folder / "retrained-scores" / "result.json").is_file():
        options = [word for key, value in bed.scores.items() for word in (f"--{key}", str(value))]
        call_letgo("eval", str(folder / "retrained"), *options, "--output", str(folder / "retrained-scores"))


def run_sweep(sweep: Sweep) -> None:
    _write(sweep.path, sweep.document)
    call_letgo("sweep", str(sweep.path), "--resume")


def analyse(results: Path) -> None:
    """Connectivity of every pair of NPO's solutions on biographies, and their certificates at one σ."""
    models = [
        str(sweep.folder / group.cells[0].run)
        for sweep in read_experiment("biographies/npo").run_sweeps()
        if (sweep.folder / "sweep.json").is_file()
        for entry, group in zip(sweep.entries, read_sweep(sweep.folder).groups, strict=True)
        if entry["name"] in ANALYSED and not entry.get("superseded") and not entry.get("control") and group.cells[0].run
    ]
    if not models:
        raise UserError("nothing of biographies/npo has been run yet; sh research/d2u/run.sh biographies/npo")
    points = ("--points", "7", "--no-metrics")
    call_letgo("analyze", "connectivity", *models, "biographies", *points, "--output", str(results))
    draws = ("--sigma", "0.005", "--draws", "100", "--no-rerun")
    for model in models:
        call_letgo("analyze", "certificate", model, *draws, "--output", str(results))


def call_letgo(*words: str) -> None:
    """One `letgo` command, on one thread: steps of a sweep run side by side."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-m", "letgo", *words], check=True, env={**threads, **os.environ})


def _write(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
