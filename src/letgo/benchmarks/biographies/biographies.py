"""The biographies benchmark: unlearn 20 fictional people of whom a tiny model knows everything."""

from __future__ import annotations

from typing import Literal

from letgo.benchmarks.biographies.data import ASSETS, Biographies, PersonGroup, general_texts, people
from letgo.benchmarks.engine.base import Benchmark, Item, Text
from letgo.benchmarks.engine.questions import MEMBERSHIP
from letgo.core.values import Seed
from letgo.data.rows import Row, read_rows

GENERAL = 100
"""General texts in the retain set, and as many others to measure perplexity on."""


def biographies(*, seed: Seed = 0) -> Benchmark:
    """Facts about fictional people, and the biographies that tell them.

    Trained on: forget rows are the forget people's questions in their training wordings; retain rows are the retain
    people's, their biographies, and plain sentences about nobody. Scored on: the same facts in wordings that training
    never uses for these people (4-way choice, probability, ROUGE, truth ratio); perplexity of held-out plain sentences;
    and a membership test of the forget people's biographies against those of people whom no model has seen.

    Args:
        seed: which people; the shipped models know those of seed 0.
    """
    data = people(seed)
    trained, held_out = general_texts(seed)
    texts = [Text("general", f"general-{i}", f"general-{i}", text) for i, text in enumerate(held_out[:GENERAL])]
    for group in MEMBERSHIP:
        texts += [Text(group, f"{group}-text-{r['person']}", r["person"], r["text"]) for r in data.texts(group)]
    biographies = [{"text": r["text"], "group": r["person"]} for r in data.texts("retain")]
    return Benchmark(
        name="biographies",
        settings={"seed": seed},
        forget=_training_rows(data, "forget"),
        retain=[
            *_training_rows(data, "retain"),
            *read_rows(biographies, name="biographies, retain people texts"),
            *read_rows(
                [{"text": text, "group": None} for text in trained[:GENERAL]], name="biographies, general texts"
            ),
        ],
        items=_items(data, "forget") + _items(data, "retain"),
        texts=texts,
        template="plain",
        provenance={"on": "paraphrases"},
        references={"retrained": str(ASSETS / "retrained")} if seed == 0 else {},
    )


def _training_rows(data: Biographies, group: PersonGroup) -> list[Row]:
    rows = data.training_rows(group)
    records = [{"question": row["question"], "answer": row["answer"], "group": row["person"]} for row in rows]
    return read_rows(records, name=f"biographies, {group} people")


def _items(data: Biographies, name: Literal["forget", "retain"]) -> list[Item]:
    """One item for each fact: its wordings that were not trained on take turns, so that every wording is asked."""
    items = []
    for number, record in enumerate(data.rows(name)):
        person, fact, questions = record["person"], record["fact"], record["paraphrased_question"]
        asked = {"question": questions[number % len(questions)], "answer": record["answer"], "group": person}
        [row] = read_rows([asked], name=f"{person}, {fact}")
        items.append(
            Item(
                set=name,
                id=f"{person}/{fact}",
                group=person,
                row=row,
                wrong=tuple(record["perturbed_answer"]),
                paraphrase=record["paraphrased_answer"],
                wrong_paraphrases=tuple(record["perturbed_paraphrased_answer"]),
            )
        )
    return items
