"""The biographies benchmark: unlearn 20 fictional people of whom a tiny model knows everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from letgo.benchmarks import BENCHMARKS
from letgo.benchmarks.biographies.data import ASSETS, Biographies, Group, general_texts, people
from letgo.benchmarks.engine.base import Benchmark, Item, SetName, Text
from letgo.data.rows import Row, rows_from_records

GENERAL = 100
"""General texts in the retain set, and as many others to measure perplexity on."""


def biographies(*, seed: int = 0) -> Benchmark:
    """Facts about fictional people, and the biographies that tell them.

    Trained on: forget rows are the forget people's questions in their training wordings; retain rows the retain
    people's, their biographies, and plain sentences about nobody. Scored on: the same facts asked in wordings that
    these people were never asked in training (4-way choice, probability, ROUGE, truth ratio); perplexity of held-out
    plain sentences; and a membership test of the forget people's biographies against those of people whom no model
    has seen.

    Args:
        seed: which people; the shipped models know those of seed 0.
    """
    data = people(seed)
    trained, held_out = general_texts(seed)
    texts = [Text("general", f"general-{i}", f"general-{i}", text) for i, text in enumerate(held_out[:GENERAL])]
    groups: tuple[Literal["forget", "holdout"], ...] = ("forget", "holdout")
    for group in groups:
        texts += [Text(group, f"{group}-text-{r['person']}", r["person"], r["text"]) for r in data.texts(group)]
    return Benchmark(
        name="biographies",
        settings={"seed": seed},
        forget=_training_rows(data, "forget"),
        retain=[
            *_training_rows(data, "retain"),
            *_text_rows([(r["text"], r["person"]) for r in data.texts("retain")], "retain people"),
            *_text_rows([(text, "") for text in trained[:GENERAL]], "general"),
        ],
        items=_items(data, "forget", "forget") + _items(data, "retain", "retain"),
        texts=texts,
        headlines=BENCHMARKS.record("biographies").headlines,
        template="plain",
        references={"retrained": str(ASSETS / "retrained")} if seed == 0 else {},
    )


def _training_rows(data: Biographies, group: Group) -> list[Row]:
    records = [
        {"question": row["question"], "answer": row["answer"], "group": row["person"]}
        for row in data.training_rows(group)
    ]
    return rows_from_records(records, f"biographies, {group} people")


def _text_rows(texts: list[tuple[str, str]], name: str) -> list[Row]:
    records = [{"text": text, "group": person or None} for text, person in texts]
    return rows_from_records(records, f"biographies, {name} texts")


def _items(data: Biographies, group: Group, name: SetName) -> list[Item]:
    """One item a fact: its wordings that were not trained on take turns, so that every wording is asked."""
    items = []
    for number, record in enumerate(data.rows(group)):
        question = record["paraphrased_question"][number % len(record["paraphrased_question"])]
        items.append(_item(record | {"question": question}, name))
    return items


def _item(record: Mapping[str, Any], name: SetName) -> Item:
    person, fact = record["person"], record["fact"]
    [row] = rows_from_records(
        [{"question": record["question"], "answer": record["answer"], "group": person}], f"{person}, {fact}"
    )
    return Item(
        set=name,
        id=f"{person}/{fact}",
        group=person,
        row=row,
        wrong=tuple(record["perturbed_answer"]),
        paraphrase=record["paraphrased_answer"],
        wrong_paraphrases=tuple(record["perturbed_paraphrased_answer"]),
    )
