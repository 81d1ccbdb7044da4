"""Rounding against its definition: nearest by trying every level, stochastic by its mean, error feedback by sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from letgo.models.gguf_types import TYPES, BlockLevels, encode
from letgo.optim.engine.rounding import Codebook, make_grid, rounded

NF4 = torch.tensor([-1.0, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0])
DRAWS = 256
WEIGHT = torch.from_numpy((np.random.default_rng(7).normal(size=(6, 512)) * 0.02).astype(np.float32))
EVEN = {
    "symmetric": {"bits": 4, "group_size": 64},
    "asymmetric": {"bits": 4, "group_size": 32, "symmetric": False},
    "short last group": {"bits": 3, "group_size": 100},
    "channel": {"bits": 8, "granularity": "channel"},
    "tensor": {"bits": 4, "granularity": "tensor"},
}


def levels_of(name):
    if name in EVEN:
        return make_grid(WEIGHT, **EVEN[name])
    if name == "codebook":
        absmax = WEIGHT.reshape(-1, 48).abs().amax(dim=1)  # blocks that span two rows
        return Codebook(NF4, absmax, 48)
    pytest.importorskip("libgguf", reason="not installed: pip install 'letgo[gguf]'")
    return BlockLevels(name, encode(WEIGHT.numpy(), name), WEIGHT.shape[1])


ALL = [*EVEN, "codebook", *TYPES]


def every_level(levels):
    """(levels, rows, columns): what each index stands for at each weight."""
    indices = range(levels.low, levels.high + 1)
    return torch.stack([levels.values(torch.full(WEIGHT.shape, index, dtype=torch.int16)) for index in indices])


@pytest.mark.parametrize("name", ALL)
def test_nearest_is_the_nearest_of_all_levels(name):
    levels = levels_of(name)
    reached = levels.values(rounded(levels, WEIGHT, "nearest"))
    least = (every_level(levels) - WEIGHT).abs().amin(dim=0)
    # In the middle between two levels either is right, and the middle is a rounded number.
    torch.testing.assert_close((reached - WEIGHT).abs(), least, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_stochastic_rounding_keeps_the_mean_and_uses_two_levels(name):
    levels = levels_of(name)
    table = every_level(levels).sort(dim=0).values
    drawn = torch.stack([levels.values(rounded(levels, WEIGHT, "stochastic", seed=seed)) for seed in range(DRAWS)])
    above = torch.where(table >= WEIGHT, table, torch.inf).amin(dim=0)
    below = torch.where(table <= WEIGHT, table, -torch.inf).amax(dim=0)
    inside = above.isfinite() & below.isfinite()
    # Scales chosen for nearest rounding leave some weights beyond the outermost level; of Q2_K, one in eight.
    assert inside.double().mean() > 0.85
    near = torch.minimum((drawn - above).abs(), (drawn - below).abs())[:, inside]
    assert float(near.max()) <= 1e-6 * float(table.abs().max()), "a level that is no neighbour"
    # The mean of N draws of a two-point variable of width s has a deviation of at most s / (2 √N): six of them.
    bound = 6 * (above - below) / (2 * DRAWS**0.5) + 1e-7
    off = (drawn.mean(dim=0) - WEIGHT).abs()
    assert bool((off <= bound)[inside].all())
    # Over all weights the errors cancel: unbiased, which nearest rounding of an update smaller than a bin is not.
    total = (drawn.mean(dim=0) - WEIGHT)[inside].double().sum()
    assert abs(total) <= 6 * float((((above - below)[inside].double() ** 2).sum() / (4 * DRAWS)).sqrt())


@pytest.mark.parametrize("name", ALL)
def test_a_level_stays_where_it_is(name):
    levels = levels_of(name)
    on_it = levels.values(rounded(levels, WEIGHT, "stochastic", seed=3))
    for rounding in ("nearest", "stochastic", "error_feedback"):
        assert torch.equal(levels.values(rounded(levels, on_it, rounding, seed=4)), on_it), rounding


@pytest.mark.parametrize("name", ALL)
def test_the_draws_depend_on_seed_tensor_and_place_alone(name):
    levels = levels_of(name)
    index = rounded(levels, WEIGHT, "stochastic", seed=1, name="a")
    assert torch.equal(index, rounded(levels, WEIGHT, "stochastic", seed=1, name="a"))
    assert not torch.equal(index, rounded(levels, WEIGHT, "stochastic", seed=2, name="a"))
    assert not torch.equal(index, rounded(levels, WEIGHT, "stochastic", seed=1, name="b"))


def test_pieces_are_rounded_as_the_whole_is():
    grid = make_grid(WEIGHT, bits=4, granularity="tensor")
    pieces = [rounded(grid, WEIGHT[i : i + 2], "stochastic", seed=5, name="w", first=i) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(pieces), rounded(grid, WEIGHT, "stochastic", seed=5, name="w"))


@pytest.mark.parametrize("name", ["symmetric", "channel", "tensor", "Q4_K", "Q8_0"])
def test_error_feedback_keeps_the_sum_of_a_row(name):
    """What is carried on at the end of a row is half a bin at most, and nothing else is lost, but where weights lie
    beyond the outermost levels."""
    levels = levels_of(name)
    table = every_level(levels).sort(dim=0).values
    # With a bin to spare on both sides, what is carried never leads beyond the outermost level.
    weight = WEIGHT.clamp(table[1], table[-2])
    fed = levels.values(rounded(levels, weight, "error_feedback"))
    half = (table[1:] - table[:-1]).amax(dim=(0, 2)) / 2
    error = (fed.double() - weight.double()).sum(dim=1).abs()
    assert bool((error <= half * 1.001).all())
    plain = levels.values(rounded(levels, weight, "nearest"))
    assert float((plain - weight).sum(dim=1).abs().max()) > float(half.max()), "the rows would show nothing"


def test_an_update_smaller_than_half_a_bin():
    """The reason for it all: on the model's own levels nearest rounding undoes such an update whole, and stochastic
    rounding keeps it on average."""
    levels = make_grid(WEIGHT, bits=4)
    original = levels.values(levels.index(WEIGHT))
    inside = (levels.index(WEIGHT).abs() < 7).float()
    update = 0.05 * levels.scale[0, 0] * inside
    assert torch.equal(levels.values(rounded(levels, original + update, "nearest")), original)
    drawn = [levels.values(rounded(levels, original + update, "stochastic", seed=s)) - original for s in range(DRAWS)]
    kept = torch.stack(drawn).mean(dim=0).sum() / update.sum()
    # The share of weights that take the step is binomial: p = δ/s of 3,072 × 256.
    assert float(kept) == pytest.approx(1.0, abs=0.05)


def test_beyond_the_outermost_level():
    levels = make_grid(WEIGHT, bits=4, granularity="tensor")
    outside = torch.full((1, 8), 10.0)
    top = levels.values(torch.full((1, 8), levels.high))
    for rounding in ("nearest", "stochastic", "error_feedback"):
        assert torch.equal(levels.values(rounded(levels, outside, rounding)), top), rounding
