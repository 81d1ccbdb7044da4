"""Intervals and comparisons against closed forms and simulation; `perf/intervals.py` does the latter at length."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from letgo.core.statistics import (
    UNSEEN,
    Estimate,
    bounded,
    holm,
    mean,
    paired,
    proportion_bound,
    ratio,
    student,
)
from perf import intervals

T_2 = 4.302652729911275
"""Student's t with two degrees of freedom, 95 %."""


def test_a_ratio_has_students_interval_of_its_linearised_errors():
    # Groups' sums: 1 of 2, 2 of 2, 3 of 4; so 6/8, and errors −.5, .5, 0.
    found = ratio([1, 0, 2, 1, 2], [1, 1, 2, 2, 2], list("aabcc"), ends=None)
    half = T_2 * math.sqrt(3 / 2 * 0.5) / 8
    assert (found.value, found.groups) == (0.75, 3)
    assert found.interval == pytest.approx((0.75 - half, 0.75 + half))
    one_sided = ratio([1, 0, 2, 1, 2], [1, 1, 2, 2, 2], list("aabcc"), ends=None, sides=1)
    assert one_sided.low == pytest.approx(0.75 - half / T_2 * 2.9199855803537)


def test_terms_of_a_ratio_may_have_any_sign():
    tops, bottoms = np.array([-0.2, 0.4, 0.1]), np.array([0.5, -0.1, 0.8])
    found = ratio(tops, bottoms, list("abc"))
    assert found.value == pytest.approx(0.25)
    turned = ratio(-tops, -bottoms, list("abc"))
    assert turned.interval == pytest.approx(found.interval)


def test_a_ratio_of_shares_that_agree_is_no_certainty():
    found = ratio([0.75] * 10, [0.75] * 10, [str(n) for n in range(10)])
    half = student(0.95, 2, 9) * math.sqrt(UNSEEN / (math.sqrt(10) * 9))
    assert found.interval == pytest.approx((1 - half, 1 + half))
    assert ratio([0.75] * 10, [0.75] * 10, [str(n) for n in range(10)], ends=None).interval == (1.0, 1.0)


def test_the_interval_of_skewed_errors_is_longer_on_that_side():
    groups = [str(n) for n in range(8)]
    found = ratio([1, 1, 1, 1, 1, 1, 1, 0], [1] * 8, groups)
    assert found.value - found.low > 1.3 * (found.high - found.value)
    turned = ratio([0, 0, 0, 0, 0, 0, 0, 1], [1] * 8, groups)
    assert turned.interval == pytest.approx((1 - found.high, 1 - found.low))


def test_without_an_interval_the_ends_are_infinite():
    assert ratio([1, 2], [2, 2], ["a", "a"]) == Estimate(0.75, -math.inf, math.inf, 1)
    nothing = ratio([1, 2], [1, -1], ["a", "b"])
    assert math.isnan(nothing.value)
    assert nothing.interval == (-math.inf, math.inf)
    assert ratio([], [], []).groups == 0
    assert mean([0.3], ["a"], bounds=(0, 1)).interval == (0.0, 1.0)


def test_the_ends_of_a_bounded_mean_solve_its_equation():
    value, variance, size = 0.2, 0.003, 9.0
    c = 1.959964**2 * variance / (value * (1 - value))
    for end in bounded(value, variance, size):
        assert (value - end) ** 2 == pytest.approx(c * end * (1 - end))
    wilson = stats.binomtest(3, 15).proportion_ci(method="wilson")
    assert bounded(0.2, 1.0, 15) == pytest.approx((wilson.low, wilson.high)), "at most that of a 0-or-1 score"


def test_groups_of_unlike_sizes_count_for_fewer():
    even = mean([1.0] * 8, list("aabbccdd"), bounds=(0, 1))
    uneven = mean([1.0] * 8, list("aaaaabcd"), bounds=(0, 1))
    assert uneven.low == pytest.approx(bounded(1.0, 0.0, 64 / 28)[0])
    assert uneven.low < even.low


