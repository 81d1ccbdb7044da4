from __future__ import annotations

from dataclasses import replace

import pytest

from letgo.attacks.engine.base import Victim
from letgo.attacks.membership import membership
from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.base import Sample
from letgo.core.errors import UserError
from tests import tiny


@pytest.fixture(scope="module")
def victim():
    benchmark = create_benchmark("biographies")
    return Victim("biographies", replace(benchmark, references={}), original="biographies", limit=6)


def recorded(scores):
    """Samples of six members and six others; the members' scores are given by stage."""
    return {
        stage: [
            *[Sample("forget", str(i), f"g{i}", {"mia_loss": value, "rouge": 1.0}) for i, value in enumerate(members)],
            *[Sample("holdout", str(i), f"h{i}", {"mia_loss": float(i)}) for i in range(6)],
            Sample("forget", "asked", "g0", {"rouge": 1.0}),
        ]
        for stage, members in scores.items()
    }


def test_what_a_benchmark_has_recorded_is_judged(victim):
    known, unknown = [10.0 + i for i in range(6)], [0.5, 2.5, 4.5, 0.5, 2.5, 4.5]
    attacked = membership(replace(victim, recorded=recorded({"before": known, "after": unknown})))
    assert attacked.did["scores"]["loss"]["before"] == 1.0
    assert attacked.did["scores"]["loss"]["after"] == 0.5
    assert attacked.measured.kept == 1.0
    assert attacked.did["rows"] == 12
    remembered = membership(replace(victim, recorded=recorded({"before": known, "after": known})))
    assert remembered.measured.kept == 0.0
    [share] = remembered.measured.shares
    assert (share.low, share.high) == (0.0, 0.0)


def test_over_unlearned_rows_give_themselves_away_too(victim):
    known, gone = [10.0 + i for i in range(6)], [-10.0 - i for i in range(6)]
    attacked = membership(replace(victim, recorded=recorded({"before": known, "after": gone})))
    assert attacked.did["scores"]["loss"]["after"] == 0.0
    assert attacked.measured.kept == 0.0


def test_the_retrained_model_is_the_measure_where_it_is_known(victim):
    known, level = [10.0 + i for i in range(6)], [-1.0, -1.0, -1.0, 0.5, 0.5, 0.5]
    stages = recorded({"before": known, "after": level, "reference:retrained": level})
    assert membership(replace(victim, recorded=stages)).measured.kept == 1.0
    del stages["reference:retrained"]
    assert membership(replace(victim, recorded=stages)).measured.kept < 0.5


def test_texts_by_every_score_and_by_the_gradients_norm(victim):
    attacked = membership(victim)
    assert attacked.did["scores"].keys() == {"loss", "zlib", "min_k", "min_k_plus_plus"}
    assert attacked.measured.kept == 0.0, "the victim is its own original"
    by_norm = membership(victim, score="gradnorm")
    assert by_norm.did["strongest"] == "gradnorm"
    assert by_norm.did["scores"]["gradnorm"]["before"] > 0.8


def test_mistakes(victim, model_directory):
    with pytest.raises(UserError, match="unknown score 'lost'"):
        membership(victim, score="lost")
    rows = create_benchmark("rows", forget=tiny.FORGET, retain=tiny.RETAIN)
    with pytest.raises(UserError, match="no forget and holdout texts"):
        membership(replace(victim, benchmark=rows))
    level = [0.5, 2.5, 4.5, 0.5, 2.5, 4.5]
    with pytest.raises(UserError, match="even on the original model"):
        membership(replace(victim, recorded=recorded({"before": level, "after": level})))
