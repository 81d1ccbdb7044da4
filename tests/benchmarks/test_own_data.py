"""The example of docs/own-data.md, run as it stands there."""

from __future__ import annotations

import re

import pytest

from letgo.report.wording import wording_caution
from letgo.runs.results import ON_TRAINED_ROWS, read_result
from tests.doc_commands import ROOT, commands_of, files_of

TEXT = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
FILES = files_of(TEXT)
COMMANDS = [command.words for command in commands_of("own-data.md", TEXT)]
METRICS = re.findall(r"^  (\w+) +[\d.]+  \[.+\]  (n=\d+)$", TEXT, flags=re.MULTILINE)


def test_the_page_has_what_the_example_needs():
    assert list(FILES) == ["forget.jsonl", "retain.jsonl", "control.jsonl", "plain.jsonl", "asked.jsonl"]
    assert [words[0] for words in COMMANDS] == [
        "unlearn",
        "attack",
        "report",
        "brief",
        "eval",
        "unlearn",
        "eval",
        "eval",
    ]
    assert len(METRICS) == 7


@pytest.mark.slow
def test_the_example_runs_and_its_pages_say_what_the_page_says(letgo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    printed = []
    for words in COMMANDS:
        code, out, err = letgo(*words)
        assert code == 0, err
        printed.append(out)
    whole, in_a_file, bare = (printed[index] for index in (4, 6, 7))
    for name, n in METRICS:
        assert re.search(rf"^  {name} .* {n}$", whole, flags=re.MULTILINE), name
    assert ON_TRAINED_ROWS not in whole + in_a_file
    assert ON_TRAINED_ROWS in bare
    brief = (tmp_path / "brief.md").read_text(encoding="utf-8")
    for said in ("asked in 8 questions that were not trained on", "asked in 2 questions that were not trained on"):
        assert f'"{said}"' in TEXT
    assert "asked in 8 questions that were not trained on." in brief
    run, other = read_result(tmp_path / "run"), read_result(tmp_path / "other-run")
    assert (run.config["scored"]["on"], run.config["control"]) == ("paraphrases", "control.jsonl")
    assert other.config["scored"]["on"] == "asked.jsonl"
    assert {"control_accuracy", "trained_accuracy"} <= run.before.keys() & run.after.keys()
    assert run.before["forget_probability"].value > 0.9 > 0.3 > run.before["control_probability"].value
    caution = wording_caution(run.model_copy(update={"config": {"scored": {"on": "trained rows"}}}))
    assert f'"{caution}"' in TEXT
