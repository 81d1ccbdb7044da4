"""Shares kept, their intervals and significance, against a plain computation and against simulation."""

from __future__ import annotations

import html

import numpy as np
import pytest

from letgo.core.files import write_json_lines
from letgo.metrics.robustness import kept_share
from letgo.report import write_report
from letgo.report.brief import write_brief
from letgo.report.comparison import Line, baseline_of, compare, compare_all, holm, lines_of
from letgo.report.load import LoadedRun
from letgo.runs.results import SAMPLES_FILE
from tests.report import runs as made


def run_of(directory, attacked, *, seen=(), optimizer="adamw", seed=0, kept=0.5, score="probability", **changes):
    """A run of 20 groups of two questions; before .8, after .1, attacked as given (by group)."""
    attack = made.quantize(kept=kept, survived=kept >= 0.5)
    changes = {"headlines": {f"forget_{score}": 0.0}} | changes
    rows = []
    for stage in ("before", "after", f"attack:{attack.label}"):
        for group, value in enumerate(attacked):
            for wording in range(2):
                value_at = {"before": 0.8, "after": 0.1}.get(stage, float(value))
                row = {"stage": stage, "seed": 0, "set": "forget", "id": f"{group}-{wording}", "group": f"g{group}"}
                more = {"seen": True} if stage.startswith("attack") and group in seen else {}
                rows.append(row | {"scores": {score: value_at}} | more)
    config = {"model": "m", "objective": "npo", "optimizer": optimizer, "seed": seed} | changes.pop("config", {})
    value = made.result(run_id=directory.name, config=config, seed=seed, attacks=[attack], **changes)
    made.write(directory, value)
    write_json_lines(directory / SAMPLES_FILE, rows)
    return LoadedRun(directory, value)


LABEL = made.quantize().label


def test_the_share_is_that_of_the_plain_computation_over_unseen_rows(tmp_path):
    attacked = np.linspace(0.1, 0.5, 20)
    run = run_of(tmp_path / "a", attacked, seen=(0, 1, 2))
    (only,) = compare([Line("a", "adamw", (run,))], LABEL, None)
    assert only.value == pytest.approx(kept_share(0.8, 0.1, float(attacked[3:].mean())))
    assert only.low < only.value < only.high
    assert (only.n, only.p, only.difference) == (17, None, None)
    assert (only.survived, only.of, only.worst) == (1, 1, 0.5)


def test_the_smallest_share_over_the_metrics_counts(tmp_path):
    run = run_of(tmp_path / "a", [0.1] * 20)
    rows = [
        row | {"scores": row["scores"] | {"accuracy": 1.0 if row["stage"] != "after" else 0.25}}
        for row in run.samples()
    ]
    write_json_lines(tmp_path / "a" / SAMPLES_FILE, rows)
    (only,) = compare([Line("a", "adamw", (run,))], LABEL, None)
    assert only.value == 1.0, "accuracy is no headline of this run's benchmark"
    both = _judged_by(run, {"forget_probability": 0.0, "forget_accuracy": 0.25})
    (only,) = compare([Line("a", "adamw", (both,))], LABEL, None)
    assert only.value == 0.0, "probability kept everything, accuracy came back whole"


@pytest.mark.parametrize("score", ["accuracy", "probability", "rouge", "verbmem", "knowmem", "toxicity", "of_a_plugin"])
def test_whatever_score_a_benchmark_judges_by_is_compared(tmp_path, score):
    lines = [
        Line(name, "", (run_of(tmp_path / name, [value] * 20, score=score),))
        for name, value in (("weak", 0.6), ("strong", 0.1))
    ]
    assert [one.value for one in compare(lines, LABEL, lines[0])] == pytest.approx([kept_share(0.8, 0.1, 0.6), 1.0])


def test_the_floor_is_the_one_that_the_run_recorded(tmp_path):
    # From .8 to .75 is hardly anything of .8, but half of what was known above .7.
    run = run_of(tmp_path / "a", [0.1] * 20)
    rows = [row | {"scores": {"probability": 0.8 if row["stage"] == "before" else 0.75}} for row in run.samples()]
    write_json_lines(run.directory / SAMPLES_FILE, rows)
    for floor, value in ((0.0, 0.0), (0.7, 1.0)):
        (only,) = compare([Line("a", "", (_judged_by(run, {"forget_probability": floor}),))], LABEL, None)
        assert only.value == value


def _judged_by(run, headlines):
    return LoadedRun(run.directory, run.result.model_copy(update={"headlines": headlines}))


