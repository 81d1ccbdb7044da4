"""The documentation as a site: every page is on its menu, every link leads somewhere, no page is too long to read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import letgo

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
REFERENCES = {"objectives", "optimizers", "attacks", "data", "benchmarks", "judging", "sweeps"}
"""Pages to look something up in, which are as long as what they list."""
MOST_WORDS = 1500


class Loader(yaml.SafeLoader):
    """Reads a site's settings; what names Python objects is passed over."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def leaves(menu):
    for entry in menu if isinstance(menu, list) else menu.values():
        yield from [entry] if isinstance(entry, str) else leaves(entry)


def test_every_page_is_on_the_menu():
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    on_it = list(leaves(site["nav"]))
    assert len(on_it) == len(set(on_it))
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} <= set(on_it)
    assert all((ROOT / page).is_file() for page in on_it)


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: letgo\.(\w+)$", text, re.M)) == set(letgo.__all__) - {"__version__"}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_no_page_is_too_long_to_be_read(page):
    words = len(page.read_text(encoding="utf-8").split())
    assert words <= MOST_WORDS or page.stem in REFERENCES, words


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S))
    for link in links:
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
