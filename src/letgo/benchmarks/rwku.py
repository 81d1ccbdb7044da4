"""RWKU: forget famous people without a forget corpus of theirs (arXiv 2406.10890; hub `jinzhuoran/RWKU`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from letgo.benchmarks.engine.base import Item, Sample, check_choice, checked_limit, spec_settings
from letgo.benchmarks.engine.continuations import Continued
from letgo.benchmarks.engine.general_text import PARAGRAPHS_TRAINED, general_paragraphs, read_paragraphs
from letgo.benchmarks.engine.questions import means, of_set
from letgo.benchmarks.engine.tables import PINNED, Tables
from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.values import Count
from letgo.data.rows import Row, rows_from_records
from letgo.runs.results import Metrics

CORPORA: Mapping[str, str] = {
    "llama3": "train_positive_llama3",
    "phi3": "train_positive_phi3",
    "passage": "train_original_passage",
}
"""What is trained on: what a model wrote of a person, or Wikipedia's passage."""
PROBES: Mapping[str, Sequence[str]] = {
    "forget": ("forget_level1", "forget_level2", "forget_level3"),
    "retain": ("neighbor_level1", "neighbor_level2"),
}
BLANK = "Please complete the blank in the following question.\nQuestion: {query}"
ASKED = "Please briefly answer the following question.\nQuestion: {query}"
NEW_TOKENS = 30
SCORES = ("rouge", "probability")


def rwku(
    *,
    target: str | None = None,
    targets: Count = 1,
    corpus: str = "llama3",
    limit: Count | None = None,
    train_limit: Count | None = None,
    general: bool = True,
    data: str | None = None,
    revision: str | None = None,
) -> Rwku:
    """Some of RWKU's 200 people to forget, by probes of three levels; their neighbours to keep.

    Scored by ROUGE-L recall of greedy answers of 30 tokens, cut at the end of the line: blanks (level 1), questions
    (level 2), adversarial questions (level 3), and blanks and questions about neighbours. RWKU gives no corpus to keep:
    letgo's own paragraphs stand in.

    Args:
        target: one person by name, such as "Stephen King"; by default the first `targets` of the list.
        targets: how many people, where no name is given.
        corpus: what is trained on: `llama3` or `phi3` (texts that these models wrote of a person), or `passage`
            (Wikipedia's).
        limit: score at most so many probes of each level.
        train_limit: train on at most so many texts.
        general: also measure perplexity on letgo's own paragraphs, to tell a broken model from a forgetful one.
        data: a folder with the hub's layout; by default LETGO_DATA's `rwku`, else the hub.
        revision: another commit of the hub.

    Raises:
        UserError: an unknown person or corpus, or data that can't be had.
    """
    settings = spec_settings(locals(), targets=1, corpus="llama3", general=True)
    check_choice("rwku: corpus", corpus, CORPORA)
    scored, trained = checked_limit(limit), checked_limit(train_limit)
    tables = PINNED["rwku"].open(data=data, revision=revision)
    people = [row["target"] for row in tables.table("forget_target", texts=("target",)).rows]
    if target is not None and target not in people:
        raise UserError(f"rwku: no target {target!r}{did_you_mean(target, people)}; the list is forget_target")
    chosen = people[:targets] if target is None else [target]
    forget = [
        Row(("text",), "", row["text"], row["subject"], where, ends=False, fields=dict(row))
        for where, row in tables.table(CORPORA[corpus], texts=("text", "subject")).records
        if row["subject"] in chosen
    ][:trained]
    if not forget:
        raise UserError(f"rwku: {CORPORA[corpus]} has no text about {', '.join(chosen)}")
    prose = [{"text": paragraph} for paragraph in read_paragraphs()[:PARAGRAPHS_TRAINED]]
    return Rwku(
        name="rwku",
        settings=settings,
        forget=forget,
        retain=rows_from_records(prose, "general prose"),
        items=[
            item
            for name, probes in PROBES.items()
            for probe in probes
            for item in _probes(tables, name, probe, chosen)[:scored]
        ],
        texts=general_paragraphs(held_out=True) if general else [],
        provenance={"targets": chosen, **tables.provenance},
        least=NEW_TOKENS,
        stop=("\n",),
        notes=("rwku: it has no retain corpus; letgo's own paragraphs are trained on in its place",),
    )


@dataclass(frozen=True)
class Rwku(Continued):
    """Probes of people; a person is a group, and the neighbours' probes are of the person's group."""

    def metrics_of(self, samples: Sequence[Sample]) -> Metrics:
        """`forget_rouge` and `retain_rouge` over all levels, and each level's own (`forget_level2_rouge`)."""
        metrics: Metrics = {}
        for name, probes in PROBES.items():
            members = of_set(samples, name)
            metrics |= means(members, name, SCORES)
            for probe in probes:
                level = [sample for sample in members if sample.id.startswith(f"{probe}/")]
                metrics |= means(level, f"{name}_{probe.rpartition('_')[2]}", ("rouge",))
        return metrics


def _probes(tables: Tables, name: str, probe: str, people: Sequence[str]) -> list[Item]:
    wording = BLANK if probe.endswith("level1") else ASKED
    items = []
    for number, (where, row) in enumerate(tables.table(probe, "test", texts=("query", "answer", "subject")).records):
        if row["subject"] in people:
            # Such a query brings its own examples, each with "Question:" before it.
            own = str(row.get("type", "")) == "incontext learning"
            question = (ASKED.replace("Question: ", "") if own else wording).format(query=row["query"])
            asked = Row(("question", "answer"), question, row["answer"], row["subject"], where, fields=dict(row))
            items.append(Item(name, f"{probe}/{number}", row["subject"], asked, task=probe))
    return items
