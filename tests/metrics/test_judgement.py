"""When a run forgot, and when an attack was survived: the words by recorded samples alone."""

from __future__ import annotations

import numpy as np
import pytest

from letgo.attacks.engine.base import Attacked
from letgo.attacks.engine.judge import Answered, Ends, Recorded, judge_curve, judge_samples
from letgo.attacks.engine.outcome import Seed, result_of
from letgo.attacks.engine.spec import plan_attack
from letgo.benchmarks.engine.base import Sample
from letgo.benchmarks.engine.questions import means
from letgo.core.statistics import proportion_bound
from letgo.metrics.judgement import TARGET, judge, nothing_to_forget, place, plain_share, with_attacks
from letgo.metrics.records import Headline
from tests.reference.judgement import share as reference_share

PROBABILITY = (Headline("forget_probability"),)
PEOPLE = 20


def rows(level, spread=0.02, verbatim=None, people=PEOPLE, name="forget", seed=0):
    """Two wordings of each person, their probability about a level; `verbatim`: of whom the answer is written out."""
    generator = np.random.default_rng(seed)
    samples = []
    for person in range(people):
        for wording in range(2):
            scores = {"probability": float(np.clip(level + spread * generator.standard_normal(), 0, 1))}
            if verbatim is not None:
                scores["rouge"] = 1.0 if person < verbatim else 0.1
            samples.append(Sample(name, f"{person}/{wording}", f"person {person:02}", scores))
    return samples


def test_answers_that_are_still_given_word_by_word_are_not_forgotten():
    judgement = judge(PROBABILITY, rows(1.0, verbatim=20), rows(0.6, verbatim=20, seed=1))
    assert judgement.word == "not forgotten"
    assert judgement.shares[0].share == pytest.approx(0.4, abs=0.03)
    assert "20 of 20 subjects still revealed" in judgement.why


def test_some_answers_that_are_still_given_are_partly_forgotten_and_named():
    judgement = judge(PROBABILITY, rows(1.0, verbatim=20), rows(0.4, verbatim=3, seed=1))
    assert judgement.word == "partly forgotten"
    assert judgement.subjects.after == ["person 00", "person 01", "person 02"]
    assert judgement.subjects.bound == pytest.approx(proportion_bound(3, 20))
    deep = judge(PROBABILITY, rows(1.0, verbatim=20), rows(0.02, spread=0.01, verbatim=1, seed=1))
    assert deep.word == "partly forgotten", "one person who is still revealed is one too many"


def test_a_subject_whose_trained_wording_is_still_answered_is_revealed():
    """Other words are scored, and those that were trained on beside them: the worst wording counts."""
    before = [*rows(1.0), *rows(1.0, name="trained")]
    trained = [*rows(0.9, people=1, name="trained"), *rows(0.02, name="trained", seed=1)[2:]]
    judgement = judge(PROBABILITY, before, [*rows(0.02, spread=0.01, seed=1), *trained])
    assert judgement.subjects.after == ["person 00"]
    assert judgement.word == "partly forgotten"


def test_controls_that_are_less_likely_still_are_no_proof_of_knowing():
    controls = rows(1e-8, spread=1e-9, name="control")
    judgement = judge(PROBABILITY, [*rows(3e-6, spread=1e-6), *controls], rows(2e-7, spread=1e-7, seed=1))
    assert judgement.word == "nothing to forget"


def test_what_nobody_knew_is_nothing_to_forget():
    before = rows(3e-6, spread=1e-6)
    for sample in before:
        sample.scores["accuracy"] = float(int(sample.id[0]) % 4 == 0)
    heads = (Headline("forget_accuracy", 0.25),)
    assert judge(heads, before, before).word == "nothing to forget"
    assert "does not know it" in nothing_to_forget(heads, before)
    # No answer has probability 0: what is all but impossible before and after was never known.
    assert judge(PROBABILITY, rows(3e-6, spread=1e-6), rows(2e-7, spread=1e-7, seed=1)).word == "nothing to forget"
    controls = rows(0.3, spread=0.1, name="control", seed=2)
    assert nothing_to_forget(PROBABILITY, [*rows(0.3, spread=0.1), *controls]), "no better than on invented facts"
    assert nothing_to_forget(PROBABILITY, rows(0.3, spread=0.1), rows(0.3, spread=0.1, seed=3))
    assert not nothing_to_forget(PROBABILITY, rows(0.6, spread=0.1), rows(0.3, spread=0.1))