@pytest.mark.parametrize(
    ("config", "score", "compared"),
    [
        ({"benchmark": "tofu:split=forget05"}, "rouge", True),
        ({"benchmark": "muse"}, "verbmem", True),
        ({"benchmark": "detox"}, "toxicity", True),
        ({"forget": "mine.jsonl"}, "probability", True),
        ({"benchmark": "of_a_plugin"}, "probability", False),
        ({}, "probability", False),
    ],
)
def test_an_old_record_is_judged_by_the_headlines_of_its_benchmark(tmp_path, config, score, compared):
    run = run_of(tmp_path / "a", [0.3] * 20, score=score, config=config, headlines={}, before={}, after={})
    line = Line("a", "", (run,))
    found = compare_all([line], [LABEL])
    assert (LABEL in found.kept[line]) == compared
    reason = f"a under {LABEL}: its record does not name the metrics that forgetting is judged by"
    assert found.left_out == (() if compared else (reason,))


def test_what_cannot_be_compared_is_named_with_the_reason(tmp_path):
    entropy = {"forget_entropy": made.metric(0.9)}
    run = run_of(tmp_path / "a", [0.3] * 20, before=made.BEFORE | entropy, after=made.AFTER | entropy)
    attack = run.result.attacks[0].model_copy(update={"metrics": entropy})
    headlines = run.result.headlines | {"forget_entropy": 0.0}
    result = run.result.model_copy(update={"attacks": [attack], "headlines": headlines})
    made.write(run.directory, result)
    trained = run_of(tmp_path / "b", [0.3] * 20, seen=range(20), optimizer="sgd")
    lines = [Line("partly", "", (LoadedRun(run.directory, result),)), Line("trained", "", (trained,))]
    reasons = (
        "its samples have no scores of forget_entropy",
        "no sample was scored before, after and now and not trained on by the attacker",
    )
    left_out = compare_all(lines, [LABEL]).left_out
    assert left_out == (f"partly under {LABEL}: {reasons[0]}", f"trained under {LABEL}: {reasons[1]}")
    page = html.unescape(write_report([tmp_path], tmp_path / "report.html").read_text())
    brief = write_brief([tmp_path], tmp_path / "brief.md")[0].read_text().replace("\\_", "_")
    assert all(reason in text for reason in reasons for text in (page, brief))


def test_a_clear_difference_is_significant_and_none_is_not(tmp_path):
    generator = np.random.default_rng(0)
    weak = run_of(tmp_path / "weak", generator.uniform(0.4, 0.7, 20))
    strong = run_of(tmp_path / "strong", generator.uniform(0.1, 0.2, 20), optimizer="fozo")
    like = run_of(tmp_path / "like", generator.uniform(0.4, 0.7, 20), optimizer="sgd")
    lines = [Line(r.directory.name, "", (r,)) for r in (weak, strong, like)]
    found = compare(lines, LABEL, lines[0])
    assert [one.significant for one in found] == [False, True, False]
    assert found[1].difference > 0.4
    assert found[1].p < 0.01
    # Against another one the differences turn about; against one that was not attacked so there are none.
    turned = compare(lines, LABEL, lines[1])
    assert [one.significant for one in turned] == [True, False, True]
    assert turned[0].difference == pytest.approx(-found[1].difference)
    assert turned[1].difference is None
    assert {one.p for one in compare(lines, LABEL, Line("other", "", ()))} == {None}


def test_the_baseline_is_one_that_reached_the_target(tmp_path):
    runs = [run_of(tmp_path / name, [0.3] * 20) for name in "abc"]
    missed, reached, other = (Line(run.directory.name, "", (run,), reached=run is not runs[0]) for run in runs)
    never = Line("never attacked", "", (), reached=True)
    assert baseline_of([never, missed, reached, other]) is reached
    assert baseline_of([never, missed]) is missed
    assert baseline_of([never]) is None
    plain = [Line(run.directory.name, "", (run,)) for run in runs]
    assert baseline_of(plain) is plain[0]


def test_false_alarms_are_as_rare_as_the_level_says(tmp_path):
    """Two lines of the same distribution are told apart in about 5 % of worlds."""
    generator = np.random.default_rng(1)
    alarms = 0
    for world in range(120):
        pair = [run_of(tmp_path / f"{world}-{i}", generator.uniform(0.1, 0.6, 20)) for i in range(2)]
        lines = [Line(str(i), "", (run,)) for i, run in enumerate(pair)]
        alarms += compare(lines, LABEL, lines[0])[1].significant
    # Binomial(120, .05): 6 on average, above 14 with a chance below 1 in 1,000.
    assert alarms <= 14


def test_seeds_of_one_setting_are_one_line(tmp_path):
    runs = [run_of(tmp_path / f"{o}{s}", [0.3] * 20, optimizer=o, seed=s) for o in ("adamw", "fozo") for s in (0, 1)]
    found = lines_of(runs)
    assert [(line.name, len(line.runs)) for line in found] == [("npo, adamw", 2), ("npo, fozo", 2)]


def test_a_run_that_was_not_attacked_so_is_left_out(tmp_path):
    run = run_of(tmp_path / "a", [0.3] * 20)
    assert compare([Line("a", "adamw", (run,))], "relearn:steps=1", None) == []


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]
