"""The verbatim benchmark: passages of the public domain that a pretrained model recites, some of them to forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from letgo.benchmarks.engine.base import Item, Sample, SetName, Text
from letgo.benchmarks.engine.continuations import Continued
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.benchmarks.engine.questions import means, of_set
from letgo.core.files import read_json_lines
from letgo.data.rows import Row, rows_from_records
from letgo.runs.results import ON_TRAINED_ROWS, TRAINED_ROWS, Metrics

ASSET = Path(__file__).parent / "assets" / "verbatim.jsonl"
SCORES = ("exact_match", "verbmem", "rouge", "probability")
SETS: Mapping[str, SetName] = {"forget": "forget", "retain": "retain", "unseen": "control"}


def verbatim() -> Verbatim:
    """Passages that SmolLM2-135M-Instruct (`smollm2`) recites: public documents of the United States to forget,
    scripture, verse and prose to keep, and passages that letgo invented, which no model has read.

    Trained on: each passage, up to the end of what is recited. Scored: the recited words behind those before them, by
    exact match, ROUGE-L (as MUSE's VerbMem, and as recall) and probability. The invented passages are the control: what
    a model scores on them is what it writes without having read them. Membership is tested between the passages to
    forget and the invented ones; general prose shows whether the model still writes text.
    """
    passages = load_passages()
    rows = {name: _rows([each for each in passages if each["set"] == name], name) for name in SETS}
    texts = [
        Text(name, f"{name} {number}", row.group, f"{row.context}{row.target}")
        for name, members in (("forget", rows["forget"]), ("holdout", rows["unseen"]))
        for number, row in enumerate(members)
    ]
    return Verbatim(
        name="verbatim",
        forget=rows["forget"],
        retain=rows["retain"],
        control=rows["unseen"],
        items=[Item(SETS[name], f"{name}/{row.group}", row.group, row) for name in SETS for row in rows[name]],
        texts=[*texts, *general_paragraphs(held_out=True)],
        template="plain",
        provenance={"on": TRAINED_ROWS},
        notes=(ON_TRAINED_ROWS,),
    )


@dataclass(frozen=True)
class Verbatim(Continued):
    """Prompts with the words that follow them; a passage is a group."""

    def metrics_of(self, samples: Sequence[Sample]) -> Metrics:
        metrics: Metrics = {}
        for name in SETS.values():
            metrics |= means(of_set(samples, name), name, SCORES)
        return metrics


def load_passages() -> list[dict[str, str]]:
    """Rows {set, work, source, prompt, continuation}, set "forget", "retain" or "unseen" (invented)."""
    return read_json_lines(ASSET)


def _rows(passages: Sequence[Mapping[str, str]], name: str) -> list[Row]:
    records = [
        {
            "prompt": each["prompt"],
            "completion": each["continuation"],
            "group": each["work"],
            # The passage goes on, or a model would learn to end it.
            "end": False,
        }
        for each in passages
    ]
    return rows_from_records(records, f"verbatim, {name} passages")
