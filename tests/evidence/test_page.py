"""The page says what the result files say, and no more."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from letgo.core.errors import UserError
from letgo.evidence import ideas
from letgo.evidence.__main__ import app
from letgo.evidence.page import short, write_page
from letgo.evidence.records import grade_name, read_record, write_record
from letgo.evidence.text import rate
from tests.evidence import planted


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    collapsed = planted.cell(1, status="collapsed", reason="perplexity rose tenfold", robustness={}, attacks={})
    ladder = planted.record(
        planted.group("adamw"),
        planted.group("fozo", harmonic=0.7, passes={"forward": 72.0, "backward": 24.0}),
        planted.group("sophia", cells=[planted.cell(0), collapsed, planted.cell(2)]),
    )
    write_record(folder / "ladder-npo.json", ladder)
    write_record(folder / "tune-npo.json", planted.tuning())
    return folder


def page(folder):
    output = folder.parent / "docs" / "evidence.md"
    output.parent.mkdir(exist_ok=True)
    write_page(folder, output)
    return output.read_text(encoding="utf-8")


def row(text, *wanted):
    [found] = [line for line in text.splitlines() if line.startswith("|") and all(one in line for one in wanted)]
    return found


def test_each_claim_has_its_verdict(results):
    text = page(results)
    # R under that attack is the same for both: no difference was planted there.
    assert "**does not hold**" in row(text, "the hybrid is clearly ahead of Adam", "D2U")
    assert row(text, "The hybrid costs hardly more").endswith("FOZO takes 0.83 times the passes of AdamW |")
    assert row(text, "most robust of all grades", "D2U").endswith("| NPO: FOZO − AdamW 0.20 (0.20 to 0.20), n = 3 |")
    told = row(text.partition("most robust of all")[2].partition("### ")[2], "0.20 (0.20 to 0.20)", "0, 1, 2")
    assert told.endswith("| 0.703 (n = 3) against 0.503 (n = 3) | 120 against 144 | 7.00 against 7.00 | holds |")
    assert "**not testable here" in row(text, "On WMDP")
    assert "**not testable here**" in row(text, "Sophia, of the highest grade", "D2U")
    assert "AdaZO did not reach the target within the bound (NPO)" in text, "so says the tuning's file"
    # What can't be tested stands once, however many comparisons it spoils.
    spoiled = " ".join(text.partition("### 1. ")[2].partition("### 2. ")[0].split())
    assert spoiled.endswith(
        "Not testable here: SignAdam was not run (NPO); 4-bit was not run (NPO); 8-bit was not run (NPO)."
    )
    assert "The commands that make the runs: NPO `sh runs/evidence.sh npo`." in " ".join(text.split())


def test_what_failed_and_what_missed_is_listed(results):
    text = page(results)
    assert "| NPO | Sophia | 1 | collapsed | perplexity rose tenfold |" in text
    assert row(text, "NPO | AdaZO", "collapsed")
    assert "reached, chosen" in row(text, "NPO | AdamW", "0.40")
    assert "Sophia (!)" in text
    assert "1 of 3 runs collapsed or failed" in row(text, "| Sophia | 3e-4")
    left = " ".join(text.partition("## What was not done")[2].split())
    assert left.startswith("The ladder under GradDiff and RMU (its grid is in `recipes/evidence/`).")
    assert "fewer have, under NPO: AdamW 3, FOZO 3, Sophia 3." in left


def test_drawings_are_whole_files(results):
    text = page(results)
    names = re.findall(r"\]\((evidence/[^)]+\.svg)\)", text)
    assert len(names) == 2
    for name in names:
        root = ElementTree.parse(results.parent / "docs" / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        style = root.find("{http://www.w3.org/2000/svg}style").text
        assert "--after" in style
        assert "svg .mark" in style
        circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
        assert len(circles) == 3
        assert sum("hollow" in one.get("class") for one in circles) == 1, "what takes no part is hollow"


def test_the_page_is_the_same_twice_and_names_no_machine(results):
    assert page(results) == page(results)
    assert not re.search(r"/(tmp|root|work|home)/", page(results))


def test_without_results_or_with_broken_ones_it_says_so(results, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no result files"):
        write_page(empty, tmp_path / "evidence.md")
    (results / "ladder-npo.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"ladder-npo\.json:1"):
        write_page(results, tmp_path / "evidence.md")
    (results / "ladder-npo.json").write_text('{"schema": 1, "kind": "ladder"}', encoding="utf-8")
    with pytest.raises(UserError, match="field 'source'"):
        write_page(results, tmp_path / "evidence.md")


def test_a_result_file_is_read_as_it_was_written(results):
    found = read_record(results / "ladder-npo.json")
    assert found.group("FOZO").values("harmonic_mean") == {0: 0.7, 1: 0.75, 2: 0.66}
    assert json.loads((results / "ladder-npo.json").read_text())["schema"] == 1


def idea(**more):
    return planted.group("fozo", settings={"fo": "sign_adam"}, passes={"forward": 72.0, "backward": 24.0}, **more)


def test_an_idea_wins_only_at_no_more_passes_and_where_it_was_held_back():
    hybrid = planted.group("fozo", passes={"forward": 72.0, "backward": 24.0})
    ladder = planted.record(planted.group("adamw"), hybrid)
    assert ideas.verdict(idea(harmonic=0.7, q=0.99), ladder, hybrid) == "wins"
    assert ideas.verdict(idea(harmonic=0.7), ladder, hybrid) == "wins, but the held-back attacks don't confirm it"
    assert ideas.verdict(idea(harmonic=0.3), ladder, hybrid) == "does not win"
    assert ideas.verdict(None, ladder, hybrid, "SAM (on=forget, rho=0.2)") == "was not run"
    missed = ladder.model_copy(update={"missed": ["SAM (on=forget, rho=0.2)"]})
    assert (
        ideas.verdict(None, missed, hybrid, "SAM (on=forget, rho=0.2)") == "did not reach the target within the bound"
    )
    dear = idea(harmonic=0.9, q=0.99).model_copy(update={"passes": {"forward": 96.0, "backward": 48.0}})
    assert ideas.verdict(dear, ladder, hybrid) == "takes more passes than the hybrid"


def test_ideas_stand_in_the_page_whatever_came_of_them(results):
    assert "None of them has been run." in page(results)
    write_record(results / "ideas-npo.json", planted.record(idea(harmonic=0.3), kind="ideas"))
    text = page(results)
    for one in ideas.IDEAS:
        assert one.hypothesis in " ".join(text.split())
    overview, _, its_table = text.partition("## Beating the hybrid")[2].partition("Under NPO, each less")
    assert row(overview, "| FOZO (fo=sign_adam) |") == "| FOZO (fo=sign_adam) | does not win |"
    assert row(its_table, "| FOZO (fo=sign_adam) |").endswith("does not win |")
    assert "FOZO (fo=muon)" in text.partition("Not run there: ")[2].splitlines()[0]
    assert "| FOZO (fo=muon) |" not in text


def test_seeds_of_an_idea_are_counted_over_all_its_files(results):
    """Its further seeds may stand in the ladder's files, beside the grades'."""
    write_record(results / "ideas-npo.json", planted.record(idea(), kind="ideas"))
    further = idea(cells=[planted.cell(seed) for seed in (3, 4)])
    write_record(results / "ladder-npo-further.json", planted.record(further))
    left = " ".join(page(results).partition("## What was not done")[2].split())
    assert "fewer have, under NPO: AdamW 3, FOZO 3, Sophia 3." in left
    (results / "ladder-npo-further.json").unlink()
    left = " ".join(page(results).partition("## What was not done")[2].split())
    assert "fewer have, under NPO: AdamW 3, FOZO 3, Sophia 3, FOZO (fo=sign_adam) 3." in left


def test_names():
    assert grade_name("compressed", {"bits": 4}) == "4-bit"
    assert grade_name("fozo", {"fo_steps": 12, "zo_steps": 12, "zo_lr": 3e-5}) == "FOZO"
    assert grade_name("fozo", {"fo": "muon", "zo_steps": 12}) == "FOZO (fo=muon)"
    assert grade_name("fozo", {"fo": "muon", "fo_steps": 6, "zo_steps": 6, "zo_lr": 6e-5}) == "FOZO (fo=muon)"
    assert (
        grade_name("fozo", {"fo_steps": 6, "zo_steps": 6, "zo_lr": 9e-5})
        == "FOZO (fo_steps=6, zo_steps=6, zo_lr=9e-05)"
    )
    assert grade_name("sam", {"rho": 0.05}) == "SAM"
    assert short("relearn:steps=100,holdout=0,batch_size=4") == "relearn all, 100"
    assert short("relearn:data=benign,steps=20") == "relearn benign, 20"
    assert short("quantize:bits=3,symmetric=False") == "3-bit asymmetric"


def test_the_command_writes_the_page_and_refuses_in_one_line(results, tmp_path):
    done = CliRunner().invoke(app, ["page", str(results), "--output", str(tmp_path / "page.md")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.md").read_text().startswith("# Evidence")


def test_a_rate_has_all_its_digits():
    found = [rate(value) for value in (1.25e-4, 0.000029, 6e-5, 0.0028, 0.018, 1.0, None)]
    assert found == ["1.25e-4", "2.9e-5", "6e-5", "0.0028", "0.018", "1", "–"]
