"""A claim that holds, one that does not, one that is not settled, one without data; and settings that take no part."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from letgo import UserError
from research.d2u import records
from research.d2u.claims import (
    CLAIMS,
    alike,
    highest,
    judge,
    matched_grades,
    more,
    more_than_control,
    no_dearer,
    summary,
    unmatched,
)
from research.d2u.experiments import read_testbed, title_of
from research.d2u.statistics import Estimate, estimate, paired
from tests.research.d2u import planted

MEASURE = "harmonic_mean"


def only(test, *given_settings):
    [finding] = test(planted.record(*given_settings))
    return finding


def hybrid_against_adam(hybrid):
    return only(more("FOZO", "AdamW", MEASURE), planted.setting("AdamW"), hybrid)


def test_a_difference_that_was_planted_holds():
    finding = hybrid_against_adam(planted.setting("FOZO", harmonic=0.7))
    assert finding.verdict == "holds"
    assert finding.estimate.mean == pytest.approx(0.2)
    assert finding.seeds == planted.SEEDS, "paired over the seeds that both have"
    assert finding.estimate.low == pytest.approx(0.2), "what the seeds have in common cancels"


def test_the_opposite_does_not_hold():
    assert hybrid_against_adam(planted.setting("FOZO", harmonic=0.3)).verdict == "does not hold"


@pytest.mark.parametrize("difference", [0.4, -0.4])
def test_a_difference_of_one_seed_settles_nothing_either_way(difference):
    assert judge(estimate([difference])) == "not settled"


def test_a_sure_difference_too_small_to_matter_does_not_hold():
    finding = hybrid_against_adam(planted.setting("FOZO", harmonic=0.51))
    assert finding.estimate.low > 0
    assert finding.verdict == "does not hold"


def test_what_seeds_disagree_on_is_not_settled():
    finding = hybrid_against_adam(planted.noisy("FOZO", {0: 0.9, 1: 0.4, 2: 0.6}))
    assert finding.estimate.mean > 0.02
    assert finding.verdict == "not settled"


@pytest.mark.parametrize(
    ("harmonic", "verdict"), [(0.5, "holds"), (0.51, "holds"), (0.53, "does not hold"), (0.47, "does not hold")]
)
def test_two_are_alike_where_their_difference_is_surely_too_small_to_count(harmonic, verdict):
    test = alike("FOZO", "AdamW", MEASURE)
    assert only(test, planted.setting("AdamW", harmonic=harmonic), planted.setting("FOZO")).verdict == verdict


def test_whether_two_are_alike_is_not_settled_where_seeds_disagree_or_there_is_one():
    noisy = planted.noisy("FOZO", {0: 0.55, 1: 0.5, 2: 0.46})
    single = planted.setting("FOZO", runs=[planted.run(0)])
    for hybrid in (noisy, single):
        assert only(alike("FOZO", "AdamW", MEASURE), planted.setting("AdamW"), hybrid).verdict == "not settled"
    assert only(alike("FOZO", "Sophia", MEASURE), planted.setting("FOZO")).verdict == "not testable here"


def test_one_seed_settles_nothing():
    finding = hybrid_against_adam(planted.setting("FOZO", runs=[planted.run(0, harmonic=0.9)]))
    assert finding.verdict == "not settled"
    assert not finding.estimate.has_interval


def test_without_the_grade_it_is_not_testable():
    finding = only(more("FOZO", "AdamW", MEASURE), planted.setting("AdamW"))
    assert (finding.verdict, finding.figure) == ("not testable here", "FOZO was not run")
    missed = planted.record(planted.setting("AdamW"), tuning=[planted.tuning("FOZO", low="missed")])
    [finding] = more("FOZO", "AdamW", MEASURE)(missed)
    assert finding.figure == "FOZO did not reach the target within the bound"


def test_settings_without_a_common_seed_cannot_be_compared():
    finding = hybrid_against_adam(planted.setting("FOZO", runs=[planted.run(7)]))
    assert finding.figure == "FOZO and AdamW share no measured seed"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"forget_accuracy": 0.8}, "forget_accuracy"),
        ({"forget_probability": 0.3}, "forget_probability"),
        ({"retain_accuracy": 0.5}, "retain_accuracy"),
        ({"general_perplexity": 9.0}, "general_perplexity"),
    ],
)
def test_robust_and_useless_is_not_robust(changes, reason):
    useless = planted.setting("FOZO", harmonic=1.0, after=planted.AFTER | changes)
    assert reason in unmatched(useless, planted.record(useless))
    finding = hybrid_against_adam(useless)
    assert finding.verdict == "not testable here"
    assert reason in finding.figure
    grades = matched_grades(planted.record(planted.setting("AdamW"), useless))
    assert [grade.name for grade in grades] == ["AdamW"]


@pytest.mark.parametrize("status", ["collapsed", "failed"])
def test_a_grade_with_a_run_that_collapsed_takes_no_part(status):
    runs = [planted.run(0, harmonic=0.9), planted.run(1, status=status, robustness={}, attacks={})]
    finding = hybrid_against_adam(planted.setting("FOZO", runs=runs))
    assert finding.verdict == "not testable here"
    assert "1 of 2 runs collapsed or failed" in finding.figure


def test_a_collapsed_run_keeps_nothing_and_a_broken_attack_says_nothing():
    collapsed = planted.run(0, status="collapsed", robustness={"harmonic_mean": 0.9})
    assert collapsed.value(MEASURE) == 0.0
    assert collapsed.value("kept:quantize:bits=4") == 0.0
    assert planted.run(0).value("kept:quantize:bits=2") is None


def test_the_best_is_compared_with_the_next_best():
    grades = [planted.setting("AdamW"), planted.setting("SAM", harmonic=0.6), planted.setting("FOZO", harmonic=0.7)]
    finding = only(highest("FOZO", MEASURE), *grades)
    assert (finding.verdict, finding.figure) == ("holds", "FOZO − SAM")
    assert only(highest("SAM", MEASURE), *grades).verdict == "does not hold"
    lowest = only(highest("AdamW", MEASURE, lowest=True), *grades)
    assert (lowest.verdict, lowest.figure) == ("holds", "SAM − AdamW")


def test_cost_is_counted_in_passes():
    hybrid = planted.setting("FOZO", passes={"forward": 72.0, "backward": 24.0})
    finding = only(no_dearer("FOZO", "AdamW", 0.1), planted.setting("AdamW"), hybrid)
    assert (finding.verdict, finding.passes) == ("holds", "120 against 144")
    assert only(no_dearer("AdamW", "FOZO", 0.1), planted.setting("AdamW"), hybrid).verdict == "does not hold"


def test_every_claim_is_judged_or_says_why_not():
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert bool(claim.test) + bool(claim.why_not) + bool(claim.one_basin) == 1
        if claim.test:
            assert claim.test(planted.record(planted.setting("AdamW")))
    assert set(read_testbed("biographies").room) <= set(planted.run(0).after)


def test_a_verdict_over_experiments():
    held, not_held = (hybrid_against_adam(planted.setting("FOZO", harmonic=value)) for value in (0.7, 0.3))
    missing = only(more("FOZO", "AdamW", MEASURE), planted.setting("AdamW"))
    assert summary([held, held, missing]) == "holds"
    assert summary([not_held]) == "does not hold"
    assert summary([missing]) == "not testable here"
    unsettled = hybrid_against_adam(planted.noisy("FOZO", {0: 0.9, 1: 0.4, 2: 0.6}))
    assert summary([unsettled, missing]) == "not settled"
    assert summary([held, not_held]) == "holds in 1, does not in 1 of 2 comparisons"


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_intervals_are_students(values):
    interval = estimate(values)
    assert interval.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert interval.low <= interval.mean <= interval.high
    if len(values) == 3:
        half = 4.302653 * statistics.stdev(values) / math.sqrt(3)
        assert interval.high - interval.mean == pytest.approx(half, rel=1e-5)


def test_pairs_are_of_the_same_seed():
    assert paired({0: 1.0, 1: 2.0, 7: 9.0}, {1: 1.5, 0: 0.5, 8: 0.0}) == Estimate(0.5, 0.5, 0.5, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert judge(Estimate(0.1, -math.inf, math.inf, 1)) == "not settled"


def test_at_the_bound_is_within_it():
    at_bound = planted.AFTER | {"forget_accuracy": 0.55, "retain_accuracy": 0.8}
    setting = planted.setting("AdamW", after=at_bound)
    assert unmatched(setting, planted.record(setting)) == ""
    setting = planted.setting("AdamW", after=at_bound | {"forget_accuracy": 0.5503})
    assert unmatched(setting, planted.record(setting)) == "forget_accuracy 0.5503 is above 0.5500"


def test_a_superseded_rate_is_shown_and_takes_no_part():
    first = planted.setting("FOZO", learning_rate=5e-4, harmonic=0.9, superseded=True)
    record = planted.record(planted.setting("AdamW"), planted.setting("FOZO", harmonic=0.7), first)
    assert [setting.label for setting in record.settings] == ["AdamW", "FOZO", "FOZO at 0.0005"]
    assert [grade.label for grade in matched_grades(record)] == ["AdamW", "FOZO"]
    assert unmatched(first, record) == "superseded by the next rate"


def test_another_rate_is_a_control_for_comparisons_that_name_it():
    deeper = planted.setting("AdamW", learning_rate=4e-4, harmonic=0.8, control=True)
    record = [planted.setting("AdamW"), planted.setting("FOZO", harmonic=0.7), deeper]
    finding = only(more_than_control("FOZO", MEASURE), *record)
    assert (finding.verdict, finding.figure) == ("does not hold", "FOZO − AdamW at 0.0004")
    without = only(more_than_control("FOZO", MEASURE), planted.setting("FOZO"))
    assert (without.verdict, without.figure) == ("not testable here", "no control was run")
    # A control is no grade of its own: the best of all grades is compared with the others alone.
    assert only(highest("FOZO", MEASURE), *record).figure == "FOZO − AdamW"


def test_an_idea_is_no_grade():
    idea = planted.setting("FOZO (fo=sign_adam)", harmonic=0.9)
    record = planted.record(planted.setting("AdamW"), planted.setting("FOZO", harmonic=0.7), idea)
    assert [grade.name for grade in matched_grades(record)] == ["AdamW", "FOZO"]
    assert record.ideas == [idea]


def test_a_name_missed_where_none_of_its_rates_reached_the_target():
    tunings = [planted.tuning("AdaZO", low="missed"), planted.tuning("SignSGD", low="missed", high="reached")]
    record = planted.record(tuning=tunings)
    assert [record.missed(name) for name in ("AdaZO", "SignSGD", "Sophia")] == [True, False, False]


def test_where_no_retrained_model_is_known_the_share_kept_stands_for_r():
    biographies, capitals = read_testbed("biographies"), read_testbed("capitals")
    record = planted.record(planted.setting("AdamW"))
    assert record.measure("R:everything") == f"R:{biographies.everything}"
    assert record.measure("kept:half") == f"kept:{biographies.half}"
    assert record.measure(MEASURE) == MEASURE
    record = planted.record(planted.setting("AdamW"), testbed="capitals")
    assert record.measure("R:everything") == f"kept:{capitals.everything}"
    assert (record.name, title_of(record.name)) == ("capitals/npo", "NPO, SmolLM2's capitals")
    with pytest.raises(UserError, match="no testbed 'nowhere'"):
        planted.record(testbed="nowhere").measure("kept:half")


def test_a_room_may_be_relative_to_the_retrained_model(monkeypatch):
    bed = dataclasses.replace(read_testbed("biographies"), room={}, room_of_retrained={"forget_probability": 1.5})
    monkeypatch.setattr(records, "read_testbed", lambda name: bed)
    for known, reason in ((0.06, ""), (0.05, "forget_probability 0.080 is above 0.075")):
        record = planted.record(planted.setting("AdamW"), retrained={"forget_probability": known})
        assert unmatched(record.settings[0], record) == reason
