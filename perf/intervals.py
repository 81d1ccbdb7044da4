"""Whether intervals hold what they say, and comparisons too: by simulation, where the truth is known.

    python perf/intervals.py [--quick] [--json FILE]

How often a 95 % interval covers the true value at 5, 10, 20 and 40 groups, for each kind of score that letgo measures,
beside Student's t and the percentile bootstrap over groups; how often the one-sided lower bound of a share holds; how
often settings that are one setting are told apart at 1, 2, 3 and 5 paired seeds, and settings that differ are. The
script measures no time; it takes about eight minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

# Not this folder: what is run is the library as it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from letgo.core.statistics import Interval, ratio, student
from letgo.metrics.composite import harmonic_mean_metric
from letgo.metrics.summary import auc_metric, mean_metric, perplexity_metric
from letgo.report.comparison import Line, compare
from letgo.report.load import LoadedRun
from letgo.runs.results import AttackResult, Result

GROUPS = (5, 10, 20, 40)
SEEDS = (1, 2, 3, 5)
WORDINGS = 3
LARGE = 400_000
"""Groups of the sample that stands for the truth."""
RUN_SPREAD = 0.05
"""Standard deviation of the share kept between runs of one setting."""

Draw = Callable[[np.random.Generator, int], np.ndarray]
"""Scores of so many groups, shape (groups, wordings); of a share with a last axis for numerator and denominator."""


def accuracy(share: float, alike: float) -> Draw:
    """Right or wrong, in wordings that are correlated within a group."""
    a = (1 - alike) / alike
    return lambda g, n: (g.random((n, WORDINGS)) < g.beta(share * a, (1 - share) * a, n)[:, None]).astype(float)


def beta(a: float, b: float) -> Draw:
    return lambda g, n: g.beta(a, b, (n, 1))


def mixture(high: float) -> Draw:
    """Nearly 0 in most groups, nearly 1 in a part of them."""
    return lambda g, n: np.where(g.random((n, 1)) < high, g.beta(8, 1.5, (n, 1)), g.beta(0.3, 10, (n, 1)))


def worded(a: float, b: float) -> Draw:
    """Probabilities of wordings about their group's own."""

    def draw(generator: np.random.Generator, count: int) -> np.ndarray:
        centre = np.clip(generator.beta(a, b, (count, 1)), 1e-6, 1 - 1e-6)
        return generator.beta(4 * centre, 4 * (1 - centre), (count, WORDINGS))

    return draw


def rouge(generator: np.random.Generator, count: int) -> np.ndarray:
    """Recall of answers of four words."""
    return generator.binomial(4, generator.beta(0.8, 1.6, (count, 1)), (count, WORDINGS)) / 4


MEANS: dict[str, Draw] = {
    **{f"accuracy {share}": accuracy(share, 0.4) for share in (0.1, 0.2, 0.3, 0.5)},
    "probability Beta(.5, 1.5)": beta(0.5, 1.5),
    "probability Beta(.5, .5)": beta(0.5, 0.5),
    "probability Beta(5, 2)": beta(5, 2),
    "probability Beta(.2, 2)": beta(0.2, 2),
    "probability, wordings": worded(0.5, 1.5),
    **{f"mixture, {share} near 1": mixture(share) for share in (0.1, 0.2, 0.3, 0.5)},
    "ROUGE": rouge,
}
NOT_COVERED: dict[str, Draw] = {f"mixture, {share} near 1": mixture(share) for share in (0.7, 0.9)}
"""Where few groups fail: a sample of few often shows none of them, and says nothing of how low they are."""


def choice(original: float, unlearned: float, floor: float) -> Draw:
    """Accuracies as (O − U) / (O − f)."""

    def draw(generator: np.random.Generator, count: int) -> np.ndarray:
        first, second = accuracy(original, 0.4)(generator, count), accuracy(unlearned, 0.4)(generator, count)
        return np.stack([first - second, first - floor], axis=-1)

    return draw


def left(a: float, b: float, floor: Draw | None = None) -> Draw:
    """Probabilities: the part Beta(a, b) of what the original knows above the floor is left."""

    def draw(generator: np.random.Generator, count: int) -> np.ndarray:
        original = generator.beta(5, 2, (count, 1))
        gap = original - (0.0 if floor is None else floor(generator, count))
        return np.stack([gap * (1 - generator.beta(a, b, (count, 1))), gap], axis=-1)

    return draw