def test_bound_of_a_proportion():
    assert proportion_bound(0, 20) == pytest.approx(1 - 0.05 ** (1 / 20))
    assert proportion_bound(3, 20) == pytest.approx(stats.binomtest(3, 20).proportion_ci(0.9).high)
    assert proportion_bound(4, 4) == proportion_bound(0, 0) == 1.0


def test_settings_are_compared_by_students_paired_test():
    first, second = [0.5, 0.7, 0.62, 0.8], [0.4, 0.65, 0.6, 0.6]
    found, known = paired(first, second), stats.ttest_rel(first, second)
    interval = known.confidence_interval()
    assert found.p == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.spread == pytest.approx(np.std(np.subtract(first, second), ddof=1))
    assert paired([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]).p == 1.0


def test_few_seeds_have_no_p_value():
    two, one = paired([0.5, 0.7], [0.4, 0.4]), paired([0.5], [0.4])
    assert (two.p, two.seeds, two.spread) == (None, 2, pytest.approx(0.2 / math.sqrt(2)))
    assert (one.p, one.low, one.high) == (None, -math.inf, math.inf)
    assert math.isnan(one.spread)


def test_seeds_without_spread_give_no_p_value_of_zero():
    """Shares kept end at 0 and 1: seeds at both ends are alike to the bit, which is no estimate of their error."""
    assert paired([1.0] * 3, [0.95] * 3).p is None
    assert paired([0.5] * 3, [0.5] * 3).p == 1.0


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


TIMES = 800


def at_least(share):
    """What a share of so many trials is above, but for one in a thousand simulations."""
    return share - 3.1 * math.sqrt(share * (1 - share) / TIMES)


def at_most(share):
    return share + 3.1 * math.sqrt(share * (1 - share) / TIMES)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [5, 10, 20])
def test_intervals_of_means_hold_from_five_groups_on(groups):
    found = {name: intervals.coverage(d, groups, TIMES, intervals.of_mean) for name, d in intervals.MEANS.items()}
    assert min(found.values()) >= at_least(0.92), found
    assert max(found.values()) <= at_most(0.98), found


@pytest.mark.slow
def test_the_percentile_bootstrap_does_not_hold():
    kinds = ("accuracy 0.3", "probability Beta(.5, 1.5)")
    found = [intervals.coverage(intervals.MEANS[name], 5, TIMES, intervals.bootstrap) for name in kinds]
    assert max(found) < 0.88, "the simulation sees it where an interval is too narrow"


@pytest.mark.slow
def test_intervals_of_other_metrics_hold():
    for name in intervals.OTHERS:
        assert intervals.other_coverage(name, 10, TIMES // 2) >= at_least(0.92) - 0.02, name


@pytest.mark.slow
def test_lower_bounds_of_shares_hold():
    found = {name: intervals.coverage(d, 20, TIMES, intervals.lower_bound) for name, d in intervals.SHARES.items()}
    assert min(found.values()) >= at_least(0.90), found


@pytest.mark.slow
def test_one_setting_is_told_apart_from_itself_as_rarely_as_the_level_says():
    assert [intervals.told_apart(0.0, seeds, 50) for seeds in (1, 2)] == [0.0, 0.0]
    for seeds, settings in ((3, 2), (5, 2), (3, 5)):
        assert intervals.told_apart(0.0, seeds, TIMES, settings=settings) <= at_most(0.05), (seeds, settings)
    assert intervals.told_apart_by_groups(0.0, 3, TIMES) > at_most(0.05), "groups alone do not show how runs differ"


@pytest.mark.slow
def test_settings_that_differ_are_told_apart():
    assert intervals.told_apart(0.3, 5, 200) > 0.9
    assert intervals.told_apart(0.3, 3, 200) > 0.4