def test_intervals_that_overlap_are_not_forgotten():
    judgement = judge(PROBABILITY, rows(0.45, spread=0.3), rows(0.4, spread=0.3, seed=1))
    assert judgement.shares[0].overlap
    assert judgement.word == "not forgotten"


def test_forgotten_is_by_the_worse_end_of_the_interval():
    before = rows(1.0, verbatim=20)
    assert judge(PROBABILITY, before, rows(0.1, verbatim=0, seed=1)).word == "forgotten"
    unsure = rows(0.2, spread=0.25, verbatim=0, seed=1)
    for sample in unsure:
        sample.scores["probability"] = min(sample.scores["probability"], 0.49)
    judgement = judge(PROBABILITY, before, unsure, target=0.82)
    [share] = judgement.shares
    assert share.low < 0.82
    assert judgement.word == "partly forgotten"
    assert judge(PROBABILITY, before, unsure, target=share.low - 1e-6).word == "forgotten"


def test_the_level_of_a_model_that_never_knew_is_the_retrained_models():
    before, retrained = rows(1.0), rows(0.4, seed=2)
    judgement = judge(PROBABILITY, before, retrained, retrained=retrained)
    [share] = judgement.shares
    assert (judgement.word, share.share) == ("forgotten", 1.0)
    assert 0.9 < share.low <= 1.0, "as far as twenty people can show it"
    assert share.floor_of == "retrained"
    assert judge(PROBABILITY, before, retrained).word == "partly forgotten", "by chance's level it is not"
    guessed = rows(0.6, seed=2)
    assert judge(PROBABILITY, before, guessed, retrained=guessed).subjects.after == [], "whoever never knew says so too"


def test_the_share_is_the_plain_one():
    before, after, retrained = rows(0.9, spread=0.2), rows(0.3, spread=0.2, seed=1), rows(0.1, spread=0.1, seed=2)
    placed = place(PROBABILITY[0], before, after, retrained=retrained).share()
    value, error = reference_share(before, after, retrained, "probability")
    assert placed.share == pytest.approx(value)
    # The ends allow for unseen groups and for skew beside the plain error: wider, and by how much is derived there.
    assert placed.low < value - 2 * error
    assert placed.high > value + 2 * error
    assert placed.low < placed.bound < placed.share


def test_one_group_or_one_question_has_no_zero_width():
    one = [rows(level, spread=0.1, seed=seed, people=1) for level, seed in ((0.9, 0), (0.1, 1))]
    [share] = judge(PROBABILITY, *one).shares
    assert share.groups == 2
    assert share.high - share.low > 0.1
    single = judge(PROBABILITY, one[0][:1], one[1][:1])
    assert single.word == "partly forgotten"
    assert single.shares[0].low is None
    assert "one question alone gives no interval" in single.why


def test_a_look_during_training_has_the_plain_share():
    def scores(value):
        return {"forget_probability": value}

    assert plain_share(PROBABILITY, scores(0.8), scores(0.2), {}) == pytest.approx(0.75)
    assert plain_share(PROBABILITY, scores(0.8), scores(0.2), {"forget_probability": 0.2}) == pytest.approx(1.0)
    assert plain_share((Headline("forget_accuracy", 0.25),), scores(0.8), scores(0.2), {}) is None


def recorded(before, after, retrained=(), broken=False):
    def summarise(samples):
        return means([s for s in samples if s.set == "forget"], "forget", ["probability"])

    stages = {"before": before, "after": after, "reference:retrained": list(retrained)}
    return Recorded(summarise(before), summarise(after), stages, PROBABILITY, summarise, broken)


def outcome(record, attacked, original, retrained=(), threshold=0.5, broken=()):
    """The result of an attack of as many seeds as there are samples in `attacked`."""
    seeds = []
    for number, samples in enumerate(attacked):
        ends = Ends(Answered({"": original}), Answered({"": list(retrained)} if retrained else {}))
        seeds.append(Seed(number, Attacked(None, {}), judge_samples(record, samples, ends, frozenset(), "x")))
    plan = plan_attack(f"noise:seeds={len(seeds)},threshold={threshold}")
    return result_of(record, plan, {}, seeds, [], 0.0)


def test_the_original_attacked_against_itself_keeps_nothing():
    original, attacked = rows(0.9, spread=0.1), rows(0.5, spread=0.2, seed=4)
    result = outcome(recorded(original, original), [attacked], attacked)
    assert (result.kept, result.outcome) == (0.0, "not survived")


