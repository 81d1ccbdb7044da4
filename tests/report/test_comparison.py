"""Shares kept, their intervals and significance, against a plain computation and against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from letgo.core.files import write_json_lines
from letgo.metrics.robustness import kept_share
from letgo.report.comparison import Line, baseline_of, compare, holm, lines_of
from letgo.report.load import Run
from letgo.report.settings import varying
from letgo.runs.results import SAMPLES_FILE
from tests.report import runs as made


def run_of(directory, attacked, *, seen=(), optimizer="adamw", seed=0, kept=0.5):
    """A run of 20 groups of two questions; before .8, after .1, attacked as given (by group)."""
    attack = made.quantize(kept=kept, survived=kept >= 0.5)
    rows = []
    for stage in ("before", "after", f"attack:{attack.label}"):
        for group, value in enumerate(attacked):
            for wording in range(2):
                score = {"before": 0.8, "after": 0.1}.get(stage, float(value))
                row = {"stage": stage, "seed": 0, "set": "forget", "id": f"{group}-{wording}", "group": f"g{group}"}
                more = {"seen": True} if stage.startswith("attack") and group in seen else {}
                rows.append(row | {"scores": {"probability": score}} | more)
    config = {"model": "m", "objective": "npo", "optimizer": optimizer, "seed": seed}
    made.write(directory, made.result(run_id=directory.name, config=config, seed=seed, attacks=[attack]))
    write_json_lines(directory / SAMPLES_FILE, rows)
    return Run(directory, made.result(run_id=directory.name, config=config, seed=seed, attacks=[attack]))


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
    assert only.value == 0.0, "probability kept everything, accuracy came back whole"


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
    found = lines_of(runs, varying([run.result.config for run in runs]))
    assert [(line.name, len(line.runs)) for line in found] == [("npo, adamw", 2), ("npo, fozo", 2)]


def test_a_run_that_was_not_attacked_so_is_left_out(tmp_path):
    run = run_of(tmp_path / "a", [0.3] * 20)
    assert compare([Line("a", "adamw", (run,))], "relearn:steps=1", None) == []


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]
