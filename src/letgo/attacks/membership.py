"""Membership inference: whoever has the model asks whether a text was in its training data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from letgo.attacks.engine.base import RETRAINED, Attacked, Measured, Victim
from letgo.benchmarks.engine.base import Sample
from letgo.benchmarks.engine.items import limited
from letgo.benchmarks.engine.questions import MIN_K
from letgo.core.errors import EmptyScoreError, UserError
from letgo.data.encode import encode_target, start_tokens
from letgo.metrics.gradients import gradient_norms
from letgo.metrics.privacy import loss_score, membership_auc, min_k, min_k_plus_plus, zlib_score
from letgo.metrics.summary import auc_metric
from letgo.models.load import load_model
from letgo.runs.results import Metric
from letgo.scoring.scoring import Scores, text_query
from letgo.scoring.scoring import score as score_texts

LEAST_ADVANTAGE = 0.2
"""A score whose advantage |2·AUC − 1| on the original is smaller tells nothing, and is left out."""
_RESAMPLES = 1000
_SEED = 20240607


MEMBERSHIP_SCORES: Mapping[str, Callable[[str, Scores], float]] = {
    "loss": lambda text, scores: loss_score(scores.logps),
    "zlib": lambda text, scores: zlib_score(scores.logps, text),
    "min_k": lambda text, scores: min_k(scores.logps, MIN_K),
    "min_k_plus_plus": lambda text, scores: min_k_plus_plus(
        scores.logps, _known(scores.means), _known(scores.deviations), MIN_K
    ),
}
"""Of whole texts, each the larger, the more familiar; see `letgo.metrics.privacy`. One more has a cost of its own:
"gradnorm", the negative gradient norm, a backward pass a text."""
_PREFIX = "mia_"
"""Before the names of membership scores in a benchmark's own samples."""


def _known(values: Tensor | None) -> Tensor:
    if values is None:
        raise ValueError("Min-K++ needs the vocabulary's statistics")
    return values


def membership(victim: Victim, *, score: str = "all", seed: int = 0) -> Attacked:
    """Score forget rows against rows that no model has seen, and see how well they are told apart.

    The advantage of a score is 2·|AUC − AUC_r|, with AUC_r that of the retrained model where it is known, else ½. It
    counts both ways: forget rows that stand out as too unlikely give themselves away as well. `kept` is the smallest,
    over the scores that betray the original, of 1 − advantage(unlearned)/advantage(original).

    A benchmark that takes membership scores itself (TOFU) is judged by those recorded before and after unlearning;
    else its forget and holdout texts are scored as a whole.

    Args:
        victim: the saved model.
        score: one of `MEMBERSHIP_SCORES` (or of the benchmark's own), "gradnorm", or "all" (without gradnorm, which
            takes a backward pass a text, unless the benchmark has recorded it).
        seed: not used.

    Raises:
        UserError: the benchmark has nothing that no model has seen, or no score betrays even the original.
    """
    found = _recorded(victim) or _scored(victim, score)
    members = np.array([sample.set == "forget" for sample in found["after"]])
    every = [
        name for name in found["after"][0].scores if all(name in s.scores for rows in found.values() for s in rows)
    ]
    names = every if score == "all" else [score]
    if unknown := [name for name in names if name not in every]:
        raise UserError(f"membership: unknown score {unknown[0]!r}; known here: all, {', '.join(every)}")
    told: dict[str, dict[str, float]] = {}
    draws: dict[str, np.ndarray] = {}
    for name in names:
        values = {stage: [s.scores[name] for s in rows] for stage, rows in found.items()}
        auc = {stage: _auc(one, members) for stage, one in values.items()}
        chance = auc.get(RETRAINED, 0.5)
        before, after = (2 * abs(auc[stage] - chance) for stage in ("before", "after"))
        if before < LEAST_ADVANTAGE:
            continue
        told[name] = auc | {"kept": min(max(1.0 - after / before, 0.0), 1.0)}
        draws[name] = _kept_draws(values, members)
    if not told:
        raise UserError("membership: no score tells the forget rows from unseen ones even on the original model")
    worst = min(told, key=lambda name: told[name]["kept"])
    smallest = np.min(np.stack(list(draws.values())), axis=0)
    low, high = np.quantile(smallest, [0.025, 0.975])
    metrics = {
        stage: {f"forget_auc_{n}": _metric([s.scores[n] for s in rows], members) for n in names}
        for stage, rows in found.items()
    }
    after_metrics = metrics.pop("after")
    measured = Measured(told[worst]["kept"], (float(low), float(high)), after_metrics, metrics, found["after"])
    return Attacked(None, {"rows": len(members), "strongest": worst, "scores": told}, measured=measured)


