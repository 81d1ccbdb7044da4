"""What a notebook shows of runs, results and sweeps, the tables it takes from them, and the figures it draws."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as xml

import pytest

import letgo
import letgo.optim
from letgo.core.errors import UserError
from letgo.report.load import read_run
from letgo.runs.sweeps import CellState, GroupState, Sweep, read_sweep, write_sweep
from tests.report import runs as made

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def loaded(run):
    return read_run(run(value=made.result(judgement=made.judgement(worst=["France"]))))


@pytest.fixture
def swept(tmp_path):
    for seed in (0, 1):
        made.write_run(tmp_path / "runs" / f"c{seed}", made.result(run_id=f"c{seed}", seed=seed))
    states = [CellState(name=f"c{s}", seed=s, status="finished", run=f"runs/c{s}") for s in (0, 1)]
    states.append(CellState(name="c2", seed=2, status="pending"))
    group = GroupState(name=made.INJECTED, axes={"optimizer": "fozo"}, optimizer="fozo", reached=False, cells=states)
    write_sweep(
        tmp_path,
        Sweep(source="grid.yaml", fingerprint="f", document={}, target="forget_accuracy <= 0.4", groups=[group]),
    )
    return read_sweep(tmp_path)


def test_a_run_is_shown_by_its_verdict_its_table_and_its_figures(loaded):
    html = loaded._repr_html_()
    assert "did not survive relearn" in html
    assert html.count("<table>") == 1
    assert "<td>0.50 (0.41–0.59)</td>" in html
    assert html.count("data:image/svg+xml;base64,") == 3, "trade-off, training, attacks"
    assert loaded.result._repr_html_().count("data:image/svg+xml;base64,") == 2, "a result has no history"


def test_what_comes_from_elsewhere_stays_text(run, swept):
    attack = made.quantize(name="quantize" + made.INJECTED)
    value = made.result(attacks=[attack], judgement=made.judgement(worst=[made.INJECTED]))
    for html in (read_run(run(value=value))._repr_html_(), swept._repr_html_()):
        assert not re.search(r"<(script|/style|img src=x)", html)
        assert "&lt;script&gt;" in html
        assert "\x1b" not in html


def test_reprs_are_short(loaded, swept):
    assert repr(loaded.result) == "<Result capitals-npo-fozo-0: finished, forgotten; survived 1 of 2 attacks>"
    assert repr(loaded) == f"<Run {loaded.directory}: finished, forgotten; survived 1 of 2 attacks>"
    assert repr(swept) == f"<Sweep {swept.folder}: 3 cells, 2 finished, 1 pending>"
    assert str(loaded.result) == repr(loaded.result)
    assert repr(letgo.plot_attacks(loaded)) == "<Figure: Forgetting kept after each attack>"


def test_a_sweep_shows_a_row_for_each_group_with_means(swept):
    html = swept._repr_html_()
    assert "(never reached the target)" in html
    assert "2 finished, 1 pending" in html
    assert "Target: forget_accuracy &lt;= 0.4" in html
    assert "<td>0.50</td>" in html
    assert "<td>31 %</td>" in html
    assert html.count("data:image/svg+xml;base64,") == 2, "the map and the frontier"


def test_a_sweep_none_of_whose_cells_ran_is_shown(tmp_path):
    group = GroupState(name="g", axes={}, optimizer="fozo", cells=[CellState(name="c", seed=0, status="pending")])
    write_sweep(tmp_path, Sweep(source="s", fingerprint="f", document={}, groups=[group]))
    assert "1 pending" in read_sweep(tmp_path)._repr_html_()
    unwritten = Sweep(source="s", fingerprint="f", document={}, groups=[])
    with pytest.raises(UserError, match="neither read nor written"):
        unwritten.to_pandas()


def test_each_table_has_a_row_for_each_of_its_things(loaded):
    result = loaded.result
    metrics = loaded.to_pandas()
    assert list(metrics.columns) == ["stage", "metric", "value", "low", "high", "n"]
    assert len(metrics) == sum(map(len, (result.before, result.after, *(a.metrics for a in result.attacks))))
    row = metrics[(metrics.stage == "after") & (metrics.metric == "forget_accuracy")].iloc[0]
    accuracy = result.after["forget_accuracy"]
    assert (row.value, row.low, row.high, row.n) == (accuracy.value, *accuracy.ci95, accuracy.n)
    attacks = loaded.to_pandas("attacks")
    assert list(attacks.kept) == [0.9, 0.31]
    assert list(attacks["settings.bits"].dropna()) == [4]
    samples = loaded.to_pandas("samples")
    assert len(samples) == len(made.samples())
    assert samples["scores.accuracy"].max() == 1
    assert list(loaded.to_pandas("history").step) == list(range(1, 81))


def test_subjects_are_those_revealed_and_by_what(run):
    value = made.result(attacks=[made.relearn(revealed=["Peru"])])
    table = read_run(run(value=value)).to_pandas("subjects")
    assert table.to_dict("records") == [{"subject": "Peru", "after": False, made.relearn().label: True}]
    assert list(made.result().to_pandas("subjects").columns)[:2] == ["subject", "after"], "where none is revealed too"


def test_a_sweeps_table_is_that_of_its_file(swept):
    table = swept.to_pandas()
    assert list(table.status) == ["finished", "finished", "pending"]
    assert list(table["after.forget_accuracy"].dropna()) == [0.5, 0.5]


def test_a_table_that_is_not_there_is_named(loaded, monkeypatch):
    with pytest.raises(UserError, match="did you mean 'samples'"):
        loaded.to_pandas("sample")
    with pytest.raises(UserError, match=r"letgo\.read_run\(DIR\)\.to_pandas\('history'\)"):
        loaded.result.to_pandas("history")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pandas"):
        loaded.to_pandas()


@pytest.mark.parametrize("draw", [letgo.plot_trade_off, letgo.plot_attacks, letgo.plot_training])
def test_a_figure_stands_alone(loaded, draw, tmp_path):
    figure = draw(loaded.directory)
    path = figure.save(tmp_path / "figure.svg")
    root = xml.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    style = root.find(f"{SVG}style").text
    assert "--ink" in style
    assert "svg .line" in style
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert texts[0] == figure.title
    for key in figure.plot.legend:
        assert key.text.split(",")[0].split()[-1] in " ".join(texts), "its legend too"
    assert "script" not in path.read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"ends in \.svg"):
        figure.save(tmp_path / "figure.png")


def test_figures_take_a_run_a_result_a_directory_or_several(loaded, swept):
    one = letgo.plot_attacks(loaded)._repr_svg_()
    assert letgo.plot_attacks(loaded.result)._repr_svg_() == one
    assert letgo.plot_attacks(str(loaded.directory))._repr_svg_() == one
    assert [row[0] for row in letgo.plot_runs(swept).table] == ["1†. seed 0", "2†. seed 1"]
    assert len(letgo.plot_runs([loaded, loaded.directory]).table) == 2
    assert letgo.plot_attack(loaded, "relearn").title == "During the attack relearn"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda run: letgo.plot_attack(run, "prune"), "no attack 'prune' was made on it; made: quantize"),
        (lambda run: letgo.plot_attack(run, "quantize"), "recorded no course"),
        (letgo.plot_looks, "not looked at during training"),
        (lambda run: letgo.plot_training(run.result), "does not say where its run lies"),
    ],
)
def test_what_can_not_be_drawn_is_said(loaded, draw, message):
    with pytest.raises(UserError, match=message):
        draw(loaded)


def test_every_public_name_is_completed_and_there():
    for module in (letgo, letgo.optim):
        assert set(module.__all__) <= set(dir(module))
        assert all(getattr(module, name) is not None for name in module.__all__)
    assert "FOZO" in dir(letgo.optim)
