"""The strongest attacker: a search over an attack's settings, under a bound on what it may cost the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from letgo.attacks import ATTACKS
from letgo.attacks.engine.judge import Judged
from letgo.attacks.engine.spec import Plan
from letgo.core.catalog import format_spec
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.extras import need
from letgo.core.progress import Reporter

_STEPS_OF_A_RANGE = 6
"""Values that a grid takes of a logarithmic range."""


def search(
    plan: Plan, run: Callable[[Mapping[str, Any], int], Judged], reporter: Reporter
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Try settings under the plan's first seed; returns the strongest within the bound, and every trial.

    Settings that the plan names stay as they are. A trial counts where the attack did not break the model and cost it
    at most `plan.bound` of its utility; of those the one that keeps least is the strongest. Trials go by Optuna's TPE
    sampler where it is installed (extra `search`) and the space is larger than the trials; otherwise over a grid, all
    of it or as much of it as there are trials, in a seeded order. Where no trial is within the bound, the strongest is
    the empty mapping.

    Args:
        plan: with `search` trials.
        run: runs the attack with settings and a seed, and judges it.
    """
    space = {key: values for key, values in ATTACKS.record(plan.name).space.items() if key not in plan.settings}
    if plan.settings.get("epochs") is not None:
        space.pop("steps", None)
    if not space:
        raise UserError(f"attack {plan.name!r}: every setting that search goes over is given; leave some open")
    seed, trials = plan.seeds[0], []
    for number, (settings, tell) in enumerate(_proposals(space, plan.search, seed), start=1):
        trial: dict[str, Any] = {"settings": dict(settings)}
        try:
            judged = run({**plan.settings, **settings}, seed)
        except NonFiniteLossError as error:
            # An attacker's training that diverged is a failed attack, not a failure of ours.
            trial |= {"within_bound": False, "why": str(error)}
        else:
            within = not judged.reasons and judged.loss is not None and judged.loss <= plan.bound
            trial |= {"kept": judged.kept, "utility_loss": judged.loss, "within_bound": within}
            if judged.reasons:
                trial["why"] = "; ".join(judged.reasons)
        tell(trial)
        trials.append(trial)
        kept = f"kept {trial['kept']:.2f}" if "kept" in trial else "failed"
        outside = "" if trial["within_bound"] else ", outside the bound"
        reporter.say(f"  trial {number}: {format_spec(plan.name, settings)}: {kept}{outside}")
    counted = [trial for trial in trials if trial["within_bound"]]
    best = min(counted, key=lambda trial: trial["kept"])["settings"] if counted else {}
    return dict(best), trials


def summary(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Best (for the attacker), mean and worst of the trials within the bound."""
    kept = sorted(trial["kept"] for trial in trials if trial["within_bound"])
    said: dict[str, Any] = {"trials": len(trials), "within_bound": len(kept)}
    if kept:
        said |= {"kept_strongest": kept[0], "kept_mean": sum(kept) / len(kept), "kept_weakest": kept[-1]}
    return said


Proposal = tuple[dict[str, Any], Callable[[Mapping[str, Any]], None]]


def _proposals(space: Mapping[str, tuple[Any, ...]], count: int, seed: int) -> Iterator[Proposal]:
    grid = list(_grid(space))
    ranged = any(values[0] == "log" for values in space.values())
    if count < len(grid) or ranged:
        try:
            yield from _optuna(space, count, seed)
            return
        except UserError:
            pass  # not installed: the grid serves
    order = torch.randperm(len(grid), generator=torch.Generator().manual_seed(seed)).tolist()
    for place in sorted(order[:count]) if count >= len(grid) else order[:count]:
        yield grid[place], lambda trial: None


def _grid(space: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    values = {key: _spread(*one[1:]) if one[0] == "log" else one for key, one in space.items()}
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _spread(low: float, high: float) -> tuple[float, ...]:
    ratio = (high / low) ** (1 / (_STEPS_OF_A_RANGE - 1))
    return tuple(float(f"{low * ratio**step:.3g}") for step in range(_STEPS_OF_A_RANGE))


def _optuna(space: Mapping[str, tuple[Any, ...]], count: int, seed: int) -> Iterator[Proposal]:
    optuna = need("optuna", "search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(count):
        asked = study.ask()
        settings = {
            key: float(f"{asked.suggest_float(key, *one[1:], log=True):.3g}")
            if one[0] == "log"
            else asked.suggest_categorical(key, one)
            for key, one in space.items()
        }

        def tell(trial: Mapping[str, Any], asked: Any = asked) -> None:
            # Outside of the bound: worse than anything within, and the worse the farther.
            if trial["within_bound"]:
                study.tell(asked, trial["kept"])
            else:
                study.tell(asked, 1.0 + min(trial.get("utility_loss") or 10.0, 10.0))

        yield settings, tell
