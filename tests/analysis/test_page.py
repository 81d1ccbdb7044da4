from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise

import pytest

from letgo.analysis.certificate import certificate
from letgo.analysis.connectivity import connectivity
from letgo.analysis.depth import depth
from letgo.analysis.landscape import landscape
from letgo.analysis.records import GridPoint, Landscape, LandscapeAxis, Mark, write_analysis
from letgo.analysis.sharpness import sharpness
from letgo.analysis.spectrum import spectrum
from letgo.report import write_report
from letgo.report.analyses import in_text, view
from letgo.report.contours import contour, levels
from tests.report.runs import INJECTED
from tests.report.test_html import Page


@pytest.fixture
def analysed(run, other):
    """A run with an analysis of each kind."""
    connectivity([run, other], points=3, limit=2)
    landscape(run, points=3, limit=2)
    landscape(run, directions=["original"], points=3, limit=2)
    sharpness(run, steps=1, draws=2, trace_draws=1, limit=2)
    certificate(run, draws=20, limit=2, utility_draws=1)
    depth(run, retrained=str(other), threshold=0.0)
    spectrum(run, rerun=False)
    return run


def test_every_drawing_is_named_and_has_its_table(analysed, tmp_path):
    page = Page(write_report([analysed], tmp_path / "report.html"))
    text = page.text
    for said in (
        "Around it in weight space",
        "What is certified",
        "What is not",
        "Linear mode connectivity",
        "Spectrum of the change",
    ):
        assert said in text
    for title in (
        "Losses from run to other",
        "Scores from run to other",
        "Forget loss around the run",
        "Loss along original",
        "Change of loss: at worst",
        "Change of loss: on average",
        "Certified radius and displacements",
    ):
        assert title in text
        assert f"The figures as a table : {title}" in text
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert [i for i, count in Counter(ids).items() if count > 1] == []
    for drawing in page.of("svg"):
        if drawing.get("role") == "img":
            assert set((drawing["aria-labelledby"] or "").split()) <= set(ids)
    assert not re.search(r"\bnan\b|Infinity", page.source.partition("<script>")[0])


def test_headings_do_not_skip_a_level(analysed, tmp_path):
    page = Page(write_report([analysed], tmp_path / "report.html"))
    found = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(found))


def test_an_unlearned_run_without_analyses_has_no_such_section(run, tmp_path):
    assert "Around it" not in Page(write_report([run], tmp_path / "report.html")).text


def plane(losses, name="run", **changes):
    xs = [-1.0, 0.0, 1.0]
    points = [GridPoint(at=[x, y], losses={"forget_loss": losses(x, y)}) for x in xs for y in xs]
    axes = [LandscapeAxis(name=n, toward="random", norm=2.0, coordinates=xs) for n in (name, "random 2")]
    values = {"created": "2026-01-01T00:00:00+00:00", "letgo": "0", "versions": {}, "git": None}
    return Landscape(
        **(
            values
            | {"subject": name, "settings": {"note": name}, "parameters": 3, "axes": axes, "points": points}
            | {"cosine": 0.0, "marks": [Mark(name=name, at=[0.0, 0.0])]}
            | changes
        )
    )


def test_names_stay_text(run, tmp_path):
    write_analysis(run, plane(lambda x, y: x * x + y, INJECTED))
    page = Page(write_report([run], tmp_path / "report.html"))
    assert "alert(1)" in page.text
    assert len(page.of("script")) == 1
    assert "img" not in [tag for tag, _ in page.elements]


@pytest.mark.parametrize(
    "losses", [lambda x, y: 1.0, lambda x, y: None, lambda x, y: None if x > 0 else x + y, lambda x, y: 1e9 ** (x + y)]
)
def test_flat_missing_and_steep_planes_can_be_drawn(losses):
    seen = view(plane(losses), "a")
    known = [losses(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if losses(x, y) is not None]
    assert len(seen.figures) == bool(known)
    if known and len(known) < 9:
        assert "not finite" in [key.text for key in seen.figures[0].plot.legend]
        assert any("not finite" in sentence for sentence in seen.sentences)


def test_contours_of_a_cone_are_circles():
    ends = [k / 10 - 2 for k in range(41)]
    grid = [[math.hypot(x, y) for x in ends] for y in ends]
    segments = contour(ends, ends, grid, 1.25)
    assert len(segments) > 40
    for x0, y0, x1, y1 in segments:
        assert math.hypot(x0, y0) == pytest.approx(1.25, abs=0.01)
        assert math.hypot(x1, y1) == pytest.approx(1.25, abs=0.01)
    ends_met = Counter((round(x, 9), round(y, 9)) for a, b, c, d in segments for x, y in ((a, b), (c, d)))
    assert set(ends_met.values()) == {2}, "a circle is closed"


def test_a_saddle_is_cut_the_way_its_middle_says():
    # High at two opposite corners. The middle is 0.5: above the level the high corners are joined, below it parted.
    grid = [[1.0, 0.0], [0.0, 1.0]]
    joined, parted = (contour([0, 1], [0, 1], grid, level) for level in (0.4, 0.6))
    around_low = sorted((x0 + x1) / 2 - (y0 + y1) / 2 for x0, y0, x1, y1 in joined)
    assert around_low == pytest.approx([-0.6, 0.6])
    around_high = sorted((x0 + x1) / 2 + (y0 + y1) / 2 for x0, y0, x1, y1 in parted)
    assert around_high == pytest.approx([0.4, 1.6])
    assert contour([0, 1], [0, 1], [[1.0, None], [0.0, 1.0]], 0.5) == []


def test_levels():
    assert levels(0.0, 8.0, 8) == [1, 2, 3, 4, 5, 6, 7]
    assert levels(1.0, 256.0, 8) == pytest.approx([2, 4, 8, 16, 32, 64, 128])
    assert levels(3.0, 3.0, 8) == []


def test_in_text_tells_the_same(run):
    lines = "\n".join(in_text(certificate(run, draws=20, limit=2, utility_draws=1)))
    assert lines.startswith("Certificate: run")
    assert "What is not:" in lines
    assert "relearn:steps=2" in lines
