from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from letgo.core.errors import EmptyScoreError, NonFiniteLossError
from letgo.metrics import METRICS
from letgo.metrics.composite import forget_quality_metric, harmonic_mean_metric, toxicity_metrics
from letgo.metrics.memorization import (
    exact_memorization,
    extraction_strength,
    forget_quality,
    normalised_probability,
    probability,
    truth_ratio,
    truth_ratio_prob_mean,
    truth_ratio_score,
)
from letgo.metrics.privacy import membership_auc, min_k, privacy_leakage
from letgo.metrics.robustness import collapse_reasons, kept_share
from letgo.metrics.summary import auc_metric, mean_metric, perplexity_metric
from letgo.metrics.utility import choice_accuracy, degeneration, harmonic_mean
from letgo.runs.results import Metric

T = torch.tensor


def test_probability_is_the_geometric_mean_of_token_probabilities():
    assert probability(T([0.5, 0.125]).log()) == pytest.approx(0.25)


def test_truth_ratio_is_geometric_over_wrong_answers():
    right, wrong = T([0.5, 0.5]).log(), [T([0.1]).log(), T([0.4, 0.4]).log()]
    assert truth_ratio(right, wrong) == pytest.approx(math.sqrt(0.1 * 0.4) / 0.5)
    assert math.isfinite(truth_ratio(T([-1e6]), wrong))
    with pytest.raises(EmptyScoreError):
        truth_ratio(right, [])


def test_normalised_probability():
    right, wrong = T([0.5, 0.125]).log(), [T([0.25]).log(), T([0.5]).log()]
    assert normalised_probability(right, wrong) == pytest.approx(0.25 / (0.25 + 0.25 + 0.5))
    assert normalised_probability(T([-5000.0]), [T([-6000.0])]) == 0.5, "all too small for a float"
    with pytest.raises(EmptyScoreError):
        normalised_probability(right, [])


def test_truth_ratio_scores():
    assert truth_ratio_score(0.25, forget=True) == truth_ratio_score(4.0, forget=True) == 0.25
    assert truth_ratio_score(1.0, forget=True) == 1.0
    assert truth_ratio_score(0.25, forget=False) == 0.75
    assert truth_ratio_score(4.0, forget=False) == 0.0
    assert truth_ratio_score(0.0, forget=True) == 0.0
    assert [truth_ratio_prob_mean(ratio) for ratio in (0.0, 1.0, 3.0)] == [1.0, 0.5, 0.25]
    right, wrong = T([-0.5, -0.7]), [T([-1.0]), T([-2.0, -1.0])]
    c, x = math.exp(-0.6), math.exp(-1.25)
    assert truth_ratio_prob_mean(truth_ratio(right, wrong)) == pytest.approx(c / (c + x))
    assert 0.0 < truth_ratio_prob_mean(truth_ratio(T([-1e6]), wrong)) < 1e-300


def test_no_tokens_no_score():
    for empty in (
        lambda: probability(T([])),
        lambda: truth_ratio(T([]), [T([-1.0])]),
        lambda: truth_ratio(T([-1.0]), [T([])]),
        lambda: extraction_strength([]),
        lambda: exact_memorization([]),
        lambda: choice_accuracy(T([]), [T([-1.0])]),
        lambda: forget_quality([], [1.0]),
        lambda: harmonic_mean([]),
        lambda: harmonic_mean_metric([([[]], [])]),
        lambda: forget_quality_metric([1.0], [1.0, 2.0]),
        lambda: auc_metric([], [1.0]),
        lambda: toxicity_metrics([], []),
    ):
        with pytest.raises(EmptyScoreError):
            empty()


