"""The arithmetic of judging: the rows that count, half-lives, R, Q, plans, searches."""

from __future__ import annotations

import itertools
import statistics

import pytest

from letgo.attacks import ATTACKS
from letgo.attacks.engine.base import Judged
from letgo.attacks.engine.judge import Answered, Ends, Recorded, judge_samples, judge_ways, relearning_score
from letgo.attacks.engine.outcome import (
    _mean_of_halves,
    _mean_over_course,
    _steps_to_half,
    robustness,
    scores_of,
)
from letgo.attacks.engine.search import search, summary
from letgo.attacks.engine.spec import plan_attack
from letgo.attacks.relearn import rate_at
from letgo.attacks.sample import best_of_k
from letgo.benchmarks.engine.base import Sample
from letgo.core.catalog import settings_of
from letgo.core.errors import EmptyScoreError, NonFiniteLossError, UserError
from letgo.core.progress import Quiet
from letgo.metrics.records import Headline
from letgo.metrics.robustness import kept_share, utility_loss
from letgo.runs.results import AttackResult, Metric


def metric(value):
    return Metric(value=value, n=10, ci95=(value, value))


def judged(kept, *, gain=None, reasons=(), loss=0.0):
    return Judged({}, {}, part=False, kept=kept, left=kept, reasons=list(reasons), loss=loss, gain=gain)


def answers(**probabilities):
    """A sample for each question, named by its group and a number: a1=0.5."""
    return [Sample("forget", name, name[0], {"probability": p}) for name, p in probabilities.items()]


def mean_probability(samples):
    values = [sample.scores["probability"] for sample in samples]
    return (
        {"forget_probability": Metric(value=statistics.mean(values), n=len(values), ci95=(0.0, 1.0))} if values else {}
    )


ORIGINAL = answers(a1=1.0, a2=1.0, b1=1.0, b2=0.8, b3=0.9)


@pytest.fixture
def recorded():
    stages = {
        "before": ORIGINAL,
        "after": answers(a1=0.0, a2=0.0, b1=0.0, b2=0.0, b3=0.0),
        "reference:retrained": answers(a1=0.0, a2=0.0, b1=0.0, b2=0.0, b3=0.0),
    }
    before, after = (mean_probability(stages[stage]) for stage in ("before", "after"))
    return Recorded(before, after, stages, (Headline("forget_probability"),), mean_probability)


def ends(**ways):
    return Ends(Answered(ways or {"": ORIGINAL}))


def test_the_judge_needs_samples_alone(recorded):
    attacked = answers(a1=0.5, a2=0.5, b1=0.3, b2=0.15, b3=0.2)
    whole = judge_samples(recorded, attacked, ends(), frozenset(), "x")
    assert whole.kept == pytest.approx(1 - 1.65 / 4.7)
    assert not whole.part
    held_out = judge_samples(recorded, attacked, ends(), frozenset("a"), "x")
    assert held_out.kept == pytest.approx(1 - 0.65 / 2.7), "of the groups that the attacker did not train on"
    assert held_out.part
    assert held_out.metrics["seen_probability"].value == pytest.approx(0.5)
    assert held_out.baseline["before"]["forget_probability"].value == pytest.approx(0.9)
    everything = judge_samples(recorded, attacked, ends(), frozenset("ab"), "x")
    assert everything.everything_seen
    assert everything.kept == whole.kept
    [share] = held_out.shares
    assert share.low <= held_out.kept <= share.high


def test_rows_that_were_not_scored_before_are_not_judged(recorded):
    more = judge_samples(recorded, answers(a1=0.5, b1=0.5, c1=1.0), ends(), frozenset(), "x")
    assert more.kept == pytest.approx(0.5)
    assert list(more.placed[0].groups) == ["a", "b"]
    with pytest.raises(EmptyScoreError, match="no sample of the forget set is left"):
        judge_samples(recorded, answers(c1=1.0), ends(), frozenset(), "x")


def test_without_samples_of_before_and_after_only_the_whole_is_judged(recorded):
    bare = Recorded(recorded.before, recorded.after, {}, recorded.headlines, recorded.summarise)
    attacked = answers(a1=0.5, b1=0.4)
    assert judge_samples(bare, attacked, ends(), frozenset(), "x").kept == pytest.approx(1 - 0.9 / 2)
    with pytest.raises(UserError, match="a part can't be judged"):
        judge_samples(bare, attacked, ends(), frozenset("a"), "x")


