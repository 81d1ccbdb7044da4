"""One search: settings to try, from a grid or drawn by Optuna, each asked for after what the last one gave is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from letgo.core.extras import need


@dataclass(frozen=True)
class Range:
    """An interval to draw from, on a logarithmic scale or a linear one."""

    low: float
    high: float
    log: bool = True

    def spread(self, count: int = 6) -> tuple[float, ...]:
        """Evenly spaced values of three digits from the low end to the high one: what a grid takes of it."""
        if not self.log:
            return tuple(rounded(self.low + (self.high - self.low) * step / (count - 1)) for step in range(count))
        ratio = (self.high / self.low) ** (1 / (count - 1))
        return tuple(rounded(self.low * ratio**step) for step in range(count))


Space = Mapping[str, Sequence[Any] | Range]
"""For each key the values to choose from, or a range."""


class Search(Protocol):
    """Where the settings to try come from."""

    def ask(self) -> dict[str, Any] | None:
        """The settings to try next; None when there are no more."""
        ...

    def tell(self, value: float) -> None:
        """How the settings last asked for did: the less, the better."""
        ...


class GridSearch:
    """Settings of a list, in its order, whatever came of those before."""

    def __init__(self, candidates: Iterable[dict[str, Any]]) -> None:
        self._candidates = iter(candidates)

    def ask(self) -> dict[str, Any] | None:
        return next(self._candidates, None)

    def tell(self, value: float) -> None:
        return None


class TreeSearch:
    """Settings drawn by Optuna's TPE sampler (arXiv 2304.11127) in view of all that was told.

    Args:
        space: what to draw from.
        seed: of the sampler; the same seed and the same history draw the same settings.
        count: how many to draw, those of `history` included.
        history: settings drawn earlier, and how they did.
        what: what needs Optuna, for the message where it is missing.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        count: int,
        *,
        history: Sequence[tuple[Mapping[str, Any], float]] = (),
        what: str | None = None,
    ) -> None:
        optuna: Any = need("optuna", "search", what=what)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._distributions = {
            key: optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
            if isinstance(values, Range)
            else optuna.distributions.CategoricalDistribution(list(values))
            for key, values in space.items()
        }
        self._left = count - len(history)
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        for settings, value in history:
            self._study.add_trial(
                optuna.trial.create_trial(params=dict(settings), distributions=self._distributions, value=value)
            )

    def ask(self) -> dict[str, Any] | None:
        if self._left <= 0:
            return None
        self._left -= 1
        self._trial = self._study.ask(self._distributions)
        return dict(self._trial.params)

    def tell(self, value: float) -> None:
        self._study.tell(self._trial, value)


def combinations(space: Space) -> list[dict[str, Any]]:
    """Every combination of the values; of a range its `spread`."""
    values = [values.spread() if isinstance(values, Range) else values for values in space.values()]
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)]


def rounded(value: float) -> float:
    """A number of three digits: what a setting can be written as and made again from."""
    return float(f"{value:.3g}")