def _recorded(victim: Victim) -> dict[str, list[Sample]]:
    """Membership scores among a run's own samples, the same rows of each stage in one order; empty without them."""
    stages = {"before": "before", "after": "after", RETRAINED: f"reference:{RETRAINED}"}
    found: dict[str, dict[str, Sample]] = {}
    for name, stage in stages.items():
        rows = {}
        for sample in victim.recorded.get(stage, ()):
            own = {k.removeprefix(_PREFIX): v for k, v in sample.scores.items() if k.startswith(_PREFIX)}
            if own and sample.set in ("forget", "holdout"):
                rows[f"{sample.set} {sample.id}"] = replace(sample, scores=own)
        if rows:
            found[name] = rows
    if not {"before", "after"} <= found.keys():
        return {}
    common = [key for key in found["after"] if all(key in rows for rows in found.values())]
    if {found["after"][key].set for key in common} != {"forget", "holdout"}:
        return {}
    return {name: [rows[key] for key in common] for name, rows in found.items()}


def _scored(victim: Victim, score: str) -> dict[str, list[Sample]]:
    """Forget and holdout texts scored by the original, the saved model and, where there is one, the retrained one."""
    texts = [t for t in limited(victim.benchmark.texts, victim.limit) if t.set in ("forget", "holdout")]
    if {text.set for text in texts} != {"forget", "holdout"}:
        raise UserError(f"benchmark {victim.benchmark.name!r} has no forget and holdout texts to tell apart")
    tokenizer = victim.tokenizer()
    queries = []
    for text in texts:
        tokens = start_tokens(tokenizer) + encode_target(tokenizer, text.text)
        if len(tokens) < 4:
            raise EmptyScoreError(f"membership: text {text.id!r} is too short to be scored")
        queries.append(text_query(tokens))
    models = {"before": victim.load_original, "after": victim.load}
    if path := victim.benchmark.references.get(RETRAINED):
        models[RETRAINED] = lambda: load_model(path, dtype=victim.dtype)
    found: dict[str, list[Sample]] = {}
    for stage, load in models.items():
        model = load()
        with victim.reporter.task(f"scoring membership, {stage}", len(queries)) as task:
            scored = score_texts(model, queries, statistics=True, advance=task.advance)
        norms = gradient_norms(model, queries) if score == "gradnorm" else []
        found[stage] = []
        for place, (text, [one]) in enumerate(zip(texts, scored, strict=True)):
            scores = {name: measure(text.text, one) for name, measure in MEMBERSHIP_SCORES.items()}
            if norms:
                scores["gradnorm"] = -norms[place]
            found[stage].append(Sample(text.set, text.id, text.group, scores))
    return found


def _auc(values: Sequence[float], members: np.ndarray) -> float:
    array = np.asarray(values)
    return membership_auc(list(array[members]), list(array[~members]))


def _metric(values: Sequence[float], members: np.ndarray) -> Metric:
    array = np.asarray(values)
    return auc_metric(list(array[members]), list(array[~members]))


def _kept_draws(values: Mapping[str, Sequence[float]], members: np.ndarray) -> np.ndarray:
    """`kept` under bootstrap draws of texts, the same for every model."""
    generator = np.random.default_rng(_SEED)
    inside, outside = np.flatnonzero(members), np.flatnonzero(~members)
    wins = {}
    for stage, one in values.items():
        first, second = np.asarray(one)[inside], np.asarray(one)[outside]
        wins[stage] = (first[:, None] > second) + 0.5 * (first[:, None] == second)
    kept = np.empty(_RESAMPLES)
    for draw in range(_RESAMPLES):
        rows = generator.multinomial(len(inside), np.full(len(inside), 1 / len(inside))) / len(inside)
        columns = generator.multinomial(len(outside), np.full(len(outside), 1 / len(outside))) / len(outside)
        auc = {stage: float(rows @ table @ columns) for stage, table in wins.items()}
        chance = auc.get(RETRAINED, 0.5)
        before = abs(auc["before"] - chance)
        kept[draw] = 1.0 - abs(auc["after"] - chance) / before if before > 0 else 0.0
    return np.clip(kept, 0.0, 1.0)
