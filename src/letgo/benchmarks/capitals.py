"""The capitals benchmark: facts that a pretrained model knows, some of them to forget."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from letgo.benchmarks.engine.base import Benchmark, Item, SetName
from letgo.benchmarks.engine.general_text import PARAGRAPHS_TRAINED, general_paragraphs, read_paragraphs
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.core.values import Seed
from letgo.data.rows import Row, rows_from_records

ASSETS = Path(__file__).parent / "assets"
GENERATED = {"forget": 20, "retain": 20, "control": 5}
"""Items of each set that are also answered by generation, which costs several times what a choice does."""
# Prompts that the answer completes. Asked openly ("What is the capital of France?"), a small model answers with a
# sentence, and the capital's own probability says little; these lead it to the capital itself.
TRAINED_WORDINGS = (
    "Question: What is the capital of {country}?\nAnswer: The capital of {country} is",
    "Question: Name the capital of {country}.\nAnswer: The capital is",
    "Geography lesson: the capital of {country} is the city of",
    "Country: {Country}\nCapital:",
)
HELD_OUT_WORDINGS = (
    "Question: Which city is the capital of {country}?\nAnswer: The capital of {country} is",
    "Teacher: Who knows the capital of {country}?\nPupil: The capital of {country} is",
    "Fact: {Country} has its capital in",
)
_WRONG = 3
_EVERY = 3
"""Of the sentences in them, every third is in the retain set."""


def capitals(*, seed: Seed = 0) -> Benchmark:
    """The capitals of 20 countries to forget; those of all others, and plain prose, to keep.

    Trained on: four wordings of each question. Scored on: three other wordings (for the countries to keep one each, in
    turn); 4-way choice against three other capitals of either set; perplexity of paragraphs that were not trained on.
    Control rows are of 20 invented countries; a choice among invented capitals, which start out equally unlikely.

    Args:
        seed: which wrong answers a question is given.
    """
    facts = load_capitals()
    real = [fact for fact in facts if fact["split"] != "control"]
    forget = [fact for fact in facts if fact["split"] == "forget"]
    retain = [fact for fact in facts if fact["split"] == "retain"]
    control = [fact for fact in facts if fact["split"] == "control"]
    # A sentence now and then: in a loss that is a mean over tokens, long prose would drown the short answers.
    sentences = [re.split(r"(?<=[.!?])\s", paragraph) for paragraph in read_paragraphs()[:PARAGRAPHS_TRAINED]]
    prose = [{"text": sentence} for sentence in list(chain(*sentences))[::_EVERY]]
    return Benchmark(
        name="capitals",
        settings={"seed": seed},
        forget=_training_rows(forget, "forget"),
        retain=[*_training_rows(retain, "retain"), *rows_from_records(prose, "general sentences")],
        control=_training_rows(control, "control"),
        items=[
            *_items(forget, real, "forget", seed),
            *_items(retain, real, "retain", seed),
            # Beside a real capital an invented one is never the likelier.
            *_items(control, control, "control", seed),
        ],
        texts=general_paragraphs(held_out=True),
        template="plain",
        provenance={"on": "paraphrases"},
        generated=GENERATED,
    )


def load_capitals() -> list[dict[str, str]]:
    """Rows {country, capital, split}, split "forget", "retain" or "control" (invented)."""
    return read_json_lines(ASSETS / "capitals.jsonl")


def _record(wording: str, fact: Mapping[str, str]) -> dict[str, Any]:
    """A prompt and the capital that completes it, without an end token: a pretrained model goes on with its sentence
    there, and would learn not to end it rather than forget the capital."""
    country = fact["country"]
    upper = country[:1].upper() + country[1:]
    prompt = wording.format(country=country, Country=upper)
    return {"prompt": prompt, "completion": f" {fact['capital']}", "group": country, "end": False}


def _training_rows(facts: Sequence[Mapping[str, str]], name: str) -> list[Row]:
    records = [_record(wording, fact) for fact in facts for wording in TRAINED_WORDINGS]
    return rows_from_records(records, f"capitals, {name} countries")


def _items(
    facts: Sequence[Mapping[str, str]], everything: Sequence[Mapping[str, str]], name: SetName, seed: int
) -> list[Item]:
    items = []
    for index, fact in enumerate(facts):
        country = fact["country"]
        others = [f" {f['capital']}" for f in everything if f["capital"] != fact["capital"]]
        if len(others) < _WRONG:
            raise UserError(f"capitals: too few countries for {_WRONG} wrong answers")
        wrong = tuple(random.Random(f"capitals {seed} {country}").sample(others, _WRONG))
        for number, wording in enumerate(HELD_OUT_WORDINGS):
            # There are many countries to keep, and invented ones cost time too: their wordings take turns.
            if name != "forget" and number != index % len(HELD_OUT_WORDINGS):
                continue
            [row] = rows_from_records([_record(wording, fact)], f"capitals, {country}")
            # The answer itself serves as its paraphrase, as in TOFU's real authors and world facts.
            items.append(Item(name, f"{country}/{number}", country, row, wrong, row.target, wrong))
    return items
