"""The pages in a real browser: they sort, filter, keep what a model wrote as text, and ask for nothing from outside."""

from __future__ import annotations

import shutil

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
            attacks=[made.quantize(kept=kept, survived=kept >= 0.5)],
        )
        made.write_run(tmp_path / f"{index}-{optimizer}", result, made.samples(made.INJECTED))
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
    assert [name.split("-")[-1] for name in names()] == ["adamw", "fozo", "sophia"]
    heading = page.locator("#runs thead button", has_text="forget accuracy")
    heading.click()
    assert [name.split("-")[-1] for name in names()] == ["fozo", "sophia", "adamw"]
    assert page.locator("#runs thead th[aria-sort]").get_attribute("aria-sort") == "ascending"
    heading.click()
    assert [name.split("-")[-1] for name in names()] == ["adamw", "sophia", "fozo"]
    page.locator("#runs thead th.attack button").click()
    page.keyboard.press("Enter")
    assert [name.split("-")[-1] for name in names()] == ["fozo", "sophia", "adamw"]


def test_the_filter_leaves_the_rows_that_match_and_says_how_many(page):
    page.locator("#filter").fill("fozo")
    assert page.locator("#runs tbody tr:visible").count() == 1
    assert page.locator("#filter-told").inner_text() == "1 of 3 runs"
    page.locator("#filter").fill("")
    assert page.locator("#runs tbody tr:visible").count() == 3


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