def test_the_retrained_model_in_the_place_of_the_unlearned_one_keeps_all():
    original, retrained = rows(0.9, spread=0.1), rows(0.2, spread=0.1, seed=2)
    attacked, taught = rows(0.7, spread=0.2, seed=4), rows(0.5, spread=0.2, seed=5)
    result = outcome(recorded(original, retrained, retrained), [taught], attacked, taught)
    assert (result.kept, result.outcome) == (1.0, "survived")
    assert result.bound > 0.9
    assert result.revealed == [], "what the retrained model says under the attack it can't have remembered"


def test_an_original_that_no_longer_knows_lets_nobody_tell():
    original, gone = rows(0.9), rows(0.001, spread=0.002, seed=4)
    for unlearned in (rows(0.1, seed=1), original):
        result = outcome(recorded(original, unlearned, rows(0.001)), [gone], gone, rows(0.001, spread=0.002, seed=9))
        assert (result.kept, result.outcome) == (None, "can't tell")
        assert "the original itself no longer knows" in result.why
        assert not result.survived


def test_damage_that_is_done_to_any_model_is_not_forgetting_kept():
    original, unlearned = rows(0.9), rows(0.3, seed=1)
    rounded_original, rounded = rows(0.4, seed=2), rows(0.3, seed=3)
    result = outcome(recorded(original, unlearned), [rounded], rounded_original)
    assert result.kept == pytest.approx(0.25, abs=0.05), "against the untouched original it would be all"
    assert result.outcome == "not survived"


def test_survival_is_by_the_bound_under_the_worst_seed():
    original, unlearned = rows(1.0), rows(0.1, seed=1)
    record = recorded(original, unlearned)
    good, bad = rows(0.1, seed=2), rows(0.6, seed=3)
    assert outcome(record, [good], original).outcome == "survived"
    both = outcome(record, [good, good, bad], original)
    assert both.kept > 0.5
    assert both.bound < 0.5
    assert both.outcome == "not survived"
    assert "under the worst of 3 seeds" in both.why
    few = [rows(level, spread=0.3, people=3, seed=seed) for level, seed in ((1.0, 0), (0.1, 1), (0.2, 6))]
    unsure = outcome(recorded(few[0], few[1]), [few[2]], few[0])
    assert unsure.kept > 0.5 > unsure.bound
    assert not unsure.survived, "three people are not enough to be sure"


def test_a_broken_run_survives_nothing():
    original, unlearned = rows(1.0), rows(0.0, seed=1)
    result = outcome(recorded(original, unlearned, broken=True), [unlearned], original)
    assert not result.survived
    judgement = judge(PROBABILITY, original, unlearned, broken=["general perplexity more than doubled"])
    assert judgement.word == "collapsed"


def test_controls_tell_learning_from_relearning():
    """An attacker teaches any model: what it makes of facts that nobody knew is the floor under the attack."""
    original, unlearned = rows(0.9), rows(0.05, seed=1)
    taught = [*rows(0.95, seed=2), *rows(0.5, name="control", seed=3)]
    as_any = rows(0.5, seed=4)
    record = recorded([*original, *rows(0.0, name="control")], unlearned)
    result = outcome(record, [as_any], taught)
    assert result.shares[0].floor_of == "control"
    assert result.kept == pytest.approx(1.0, abs=0.03)
    assert outcome(record, [rows(0.95, seed=6)], taught).kept == pytest.approx(0.0, abs=0.03)


def test_the_course_of_an_attack_is_judged_point_by_point():
    def curve(*values):
        return [{"step": float(10 * i), "forget_probability": v} for i, v in enumerate(values)]

    ends = Ends(Answered({}, curve(0.9, 0.9, 0.1)), Answered({}, curve(0.1, 0.5, 0.1)))
    judged = judge_curve(PROBABILITY, curve(0.1, 0.7, 0.1), ends)
    assert [point.get("kept") for point in judged] == [pytest.approx(1.0), pytest.approx(0.5), None]


def test_subjects_are_counted_over_all_attacks():
    judgement = judge(PROBABILITY, rows(1.0, verbatim=20), rows(0.1, verbatim=1, seed=1))
    attack = outcome(recorded(rows(1.0), rows(0.1)), [rows(0.1, verbatim=3, seed=2)], rows(1.0))
    assert attack.revealed == ["person 00", "person 01", "person 02"]
    people = with_attacks(judgement, [attack]).subjects
    assert (people.after, people.worst) == (["person 00"], attack.revealed)
    assert people.bound == pytest.approx(proportion_bound(3, 20))


def test_the_default_target_is_written_down():
    assert judge(PROBABILITY, rows(1.0), rows(0.5)).target == TARGET == 0.75
