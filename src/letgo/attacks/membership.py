"""Membership inference: whoever has the model asks whether a text was in its training data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import Tensor

from letgo.attacks.engine.base import Attacked, Judged, Victim
from letgo.benchmarks import BENCHMARKS
from letgo.benchmarks.engine.base import RETRAINED, Sample
from letgo.benchmarks.engine.items import limited
from letgo.benchmarks.engine.questions import MIN_K
from letgo.core.catalog import did_you_mean
from letgo.core.errors import EmptyScoreError, UserError
from letgo.core.values import Seed
from letgo.data.encode import encode_target, start_tokens
from letgo.metrics.gradients import gradient_norms
from letgo.metrics.privacy import loss_score, min_k, min_k_plus_plus, zlib_score
from letgo.metrics.summary import auc_metric
from letgo.runs.results import Metrics, Share
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
        scores.logps, cast(Tensor, scores.means), cast(Tensor, scores.deviations), MIN_K
    ),
}
"""Of whole texts, each the larger, the more familiar; see `letgo.metrics.privacy`. One more has a cost of its own:
"gradnorm", the negative gradient norm, a backward pass a text."""
_PREFIX = "mia_"
"""Before the names of membership scores in a benchmark's own samples."""


def membership(victim: Victim, *, score: str = "all", seed: Seed = 0) -> Attacked:
    """Score forget rows against rows that no model has seen, and see how well a score separates them.

    The advantage of a score is 2·|AUC − AUC_r|, with AUC_r that of the retrained model where it is known, else ½. It
    counts both ways: forget rows that stand out as too unlikely give themselves away as well. `kept` is the smallest,
    over the scores that betray the original, of 1 − advantage(unlearned)/advantage(original).

    A benchmark that takes membership scores itself (TOFU) is judged by those recorded before and after unlearning;
    of others, the forget and holdout texts are scored as a whole.

    Args:
        score: one of `MEMBERSHIP_SCORES` (or of the benchmark's own), "gradnorm", or "all" (without gradnorm, which
            takes a backward pass a text, unless the benchmark has recorded it).

    Raises:
        UserError: the benchmark has nothing that no model has seen, or no score betrays even the original.
    """
    sets = {text.set for text in victim.benchmark.texts} | {item.set for item in victim.benchmark.items}
    if not {"forget", "holdout"} <= sets:
        raise UserError(f"benchmark {victim.benchmark.name!r} has no forget and holdout texts to separate")
    ours = ("all", "gradnorm", *MEMBERSHIP_SCORES)
    if score not in ours and victim.benchmark.name in BENCHMARKS:
        raise UserError(
            f"membership: unknown score {score!r}{did_you_mean(str(score), ours)}; known: {', '.join(ours)}"
        )
    # What is recorded is of models on which no earlier link of a chain was made.
    recorded = _recorded(victim) if victim.earlier is None else {}
    stages, model = (recorded, None) if recorded else _scored(victim, score)
    samples = stages["after"]
    members = np.array([sample.set == "forget" for sample in samples])
    known = [name for name in samples[0].scores if all(name in s.scores for rows in stages.values() for s in rows)]
    names = known if score == "all" else [score]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"membership: unknown score {unknown[0]!r}; known here: all, {', '.join(known)}")
    betraying: dict[str, dict[str, float]] = {}
    draws: list[np.ndarray] = []
    metrics: dict[str, Metrics] = {stage: {} for stage in stages}
    for name in names:
        values = {stage: np.array([s.scores[name] for s in rows]) for stage, rows in stages.items()}
        for stage, array in values.items():
            metrics[stage][f"forget_auc_{name}"] = auc_metric(list(array[members]), list(array[~members]))
        auc = {stage: metrics[stage][f"forget_auc_{name}"].value for stage in stages}
        chance = auc.get(RETRAINED, 0.5)
        before, after = (2 * abs(auc[stage] - chance) for stage in ("before", "after"))
        if before >= LEAST_ADVANTAGE:
            betraying[name] = auc | {"kept": min(max(1.0 - after / before, 0.0), 1.0)}
            draws.append(_kept_draws(values, members))
    if not betraying:
        raise UserError("membership: no score separates the forget rows from unseen ones even on the original model")
    strongest = min(betraying, key=lambda name: betraying[name]["kept"])
    low, bound, high = np.quantile(np.min(np.stack(draws), axis=0), [0.025, 0.05, 0.975])
    best, attacked = betraying[strongest], metrics.pop("after")
    # Draws of a minimum over scores lie low: with few texts all but a fortieth can lie below the value itself.
    low, bound, high = min(low, best["kept"]), min(bound, best["kept"]), max(high, best["kept"])
    chance = best.get(RETRAINED, 0.5)
    share = Share(
        metric="forget_membership_advantage",
        original=2 * abs(best["before"] - chance),
        unlearned=2 * abs(best["after"] - chance),
        floor=0.0,
        floor_of="retrained" if RETRAINED in best else "chance",
        known=True,
        groups=len(members),
        share=best["kept"],
        low=float(low),
        high=float(high),
        bound=float(bound),
    )
    measured = Judged(attacked, metrics, part=True, kept=best["kept"], shares=[share], samples=samples)
    did = {"rows": len(members), "strongest": strongest, "scores": betraying}
    return Attacked(model, did, measured=measured)


