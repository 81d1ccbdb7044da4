from __future__ import annotations

import io

import pytest
from rich.console import Console

from letgo.report.terminal import print_answers, print_result
from tests.report.runs import INJECTED, metric, metrics, quantize, relearn, result, samples


def printed(show, *given, width: int = 100, **how) -> str:
    """What a function prints on a terminal of some width."""
    file = io.StringIO()
    show(*given, Console(file=file, width=width, force_terminal=False, color_system=None), **how)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_table_fits_with_every_figure_whole(width: int):
    text = printed(print_result, result(references={"retrained": metrics(0.27, 0.02, 0.96, 14.0)}), width=width)
    assert max(map(len, text.splitlines())) <= width
    for whole in (
        "0.014–0.019",
        "12.8–18.1",
        "outcome",
        "31 %",
        "≥50 %",
        "n=80",
        "n=24",
        "n=40",
        "✓ survived",
        "✗ not",
    ):
        assert whole in text
    assert "…" not in text
    assert "status: finished" in text
    assert "! Forgotten, but the forgetting did not survive relearn." in text


def test_collapsed_and_missing():
    after = {"forget_accuracy": metrics(0.2, 0.1, 0.5, 9)["forget_accuracy"]}
    text = printed(print_result, result(status="collapsed", reasons=["degenerate text"], after=after, attacks=[]))
    assert "status: collapsed" in text
    assert "✗ Collapsed" in text
    assert "Degenerate text." in text
    row = next(line for line in text.splitlines() if line.startswith(" after"))
    assert row.split() == ["after", "0.20", "–", "–", "–"]
    assert "survived" not in text


def test_failed_run_has_no_table():
    text = printed(print_result, result(status="failed", reasons=["loss is nan"], before={}, after={}, attacks=[]))
    assert text.startswith("status: failed")


def test_the_worst_of_several_seeds_is_told():
    attack = relearn(per_seed=[{"seed": 0.0, "kept": 0.9}, {"seed": 1.0, "kept": 0.12}])
    text = printed(print_result, result(attacks=[attack]))
    assert "worst" in text
    assert "12 %" in text


def test_answers_side_by_side_and_harmless():
    text = printed(print_answers, samples(INJECTED), width=90, limit=2)
    assert "\x1b" not in text
    assert "[bold]x[/bold]" in text
    assert text.count("What is the capital of France?") == 2
    assert "Kenya" not in text
    assert "after quantize" in text
    assert "after relearn" in text
    assert text.index("To be forgotten") < text.index("To be kept")


def test_two_attacks_of_one_name_keep_their_settings():
    rows = samples()
    other = f"attack:{quantize(settings={'bits': 8}).label}"
    rows += [row | {"stage": other} for row in rows if row["stage"] == "after"]
    assert "quantize:bits=8" in printed(print_answers, rows, width=120, limit=1).replace("\n", "")


def test_a_narrow_terminal_keeps_the_rows_names_and_the_first_columns():
    tofu = {
        "forget_probability": metric(0.9),
        "forget_quality": metric(1e-20),
        "model_utility": metric(0.6),
        "general_perplexity": metric(123.4),
        "retain_probability": metric(0.9),
    }
    value = result(before=tofu, after=tofu, attacks=[quantize(metrics=tofu)])
    wide, narrow = (printed(print_result, value, width=width).split("status")[0] for width in (120, 60))
    assert "quality" in wide
    assert "perplexity" in wide
    assert "retain" not in wide, "it is within model utility"
    assert "before" in narrow
    assert "probability" in narrow
    assert "perplexity" not in narrow


def test_an_evaluation_is_not_called_a_run():
    value = result(run_id="eval-1", before={}, after={"forget_probability": metric(0.9)}, attacks=[])
    text = printed(print_result, value)
    assert "evaluated" in text
    assert "nothing was unlearned" in text
