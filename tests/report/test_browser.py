"""The pages in a real browser: they sort, filter, keep what a model wrote as text, and ask for nothing from outside."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from letgo.report import write_report
from letgo.report.brief import write_brief
from tests.report import runs as made

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as started:
        try:
            launched = started.chromium.launch(
                executable_path=path,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
            )
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield launched
        launched.close()


@pytest.fixture
def visit(browser):
    """Open a file, and gather what the page complains of and asks for."""
    contexts = []

    def go(path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.messages, page.requested = [], []
        page.on("console", lambda message: page.messages.append(message.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(path if isinstance(path, str) else path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()


@pytest.fixture
def folder(tmp_path):
    runs = [("adamw", 0.5, 0.2), ("fozo", 0.3, 0.9), ("sophia", 0.4, 0.6)]
    for index, (optimizer, accuracy, kept) in enumerate(runs):
        result = made.result(
            run_id=f"run-{optimizer}",
            config=made.result().config | {"optimizer": optimizer},
            after=made.metrics(accuracy, 0.02, 0.9, 15.0),
            attacks=[made.quantize(kept=kept, survived=kept >= 0.5, revealed=["Peru", "Japan"][: 2 - index])],
        )
        rows = made.samples(made.INJECTED)
        for row in rows:
            if row["group"] == "Peru" and row["set"] == "forget" and row["stage"].startswith("attack:quantize"):
                row |= {"scores": {"probability": 0.9}, "generated": "=Lima"}
        made.write_run(tmp_path / f"{index}-{optimizer}", result, rows)
    return tmp_path


@pytest.fixture
def page(folder, visit):
    """The report on the folder, opened; at the end of a test it must have complained of nothing and asked for nothing
    but itself."""
    path = write_report([folder], folder / "report.html")
    opened = visit(path)
    yield opened
    only_itself(opened, path)


def only_itself(page, path):
    assert page.messages == []
    assert [url for url in page.requested if url != path.as_uri()] == []


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(page):
    names = lambda: page.locator("#runs tbody th").all_inner_texts()  # noqa: E731
    assert [name.split(". ")[-1] for name in names()] == ["adamw", "fozo", "sophia"]
    heading = page.locator("#runs thead button", has_text="forget accuracy")
    heading.click()
    assert [name.split(". ")[-1] for name in names()] == ["fozo", "sophia", "adamw"]
    assert page.locator("#runs thead th[aria-sort]").get_attribute("aria-sort") == "ascending"
    heading.click()
    assert [name.split(". ")[-1] for name in names()] == ["adamw", "sophia", "fozo"]
    page.locator("#runs thead th.attack button").click()
    page.keyboard.press("Enter")
    assert [name.split(". ")[-1] for name in names()] == ["fozo", "sophia", "adamw"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("fozo", "fozo"),
        ("npo SOPHIA", "sophia"),
        ("", "adamw fozo sophia"),
        ("kept(quantize)>=0.6", "fozo sophia"),
        ("kept(quantize:bits=4) < .5 or optimizer = fozo", "adamw fozo"),
        ("kept(quantize4)<0.5", "adamw"),
        ("survived(quantize) and not (forget_accuracy<0.35)", "sophia"),
        ("optimizer~*o* forget_accuracy != 0.4", "fozo"),
        ("forgotten", "adamw fozo sophia"),
        ("status='collapsed'", ""),
    ],
)
def test_the_filter_takes_words_and_clauses(page, text, left):
    page.locator("#filter").fill(text)
    rows = page.locator("#runs tbody tr:visible th").all_inner_texts()
    assert [row.split(". ")[1].strip() for row in rows] == left.split()
    assert page.locator("#filter-told").inner_text() == f"{len(rows)} of 3 runs"


def test_a_mistake_in_the_filter_is_said_and_changes_nothing(page):
    mistakes = {
        "forget_acuracy<1": "no column is called forget_acuracy",
        "kept(noise)>0": "no attack here is called noise",
        "(fozo": "a bracket is not closed",
        "fozo)": ") closes nothing",
        "seed =": "a value is missing",
        "fozo or": "a word or a column is missing",
    }
    for text, told in mistakes.items():
        page.locator("#filter").fill(text)
        assert told in page.locator("#filter-told").inner_text()
    assert page.locator("#runs tbody tr:visible").count() == 3


@pytest.mark.parametrize(("width", "columns"), [(400, 3), (1000, 5), (1400, 7), (2400, 12)])
def test_what_the_window_shows_of_many_runs_is_whole(folder, visit, width, columns):
    path = write_report([folder], folder / "report.html")
    page = visit(path, viewport={"width": width, "height": 900})
    order = page.evaluate(
        "['.verdict h2', '#all-kept-title', '#all-frontier-title', '#runs'].map(s => document.querySelector(s)"
        ".closest('figure, section, table').getBoundingClientRect().top)"
    )
    assert order == sorted(order)
    assert order[1] < 400
    assert page.evaluate("document.querySelector('#runs').scrollWidth <= document.querySelector('.tall').clientWidth")
    heads = page.locator("#runs thead th:visible").all_inner_texts()
    assert [head.strip().split("\n")[0] for head in heads[:3]] == ["run", "verdict", "quantize"]
    assert len(heads) >= columns
    lines = page.evaluate("[...document.querySelectorAll('#runs tbody tr')].map(row => row.offsetHeight)")
    assert max(lines) < 40, "a run is one line"
    crossed = page.evaluate(
        """() => {
          const labels = document.querySelectorAll('svg[aria-labelledby^=all-frontier] .label');
          const boxes = [...labels].map(label => label.getBBox());
          return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
            a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height)).length;
        }"""
    )
    assert crossed == 0
    only_itself(page, path)


def test_the_reader_chooses_the_columns(page):
    page.get_by_text("Columns", exact=True).click()
    head = page.locator("#runs thead th", has_text="retain accuracy")
    assert head.is_visible()
    page.get_by_role("checkbox", name="retain accuracy").uncheck()
    assert not head.is_visible()
    page.set_viewport_size({"width": 500, "height": 900})
    page.get_by_role("checkbox", name="retain accuracy").check()
    assert head.is_visible(), "what was chosen stays, whatever the window"
    assert page.locator("#runs thead th", has_text="forget accuracy").is_visible()


def test_a_cell_of_the_map_tells_its_interval(page):
    figure = page.locator("figure", has=page.locator("#all-kept-title"))
    figure.locator("svg g").first.click()
    told = figure.locator("output").inner_text()
    assert told.startswith("1. fozo, quantize:bits=4")
    assert "90 % (95 % interval 80 % to 100 %); 1 of 1 survived" in told


def test_two_runs_are_held_side_by_side(page):
    page.get_by_text("Compare two runs").click()
    page.get_by_label("second run").select_option("3. sophia")
    facts = page.locator("#compare table", has_text="What differs")
    row = facts.locator("tr", has_text="optimizer").first
    assert row.locator("td").all_inner_texts() == ["adamw", "sophia"]
    assert "unlike" in row.get_attribute("class")
    assert "unlike" not in facts.locator("tr", has_text="seed").first.get_attribute("class")
    asked = page.locator("#compare table", has_text="The same questions")
    assert asked.locator("tbody tr", has_text="capital of Peru").count() >= 4
    assert asked.locator("img").count() == 0


def test_questions_and_answers_are_searched(page):
    page.get_by_text("Search questions and answers").click()
    page.locator("#words").fill("peru =lima")
    page.keyboard.press("Enter")
    page.locator("#search tbody tr").first.wait_for()
    assert page.locator("#words-told").inner_text() == "3 answers"
    assert page.locator("#search tbody th").all_inner_texts() == ["1. adamw", "2. fozo", "3. sophia"]


def test_subjects_are_stepped_through(page):
    section = page.locator("#revealed")
    names = section.locator("details:visible h3")
    assert names.all_inner_texts() == ["Peru"]
    assert "2 of 3 runs" in section.locator("details:visible h4").first.inner_text()
    assert section.locator("details:visible q").all_inner_texts() == ["=Lima", "=Lima"]
    assert section.locator("details:visible mark").first.inner_text() == "Lima"
    section.get_by_text("next →").click()
    assert names.all_inner_texts() == ["Japan"]
    section.locator("select").select_option("Peru")
    section.get_by_text("← previous").click()
    assert names.all_inner_texts() == ["Japan"]


def downloaded(page, button):
    with page.expect_download() as started:
        button.click()
    return Path(started.value.path())


def test_tables_and_figures_are_downloaded(page):
    table = downloaded(page, page.get_by_label("Download Values after unlearning as CSV"))
    rows = list(csv.DictReader(table.read_text().splitlines()))
    label = made.quantize().label
    assert [(row[f"kept({label})"], row[f"outcome({label})"]) for row in rows] == [
        *(("0.2", "not survived"), ("0.9", "survived"), ("0.6", "survived"))
    ]
    assert [row["forget_accuracy"] for row in rows] == ["0.5", "0.3", "0.4"]
    page.get_by_text("Search questions and answers").click()
    page.locator("#words").fill("=lima")
    page.keyboard.press("Enter")
    answers = downloaded(page, page.get_by_label("Download Found as CSV"))
    assert {row["answer"] for row in csv.DictReader(answers.open())} == {"'=Lima p 0.90"}, "no spreadsheet computes it"

    name = "The frontier of forgetting, utility and robustness"
    drawing = downloaded(page, page.get_by_label(f"Download {name} as SVG"))
    shapes = ElementTree.fromstring(drawing.read_text()).iter("{http://www.w3.org/2000/svg}text")
    assert {shape.get("font-size") for shape in shapes} == {"12px", "13px"}
    picture = downloaded(page, page.get_by_label(f"Download {name} as PNG"))
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_command_of_a_row_is_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Copy the command that makes 2. fozo").click()
    page.locator("#filter-told", has_text="copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("letgo unlearn ")
    assert "1-fozo" in copied


def test_without_scripts_all_can_be_read(folder, visit):
    page = visit(write_report([folder], folder / "report.html"), java_script_enabled=False)
    assert page.locator("#runs tbody tr").count() == 3
    assert page.locator("#runs thead th").last.inner_text().startswith("status")
    assert page.locator("details.subject:visible").count() == 2
    assert page.locator(".scripted:visible").count() == 0


def test_what_a_model_wrote_stays_text(page):
    alerts = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    for summary in page.locator("details > summary").all():
        if summary.is_visible():
            summary.click()
    assert alerts == []
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1, "the page's own"
    assert page.get_by_text("<script>alert(1)</script>").count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_runs_out_of_the_page(folder, visit, scheme, width):
    path = write_report([folder], folder / "report.html")
    paths = [path, *[p for p in write_brief([folder], folder / "brief.md") if p.suffix == ".html"]]
    for path in paths:
        page = visit(path, color_scheme=scheme, viewport={"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        channels = [int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")]
        assert (sum(channels) > 384) == (scheme == "light")
        only_itself(page, path)


def test_the_page_can_be_used_by_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#runs thead') !== null"):
            break
    page.keyboard.press("Enter")
    assert page.locator("#runs thead th[aria-sort]").count() == 1


def test_of_many_runs_what_a_heading_opens_is_made_when_it_is_opened(tmp_path, visit):
    for index in range(51):
        result = made.result(run_id=f"run-{index}", config=made.result().config | {"seed": index}, seed=index)
        made.write_run(tmp_path / f"run-{index:02d}", result, made.samples(made.INJECTED) if index == 7 else None)
    path = write_report([tmp_path], tmp_path / "report.html")
    page = visit(path)
    assert page.locator("details.run table").count() == 0
    page.locator("#run-8 > summary").click()
    page.locator("#run-8 table").first.wait_for()
    assert page.get_by_text("<script>alert(1)</script>").count() > 0
    assert page.locator("#run-8 img").count() == 0
    assert page.locator("#run-8 svg").count() > 0
    page.goto(path.as_uri() + "#run-3")
    page.locator("#run-3 table").first.wait_for()
    assert page.messages == []


def test_settings_are_compared_where_there_are_several(page):
    section = page.locator("section[aria-labelledby=compared]")
    assert section.locator("tbody tr").count() == 3
    section.locator("thead th.attack button").first.click()
    first = section.locator("tbody tr th").first.inner_text()
    assert "adamw" in first
    assert not section.locator("pre").first.is_visible()
    section.get_by_text("How to make each row again").click()
    names = [row.split("\n")[0] for row in section.locator("tbody tr th").all_inner_texts()]
    made = dict(zip(section.locator("dt").all_inner_texts(), section.locator("dd").all_inner_texts(), strict=True))
    assert sorted(made) == sorted(names)
    assert all("letgo unlearn " in commands and "letgo attack " in commands for commands in made.values())


def test_the_brief_of_a_sweep_is_one_sheet_of_paper(tmp_path, visit):
    for index in range(24):
        made.write(
            tmp_path / f"run-{index:02d}",
            made.result(config=made.result().config | {"optimizer": f"method_{index // 2}", "seed": index % 2}),
        )
    page = visit(write_brief([tmp_path], tmp_path / "brief.md")[1])
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(prefer_css_page_size=True))) == 1
    assert page.get_by_text("run-23").count() == 1
    assert not page.get_by_text("run-23").is_visible()
    page.get_by_text("Where each number comes from").click()
    assert page.get_by_text("run-23").is_visible()


def test_the_live_page_shows_what_comes_by_itself_and_complains_of_nothing(folder, visit):
    import threading

    from letgo.report.viewer import Viewer

    with Viewer(folder) as viewer:
        thread = threading.Thread(target=viewer.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        page = visit(viewer.address)
        assert page.locator("#runs tbody tr").count() == 3
        made.write_run(folder / "3-late", made.result(run_id="late"))
        page.get_by_text("3-late").wait_for(timeout=120_000)
        page.get_by_text("1-fozo").click()
        page.get_by_role("heading", name="Training loss").wait_for()
        assert page.locator("img").count() == 0, "what a model wrote stays text"
        assert page.messages == []
        assert {url[: len(viewer.address)] for url in page.requested} <= {viewer.address, "data:,"}
        viewer.shutdown()
        thread.join()
