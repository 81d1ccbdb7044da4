"""One search: a grid and Optuna's sampler behind one interface."""

from __future__ import annotations

import sys

import pytest

from letgo.core.errors import UserError
from letgo.core.search import GridSearch, Range, TreeSearch, combinations

SPACE = {"rate": Range(1e-5, 1e-2), "share": Range(0.0, 0.5, log=False), "bits": (8, 4, 2)}


def test_a_grid_has_every_combination_once_and_then_no_more():
    grid = combinations(SPACE)
    assert len(grid) == 6 * 6 * 3
    assert [settings["rate"] for settings in grid[::18]] == [1e-05, 3.98e-05, 0.000158, 0.000631, 0.00251, 0.01]
    assert [settings["share"] for settings in grid[:18:3]] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert [settings["bits"] for settings in grid[:3]] == [8, 4, 2]
    search, asked = GridSearch(grid), []
    while (settings := search.ask()) is not None:
        asked.append(settings)
        search.tell(0.0)
    assert asked == grid


def loss(settings):
    return abs(settings["rate"] - 1e-3) + settings["share"] + settings["bits"] / 8


def drawn(search):
    asked = []
    while (settings := search.ask()) is not None:
        asked.append(settings)
        search.tell(loss(settings))
    return asked


def test_what_is_drawn_is_what_optuna_itself_draws():
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=3))

    def objective(trial):
        return loss(
            {
                "rate": trial.suggest_float("rate", 1e-5, 1e-2, log=True),
                "share": trial.suggest_float("share", 0.0, 0.5),
                "bits": trial.suggest_categorical("bits", (8, 4, 2)),
            }
        )

    study.optimize(objective, n_trials=14)
    assert drawn(TreeSearch(SPACE, 3, 14)) == [trial.params for trial in study.trials]


def test_a_history_counts_and_is_drawn_in_view_of():
    pytest.importorskip("optuna")
    history = [(settings, loss(settings)) for settings in drawn(TreeSearch(SPACE, 0, 12))]
    following = [TreeSearch(SPACE, 5, 13, history=history) for _ in range(2)]
    first = following[0].ask()
    assert first == following[1].ask()
    assert first != TreeSearch(SPACE, 5, 13, history=[(s, -value) for s, value in history]).ask()
    assert following[0].ask() is None
    assert TreeSearch(SPACE, 5, 12, history=history).ask() is None


def test_optuna_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"tuning needs optuna: pip install .*letgo\[search\]"):
        TreeSearch(SPACE, 0, 1, what="tuning")