def whole(high: float) -> Draw:
    """Nearly nothing came back in most groups, nearly all in a part of them."""

    def draw(generator: np.random.Generator, count: int) -> np.ndarray:
        original = generator.beta(5, 1.5, (count, 1))
        return np.stack([original * (1 - mixture(high)(generator, count)), original], axis=-1)

    return draw


SHARES: dict[str, Draw] = {
    "accuracy .9 to .7": choice(0.9, 0.7, 0.25),
    "accuracy .8 to .5": choice(0.8, 0.5, 0.25),
    "accuracy .9 to .25": choice(0.9, 0.25, 0.25),
    "accuracy .97 to .1, floor 0": choice(0.97, 0.1, 0.0),
    "probability, half left": left(2, 2),
    "probability, little left": left(0.5, 3),
    "probability, retrained floor": left(0.6, 2, beta(1, 4)),
    "all back in 0.2": whole(0.2),
    "all back in 0.5": whole(0.5),
}


def samples(draw: Draw, seed: int, groups: int, times: int) -> list[np.ndarray]:
    drawn = draw(np.random.default_rng([seed, groups]), groups * times)
    return list(drawn.reshape(times, groups, *drawn.shape[1:]))


def truth(draw: Draw) -> float:
    large = draw(np.random.default_rng(0), LARGE)
    return float(large.mean()) if large.ndim == 2 else float(large[..., 0].sum() / large[..., 1].sum())


def names(sample: np.ndarray) -> list[str]:
    """The group of each score of a sample, in its own order."""
    return [str(group) for group in range(sample.shape[0]) for _ in range(sample.shape[1])]


def of_mean(sample: np.ndarray) -> Interval:
    return mean_metric(sample.ravel().tolist(), names(sample)).ci95


def by_student(sample: np.ndarray) -> Interval:
    """Student's interval over groups: of their means, or (linearised) of a share."""
    sums = sample.sum(axis=1).reshape(len(sample), -1)
    bottom = sums[:, 1] if sample.ndim == 3 else np.full(len(sums), sample.shape[1])
    value = sums[:, 0].sum() / bottom.sum()
    error = np.std(sums[:, 0] - value * bottom, ddof=1) * np.sqrt(len(sums)) / abs(bottom.sum())
    half = student(0.95, 2, len(sums) - 1) * error
    return float(value - half), float(value + half)


def of_share(sample: np.ndarray, *, sides: int = 2) -> Interval:
    return ratio(sample[..., 0].ravel(), sample[..., 1].ravel(), names(sample), sides=sides).interval


def lower_bound(sample: np.ndarray) -> Interval:
    return of_share(sample, sides=1)[0], np.inf


def bootstrap(sample: np.ndarray, resamples: int = 500) -> Interval:
    """The percentile bootstrap over groups, of a mean or of a share."""
    sums = sample.sum(axis=1).reshape(len(sample), -1)
    drawn = sums[np.random.default_rng(0).integers(0, len(sums), (resamples, len(sums)))].sum(axis=1)
    bottom = drawn[:, 1] if sample.ndim == 3 else np.full(len(drawn), sample.size)
    drawn, bottom = drawn[bottom != 0], bottom[bottom != 0]
    low, high = np.quantile(drawn[:, 0] / bottom, [0.025, 0.975])
    return float(low), float(high)


def coverage(draw: Draw, groups: int, times: int, interval: Callable[[np.ndarray], Interval]) -> float:
    """How often the interval of a sample covers the true value."""
    value, held = truth(draw), 0
    for sample in samples(draw, 1, groups, times):
        low, high = interval(sample)
        held += low - 1e-12 <= value <= high + 1e-12
    return held / times


def other_coverage(kind: str, groups: int, times: int) -> float:
    """The same of metrics that are no plain means, over so many texts (of either side)."""
    generator = np.random.default_rng([2, groups])
    held = 0
    for _ in range(times):
        if kind == "perplexity":
            # The mean loss of a text is Gamma(4, ½), whatever its length.
            tokens = generator.integers(20, 200, groups)
            totals = -generator.gamma(4, 0.5, groups) * tokens
            metric, value = perplexity_metric(totals.tolist(), tokens.tolist(), names(tokens[:, None])), np.exp(2.0)
        elif kind == "model utility":
            sets = [generator.beta(2, 2, (3, groups)).tolist() for _ in range(3)]
            metric, value = harmonic_mean_metric([(columns, names(np.empty((groups, 1)))) for columns in sets]), 0.5
        else:
            # Φ(shift / √2) for unit normals.
            shift, value = {"AUC .76": (1.0, 0.7602), "AUC .5": (0.0, 0.5), "AUC .98": (3.0, 0.98305)}[kind]
            metric = auc_metric(generator.normal(shift, 1, groups).tolist(), generator.normal(0, 1, groups).tolist())
        held += metric.ci95[0] <= value <= metric.ci95[1]
    return held / times


