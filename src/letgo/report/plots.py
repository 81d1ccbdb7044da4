"""The page's figures, one at a time: `letgo.plot_…(run)` gives a `Figure` that a notebook shows; `save` writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from letgo.core.errors import UserError
from letgo.report import figures, overview
from letgo.report.chart import Figure
from letgo.report.load import LoadedRun, find_runs, read_run
from letgo.runs.record import attack_matches
from letgo.runs.results import Result, read_history
from letgo.runs.sweeps import Sweep

AnyRun = LoadedRun | Result | Path | str
"""A run, its result, or its directory."""


def plot_trade_off(run: AnyRun) -> Figure:
    """Forgetting against utility: the model before and after unlearning, after each attack, and its references."""
    return _there(
        figures.trade_off(_result(run), "trade"), "no two models were measured by a forget and a retain metric"
    )


def plot_attacks(run: AnyRun) -> Figure:
    """How much of the forgetting each attack left, against the threshold for survival."""
    return _there(figures.attacked(_result(run), "kept"), "it was not attacked")


def plot_attack(run: AnyRun, attack: str) -> Figure:
    """What came back over one attack's own steps. `attack` names it: "relearn", or "quantize:bits=4"."""
    made = _result(run).attacks
    named = [each for each in made if attack_matches(each, attack)]
    if not named:
        known = ", ".join(each.label for each in made) or "none"
        raise UserError(f"no attack {attack!r} was made on it; made: {known}")
    return _there(figures.curve(named[0], "curve"), f"{named[0].label} recorded no course")


def plot_training(run: LoadedRun | Path | str) -> Figure:
    """The loss and its terms over the run's steps, with the phases of a hybrid optimizer."""
    return _there(
        figures.training(read_history(_directory(run)), "loss"), "its history has fewer than two logged steps"
    )


def plot_looks(run: LoadedRun | Path | str) -> Figure:
    """What the looks during training saw: how far the model had forgotten, and what it had lost."""
    return _there(figures.looks(read_history(_directory(run)), "looks"), "it was not looked at during training")


def plot_runs(runs: Sweep | Path | str | Iterable[LoadedRun | Path | str]) -> Figure:
    """The frontier of forgetting, utility and robustness: of a sweep, a folder, or a list of runs. A setting is a
    point, with a tail to where its hardest attack brought it."""
    return _there(_of_many(runs, "all-frontier"), "no setting was measured by a forget and a retain metric")


def plot_map(runs: Sweep | Path | str | Iterable[LoadedRun | Path | str]) -> Figure:
    """Setting × attack: the share of the forgetting that was kept; of a sweep, a folder, or a list of runs."""
    return _there(_of_many(runs, "all-kept"), "nothing was attacked")


def _of_many(runs: Sweep | Path | str | Iterable[LoadedRun | Path | str], identifier: str) -> Figure | None:
    if isinstance(runs, Sweep | Path | str):
        folders = [runs.folder if isinstance(runs, Sweep) else Path(runs)]
        loaded, _ = find_runs(folders)
    else:
        folders, loaded = [], [run if isinstance(run, LoadedRun) else read_run(run) for run in runs]
    return next((each for each in overview.figures_of(loaded, folders) if each.identifier == identifier), None)


def _result(run: AnyRun) -> Result:
    return run if isinstance(run, Result) else run.result if isinstance(run, LoadedRun) else read_run(run).result


def _directory(run: AnyRun) -> Path:
    if isinstance(run, Result):
        raise UserError("a result does not say where its run lies: give the run, or its directory")
    return run.directory if isinstance(run, LoadedRun) else read_run(run).directory


def _there(figure: Figure | None, why: str) -> Figure:
    if figure is None:
        raise UserError(f"there is nothing to draw: {why}")
    return figure
