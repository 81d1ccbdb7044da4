"""Shares kept as the runs recorded them, and lines compared over the seeds that both have."""

from __future__ import annotations

import html
import math

import numpy as np
import pytest

from letgo.core.errors import UserError
from letgo.report import write_report
from letgo.report.brief import write_brief
from letgo.report.comparison import MARGIN, Line, baseline_of, compare, compare_all, lines_of
from letgo.report.load import LoadedRun
from tests.report import runs as made

LABEL = made.quantize().label


def run_of(directory, kept, *, optimizer="adamw", seed=0, interval=None, **changes):
    """A run that one attack left a share of."""
    attack = made.quantize(kept=kept, survived=kept >= 0.5, kept_ci95=interval)
    config = {"model": "m", "objective": "npo", "optimizer": optimizer, "seed": seed} | changes.pop("config", {})
    value = made.result(run_id=directory.name, config=config, seed=seed, attacks=[attack], **changes)
    made.write(directory, value)
    return LoadedRun(directory, value)


def line_of(folder, name, kept, seeds=None, **changes):
    """A line of a run for each share kept, of seeds 0, 1, … or those given."""
    seeds = range(len(kept)) if seeds is None else seeds
    runs = (
        run_of(folder / f"{name}{n}", k, seed=seed, **changes)
        for n, (k, seed) in enumerate(zip(kept, seeds, strict=True))
    )
    return Line(name, "", tuple(runs))


def test_a_lines_share_is_the_mean_of_what_its_runs_recorded(tmp_path):
    shares = [0.5, 0.7, 0.9]
    (only,) = compare([line_of(tmp_path, "a", shares)], LABEL, None)
    half = 4.302653 * 0.2 / math.sqrt(3)
    assert only.value == pytest.approx(0.7)
    assert only.interval == pytest.approx((0.7 - half, 1.0)), "Student's over runs, inside 0…1"
    assert (only.worst, only.survived, only.of) == (0.5, 3, 3)
    assert (only.difference, only.p, only.against, only.significant, only.alike) == (None, None, "", False, False)


def test_the_interval_of_a_single_run_is_the_recorded_one(tmp_path):
    (only,) = compare([line_of(tmp_path, "a", [0.6], interval=(0.2, 0.8))], LABEL, None)
    assert only.interval == (0.2, 0.8)
    (same,) = compare([line_of(tmp_path, "b", [1.0, 1.0, 1.0], interval=(0.7, 1.0))], LABEL, None)
    assert same.interval == (0.7, 1.0), "runs that agree are no certainty"
    (none,) = compare([line_of(tmp_path, "c", [0.6])], LABEL, None)
    assert none.interval is None


def test_lines_are_compared_over_paired_seeds(tmp_path):
    weak = line_of(tmp_path, "weak", [0.30, 0.20, 0.40, 0.9], seeds=[0, 1, 2, 7])
    strong = line_of(tmp_path, "strong", [0.80, 0.68, 0.92, 0.1], seeds=[0, 1, 2, 8])
    base, found = compare([weak, strong], LABEL, weak)
    assert base.difference is None
    assert (found.difference.seeds, found.difference.value) == (3, pytest.approx(0.5))
    assert found.significant
    assert found.against == "+50 points (+45 to +55) over 3 paired seeds, p < 0.001"
    left_out = compare_all([weak, strong], [LABEL]).left_out
    assert left_out == (f"strong under {LABEL}: 1 of its 4 seeds is not among the baseline's",)
    # Against another one the differences turn about; against one that was not attacked so there are none.
    turned = compare([weak, strong], LABEL, strong)[0]
    assert turned.difference.value == pytest.approx(-0.5)
    assert {one.difference for one in compare([weak, strong], LABEL, Line("other", "", ()))} == {None}


def test_seeds_are_pairs_of_training_and_data(tmp_path):
    runs = [run_of(tmp_path / f"a{n}", 0.5, seed=0, config={"data_seed": n}) for n in (0, 1)]
    other = [run_of(tmp_path / f"b{n}", 0.6, seed=0, config={"data_seed": n}) for n in (1, 2)]
    lines = [Line("a", "", tuple(runs)), Line("b", "", tuple(other))]
    assert len(lines_of(runs)) == 1
    assert compare(lines, LABEL, lines[0])[1].difference.seeds == 1


@pytest.mark.parametrize(
    ("kept", "text"),
    [([0.9], "+70 points over 1 paired seed"), ([0.9, 0.8], "+65 points over 2 paired seeds, spread 7")],
)
def test_too_few_seeds_have_a_difference_and_no_p_value(tmp_path, kept, text):
    weak, strong = line_of(tmp_path, "weak", [0.2] * len(kept)), line_of(tmp_path, "strong", kept)
    found = compare([weak, strong], LABEL, weak)[1]
    assert (found.p, found.significant, found.against) == (None, False, text)


