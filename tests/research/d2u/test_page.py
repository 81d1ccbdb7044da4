"""The page says what the result files say, and no more."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from letgo import UserError
from research.d2u import ideas
from research.d2u.__main__ import app
from research.d2u.markdown import paragraphs, rate
from research.d2u.page import short, write_page
from research.d2u.records import read_record, write_record
from tests.research.d2u import planted

FILE = "biographies-npo.json"
CHEAP = {"forward": 72.0, "backward": 24.0}


@pytest.fixture
def results(tmp_path):
    collapsed = planted.run(1, status="collapsed", reason="perplexity rose tenfold", robustness={}, attacks={})
    record = planted.record(
        planted.setting("AdamW"),
        planted.setting("FOZO", harmonic=0.7, passes=CHEAP),
        planted.setting("Sophia", runs=[planted.run(0), collapsed, planted.run(2)]),
        tuning=[
            planted.tuning("AdamW", low="missed", high="reached"),
            planted.tuning("AdaZO", low="missed", high="collapsed"),
        ],
    )
    write_record(tmp_path / "results" / FILE, record)
    return tmp_path / "results"


def page(folder):
    output = folder.parent / "evidence.md"
    write_page(folder, output)
    return output.read_text(encoding="utf-8")


def add(results, *settings):
    record = read_record(results / FILE)
    write_record(results / FILE, record.model_copy(update={"settings": [*record.settings, *settings]}))


def row(text, *wanted):
    rows = [line for line in text.splitlines() if line.startswith("|") and all(word in line for word in wanted)]
    assert len(rows) == 1, rows
    return rows[0]


def test_each_claim_has_its_verdict(results):
    text = page(results)
    # R under that attack is the same for both: no difference was planted there.
    assert "**does not hold**" in row(text, "the hybrid is clearly ahead of Adam", "D2U")
    assert row(text, "The hybrid costs hardly more").endswith("FOZO takes 0.83 times the passes of AdamW |")
    assert row(text, "most robust of all grades", "D2U").endswith("| NPO: FOZO − AdamW 0.20 (0.20 to 0.20), n = 3 |")
    finding = row(text.partition("most robust of all")[2].partition("### ")[2], "0.20 (0.20 to 0.20)", "0, 1, 2")
    assert finding.endswith("| 0.703 (n = 3) against 0.503 (n = 3) | 120 against 144 | 7.00 against 7.00 | holds |")
    assert "**not testable here" in row(text, "On WMDP")
    assert "**not testable here**" in row(text, "Sophia, of the highest grade", "D2U")
    assert "AdaZO did not reach the target within the bound (NPO)" in text, "the tuning says so"
    # What cannot be tested stands once, however many comparisons it spoils.
    spoiled = " ".join(text.partition("### 1. ")[2].partition("### 2. ")[0].split())
    assert spoiled.endswith(
        "Not testable here: SignAdam was not run (NPO); 4-bit was not run (NPO); 8-bit was not run (NPO)."
    )
    assert "commands make the runs: NPO `sh research/d2u/run.sh biographies/npo`." in " ".join(text.split())


def test_what_failed_and_what_missed_is_listed(results):
    text = page(results)
    assert "| NPO | Sophia | 1 | collapsed | perplexity rose tenfold |" in text
    assert row(text, "NPO | AdaZO", "collapsed")
    assert "reached, chosen" in row(text, "NPO | AdamW", "0.40")
    assert "Sophia (!)" in text
    assert "1 of 3 runs collapsed or failed" in row(text, "| Sophia | 3e-4")
    left = " ".join(text.partition("## What was not done")[2].split())
    assert left.startswith("- The experiments under GradDiff and RMU on biographies.")
    assert "These have fewer: NPO: AdamW 3, FOZO 3, Sophia 3." in left


def test_drawings_are_whole_files(results):
    text = page(results)
    names = re.findall(r"\]\((evidence/[^)]+\.svg)\)", text)
    assert len(names) == 2
    for name in names:
        root = ElementTree.parse(results.parent / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in root.find("{http://www.w3.org/2000/svg}style").text
        circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
        assert len(circles) == 3
        assert sum("hollow" in circle.get("class") for circle in circles) == 1, "what takes no part is hollow"


def test_the_page_is_the_same_twice_has_no_gaps_and_names_no_machine(results):
    text = page(results)
    assert page(results) == text
    assert not re.search(r"/(tmp|root|work|home)/", text)
    assert not re.search(r"\{[a-z_]+\}", text), "a part of the template that was not filled in"


def test_without_results_or_with_broken_ones_it_says_so(results, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no result files"):
        write_page(empty, tmp_path / "evidence.md")
    (results / FILE).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"biographies-npo\.json:1"):
        write_page(results, tmp_path / "evidence.md")
    (results / FILE).write_text('{"schema": 2, "testbed": "biographies"}', encoding="utf-8")
    with pytest.raises(UserError, match="field 'objective'"):
        write_page(results, tmp_path / "evidence.md")


def test_a_result_file_is_read_as_it_was_written(results):
    record = read_record(results / FILE)
    assert record.setting("FOZO").values("harmonic_mean") == {0: 0.7, 1: 0.75, 2: 0.66}
    assert json.loads((results / FILE).read_text())["schema"] == 2


def idea(**more):
    return planted.setting("FOZO (fo=sign_adam)", **({"passes": CHEAP} | more))


def test_an_idea_wins_only_at_no_more_passes_and_where_the_held_back_attacks_confirm_it():
    def verdict(*more, **changes):
        hybrid = planted.setting("FOZO", passes=CHEAP)
        return ideas.verdict(planted.record(planted.setting("AdamW"), hybrid, *more, **changes), "FOZO (fo=sign_adam)")

    assert verdict(idea(harmonic=0.7, q=0.99)) == "wins"
    assert verdict(idea(harmonic=0.7)) == "wins, but the held-back attacks don't confirm it"
    assert verdict(idea(harmonic=0.3)) == "does not win"
    assert verdict() == "was not run"
    missed = [planted.tuning("FOZO (fo=sign_adam)", low="missed")]
    assert verdict(tuning=missed) == "did not reach the target within the bound"
    dear = idea(harmonic=0.9, q=0.99, passes={"forward": 96.0, "backward": 48.0})
    assert verdict(dear) == "takes more passes than the hybrid"


def test_ideas_stand_in_the_page_whatever_came_of_them(results):
    assert "None of them has been run." in page(results)
    add(results, idea(harmonic=0.3))
    text = page(results)
    for tried in ideas.IDEAS:
        assert tried.hypothesis in " ".join(text.split())
    overview, _, its_table = text.partition("## Beating the hybrid")[2].partition("NPO: each idea's figure less")
    assert row(overview, "| FOZO (fo=sign_adam) |") == "| FOZO (fo=sign_adam) | does not win |"
    assert row(its_table, "| FOZO (fo=sign_adam) |").endswith("does not win |")
    assert "FOZO (fo=muon)" in text.partition("Not run here: ")[2].partition("\n\n")[0]
    assert "| FOZO (fo=muon) |" not in text


def test_ideas_are_counted_among_those_with_few_seeds(results):
    add(results, idea())
    left = " ".join(page(results).partition("## What was not done")[2].split())
    assert "These have fewer: NPO: AdamW 3, FOZO 3, Sophia 3, FOZO (fo=sign_adam) 3." in left


def test_names_and_numbers():
    assert short("relearn:steps=100,holdout=0,batch_size=4") == "relearn all, 100"
    assert short("relearn:data=benign,steps=20") == "relearn benign, 20"
    assert short("quantize:bits=3,symmetric=False") == "3-bit asymmetric"
    # A rate has all its digits.
    rates = [rate(value) for value in (1.25e-4, 0.000029, 6e-5, 0.0028, 0.018, 1.0)]
    assert rates == ["1.25e-4", "2.9e-5", "6e-5", "0.0028", "0.018", "1"]


def test_paragraphs_and_items_are_wrapped_and_tables_are_not():
    long = " ".join(["word"] * 40)
    text = paragraphs(f"# {long}\n\n{long}\n\n- {long}\n- short\n\n| {long} |")
    heading, paragraph, items, table = text.split("\n\n")
    assert (heading, table) == (f"# {long}", f"| {long} |")
    assert max(map(len, paragraph.splitlines())) <= 120
    assert [line[:2] for line in items.splitlines()] == ["- ", "  ", "- "]


def test_the_command_writes_the_page(results, tmp_path):
    done = CliRunner().invoke(app, ["page", "--results", str(results), "--output", str(tmp_path / "page.md")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.md").read_text().startswith("# Evidence")
