"""The cost model against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.scaling.scaling import (
    MACHINES,
    NOISE_TRAFFIC,
    Machine,
    StepWork,
    all_gather,
    all_reduce,
    doublings,
    efficiency,
    step_cost,
    wire_bytes,
)

PLAIN = Machine("plain", "cpu", 1000, {}, None, math.inf, 1e9, 1e9, 1e-5, 1e-5, "made up")
ZEROTH = StepWork(16, 3e9, 8, 0, 0.0, 1, 10**9, 10**8, 10**9, 5 * 10**8, 0.0, 10)
FIRST = StepWork(0, 0.0, 0, 1, 9e9, 1, 10**9, 10**8, 10**9, 5 * 10**8, 2.0, 10)
RATE = 1e10
counts = st.integers(1, 2000)
works = st.sampled_from([ZEROTH, FIRST, replace(ZEROTH, backwards=0.5, backward_flops=9e9)])
ways = st.sampled_from([("ddp", "data"), ("ddp", "directions"), ("fsdp2", "data")])


def cost(work, ranks, strategy="ddp", share="data", machine=PLAIN, overlap=0.0):
    return step_cost(work, ranks, strategy, machine, RATE, share=share, overlap=overlap)


# -- collectives -------------------------------------------------------------------------------------------------------


def test_collectives_by_hand():
    assert all_reduce(8e9, 1, PLAIN) == all_gather(8e9, 1, PLAIN) == 0
    assert all_gather(8e9, 4, PLAIN) == pytest.approx(3 * 1e-5 + 3 / 4 * 8)
    assert all_gather(8e9, 4, PLAIN, messages=5) == pytest.approx(5 * 3 * 1e-5 + 3 / 4 * 8)
    assert all_reduce(8e9, 4, PLAIN) == pytest.approx(2 * 3 * 1e-5 + 2 * 3 / 4 * 8), "a ring, for many bytes"
    assert all_reduce(8, 1000, PLAIN) == pytest.approx(2 * 10 * 1e-5, rel=1e-3), "a tree, for few: log2 1000 is 9.97"


def test_a_ring_over_nodes_has_few_slow_hops():
    machine = replace(PLAIN, per_node=4, across=1e8, hop_across=1e-3)
    assert machine.bandwidth(4) == 1e9
    assert machine.bandwidth(5) == 4e8, "four adapters at once"
    assert machine.hops(12) == pytest.approx(2 * 1e-3 + 9 * 1e-5)
    assert machine.depth(12) == pytest.approx(2 * 1e-3 + 2 * 1e-5)


# -- steps -------------------------------------------------------------------------------------------------------------


@given(works, ways)
def test_one_device_is_compute_alone(work, way):
    alone = cost(work, 1, *way)
    assert alone.seconds == work.flops / RATE
    assert alone.sent == alone.wire == alone.hidden == 0
    assert efficiency(alone, alone) == 1


@given(works, ways, counts, st.floats(0, 1))
def test_efficiency_is_at_most_one_and_never_above_that_of_hiding_more(work, way, ranks, overlap):
    alone = cost(work, 1, *way)
    shown = efficiency(cost(work, ranks, *way, overlap=overlap), alone)
    assert 0 < shown <= 1 + 1e-12
    assert efficiency(cost(work, ranks, *way), alone) <= shown + 1e-12
    assert shown <= efficiency(cost(work, ranks, *way, overlap=1.0), alone) + 1e-12


@given(st.sampled_from([ZEROTH, FIRST]), st.sampled_from(["ddp", "fsdp2"]), st.integers(1, 999))
def test_efficiency_falls_with_every_device(work, strategy, ranks):
    alone = cost(work, 1, strategy)
    one, more = (efficiency(cost(work, n, strategy), alone) for n in (ranks, ranks + 1))
    assert more <= one + 1e-12


def test_zeroth_order_on_replicas_sends_8_bytes_an_evaluation():
    for ranks in (2, 64, 1000):
        assert wire_bytes(ZEROTH, ranks, "ddp") == {"losses": 8 * 16}
    assert wire_bytes(replace(ZEROTH, weights=10**12, trained=10**12), 8, "ddp") == {"losses": 128}
    assert wire_bytes(ZEROTH, 1, "ddp") == wire_bytes(ZEROTH, 8, "single") == {}


def test_bytes_of_every_strategy():
    assert wire_bytes(FIRST, 4, "ddp") == {"gradients reduced": 1.5e9}
    assert wire_bytes(FIRST, 4, "fsdp2") == {
        "weights gathered, forward and backward": 0.75 * 1.9e9,
        "gradients scattered": 0.75e9,
    }
    assert wire_bytes(ZEROTH, 4, "fsdp2") == {"losses": 128, "weights gathered, evaluations": 0.75 * 16e9}
    windows = replace(ZEROTH, windows=3)
    assert wire_bytes(windows, 4, "fsdp2")["weights gathered, evaluations"] == 0.75 * 48e9


def test_shards_cost_zeroth_and_first_order_the_same_share():
    """A forward pass computes a third of what a forward and a backward pass do, and sends a third."""
    machine = replace(PLAIN, hop_inside=0.0, hop_across=0.0)
    zeroth, first = replace(ZEROTH, kept=0), replace(FIRST, kept=0)
    for ranks in (2, 64):
        shares = [
            efficiency(cost(work, ranks, "fsdp2", machine=machine), cost(work, 1, "fsdp2", machine=machine))
            for work in (zeroth, first)
        ]
        assert shares[0] == pytest.approx(shares[1], rel=1e-6)


def test_directions_are_split_as_far_as_they_go():
    alone = cost(ZEROTH, 1)
    assert cost(ZEROTH, 4, "ddp", "directions").passes == pytest.approx(alone.passes / 4)
    assert cost(ZEROTH, 5, "ddp", "directions").passes == pytest.approx(alone.passes * 4 / 16), "16 among 5: one has 4"
    few = efficiency(cost(ZEROTH, 64, "ddp", "directions"), alone)
    assert few < 16 / 64, "48 of 64 have nothing to do"
    more = ZEROTH.scaled(64)
    shown = efficiency(cost(more, 64, "ddp", "directions"), cost(more, 1))
    assert shown > 0.98, "with as many more directions they have"


def test_every_rank_applies_every_direction():
    """So that the update of N times the directions takes N times as long, however many ranks there are."""
    machine = replace(PLAIN, memory_bandwidth=1e11)
    times = [cost(ZEROTH.scaled(n), n, "ddp", "directions", machine).traffic for n in (100, 200)]
    assert times[1] - times[0] == pytest.approx(100 * 8 * NOISE_TRAFFIC * ZEROTH.elements / 1e11)


def test_machines():
    assert MACHINES["h100"].flops["bfloat16"] == pytest.approx(0.4 * 989e12)
    assert all(one.source and one.bandwidth(16) <= one.inside for one in MACHINES.values())
    assert list(doublings(1000)) == [1, 2, 8, 64, 512, 1000]
    assert list(doublings(8)) == [1, 2, 8]
    assert list(doublings(1)) == [1]