def test_alike_is_only_where_the_whole_interval_lies_within_the_margin(tmp_path):
    base = [0.60, 0.70, 0.65, 0.62, 0.71]
    weak, near, loose = (
        line_of(tmp_path, name, [share + gap for share, gap in zip(base, gaps, strict=True)])
        for name, gaps in (
            ("weak", (0.0,) * 5),
            ("near", (0.01, -0.01, 0.02, 0.0, -0.02)),
            ("loose", (0.1, -0.1, 0.12, 0.0, -0.12)),
        )
    )
    _, close, apart = compare([weak, near, loose], LABEL, weak)
    assert close.alike
    assert close.against.endswith(f", alike within {100 * MARGIN:.0f}")
    assert close.difference.value == pytest.approx(apart.difference.value)
    assert not apart.alike, "no difference was shown, and no likeness either"
    assert not apart.significant


def test_several_comparisons_are_corrected(tmp_path):
    generator = np.random.default_rng(0)
    lines = [line_of(tmp_path, f"l{n}", list(generator.uniform(0.4, 0.6, 4))) for n in range(5)]
    alone = [compare([lines[0], line], LABEL, lines[0])[1].p for line in lines[1:]]
    together = [found.p for found in compare(lines, LABEL, lines[0])[1:]]
    assert min(together) == pytest.approx(4 * min(alone))


def test_a_share_that_cannot_be_told_takes_no_part_and_is_named(tmp_path):
    weak, strong = line_of(tmp_path, "weak", [0.2, 0.3]), line_of(tmp_path, "strong", [0.7, 0.8])
    run = strong.runs[0]
    unknown = run.result.attacks[0].model_copy(update={"kept": None})
    broken = LoadedRun(run.directory, run.result.model_copy(update={"attacks": [unknown]}))
    strong = Line("strong", "", (broken, strong.runs[1]))
    found = compare_all([weak, strong], [LABEL])
    assert found.kept[strong][LABEL].value == 0.8
    assert found.kept[strong][LABEL].difference.seeds == 1
    assert found.left_out == (f"strong under {LABEL}: what was kept can't be told in 1 of its runs",)


def test_pages_say_what_was_compared(tmp_path):
    for seed, (weak, strong) in enumerate([(0.2, 0.81), (0.3, 0.9), (0.25, 0.84)]):
        run_of(tmp_path / f"a{seed}", weak, seed=seed)
        run_of(tmp_path / f"b{seed}", strong, seed=seed, optimizer="fozo")
    run_of(tmp_path / "b9", 0.9, seed=9, optimizer="fozo")
    page = html.unescape(write_report([tmp_path], tmp_path / "report.html").read_text())
    brief = write_brief([tmp_path], tmp_path / "brief.md")[0].read_text().replace("\\_", "_")
    left_out = f"fozo under {LABEL}: 1 of its 4 seeds is not among the baseline's"
    assert all(left_out in text for text in (page, brief))
    assert "Student’s paired test" in page
    assert "+60 points (+58 to +62) over 3 paired seeds, p < 0.001" in page
    assert "86 % (79 % to 93 %)*" in brief


def test_the_baseline_is_one_that_reached_the_target(tmp_path):
    runs = [run_of(tmp_path / name, 0.3) for name in "abc"]
    missed, reached, other = (Line(run.directory.name, "", (run,), reached=run is not runs[0]) for run in runs)
    never = Line("never attacked", "", (), reached=True)
    assert baseline_of([never, missed, reached, other]) is reached
    assert baseline_of([never, missed]) is missed
    assert baseline_of([never]) is None
    plain = [Line(run.directory.name, "", (run,)) for run in runs]
    assert baseline_of(plain) is plain[0]


def test_seeds_of_one_setting_are_one_line(tmp_path):
    runs = [run_of(tmp_path / f"{o}{s}", 0.3, optimizer=o, seed=s) for o in ("adamw", "fozo") for s in (0, 1)]
    found = lines_of(runs)
    assert [(line.name, len(line.runs)) for line in found] == [("adamw", 2), ("fozo", 2)]


def test_runs_of_two_engines_are_not_compared(tmp_path):
    engine = {"engine": {"server": "vllm", "level": 1}}
    runs = [run_of(tmp_path / "a", 0.3), run_of(tmp_path / "b", 0.3, config=engine)]
    with pytest.raises(UserError, match=r"a was scored by torch and .*b by vllm"):
        lines_of(runs)
    assert len(lines_of([runs[1], run_of(tmp_path / "c", 0.3, seed=1, config=engine | {"seed": 1})])) == 1


def test_a_run_that_was_not_attacked_so_is_left_out(tmp_path):
    assert compare([line_of(tmp_path, "a", [0.3])], "relearn:steps=1", None) == []