@pytest.mark.parametrize("n", [40, 200, 400])
def test_forget_quality_floor_for_disjoint_samples(n):
    """2/C(2n, n)."""
    a, b = list(np.linspace(0, 1, n)), list(np.linspace(2, 3, n))
    expected = {40: 1.860340e-23, 200: 1.942643e-119, 400: 1.063590e-239}[n]
    assert forget_quality(a, b) == pytest.approx(expected, rel=5e-7)
    assert forget_quality(a, b) == pytest.approx(2 / math.comb(2 * n, n), rel=1e-9)
    assert forget_quality(a, a) == 1.0


def test_extraction_strength_and_exact_memorization():
    """After two of five tokens all that follow are foreseen: k* = 2, the wrong one the second."""
    matches = [True, False, True, True, True]
    assert extraction_strength(matches) == pytest.approx(1 - 2 / 5)
    assert extraction_strength(T(matches)) == pytest.approx(1 - 2 / 5)
    assert exact_memorization(matches) == pytest.approx(4 / 5)
    assert extraction_strength([True, True]) == 1.0
    assert extraction_strength([True, False]) == 0.0
    assert exact_memorization([False, False]) == 0.0


def test_harmonic_mean():
    assert harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([1.0, 0.0]) == 0.0
    with pytest.raises(ValueError, match="at least 0"):
        harmonic_mean([1.0, -0.1])


