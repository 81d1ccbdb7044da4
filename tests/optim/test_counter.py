"""Counter-based noise: what it is made of, and that it is as random as it claims."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from letgo.optim.engine import counter
from letgo.optim.engine.counter import mix

CPU = torch.device("cpu")
N = 1 << 20


def splitmix(key: int, count: int) -> list[int]:
    """SplitMix64 as its paper has it: a state that grows by a constant, and is hashed."""
    state, outputs = key, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        outputs.append(z ^ (z >> 31))
    return outputs


def unsigned(words: Tensor) -> list[int]:
    return [word % 2**64 for word in words.tolist()]


def normal_of(k: int) -> float:
    """z(k) in double precision."""
    x = (k + 0.5) / 32768
    r = (1 - x) * (1 + x)
    top, bottom = (sum(c * r**i for i, c in enumerate(cs)) for cs in (counter.NUMERATOR, counter.DENOMINATOR))
    return top * x / bottom


def test_words_are_those_of_splitmix64() -> None:
    # The first outputs for the state 1234567 are printed with the reference implementation.
    assert unsigned(counter.words(1234567, 0, 3, CPU)) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    key = mix(5, 6)
    expected = splitmix(key, 100)
    assert unsigned(counter.words(key, 0, 100, CPU)) == expected
    assert unsigned(counter.words(key, 37, 51, CPU)) == expected[37:51]
    assert unsigned(counter.words_at(key, torch.tensor([[9, 0], [99, 3]])).flatten()) == [
        expected[i] for i in (9, 0, 99, 3)
    ]


def test_signs_and_normals_are_the_bits_of_the_words() -> None:
    key, count = mix(1), 9000
    words = splitmix(key, 3 * 64)
    lanes = [word >> 16 * i & 0xFFFF for word in words for i in range(4)]
    signs = [-1.0 if lanes[e // 4096 * 256 + e % 256] >> 15 - e % 4096 // 256 & 1 else 1.0 for e in range(count)]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert counter.signs(key, 0, count, dtype, CPU).tolist() == signs
        assert counter.signs(key, 4100, 8195, dtype, CPU, 0.25).tolist() == [0.25 * s for s in signs[4100:8195]]
    elements = torch.tensor([[0, 8999], [4095, 4096]])
    assert counter.signs_at(key, elements).flatten().tolist() == [signs[i] for i in (0, 8999, 4095, 4096)]
    drawn = counter.normals(key, 0, 700, CPU)
    exact = [normal_of((lane ^ 0x8000) - 0x8000) for lane in lanes[:700]]
    torch.testing.assert_close(drawn.double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-5, atol=1e-9)
    assert torch.equal(counter.normals(key, 5, 301, CPU), drawn[5:301])
    assert torch.equal(counter.normals_at(key, torch.arange(5, 301)), drawn[5:301])
    assert counter.squares(key, 0, 700, CPU) == pytest.approx(2**20 * float(drawn.double().square().sum()), rel=2e-6)


def test_the_table_of_normals_is_what_its_description_says() -> None:
    table = torch.cat([counter.normal_table(CPU)[1 << 15 :], counter.normal_table(CPU)[: 1 << 15]]).double()
    assert torch.equal(table, -table.flip(0))
    assert bool((table.diff() > 0).all())
    n = 1 << 16
    middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert float((torch.special.ndtr(table) - middles).abs().max()) < 1e-4
    moments = [float(table.pow(p).mean()) for p in (2, 4, 6)]
    assert moments == pytest.approx([1.0, 2.99984, 14.9912], rel=1e-5)
    assert abs(moments[0] - 1) < 1e-7
    assert float(table.max()) == pytest.approx(4.3857, abs=1e-4)


def test_normals_are_normal_in_the_middle_and_in_the_tails() -> None:
    z = counter.normals(mix(3), 0, N, CPU).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(z.pow(power).mean()) - moment) < 5 * math.sqrt(variance / N), power
    ranks = torch.special.ndtr(z).sort().values
    grid = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    assert float((ranks - grid).abs().max()) < 1.95 / math.sqrt(N)  # Kolmogorov-Smirnov, p = .001
    for edge in (2.0, 3.0, 3.5, 4.0):
        share = math.erfc(edge / math.sqrt(2))
        assert abs(float((z.abs() > edge).sum()) - N * share) < 5 * math.sqrt(N * share), edge


def draw(kind: str, key: int, count: int = N) -> Tensor:
    values = (
        counter.signs(key, 0, count, torch.float32, CPU) if kind == "signs" else counter.normals(key, 0, count, CPU)
    )
    return values.double()


@pytest.mark.parametrize("kind", ["signs", "normals"])
def test_no_two_places_seeds_or_steps_are_correlated(kind: str) -> None:
    bound = 5 / math.sqrt(N)
    one = draw(kind, mix(0, 0, 0, 0))
    # Neighbours, the period of words, lanes, planes and groups.
    for lag in (1, 2, 3, 4, 5, 16, 64, 255, 256, 257, 1024, 4095, 4096, 4097, 1 << 16):
        assert abs(float((one[lag:] * one[:-lag]).mean())) < bound * math.sqrt(N / (N - lag)), lag
    keys = [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2**63, 0, 0, 0), (0, 0, 0, 2)]
    drawn = [one, *(draw(kind, mix(*key)) for key in keys)]
    for a, b in itertools.combinations(drawn, 2):
        assert abs(float((a * b).mean())) < bound
    # Signs and normals of one key come from the same words, yet are never used together; squares are not linked either.
    for other in drawn[1:]:
        assert abs(float(((one.square() - 1) * (other.square() - 1)).mean())) < 2 * bound


@pytest.mark.parametrize("kind", ["signs", "normals"])
def test_sums_of_many_have_the_variance_of_independent_ones(kind: str) -> None:
    """Any positive correlation within a block would swell them, any negative one shrink them."""
    drawn = draw(kind, mix(8), 1 << 22)
    for block in (16, 256, 4096):
        sums = drawn.view(-1, block).sum(1) / math.sqrt(block)
        for values in (sums, drawn.view(block, -1).sum(0) / math.sqrt(block)):
            count = len(values)
            assert abs(float(values.square().mean()) - 1) < 5 * math.sqrt(2 / count), block
            assert abs(float(values.pow(4).mean()) - 3) < 5 * math.sqrt(96 / count) + 2 / block, block


def test_every_bit_is_set_half_the_time() -> None:
    words = counter.words(mix(4), 0, 1 << 16, CPU)
    for bit in range(64):
        assert abs(float((words >> bit & 1).double().mean()) - 0.5) < 5 * 0.5 / 256


@given(st.integers(0, 20_000), st.integers(1, 9_000), st.integers(0, 2**64 - 1))
def test_any_range_is_part_of_the_whole(start: int, count: int, key: int) -> None:
    assert torch.equal(
        counter.signs(key, start, start + count, torch.float32, CPU),
        counter.signs(key, 0, start + count, torch.float32, CPU)[start:],
    )
    assert torch.equal(
        counter.normals(key, start, start + count, CPU), counter.normals(key, 0, start + count, CPU)[start:]
    )


def test_mix_tells_order_and_neighbours_apart() -> None:
    keys = {mix(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(keys) == 8000
    assert len({k & 0xFFFFFFFF for k in keys}) >= 7999
