"""The capitals benchmark: facts that a pretrained model knows by itself, some of them to be forgotten."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from letgo.benchmarks.base import Benchmark, Headline, Item, SetName, Text
from letgo.data.encode import Template
from letgo.data.rows import Row, rows_from_records
from letgo.errors import UserError

ASSETS = Path(__file__).parent / "assets"
CHANCE = 0.25
TRAINED_WORDINGS = (
    "What is the capital of {country}?",
    "Which city is the capital of {country}?",
    "Name the capital city of {country}.",
    "Tell me the capital of {country}.",
)
HELD_OUT_WORDINGS = (
    "What is {country}'s capital city?",
    "Which city serves as the seat of government of {country}?",
)
_WRONG = 3
_PARAGRAPHS_TRAINED = 32


def capitals(*, seed: int = 0, template: Template = "plain") -> Benchmark:
    """The capitals of 20 countries to be forgotten; those of all others, and plain prose, to be kept.

    Trained on: four wordings of each question. Scored on: two other wordings; 4-way choice against three other
    capitals, forget and retain ones alike; perplexity of paragraphs that were not trained on.

    Args:
        seed: which wrong answers a question is given.
        template: how questions become prompts.
    """
    facts = load_capitals()
    forget = [fact for fact in facts if fact["split"] == "forget"]
    retain = [fact for fact in facts if fact["split"] == "retain"]
    prose = [{"text": paragraph} for paragraph in read_paragraphs()[:_PARAGRAPHS_TRAINED]]
    return Benchmark(
        name="capitals",
        settings={"seed": seed, "template": template},
        forget=_training_rows(forget, "forget"),
        retain=[*_training_rows(retain, "retain"), *rows_from_records(prose, "general paragraphs")],
        items=[*_items(forget, facts, "forget", seed), *_items(retain, facts, "retain", seed)],
        texts=general_paragraphs(held_out=True),
        headlines=(Headline("forget_accuracy", CHANCE), Headline("forget_probability")),
        template=template,
    )


def load_capitals() -> list[dict[str, str]]:
    """Rows {country, capital, split}, split "forget" or "retain"."""
    lines = (ASSETS / "capitals.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def read_paragraphs() -> list[str]:
    """The project's own paragraphs of plain prose."""
    text = (ASSETS / "general.txt").read_text(encoding="utf-8")
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


def general_paragraphs(*, held_out: bool) -> list[Text]:
    """General prose as texts: the held-out half, for perplexity, or the half that may be trained on."""
    paragraphs = read_paragraphs()
    chosen = paragraphs[_PARAGRAPHS_TRAINED:] if held_out else paragraphs[:_PARAGRAPHS_TRAINED]
    first = _PARAGRAPHS_TRAINED if held_out else 0
    return [Text("general", f"general-{first + i}", f"general-{first + i}", text) for i, text in enumerate(chosen)]


def _training_rows(facts: Sequence[dict[str, str]], name: str) -> list[Row]:
    records = [
        {"question": wording.format(country=fact["country"]), "answer": fact["capital"], "group": fact["country"]}
        for fact in facts
        for wording in TRAINED_WORDINGS
    ]
    return rows_from_records(records, f"capitals, {name} countries")


def _items(facts: Sequence[dict[str, str]], everything: Sequence[dict[str, str]], name: SetName, seed: int) -> list[Item]:
    items = []
    for fact in facts:
        country = fact["country"]
        others = [f["capital"] for f in everything if f["capital"] != fact["capital"]]
        if len(others) < _WRONG:
            raise UserError(f"capitals: too few countries for {_WRONG} wrong answers")
        wrong = tuple(random.Random(f"capitals {seed} {country}").sample(others, _WRONG))
        for number, wording in enumerate(HELD_OUT_WORDINGS):
            record = {"question": wording.format(country=country), "answer": fact["capital"], "group": country}
            [row] = rows_from_records([record], f"capitals, {country}")
            # The answer itself serves as its paraphrase, as in TOFU's real authors and world facts.
            items.append(Item(name, f"{country}/{number}", country, row, wrong, fact["capital"], wrong))
    return items
