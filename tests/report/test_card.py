from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from letgo.report.answers import collect, marked
from letgo.report.card import write_model_card
from letgo.report.rendering import markdown
from tests.report.runs import INJECTED, metrics, quantize, result


def front_matter(path: Path) -> dict[str, object]:
    _, front, _ = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front)


def test_card_names_base_model_and_tables(tmp_path: Path):
    path = write_model_card(tmp_path, result())
    assert path == tmp_path / "README.md"
    front = front_matter(path)
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front["library_name"] == "transformers"
    assert isinstance(front["tags"], list)
    assert "unlearning" in front["tags"]
    text = path.read_text(encoding="utf-8")
    assert "| after | 0.50 (0.41–0.59; n 80) | 0.017 (0.014–0.019; n 80) |" in text
    assert "| 31 % | 23 % | 50 % | not survived |" in text
    assert "did not survive relearn" in text
    assert "hf_very_secret" not in text


@pytest.mark.parametrize("model", ["/home/someone/models/base", "biographies", "../base"])
def test_no_path_of_this_machine_in_a_card(tmp_path: Path, model: str):
    config = {"model": model, "forget": "/home/someone/data/forget.jsonl", "output_dir": "/home/someone/run"}
    path = write_model_card(tmp_path, result(config=config, attacks=[]))
    assert "base_model" not in front_matter(path)
    text = path.read_text(encoding="utf-8")
    assert "/home" not in text
    assert "forget.jsonl" in text
    assert "has not been attacked yet" in text


def test_card_survives_hostile_text(tmp_path: Path):
    value = result(
        status="collapsed",
        reasons=[INJECTED],
        config={"model": "a/b", "objective": "x | y\n---\n# z"},
        attacks=[quantize(settings={"a": "|<b>"})],
        references={"<i>": metrics(0.1, 0.1, 0.9, 14)},
    )
    path = write_model_card(tmp_path, value)
    tags = front_matter(path)["tags"]
    assert isinstance(tags, list)
    assert "letgo-collapsed" in tags
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert text.count("\n# ") == 1


def test_markdown_is_one_line_of_plain_text():
    assert markdown("a|b\n*c* `d` <e> [f](g)") == r"a\|b \*c\* \`d\` &lt;e> \[f\](g)"


def test_expected_answer_is_marked_as_a_word_only():
    assert marked("paris, not Parisian.", "Paris.") == [("paris", True), (", not Parisian.", False)]
    assert marked("a+b", "+") == [("a+b", False)]
    assert marked("text", "") == [("text", False)]


def test_first_seed_of_an_attack_is_the_one_shown():
    row = {"set": "forget", "id": "1", "question": "q", "answer": "a", "scores": {}}
    rows = [row | {"stage": "attack:x", "seed": s, "generated": f"seed {s}"} for s in (0, 1)]
    rows += [row | {"stage": "before", "seed": 0, "generated": "b"}, row | {"id": "2", "stage": "before", "seed": 0}]
    stages, questions = collect(rows, "forget")
    assert stages == ["before", "attack:x"]
    assert [question.identifier for question in questions] == ["1"]
    assert questions[0].answers["attack:x"].text == "seed 0"