def test_of_several_ways_to_ask_the_one_that_brings_most_back(recorded):
    ways = {
        "plain": answers(a1=0.1, a2=0.1, b1=0.1, b2=0.1, b3=0.1),
        "begun": answers(a1=0.9, a2=0.9, b1=0.9, b2=0.7, b3=0.8),
    }
    strongest = judge_ways(recorded, ways, ends(plain=ORIGINAL, begun=ORIGINAL), frozenset(), "x")
    assert strongest.kept == pytest.approx(1 - 4.2 / 4.7)
    assert [way["way"] for way in strongest.ways] == ["plain", "begun"]
    assert strongest.loss == 0.0
    # Asked so, the original does not know it either.
    silence = answers(a1=0.0, a2=0.0, b1=0.0, b2=0.0, b3=0.0)
    silent = judge_ways(recorded, ways, ends(plain=ORIGINAL, begun=silence), frozenset(), "x")
    assert silent.kept == pytest.approx(1 - 0.5 / 4.7)


def test_r_holds_the_gain_against_the_retrained_models(recorded):
    attacked, retrained = answers(a1=0.8, a2=0.8), answers(a1=0.4, a2=0.4)
    assert relearning_score(recorded, attacked, retrained, frozenset("a")) == pytest.approx(0.5)
    assert relearning_score(recorded, answers(a1=0.05, a2=0.05), retrained, frozenset("a")) == 1.0


def test_what_is_left_for_r_and_q():
    assert kept_share(1.0, 0.2, 0.4) == pytest.approx(0.75)
    assert kept_share(1.0, 0.95, 1.0) == 0.0, "who forgot hardly anything keeps nothing"


@pytest.mark.parametrize("scores", [[0.0, 1.0, 0.0, 0.0, 1.0], [0.1, 0.9, 0.4, 0.4, 0.7]])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_best_of_k_is_the_mean_best_over_all_draws(scores, k):
    expected = statistics.mean(max(draw) for draw in itertools.combinations(scores, k))
    assert best_of_k(scores, k) == pytest.approx(expected)


def test_steps_to_half_are_interpolated_and_censored():
    curve = [
        {"step": 0.0, "kept": 1.0},
        {"step": 5.0, "loss": 1.0},
        {"step": 10.0, "kept": 0.8},
        {"step": 20.0, "kept": 0.4},
        {"step": 30.0, "kept": 0.9},
    ]
    assert _steps_to_half(curve) == pytest.approx(17.5)
    assert _steps_to_half(curve[:3]) is None
    assert _steps_to_half([{"step": 0.0, "kept": 0.0}]) == 0.0, "nothing was forgotten to begin with"
    assert _mean_over_course(curve) == pytest.approx((0.9 * 10 + 0.6 * 10 + 0.65 * 10) / 30)
    assert _mean_over_course(curve[:1]) is None
    assert _mean_of_halves([10.0, None], 40) == {"steps_to_half": 25.0, "steps_to_half_censored": 1}


def test_rates_of_the_schedules():
    assert [rate_at(s, 10, "constant", 0.0) for s in (1, 10)] == [1.0, 1.0]
    assert [rate_at(s, 10, "linear", 0.2) for s in (1, 2, 3, 10)] == pytest.approx([0.5, 1.0, 1.0, 0.125])
    assert rate_at(6, 10, "cosine", 0.0) == pytest.approx(0.5)
    assert rate_at(1, 1, "linear", 0.0) == 1.0


def test_r_and_q_and_their_harmonic_mean():
    assert scores_of("quantization", [judged(0.8)], broken=False) == {"Q": 0.8}
    assert scores_of("relearning", [judged(0.2, gain=0.9), judged(0.2, gain=0.5)], broken=False) == {
        "R": pytest.approx(0.7),
        "R_worst": 0.5,
    }
    assert scores_of("relearning", [judged(0.2), judged(0.6)], broken=False)["R_by_kept"] == 1.0
    assert scores_of("quantization", [judged(0.8)], broken=True) == {"Q": 0.0}
    assert scores_of("other", [judged(0.8)], broken=False) == {}

    def attack(collapsed=False, **scores):
        return AttackResult(
            name="x", settings={}, seeds=[0], metrics={}, kept=0.5, survived=True, scores=scores, collapsed=collapsed
        )

    assert robustness([attack(R=0.5), attack(Q=1.0), attack(Q=0.25)]) == {
        "R": 0.5,
        "Q": 0.25,
        "harmonic_mean": pytest.approx(1 / 3),
    }
    assert robustness([attack(R=0.5), attack(Q=0.1, collapsed=True)]) == {"R": 0.5}
    assert robustness([attack(R=0.0), attack(Q=0.0)])["harmonic_mean"] == 0.0
    assert robustness([]) == {}


def test_utility_loss_is_the_largest_relative_one():
    headlines = (Headline("forget_accuracy", 0.25),)
    before = {"retain_accuracy": metric(0.8), "general_perplexity": metric(10.0), "retain_rouge": metric(1.0)}
    now = {"retain_accuracy": metric(0.6), "general_perplexity": metric(11.0), "retain_rouge": metric(0.0)}
    assert utility_loss(headlines, before, now) == pytest.approx(0.25)
    assert utility_loss(headlines, before, before) == 0.0
    assert utility_loss(headlines, {"forget_accuracy": metric(1.0)}, {}) is None


