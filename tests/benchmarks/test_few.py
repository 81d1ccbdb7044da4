"""The few items of a look: spread over groups and ways of asking, and answered cheaply."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.base import Item
from letgo.benchmarks.engine.items import FEW, FEW_TEXTS, few_of
from letgo.data.rows import rows_from_records
from letgo.metrics.records import Headline

[ROW] = rows_from_records([{"question": "what ?", "answer": "that"}], "test")


def items(groups, each, name="forget", task=""):
    return [
        Item(name, f"{group}/{way}/{task}", f"group {group}", ROW, task=task)
        for group in range(groups)
        for way in range(each)
    ]


@pytest.mark.parametrize(("groups", "each"), [(20, 5), (20, 3), (24, 4), (100, 2), (3, 10), (1, 50), (5, 2)])
def test_few_items_are_spread_over_groups_and_ways_of_asking(groups, each):
    everything = items(groups, each)
    few = few_of(everything)
    assert len(few) == len({item.id for item in few}) == min(FEW, groups * each)
    assert few == [item for item in everything if item in few], "in their order"
    counts = Counter(item.group for item in few)
    assert len(counts) == min(groups, FEW)
    assert max(counts.values()) - min(counts.values()) <= 1
    ways = Counter(item.id.split("/")[1] for item in few)
    assert len(ways) == min(each, len(few)), "every way of asking has its turn"
    taken = sorted({int(item.id.split("/")[0]) for item in few})
    assert max(b - a for a, b in zip(taken, [*taken[1:], groups], strict=True)) <= groups / FEW + 1


def test_each_set_has_its_few():
    assert Counter(item.set for item in few_of([*items(40, 1), *items(10, 1, "retain")])) == {
        "forget": FEW,
        "retain": 10,
    }
    assert few_of([]) == []


@pytest.mark.parametrize("name", ["biographies", "capitals"])
def test_a_benchmark_of_few_is_cheap_and_measures_forgetting_and_use(name):
    whole = create_benchmark(name)
    few = whole.few()
    assert Counter(item.set for item in few.items) == {"forget": FEW, "retain": FEW}
    assert Counter(text.set for text in few.texts) == {"general": FEW_TEXTS}
    assert few.generated == 1
    assert {item.group for item in few.items if item.set == "forget"} == {
        item.group for item in whole.items if item.set == "forget"
    }
    first = [item.id for item in whole.items if item.set == "forget"][:6]
    assert {item.id for item in whole.few(6).items if item.set == "forget"} == set(first), (
        "none that is not scored after"
    )


def test_answers_are_written_where_a_headline_needs_them_and_membership_is_left_out():
    whole = replace(
        create_benchmark("capitals"),
        items=[*items(4, 1), *items(4, 1, task="membership"), *items(4, 1, "holdout", "membership")],
        headlines=(Headline("forget_rouge"),),
    )
    few = whole.few()
    assert few.generated is None
    assert {(item.set, item.task) for item in few.items} == {("forget", "")}