def test_harmonic_mean_metric():
    generator = np.random.default_rng(1)
    sets = []
    for size in (80, 40):
        groups = [str(n // 2) for n in range(size)]
        sets.append(([list(generator.uniform(0.2, 0.8, size)) for _ in range(2)], groups))
    metric = harmonic_mean_metric(sets)
    assert metric.value == pytest.approx(harmonic_mean([np.mean(c) for columns, _ in sets for c in columns]))
    assert metric.n == 120
    assert metric.ci95[0] < metric.value < metric.ci95[1]
    assert metric.ci95[1] - metric.ci95[0] < 0.12
    constant = harmonic_mean_metric([([[0.5] * 4, [1.0] * 4], list("abcd"))])
    assert constant.value == pytest.approx(2 / 3)
    assert constant.ci95[0] < 0.6 < 0.7 < constant.ci95[1] < 1.0, "four groups that agree are no certainty"
    nothing = harmonic_mean_metric([([[0.0] * 4, [1.0] * 4], list("abcd"))])
    assert (nothing.value, nothing.ci95) == (0.0, mean_metric([0.0] * 4, list("abcd")).ci95)
    with pytest.raises(ValueError, match="3 scores for 4 samples"):
        harmonic_mean_metric([([[0.5] * 3], list("abcd"))])


def test_harmonic_mean_of_one_set_and_one_score_is_the_mean_with_its_interval():
    values = list(np.random.default_rng(2).uniform(0.3, 0.9, 30))
    groups = [str(n // 3) for n in range(30)]
    found, plain = harmonic_mean_metric([([values], groups)]), mean_metric(values, groups)
    assert found.value == pytest.approx(plain.value)
    assert found.ci95 == pytest.approx(plain.ci95)


def test_forget_quality_metric():
    generator = np.random.default_rng(2)
    base = generator.normal(1, 0.3, 120)
    alike = forget_quality_metric(list(base + generator.normal(0, 0.1, 120)), list(base))
    apart = forget_quality_metric(list(base + 0.6), list(base))
    assert alike.value > 0.05 > 1e-6 > apart.value
    assert apart.ci95[0] < apart.value < apart.ci95[1]
    assert alike.n == 120


def test_toxicity_is_a_share_and_a_mean():
    share, mean = toxicity_metrics([0.9, 0.5, 0.2, 0.6], list("abcd"))
    assert share.value == 0.5, "0.5 itself is not above 0.5"
    assert mean.value == pytest.approx(0.55)
    assert share.n == mean.n == 4


def test_every_metric_of_the_list_can_be_loaded():
    for record in METRICS:
        assert callable(METRICS.load(record.name)), record.name


def test_choice_wants_the_right_answer_strictly_best_per_token():
    assert choice_accuracy(T([-1.0, -1.0]), [T([-1.5]), T([-1.1, -1.0])]) == 1.0
    assert choice_accuracy(T([-1.0]), [T([-1.0])]) == 0.0
    with pytest.raises(EmptyScoreError):
        choice_accuracy(T([-1.0]), [])


def test_perplexity_counts_tokens_not_texts():
    metric = perplexity_metric([math.log(0.5), 3 * math.log(0.25)], [1, 3], ["a", "b"])
    assert metric.value == pytest.approx((2 * 4**3) ** 0.25)
    assert metric.n == 2
    with pytest.raises(EmptyScoreError):
        perplexity_metric([], [], [])
    with pytest.raises(EmptyScoreError):
        perplexity_metric([0.0], [0], ["a"])


def test_interval_of_perplexity_is_students_of_the_logarithm():
    means = np.array([2.0, 2.5, 3.0])
    metric = perplexity_metric(list(-means * 10), [10] * 3, list("abc"))
    half = 4.302653 * means.std(ddof=1) / math.sqrt(3)
    assert metric.ci95 == pytest.approx((math.exp(means.mean() - half), math.exp(means.mean() + half)))
    alone = perplexity_metric([-20.0], [10], ["a"])
    assert alone.ci95[0] == 1.0
    assert alone.value < alone.ci95[1] < math.inf, "one text says nothing of others, and can be written as JSON"
    of_one_group = perplexity_metric(list(-means * 10), [10] * 3, ["a"] * 3)
    assert of_one_group.ci95 == metric.ci95


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("", 1.0, 1.0),
        ("  \n", 1.0, 1.0),
        ("the cat sat on the mat and looked out at the rain", 0.0, 0.1),
        ("no no no no no no no no no no", 0.8, 1.0),
        ("#$%& *** ((( !!! 9999", 0.9, 1.0),
        ("Paris", 0.0, 0.0),
        ("Founded in 1889, it has 2,161,000 inhabitants.", 0.0, 0.2),
    ],
)
def test_degeneration(text, low, high):
    assert low <= degeneration(text) <= high


def test_min_k_against_a_direct_computation():
    logps = T([-5.0, -1.0, -4.0, -2.0, -3.0])
    assert min_k(logps, 0.4) == pytest.approx((-5 - 4) / 2)
    assert min_k(logps, 0.59) == pytest.approx((-5 - 4) / 2)
    with pytest.raises(EmptyScoreError):
        min_k(logps, 0.1)


def test_membership_auc_counts_pairs():
    assert membership_auc([3.0, 2.0], [1.0, 2.0]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert membership_auc([1.0], [2.0]) == 0.0


def test_privacy_leakage_bounds_on_muse_news():
    assert privacy_leakage(0.0, 0.4772) == pytest.approx(-100)
    assert privacy_leakage(1.0, 0.4772) == pytest.approx(109.556, abs=5e-4)
    with pytest.raises(EmptyScoreError):
        privacy_leakage(0.5, 0.0)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_kept_is_a_share(before, after, attacked):
    assert 0.0 <= kept_share(before, after, attacked) <= 1.0


def test_kept_share():
    assert kept_share(1.0, 0.2, 0.2) == 1.0
    assert kept_share(1.0, 0.2, 1.0) == 0.0
    assert kept_share(1.0, 0.2, 0.6) == pytest.approx(0.5)
    assert kept_share(1.0, 0.2, 0.1) == 1.0
    assert kept_share(1.0, 0.97, 0.97, floor=0.25) == 0.0, "nothing was forgotten, so nothing is kept"
    assert kept_share(0.5, 0.5, 0.5) == 0.0
    assert kept_share(0.2, 0.4, 0.3) == 0.0, "it remembers better than before"


def one(value, n=10):
    return Metric(value=value, n=n, ci95=(value, value))


def test_collapse_is_told_by_perplexity_or_text():
    before = {"general_perplexity": one(20.0), "general_degenerate": one(0.1)}
    assert collapse_reasons(before, before) == []
    assert collapse_reasons(before, before | {"general_perplexity": one(39.9)}) == []
    [reason] = collapse_reasons(before, before | {"general_perplexity": one(41.0)})
    assert "more than doubled: 20.0 → 41" in reason
    [reason] = collapse_reasons(before, before | {"general_degenerate": one(0.45)})
    assert "degenerate" in reason


def test_a_metric_is_over_something_and_finite():
    with pytest.raises(EmptyScoreError):
        Metric(value=0.0, n=0, ci95=(0, 0))
    with pytest.raises(NonFiniteLossError):
        Metric(value=math.nan, n=1, ci95=(0, 0))
    with pytest.raises(EmptyScoreError):
        mean_metric([], [])


def test_interval_is_over_groups_not_samples():
    values = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0] * 10
    alone = mean_metric(values, [str(i) for i in range(60)])
    grouped = mean_metric(values, [str(i // 3) for i in range(60)])
    assert alone.value == grouped.value == 0.5
    assert alone.n == grouped.n == 60
    width = alone.ci95[1] - alone.ci95[0]
    assert width == pytest.approx(4 * math.sqrt(0.25 / 60), rel=0.1)
    assert grouped.ci95[1] - grouped.ci95[0] == pytest.approx(width * math.sqrt(3), rel=0.1)


def test_all_right_is_not_certainty():
    metric = mean_metric([1.0] * 40, [str(i // 2) for i in range(40)])
    # Wilson for 20 of 20: [0.8389, 1].
    assert metric.ci95 == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_one_group_has_no_interval_of_zero_width():
    assert mean_metric([0.4], ["a"]).ci95 == (0.0, 1.0)
    assert mean_metric([40.0], ["a"], (0.0, 100.0)).ci95 == (0.0, 100.0)
    assert mean_metric([0.4, 0.8], ["a", "a"]).ci95 == mean_metric([0.4, 0.8], ["a", "b"]).ci95
    assert mean_metric([1.7], ["a"]).ci95 == (0.0, 1.7)


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(0, 5)), min_size=1, max_size=30))
def test_interval_stays_in_the_range_and_scales_with_it(rows):
    values, groups = [value for value, _ in rows], [str(group) for _, group in rows]
    metric = mean_metric(values, groups)
    low, high = metric.ci95
    assert 0.0 <= low <= metric.value + 1e-12
    assert metric.value - 1e-12 <= high <= 1.0
    hundred = mean_metric([100 * value for value in values], groups, (0.0, 100.0))
    assert hundred.ci95 == pytest.approx((100 * low, 100 * high), abs=1e-6)


def test_a_score_outside_the_range_has_students_interval():
    metric = mean_metric([0.5, 1.5, 2.5], list("abc"))
    half = 4.302653 / math.sqrt(3)
    assert metric.ci95 == pytest.approx((1.5 - half, 1.5 + half))


def test_auc_metric():
    metric = auc_metric([3.0, 4.0, 5.0, 2.5], [1.0, 2.0, 3.5])
    assert metric.value == pytest.approx(membership_auc([3.0, 4.0, 5.0, 2.5], [1.0, 2.0, 3.5]))
    assert metric.n == 7
    assert metric.ci95[0] <= metric.value <= metric.ci95[1]
    # Nothing overlaps: no spread is seen, and two samples of a side are no certainty.
    assert auc_metric([2.0, 3.0], [0.0, 1.0, 1.5]).ci95 == pytest.approx((0.3424, 1.0), abs=1e-4)
    assert auc_metric([0.0, 1.0], [2.0, 3.0, 1.5]).ci95 == pytest.approx((0.0, 0.6576), abs=1e-4)
    assert auc_metric([1.0], [2.0, 3.0]).ci95 == (0.0, 1.0)
