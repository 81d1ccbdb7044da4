from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from letgo.core.errors import UserError
from letgo.report import write_report
from letgo.report.html import MANY, spread
from tests.report.runs import INJECTED, metric, metrics, quantize, relearn, result, samples, write_run

Make = Callable[..., Path]
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """The page's elements; raises where tags do not balance."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.raw: dict[str, str] = {}
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.stack, f"left open: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag, f"</{tag}> out of turn at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in ("style", "script"):
            self.raw[self.stack[-1]] = self.raw.get(self.stack[-1], "") + data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(run: Make, tmp_path: Path) -> Callable[..., Page]:
    def make(value: object = None, rows: object = None) -> Page:
        return Page(write_report([run("run", value, rows)], tmp_path / "report.html"))

    return make


def test_verdict_comes_first_then_the_table(page: Callable[..., Page]):
    made = page()
    text = made.text
    assert text.index("did not survive relearn") < text.index("Value, 95 % interval") < text.index("The same questions")
    for expected in (
        "0.017 0.014–0.019 n 80",
        "31 % at least 23 %, needs 50 %",
        "✗ not survived",
        "✓ survived",
        "after, held-out rows",
        "optimizer",
    ):
        assert expected in text
    assert "letgo unlearn" in text
    assert "--attack quantize:bits=4" in text
    assert "hf_very_secret" not in made.source


def test_policy_admits_only_the_two_inline_blocks(page: Callable[..., Page]):
    made = page()
    policy = next(m["content"] for m in made.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for name, directive in (("style", "style-src"), ("script", "script-src")):
        assert len(made.of(name)) == 1
        digest = base64.b64encode(hashlib.sha256(made.raw[name].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_asks_for_nothing_and_has_no_inline_handlers(page: Callable[..., Page]):
    made = page()
    for tag, attributes in made.elements:
        for name, value in attributes.items():
            assert name != "style", f"<{tag} style> is against the page's own policy"
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "action", "xlink:href"):
                assert value is not None
                assert value.startswith(("#", "data:,")), f"<{tag} {name}={value}>"
    assert not re.search(r"@import|url\((?!#)", made.raw["style"])


def test_references_inside_the_page_lead_somewhere(run: Make, tmp_path: Path):
    for name in ("a", "b"):
        run(name)
    made = Page(write_report([tmp_path], tmp_path / "report.html"))
    ids = [a["id"] for _, a in made.elements if "id" in a]
    assert [i for i, count in Counter(ids).items() if count > 1] == []
    for _, attributes in made.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set((attributes.get(name) or "").split()) <= set(ids)
        if (href := attributes.get("href") or "").startswith("#"):
            assert href[1:] in ids
        if fill := re.fullmatch(r"url\(#(.+)\)", attributes.get("fill") or ""):
            assert fill[1] in ids


@pytest.mark.parametrize("where", ["generated", "everywhere"])
def test_what_a_model_wrote_stays_text(page: Callable[..., Page], where: str):
    value, plain = result(), page()
    if where == "everywhere":
        value = result(
            run_id=INJECTED,
            status="collapsed",
            reasons=[INJECTED],
            notes=[INJECTED],
            config={INJECTED: INJECTED, "optimizer": INJECTED},
            attacks=[quantize(name="q<b>", settings={"a": INJECTED}, reasons=[INJECTED], did={INJECTED: INJECTED})],
            references={INJECTED: metrics(0.2, 0.1, 0.9, 14)},
        )
    made = page(value, samples(INJECTED))
    assert "<script>alert(1)</script>" in made.text
    assert "{{ 7*7 }}" in made.text
    assert len(made.of("script")) == len(made.of("style")) == 1
    assert made.of("img") == made.of("b-") == []
    assert made.raw == plain.raw
    assert "\x1b" not in made.source


def test_is_made_for_screen_readers(page: Callable[..., Page]):
    made = page()
    assert made.of("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in made.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert all(th.get("scope") in ("col", "row") for th in made.of("th"))
    assert len(made.of("caption")) == len(made.of("table"))
    drawings = [svg for svg in made.of("svg") if svg.get("role") == "img"]
    assert len(drawings) == 4
    assert len(made.of("desc")) == len(drawings)
    assert all(svg.get("aria-hidden") for svg in made.of("svg") if svg.get("role") != "img")
    assert ":focus-visible" in made.raw["style"]
    assert "prefers-color-scheme: dark" in made.raw["style"]
    assert "@media print" in made.raw["style"]


def test_what_is_missing_is_a_dash(page: Callable[..., Page]):
    value = result(before={"forget_accuracy": metric(0.9)}, after={"forget_accuracy": metric(0.4)}, attacks=[])
    text = page(value, []).text
    assert re.search(r"before 0\.90 0\.72–0\.99 n 80 – – – –", text)
    assert "forget probability" not in text


def test_collapsed_and_failed_are_said_in_words(page: Callable[..., Page]):
    assert "✗ collapsed" in page(result(status="collapsed", reasons=["degenerate text"])).text
    text = page(result(status="failed", reasons=["loss is nan at step 3"], before={}, after={}, attacks=[]), []).text
    assert "✗ failed" in text
    assert "Loss is nan at step 3." in text


def test_extreme_numbers_are_drawn_within_the_frame(page: Callable[..., Page]):
    wild = {"forget_accuracy": metric(-1e300, -2e300, 1e300), "retain_accuracy": metric(5e-320, 0.0, 1e-300)}
    made = page(result(after=wild, attacks=[quantize(metrics=wild, kept=0.0)]))
    assert not re.search(r'(?:x|y|x1|y1|x2|y2|cx|cy|d|width)="[^"]*(?:nan|inf)', made.source)


def test_training_shades_each_zeroth_order_phase(page: Callable[..., Page]):
    made = page()
    shaded = [r for r in made.of("rect") if r.get("class") == "phase" and r.get("height") != "14"]
    assert len(shaded) == 2
    assert "Phases: first order from step 1 to 20.5, zeroth order from step 20.5 to 40.5" in made.text


def test_several_runs_get_an_overview(run: Make, tmp_path: Path):
    run("x/a", result(attacks=[quantize()]))
    run("x/deep/b", result(seed=3, config={"objective": "ga", "optimizer": "sgd", "batch": 4}))
    made = Page(write_report([tmp_path / "x", tmp_path / "x" / "a"], tmp_path / "report.html"))
    assert "1 of 2 runs forgot and survived every attack made." in made.text
    table = next(t for t in made.of("table") if t.get("id") == "runs")
    assert table["class"] == "sortable"
    assert len([d for d in made.of("details") if d.get("class") == "run"]) == 2
    assert "2 of 2 runs" in made.text
    for word in ("npo", "fozo", "ga", "sgd", "batch"):
        assert word in made.text


def test_same_runs_give_the_same_page(run: Make, tmp_path: Path):
    directory = run()
    first = write_report([directory], tmp_path / "1.html").read_bytes()
    assert write_report([directory], tmp_path / "2.html").read_bytes() == first


def test_attacks_that_the_configuration_names_are_not_asked_for_twice(page: Callable[..., Page]):
    value = result(config={"attacks": [quantize().label]}, attacks=[quantize(), relearn()])
    text = page(value).text
    assert "--attack relearn:" in text
    assert "--attack quantize" not in text


def test_questions_are_taken_evenly():
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]  # type: ignore[arg-type]
    assert spread(list(range(3)), 4) == [0, 1, 2]  # type: ignore[arg-type]


def test_mistakes_are_one_clear_message(run: Make, tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        write_report([tmp_path / "nowhere"], tmp_path / "r.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run"):
        write_report([tmp_path / "empty"], tmp_path / "r.html")
    with pytest.raises(UserError, match="no run directory was given"):
        write_report([], tmp_path / "r.html")
    directory = run("one")
    with pytest.raises(UserError, match="is a directory"):
        write_report([directory], tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="can't be written"):
        write_report([directory], blocked / "r.html")
    (directory / "samples.jsonl").write_text('{"stage": "before"}\n{oops\n')
    with pytest.warns(UserWarning, match=r"left out: .*samples\.jsonl:2: not JSON"):
        write_report([directory], tmp_path / "r.html")
    assert "samples.jsonl:2: not JSON" in Page(tmp_path / "r.html").text


def test_many_runs_stay_small(tmp_path: Path):
    for index in range(MANY + 1):
        write_run(tmp_path / "sweep" / f"cell-{index:03d}", result(seed=index))
    path = write_report([tmp_path / "sweep"], tmp_path / "report.html")
    assert path.stat().st_size < (MANY + 1) * 20_000


def test_settings_that_no_spec_can_hold_are_shown(page: Callable[..., Page]):
    """Of a benchmark or an attack that was given as an object, not as NAME:key=value."""
    odd = {"sizes": [1, 2, 2, 3], "pattern": "a,=b"}
    value = result(
        config=result().config | {"benchmark": "own:sizes=[1, 2, 2, 3]"},
        attacks=[quantize(settings=odd), quantize(settings=odd | {"bits": 2})],
    )
    assert "sizes=[1, 2, 2, 3]" in page(value).text