OTHERS = ("perplexity", "model utility", "AUC .5", "AUC .76", "AUC .98")


def world(generator: np.random.Generator, settings: int, seeds: int, gap: float) -> np.ndarray:
    """What each run kept of each of 20 groups, shape (settings, seeds, groups): runs of a setting differ, and so do
    groups, the same in all runs. The last setting keeps `gap` more than the others."""
    runs = 0.6 + generator.normal(0, RUN_SPREAD, (settings, seeds, 1))
    runs[-1] += gap
    noise = generator.normal(0, 0.3, (settings, seeds, 20))
    return np.clip(runs + generator.normal(0, 0.15, 20) + noise, 0.0, 1.0)


def told_apart(gap: float, seeds: int, times: int, *, settings: int = 2) -> float:
    """How often some setting differs significantly from the first one."""
    generator, told = np.random.default_rng([3, seeds]), 0
    for _ in range(times):
        shares = world(generator, settings, seeds, gap).mean(axis=2)
        lines = [_line(str(number), kept) for number, kept in enumerate(shares)]
        told += any(kept.significant for kept in compare(lines, "noise", lines[0]))
    return told / times


def told_apart_by_groups(gap: float, seeds: int, times: int) -> float:
    """The same by a bootstrap over groups that holds the seeds fixed."""
    generator, told = np.random.default_rng([3, seeds]), 0
    for _ in range(times):
        first, second = world(generator, 2, seeds, gap).mean(axis=1)
        low, high = bootstrap((second - first)[:, None])
        told += low > 0.0 or high < 0.0
    return told / times


_RESULT = Result(run_id="", created="", letgo="", versions={}, git=None, seed=0, config={}, status="finished")
_ATTACK = AttackResult(name="noise", settings={}, seeds=[0], metrics={}, kept=0.0, survived=True)


def _line(name: str, kept: Sequence[float]) -> Line:
    attacks = [_ATTACK.model_copy(update={"kept": float(share)}) for share in kept]
    results = [
        _RESULT.model_copy(update={"config": {"seed": seed}, "attacks": [attack]})
        for seed, attack in enumerate(attacks)
    ]
    return Line(name, name, tuple(LoadedRun(Path(), result) for result in results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 times each, not 4,000")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times = 60 if options.quick else 4000
    rows: list[dict[str, object]] = []
    titles: list[str] = []

    def show(name: str, values: dict[str, float]) -> None:
        rows.append({"name": f"{titles[-1]}: {name}"} | values)
        print(f"{name:<30}" + "".join(f"{100 * value:9.1f}" for value in values.values()), flush=True)

    def head(title: str, columns: Sequence[str]) -> None:
        titles.append(title)
        print(f"\n{title}\n{'':30}" + "".join(f"{column:>9}" for column in columns))

    for title, draws, ours in (
        ("Means", MEANS | NOT_COVERED, of_mean),
        ("Shares (O − U) / (O − f)", SHARES, of_share),
    ):
        ways = {"": ours, "t": by_student, "boot": bootstrap}
        columns = [f"{n}{way}" for way in ways for n in GROUPS]
        head(f"{title}, at so many groups; Student's t; percentile bootstrap", columns)
        for name, draw in draws.items():
            show(name, {f"{n}{w}": coverage(draw, n, times, way) for w, way in ways.items() for n in GROUPS})
    head("The one-sided lower bound of these shares", [str(n) for n in GROUPS])
    for name, draw in SHARES.items():
        show(name, {str(n): coverage(draw, n, times, lower_bound) for n in GROUPS})
    head("Others", [str(n) for n in GROUPS])
    for name in OTHERS:
        show(name, {str(n): other_coverage(name, n, times) for n in GROUPS})
    head("Settings told apart, at so many paired seeds", [str(n) for n in SEEDS])
    show("one setting, twice", {str(n): told_apart(0.0, n, times) for n in SEEDS})
    show("one setting, five times", {str(n): told_apart(0.0, n, times, settings=5) for n in SEEDS})
    show("twice, groups drawn alone", {str(n): told_apart_by_groups(0.0, n, times) for n in SEEDS})
    for gap in (0.1, 0.2, 0.3):
        show(f"{100 * gap:.0f} points apart", {str(n): told_apart(gap, n, times) for n in SEEDS})
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "times": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