def _recorded(victim: Victim) -> dict[str, list[Sample]]:
    """Membership scores among a run's own samples, the same rows of each stage in one order; empty without them."""
    stages: dict[str, dict[str, Sample]] = {}
    for name, stage in {"before": "before", "after": "after", RETRAINED: f"reference:{RETRAINED}"}.items():
        rows = {}
        for sample in victim.recorded.get(stage, ()):
            scores = {k.removeprefix(_PREFIX): v for k, v in sample.scores.items() if k.startswith(_PREFIX)}
            if scores and sample.set in ("forget", "holdout"):
                rows[f"{sample.set} {sample.id}"] = replace(sample, scores=scores)
        if rows:
            stages[name] = rows
    if not {"before", "after"} <= stages.keys():
        return {}
    common = [key for key in stages["after"] if all(key in rows for rows in stages.values())]
    if {stages["after"][key].set for key in common} != {"forget", "holdout"}:
        return {}
    return {name: [rows[key] for key in common] for name, rows in stages.items()}


def _scored(victim: Victim, score: str) -> tuple[dict[str, list[Sample]], Any]:
    """Forget and holdout texts scored by the original, the saved model and, where there is one, the retrained one; and
    the saved model."""
    texts = [t for t in limited(victim.benchmark.texts, victim.limit) if t.set in ("forget", "holdout")]
    if {text.set for text in texts} != {"forget", "holdout"}:
        raise UserError(f"benchmark {victim.benchmark.name!r} has no forget and holdout texts to separate")
    tokenizer = victim.tokenizer()
    queries = []
    for text in texts:
        tokens = start_tokens(tokenizer) + encode_target(tokenizer, text.text)
        if len(tokens) < 4:
            raise EmptyScoreError(f"membership: text {text.id!r} is too short to be scored")
        queries.append(text_query(tokens))
    stages: dict[str, list[Sample]] = {"before": [], "after": []}
    victims = {"before": victim.attacked_original()}
    if path := victim.benchmark.references.get(RETRAINED):
        victims[RETRAINED] = victim.reference("retrained", path)
    # The saved model last: it is what the attack leaves.
    for stage, each in {**victims, "after": victim}.items():
        model = each.load()
        with victim.reporter.task(f"scoring membership, {stage}", len(queries)) as task:
            results = score_texts(model, queries, statistics=True, advance=task.advance)
        norms = gradient_norms(model, queries) if score == "gradnorm" else []
        stages[stage] = []
        for index, (text, [result]) in enumerate(zip(texts, results, strict=True)):
            scores = {name: measure(text.text, result) for name, measure in MEMBERSHIP_SCORES.items()}
            if norms:
                scores["gradnorm"] = -norms[index]
            stages[stage].append(Sample(text.set, text.id, text.group, scores))
    return stages, model


def _kept_draws(values: Mapping[str, np.ndarray], members: np.ndarray) -> np.ndarray:
    """`kept` under bootstrap draws of texts, the same for every model."""
    generator = np.random.default_rng(_SEED)
    inside, outside = np.flatnonzero(members), np.flatnonzero(~members)
    wins = {}
    for stage, array in values.items():
        first, second = array[inside], array[outside]
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
