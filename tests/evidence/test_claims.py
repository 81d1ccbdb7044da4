"""A claim that holds, one that does not, one that is not settled, one without data, and grades that take no part."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from letgo.core.errors import UserError
from letgo.evidence.claims import CLAIMS, alike, highest, judge, matched, more, more_than_control, summary, unmatched
from letgo.evidence.records import joined
from letgo.evidence.statistics import Estimate, estimate, paired
from letgo.evidence.subjects import SUBJECTS, in_order, subject_name, title_of
from tests.evidence import planted

MEASURE = "harmonic_mean"


def only(test, *groups):
    [finding] = test(planted.record(*groups))
    return finding


def test_a_difference_that_was_planted_holds():
    found = only(more("FOZO", "AdamW", MEASURE), planted.group("adamw"), planted.group("fozo", harmonic=0.7))
    assert found.verdict == "holds"
    assert found.estimate.mean == pytest.approx(0.2)
    assert found.seeds == planted.SEEDS, "paired over the seeds that both have"
    assert found.estimate.low == pytest.approx(0.2), "what the seeds have in common cancels"


def test_the_opposite_does_not_hold():
    found = only(more("FOZO", "AdamW", MEASURE), planted.group("adamw"), planted.group("fozo", harmonic=0.3))
    assert found.verdict == "does not hold"


@pytest.mark.parametrize("difference", [0.4, -0.4])
def test_a_difference_of_one_seed_settles_nothing_either_way(difference):
    assert judge(estimate([difference])) == "not settled"


def test_a_sure_difference_too_small_to_matter_does_not_hold():
    found = only(more("FOZO", "AdamW", MEASURE), planted.group("adamw"), planted.group("fozo", harmonic=0.51))
    assert found.estimate.low > 0
    assert found.verdict == "does not hold"


def test_what_seeds_disagree_on_is_not_settled():
    hybrid = planted.noisy("fozo", {0: 0.9, 1: 0.4, 2: 0.6})
    found = only(more("FOZO", "AdamW", MEASURE), planted.group("adamw"), hybrid)
    assert found.estimate.mean > 0.02
    assert found.verdict == "not settled"


@pytest.mark.parametrize(
    ("harmonic", "verdict"), [(0.5, "holds"), (0.51, "holds"), (0.53, "does not hold"), (0.47, "does not hold")]
)
def test_two_are_alike_where_they_are_surely_no_further_apart_than_what_counts(harmonic, verdict):
    found = only(alike("FOZO", "AdamW", MEASURE), planted.group("adamw", harmonic=harmonic), planted.group("fozo"))
    assert found.verdict == verdict


def test_whether_two_are_alike_is_not_settled_where_seeds_disagree_or_there_is_one():
    noisy = planted.noisy("fozo", {0: 0.55, 1: 0.5, 2: 0.46})
    assert only(alike("FOZO", "AdamW", MEASURE), planted.group("adamw"), noisy).verdict == "not settled"
    one = planted.group("fozo", cells=[planted.cell(0)])
    assert only(alike("FOZO", "AdamW", MEASURE), planted.group("adamw"), one).verdict == "not settled"
    assert only(alike("FOZO", "Sophia", MEASURE), planted.group("fozo")).verdict == "not testable here"


def test_one_seed_settles_nothing():
    one = [planted.cell(0, harmonic=0.9)]
    found = only(more("FOZO", "AdamW", MEASURE), planted.group("adamw"), planted.group("fozo", cells=one))
    assert found.verdict == "not settled"
    assert not found.estimate.known


def test_without_the_grade_it_is_not_testable():
    found = only(more("FOZO", "AdamW", MEASURE), planted.group("adamw"))
    assert found.verdict == "not testable here"
    assert found.figure == "FOZO was not run"
    [missed] = more("FOZO", "AdamW", MEASURE)(planted.record(planted.group("adamw"), missed=["FOZO"]))
    assert missed.figure == "FOZO did not reach the target within the bound"


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
    after = planted.cell(0).after | changes
    broken = planted.group("fozo", cells=[planted.cell(seed, harmonic=1.0, after=after) for seed in planted.SEEDS])
    assert reason in unmatched(broken, planted.record(broken))
    found = only(more("FOZO", "AdamW", MEASURE), planted.group("adamw"), broken)
    assert found.verdict == "not testable here"
    assert reason in found.figure
    assert broken.name not in [one.name for one in matched(planted.record(planted.group("adamw"), broken))]


@pytest.mark.parametrize("status", ["collapsed", "failed"])
def test_a_grade_with_a_run_that_collapsed_takes_no_part(status):
    cells = [planted.cell(0, harmonic=0.9), planted.cell(1, status=status, robustness={}, attacks={})]
    found = only(more("FOZO", "AdamW", MEASURE), planted.group("adamw"), planted.group("fozo", cells=cells))
    assert found.verdict == "not testable here"
    assert "1 of 2 runs collapsed or failed" in found.figure


def test_a_collapsed_run_keeps_nothing_and_a_broken_attack_says_nothing():
    collapsed = planted.cell(0, status="collapsed", robustness={"harmonic_mean": 0.9})
    assert planted.value(collapsed, MEASURE) == 0.0
    assert planted.value(collapsed, "kept:quantize:bits=4") == 0.0
    assert planted.value(planted.cell(0), "kept:quantize:bits=2") is None


def test_the_best_is_held_against_the_next_best():
    groups = [planted.group("adamw"), planted.group("sam", harmonic=0.6), planted.group("fozo", harmonic=0.7)]
    found = only(highest("FOZO", MEASURE), *groups)
    assert (found.verdict, found.figure) == ("holds", "FOZO − SAM")
    assert only(highest("SAM", MEASURE), *groups).verdict == "does not hold"
    lowest = only(highest("AdamW", MEASURE, lowest=True), *groups)
    assert (lowest.verdict, lowest.figure) == ("holds", "SAM − AdamW")


def test_every_claim_is_judged_or_says_why_not():
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert bool(claim.test) + bool(claim.why_not) + bool(claim.one_basin) == 1
        if claim.test:
            assert claim.test(planted.record(planted.group("adamw")))
    assert set(SUBJECTS["biographies"].room) <= set(planted.cell(0).after)


def test_a_verdict_over_objectives():
    def of(name):
        return only(more("FOZO", "AdamW", MEASURE), planted.group("adamw"), planted.group("fozo", harmonic=name))

    held, not_held = of(0.7), of(0.3)
    missing = only(more("FOZO", "AdamW", MEASURE), planted.group("adamw"))
    assert summary([held, held, missing]) == "holds"
    assert summary([not_held]) == "does not hold"
    assert summary([missing]) == "not testable here"
    unsettled = only(
        more("FOZO", "AdamW", MEASURE), planted.group("adamw"), planted.noisy("fozo", {0: 0.9, 1: 0.4, 2: 0.6})
    )
    assert summary([unsettled, missing]) == "not settled"
    assert summary([held, not_held]) == "holds in 1, does not in 1 of 2 comparisons"


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_intervals_are_students(values):
    found = estimate(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert found.low <= found.mean <= found.high
    if len(values) == 3:
        assert found.high - found.mean == pytest.approx(4.302653 * statistics.stdev(values) / math.sqrt(3), rel=1e-5)


def test_pairs_are_of_the_same_seed():
    assert paired({0: 1.0, 1: 2.0, 7: 9.0}, {1: 1.5, 0: 0.5, 8: 0.0}) == Estimate(0.5, 0.5, 0.5, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert judge(Estimate(0.1, -math.inf, math.inf, 1)) == "not settled"


def test_seeds_of_two_files_are_put_together_once():
    first, second = planted.record(planted.group("adamw")), planted.group("adamw", cells=[planted.cell(3)])
    whole = joined([first, planted.record(second)])
    assert sorted(whole.groups[0].values(MEASURE)) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="seed 0 in another result file"):
        joined([first, first])
    other = planted.group("adamw", cells=[planted.cell(3)], learning_rate=1e-3)
    with pytest.raises(UserError, match="other settings"):
        joined([first, planted.record(other)])


def test_the_next_rate_stands_for_the_one_that_left_the_room():
    useless = planted.cell(0).after | {"retain_accuracy": 0.76}
    first = planted.group("fozo", learning_rate=5e-4, cells=[planted.cell(s, after=useless) for s in planted.SEEDS])
    following = planted.record(planted.group("fozo", learning_rate=7.5e-4, harmonic=0.7), supersedes=True)
    whole = joined([following, planted.record(planted.group("adamw"), first)])
    assert sorted(group.name for group in whole.groups) == ["AdamW", "FOZO", "FOZO at 0.0005"]
    assert whole.group("FOZO").learning_rate == 7.5e-4
    assert only(more("FOZO", "AdamW", MEASURE), *whole.groups).verdict == "holds"
    seeds = planted.group("fozo", learning_rate=7.5e-4, cells=[planted.cell(3, harmonic=0.7)])
    more_seeds = joined([planted.record(first), following, planted.record(seeds, supersedes=True)])
    assert sorted(more_seeds.group("FOZO").values(MEASURE)) == [0, 1, 2, 3]
    # The other rate is told of, and takes no part.
    assert sorted(group.name for group in matched(whole)) == ["AdamW", "FOZO"]
    # One that is taken up again, on further seeds, stands once.
    cells = [planted.cell(seed, after=useless) for seed in (2, 3, 4)]
    again = planted.record(planted.group("fozo", learning_rate=5e-4, cells=cells), supersedes=True)
    thrice = joined([planted.record(first), following, again])
    assert [(group.name, len(group.cells)) for group in thrice.groups] == [("FOZO", 5), ("FOZO at 0.00075", 3)]


def test_at_the_bound_is_within_it():
    after = planted.cell(0).after | {"forget_accuracy": 0.55, "retain_accuracy": 0.8}
    group = planted.group("adamw", cells=[planted.cell(seed, after=after) for seed in planted.SEEDS])
    assert unmatched(group, planted.record(group)) == ""
    after = after | {"forget_accuracy": 0.5503}
    group = planted.group("adamw", cells=[planted.cell(seed, after=after) for seed in planted.SEEDS])
    assert unmatched(group, planted.record(group)) == "forget_accuracy 0.5503 is above 0.5500"


def test_another_rate_is_a_control_for_comparisons_that_name_it():
    deeper = planted.group("adamw", learning_rate=4e-4, harmonic=0.8, control=True)
    whole = joined(
        [planted.record(planted.group("adamw"), planted.group("fozo", harmonic=0.7)), planted.record(deeper)]
    )
    assert [group.name for group in whole.groups] == ["AdamW", "FOZO", "AdamW at 0.0004"]
    found = only(more_than_control("FOZO", MEASURE), *whole.groups)
    assert (found.verdict, found.figure) == ("does not hold", "FOZO − AdamW at 0.0004")
    [none] = more_than_control("FOZO", MEASURE)(planted.record(planted.group("fozo")))
    assert (none.verdict, none.figure) == ("not testable here", "no control was run")
    # It is no grade of its own: the best of all grades is held against the others alone.
    assert only(highest("FOZO", MEASURE), *whole.groups).figure == "FOZO − AdamW"


def test_an_idea_is_no_grade():
    idea = planted.group("fozo", settings={"fo": "sign_adam"}, harmonic=0.9)
    found = planted.record(planted.group("adamw"), planted.group("fozo", harmonic=0.7), idea)
    assert [group.name for group in matched(found)] == ["AdamW", "FOZO"]


def test_where_no_retrained_model_is_known_the_share_kept_stands_for_r(monkeypatch):
    known = planted.record(planted.group("adamw"))
    subject = SUBJECTS["biographies"]
    assert (known.measure("R:everything"), known.measure("kept:half")) == (
        f"R:{subject.everything}",
        f"kept:{subject.half}",
    )
    assert known.measure(MEASURE) == MEASURE
    unknown = dataclasses.replace(subject, title="elsewhere", retrained=False)
    monkeypatch.setitem(SUBJECTS, "elsewhere", unknown)
    record = planted.record(planted.group("adamw"), benchmark="elsewhere")
    assert record.measure("R:everything") == f"kept:{subject.everything}"
    assert (record.key, title_of(record.key)) == ("npo_gdr/elsewhere", "NPO, elsewhere")
    assert in_order({"npo_gdr/elsewhere": 1, "other": 2, "npo_gdr": 3}) == ["npo_gdr", "npo_gdr/elsewhere", "other"]
    with pytest.raises(UserError, match="no subject 'nowhere'"):
        planted.record(planted.group("adamw"), benchmark="nowhere").measure("kept:half")


def test_a_room_may_be_relative_to_the_retrained_model(monkeypatch):
    subject = dataclasses.replace(SUBJECTS["biographies"], room={}, room_of_retrained={"forget_probability": 1.5})
    monkeypatch.setitem(SUBJECTS, "biographies", subject)
    for known, reason in ((0.06, ""), (0.05, "forget_probability 0.080 is above 0.075")):
        record = planted.record(planted.group("adamw")).model_copy(update={"retrained": {"forget_probability": known}})
        assert unmatched(record.groups[0], record) == reason


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("tofu:split=forget01,train_limit=160", "tofu"),
        ("tofu:split=forget10", "tofu-forget10"),
        ("tofu", "tofu-forget10"),
        ("tofu:split=forget05", "tofu-forget05"),
        ("biographies", "biographies"),
    ],
)
def test_a_split_may_be_a_subject_of_its_own(spec, name):
    assert subject_name(spec) == name
