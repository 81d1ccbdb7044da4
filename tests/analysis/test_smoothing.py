from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from letgo.analysis.smoothing import (
    bound,
    certified_radius,
    check_smoothing,
    clopper_pearson_lower,
    draws_needed,
    noisy_outcome,
    reveals_at_most,
)
from letgo.analysis.weights import Weights
from letgo.core.errors import UserError
from tests.analysis.problems import HalfSpace


@pytest.mark.parametrize("draws", [1, 7, 100, 1000])
@pytest.mark.parametrize("alpha", [0.05, 0.01, 1e-4])
def test_clopper_pearson_is_scipys_exact_one_sided_bound(draws, alpha):
    for successes in {0, 1, draws // 3, draws // 2, draws - 1, draws}:
        test = stats.binomtest(successes, draws, alternative="greater")
        expected = test.proportion_ci(1 - alpha, method="exact").low
        assert clopper_pearson_lower(successes, draws, alpha) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_how_many_draws_are_needed():
    for alpha in (0.4, 0.25, 0.125, 0.05, 0.01, 0.001, 0.5**20):
        least = draws_needed(alpha)
        assert clopper_pearson_lower(least, least, alpha) > 0.5
        assert least == 1 or clopper_pearson_lower(least - 1, least - 1, alpha) <= 0.5
    assert draws_needed(0.01) == 7


def test_radius_and_the_bound_at_a_distance_meet_at_one_half():
    assert certified_radius(0.3, 0.5) == 0.0
    assert certified_radius(0.3, 0.2) == 0.0
    assert certified_radius(0.3, stats.norm.cdf(1.7)) == pytest.approx(0.51)
    assert reveals_at_most(certified_radius(0.3, 0.9), 0.3, 0.9) == pytest.approx(0.5)
    assert reveals_at_most(0.0, 0.3, 0.9) == pytest.approx(0.1)
    assert reveals_at_most(0.2, 0.3, 0.0) == 1.0
    bounds = [reveals_at_most(r, 0.3, 0.9) for r in (0.0, 0.1, 0.5, 5.0)]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_no_certificate_without_noise(sigma):
    with pytest.raises(UserError, match="sigma must be above 0"):
        check_smoothing(sigma, 0.01)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, -0.1])
def test_alpha_is_a_small_share(alpha):
    with pytest.raises(UserError, match=r"alpha must be above 0 and below 0\.5"):
        check_smoothing(1.0, alpha)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.01])
@pytest.mark.parametrize("ratio", [0.2, 1.0, 2.0])
def test_the_radius_exceeds_the_true_distance_no_more_often_than_alpha(alpha, ratio):
    """A half space at distance d = ratio σ: P(not reveal) = Φ(d/σ), and every δ of norm d along its normal makes that
    1/2. 20,000 certificates of 200 draws each, their counts drawn from the binomial."""
    sigma, draws, repeats = 0.7, 200, 20_000
    kept = np.random.default_rng(3).binomial(draws, stats.norm.cdf(ratio), size=repeats)
    radii = {int(k): bound(draws - int(k), draws, sigma, alpha).radius for k in np.unique(kept)}
    too_far = np.mean([radii[int(k)] > ratio * sigma for k in kept])
    assert too_far <= alpha + 4 * (alpha * (1 - alpha) / repeats) ** 0.5
    # Nor is the bound empty: it is exceeded now and then where so few draws can, and most of what is true is certified.
    assert (too_far > 0) == (alpha ** (1 / draws) > stats.norm.cdf(ratio))
    if ratio >= 1.0:
        assert np.mean([radii[int(k)] for k in kept]) > 0.7 * ratio * sigma


def test_coverage_through_the_noise_on_a_real_model():
    """The same with every draw made: noise on weights, judged, put back."""
    alpha, sigma, distance, draws, repeats = 0.2, 0.5, 0.4, 40, 150
    model = HalfSpace(distance)
    weights = Weights(model)
    before = model.weights.detach().clone()
    truth = stats.norm.cdf(-distance / sigma)
    revealed, too_far = 0, 0
    for seed in range(repeats):
        outcomes = [noisy_outcome(weights, model.judge, sigma, seed, number) for number in range(draws)]
        count = sum(outcome == [True] for outcome in outcomes)
        revealed += count
        too_far += bound(count, draws, sigma, alpha).radius > distance
    assert model.weights.equal(before)
    assert revealed / (draws * repeats) == pytest.approx(
        truth, abs=4 * (truth * (1 - truth) / (draws * repeats)) ** 0.5
    )
    assert 0 < too_far / repeats <= alpha + 3 * (alpha * (1 - alpha) / repeats) ** 0.5


def test_relative_noise_is_certified_in_the_rescaled_metric():
    """Noise σ s on weights of scale s: the half space is d/s away in units of s, and Φ(−d/(s σ)) reveal."""
    scale, sigma, distance, draws = 20.0, 0.5, 8.0, 4000
    model = HalfSpace(distance, scale)
    weights, scales = Weights(model), {"weights": scale}
    outcomes = [noisy_outcome(weights, model.judge, sigma, 1, number, scales) for number in range(draws)]
    truth = stats.norm.cdf(-distance / (scale * sigma))
    share = sum(outcome == [True] for outcome in outcomes) / draws
    assert share == pytest.approx(truth, abs=4 * (truth * (1 - truth) / draws) ** 0.5)
    radius = bound(round(share * draws), draws, sigma, 1e-4).radius
    assert 0.7 * distance / scale < radius <= distance / scale
