"""What the drawings of attacks draw: their tables hold the figures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from letgo.report.compared import bits_figure, steps_figure
from letgo.report.comparison import Line
from letgo.report.figures import attacked, curve, looks, training
from tests.report import runs as made


def lines(*attacks):
    """A setting for each list of attacks."""
    return [
        Line(f"setting {i}", "adamw", (SimpleNamespace(result=made.result(attacks=one)),))
        for i, one in enumerate(attacks)
    ]


def course(start):
    return [{"step": step, "forget_accuracy": start + step / 100} for step in (0.0, 10.0, 20.0)]


def test_a_course_is_the_mean_over_seeds_where_each_has_a_value():
    first, second = course(0.2), [*course(0.4)[:2], {"step": 20.0, "loss": 1.0}]
    figure = curve(made.relearn(curve=first, curves=[first, second]), "x")
    assert figure.caption.endswith("mean of 2 seeds.")
    assert figure.header == ["step", "forget accuracy"]
    assert figure.table == [["0", "0.30"], ["10", "0.40"], ["20", "0.40"]]
    one = curve(made.relearn(curve=first, curves=[first]), "x")
    assert [row[1] for row in one.table] == ["0.20", "0.30", "0.40"]
    assert "seeds" not in one.caption


def test_looks_during_training_are_drawn_with_all_that_they_measured():
    def look(step, forgotten, **more):
        return {"step": step, "forgotten": forgotten, "utility_loss": step / 100, "forget_accuracy": 0.5} | more

    rows = [look(0, 0.0), {"step": 1, "loss": 2.0}, look(5, 0.4), look(8, 0.7)]
    figure = looks(rows, "x")
    assert figure.title == "Looks during training"
    assert figure.header == ["step", "forgotten", "utility loss", "forget accuracy"]
    assert [row[:3] for row in figure.table] == [["0", "0.00", "0.00"], ["5", "0.40", "0.050"], ["8", "0.70", "0.080"]]
    assert {row[3] for row in figure.table} == {"0.50"}
    assert "forgotten from 0.00 to 0.70" in figure.description
    assert looks(rows[:2], "x") is None
    assert looks([look(0, None), look(5, None)], "x").header[1] == "utility loss", "nothing was known"
    many = looks([look(step, step / 1000) for step in range(1000)], "x")
    assert 50 < len(many.table) <= 62
    assert many.table[-1][0] == "999"
    assert training([*rows[:2], {"step": 2, "loss": 1.0}], "x").header == ["step", "phase", "loss"]


def test_a_broken_model_is_not_drawn_as_one_that_kept_everything():
    broken = made.quantize(settings={"bits": 2}, kept=1.0, survived=False, collapsed=True)
    drawing = str(attacked(made.result(attacks=[broken, made.quantize(kept=1.0)]), "x").drawing)
    assert "✗ broke the model" in drawing
    assert "✓ 100 %" in drawing
    assert "✗ 100 %" not in drawing
    assert drawing.count('class="bar lost"') == 1
    assert 'class="bar lost" x="12" y="47" width="2"' in drawing


def test_the_sweep_over_bits_is_of_one_quantization_and_leaves_out_what_broke_the_model():
    def quantized(bits, kept, **more):
        return made.quantize(settings={"bits": bits, "group_size": more.pop("group_size", 32)}, kept=kept, **more)

    sweep = [quantized(8, 0.9), quantized(4, 0.6), quantized(2, 1.0, collapsed=True)]
    figure = bits_figure(lines([*sweep, quantized(4, 0.1, group_size=128)], sweep), "bits")
    assert figure.header == ["setting", "bits 4", "bits 8"]
    assert figure.table == [["setting 0", "0.60", "0.90"], ["setting 1", "0.60", "0.90"]]
    assert figure.caption.startswith("quantize:group_size=32;")
    assert "2 that broke their models are left out" in figure.caption
    assert str(figure.drawing).count("<circle") == 4, "a point is seen where there is no line"
    assert ">5<" in str(figure.drawing)
    assert "4.5" not in str(figure.drawing)
    assert bits_figure(lines([quantized(2, 1.0, collapsed=True)]), "bits") is None


def test_the_course_over_steps_is_of_one_attack_and_all_its_seeds():
    forget = made.relearn(settings={"steps": 20}, curve=course(0.2), curves=[course(0.2), course(0.4)])
    retain = made.relearn(settings={"steps": 20, "data": "retain"}, curve=course(0.9))
    figure = steps_figure(lines([retain, forget], [forget]), "steps")
    assert figure.caption.startswith("relearn:steps=20;")
    assert [float(cell) for cell in figure.table[0][1:]] == pytest.approx([0.3, 0.4, 0.5])
    assert figure.table[0][1:] == figure.table[1][1:]
    assert steps_figure(lines([made.quantize()]), "steps") is None