@pytest.fixture
def no_optuna(monkeypatch):
    def missing(module, extra, **more):
        raise UserError(f"pip install 'letgo[{extra}]'")

    monkeypatch.setattr("letgo.core.search.need", missing)


def fake(settings, seed):
    """An attack that keeps less the more bits it takes away, breaks the model at 2 and costs too much at 3."""
    bits = settings["bits"]
    reasons = ["broken"] if bits == 2 else []
    return judged(bits / 8, reasons=reasons, loss=0.5 if bits == 3 else 0.01)


def test_the_strongest_within_the_bound_is_found_on_the_grid(no_optuna):
    plan = plan_attack("quantize:search=6,bound=0.1,granularity=group,symmetric=true")
    best, trials = search(plan, fake, Quiet())
    assert best == {"bits": 4}
    assert [trial["settings"]["bits"] for trial in trials] == [8, 6, 5, 4, 3, 2]
    assert [trial["within_bound"] for trial in trials] == [True, True, True, True, False, False]
    assert summary(trials) == {
        "trials": 6,
        "within_bound": 4,
        "kept_strongest": 0.5,
        "kept_mean": pytest.approx((1 + 0.75 + 0.625 + 0.5) / 4),
        "kept_weakest": 1.0,
    }


@pytest.mark.parametrize("library", [True, False])
def test_a_search_over_ranges_is_the_same_twice(library, monkeypatch, request):
    if library:
        pytest.importorskip("optuna")
    else:
        request.getfixturevalue("no_optuna")

    def run(settings, seed):
        if settings["learning_rate"] > 1e-3:
            raise NonFiniteLossError("diverged")
        return judged(1e-6 / settings["learning_rate"], loss=0.0)

    plan = plan_attack("relearn:search=9,steps=5,seed=3")
    best, trials = search(plan, run, Quiet())
    assert len(trials) == 9
    assert all("steps" not in trial["settings"] for trial in trials), "what is given stays as it is"
    assert best == min((t for t in trials if t["within_bound"]), key=lambda t: t["kept"])["settings"]
    assert search(plan, run, Quiet())[1] == trials


def test_no_trial_within_the_bound_gives_no_settings(no_optuna):
    plan = plan_attack("quantize:search=3,bound=0")
    best, trials = search(plan, lambda settings, seed: judged(0.1, loss=0.2), Quiet())
    assert best == {}
    assert summary(trials) == {"trials": 3, "within_bound": 0}


@pytest.mark.parametrize("record", [record for record in ATTACKS if record.space], ids=lambda record: record.name)
def test_what_is_searched_over_are_settings(record):
    assert record.space.keys() <= settings_of(ATTACKS.load(record.name), skip=("victim",)).keys()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("quantize:search=0", "at least 1"),
        ("quantize:search=many", "at least 1"),
        ("prefill:search=3", "no settings to search over"),
        ("quantize:bound=0.1", "give search=N too"),
        ("relearn:search=3,bound=-1", "bound must be a number of at least 0"),
        ("relearn:threshold=high", "must be a number"),
        ("relearn:reference=maybe", "true or false"),
        ("relearn:seed=-1", "seed must be"),
        ("relern", "did you mean 'relearn'"),
        ("relearn:step=3", "did you mean 'steps'"),
        ("relearn:victim=3", "no setting 'victim'"),
        ("relearn:seeds=0", "seeds must be"),
        ("relearn:seeds=many", "seeds must be"),
        ("quantize:threshold=2", "threshold must be"),
    ],
)
def test_bad_plans(spec, message):
    with pytest.raises(UserError, match=message):
        plan_attack(spec)


def test_seeds_in_a_spec():
    plan = plan_attack("relearn:steps=3,seeds=3,seed=5,threshold=0.9")
    assert plan.seeds == (5, 6, 7)
    assert plan.threshold == 0.9
    assert plan.settings == {"steps": 3}
    assert plan.label == "relearn:steps=3"


def test_seeds_by_default_and_by_flag():
    assert plan_attack("relearn").seeds == (0, 1, 2)
    assert plan_attack("quantize").seeds == (0,)
    assert plan_attack("relearn", seeds=5).seeds == (0, 1, 2, 3, 4)
    assert plan_attack("quantize", seeds=5).seeds == (0,), "nothing random in it"
    assert plan_attack("relearn:seeds=1", seeds=5).seeds == (0,)
    assert plan_attack("quantize:search").search == 12
    assert plan_attack("quantize:search").label == "quantize:search=True"
