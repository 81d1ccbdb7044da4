"""The strongest attacker: a search over an attack's settings, under a bound on what it may cost the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from letgo.attacks.engine.base import Judged
from letgo.attacks.engine.spec import AttackSpec, searched
from letgo.core.catalog import format_spec
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.progress import Reporter
from letgo.core.search import GridSearch, Range, Search, Space, TreeSearch, combinations, rounded


def search(
    plan: AttackSpec, run: Callable[[Mapping[str, Any], int], Judged], reporter: Reporter
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Try settings under the plan's first seed; returns the strongest within the bound, and every trial.

    Settings that the plan names stay as they are. A trial counts where the attack did not break the model and cost it
    at most `plan.bound` of its utility; the strongest of those keeps least; where there are none, it is the empty
    mapping. Optuna's TPE sampler draws the trials where it is installed (extra `search`) and the space is larger than
    their number; otherwise they come from a grid, all of it or a part in a seeded order. `run` runs the attack with
    settings and a seed, and judges it.
    """
    space: dict[str, Any] = {
        key: Range(*values[1:]) if values[0] == "log" else values
        for key, values in searched(plan.name, plan.settings).items()
    }
    seed, trials = plan.seeds[0], []
    source = _source(space, plan.search, seed)
    while (drawn := source.ask()) is not None:
        settings = {key: rounded(value) if isinstance(space[key], Range) else value for key, value in drawn.items()}
        trial: dict[str, Any] = {"settings": settings}
        try:
            judged = run({**plan.settings, **settings}, seed)
        except NonFiniteLossError as error:
            # If the attacker's training diverges, the attack fails, not letgo.
            trial |= {"within_bound": False, "why": str(error)}
        else:
            within = not judged.reasons and judged.loss is not None and judged.loss <= plan.bound
            trial |= {"utility_loss": judged.loss, "within_bound": within and judged.kept is not None}
            if judged.kept is None:
                trial["why"] = "the original attacked so no longer knows: nobody can tell"
            else:
                trial["kept"] = judged.kept
            if judged.reasons:
                trial["why"] = "; ".join(judged.reasons)
        # Outside of the bound a trial is worse than any within it, and the worse the farther it is outside.
        source.tell(trial["kept"] if trial["within_bound"] else 1.0 + min(trial.get("utility_loss") or 10.0, 10.0))
        trials.append(trial)
        kept = f"kept {trial['kept']:.2f}" if "kept" in trial else "proves nothing"
        outside = "" if trial["within_bound"] else ", outside the bound"
        reporter.say(f"  trial {len(trials)}: {format_spec(plan.name, settings)}: {kept}{outside}")
    counted = [trial for trial in trials if trial["within_bound"]]
    best = min(counted, key=lambda trial: trial["kept"])["settings"] if counted else {}
    return dict(best), trials


def summary(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Best (for the attacker), mean and worst of the trials within the bound."""
    kept = sorted(trial["kept"] for trial in trials if trial["within_bound"])
    numbers: dict[str, Any] = {"trials": len(trials), "within_bound": len(kept)}
    if kept:
        numbers |= {"kept_strongest": kept[0], "kept_mean": sum(kept) / len(kept), "kept_weakest": kept[-1]}
    return numbers


def _source(space: Space, count: int, seed: int) -> Search:
    grid = combinations(space)
    if count < len(grid) or any(isinstance(values, Range) for values in space.values()):
        try:
            return TreeSearch(space, seed, count)
        except UserError:
            pass  # not installed: the grid serves
    order = torch.randperm(len(grid), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = sorted(order[:count]) if count >= len(grid) else order[:count]
    return GridSearch(grid[number] for number in chosen)
