"""KnowUnDo: what must be forgotten beside what must not (arXiv 2407.01920; hub `zjunlp/KnowUnDo`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letgo.benchmarks.engine.base import Item, Sample, SetName, check_choice, checked_limit, spec_settings
from letgo.benchmarks.engine.continuations import Continued
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.benchmarks.engine.questions import means, of_set
from letgo.benchmarks.engine.tables import PINNED, Tables
from letgo.core.errors import UserError
from letgo.core.values import Count
from letgo.data.rows import Row, checked_text
from letgo.runs.results import Metrics

DOMAINS = ("copyright", "privacy")
SPLITS: Mapping[SetName, str] = {"forget": "unlearn", "retain": "retention"}
SCORES = ("rouge", "exact_match", "probability")
Pairs = list[tuple[str, Mapping[str, Any]]]


def knowundo(
    *,
    domain: str = "privacy",
    limit: Count | None = None,
    train_limit: Count | None = None,
    general: bool = True,
    data: str | None = None,
    revision: str | None = None,
) -> Knowundo:
    """Questions on one domain: what lies in the scope of unlearning, and what lies beside it and is to be kept.

    Trained on the part `train`, scored on the part `val`. As in the benchmark's code, question and answer are one text
    with an empty line between them.

    Args:
        domain: `privacy` (invented people) or `copyright` (books).
        limit: score at most so many questions of each set.
        train_limit: train on at most so many of each.
        general: also measure perplexity on letgo's own paragraphs, to tell a broken model from a forgetful one.
        data: a folder with the hub's layout, or with files DOMAIN/unlearn_train.json, unlearn_val.json,
            retention_train.json, retention_val.json, as the authors' repositories have them; by default LETGO_DATA's
            `knowundo`, else the hub.
        revision: another commit of the hub.

    Raises:
        UserError: an unknown domain, or data that can't be had.
    """
    settings = spec_settings(locals(), domain="privacy", general=True)
    check_choice("knowundo: domain", domain, DOMAINS)
    scored, trained = checked_limit(limit), checked_limit(train_limit)
    tables = PINNED["knowundo"].open(data=data, revision=revision)
    parts = {name: _parts(tables, domain, split) for name, split in SPLITS.items()}
    return Knowundo(
        name="knowundo",
        settings=settings,
        forget=_rows(parts["forget"]["train"][:trained], "forget"),
        retain=_rows(parts["retain"]["train"][:trained], "retain"),
        items=[
            Item(name, f"{name}/{number}", row.group, row)
            for name, part in parts.items()
            for number, row in enumerate(_rows(part["val"][:scored], name))
        ],
        texts=general_paragraphs(held_out=True) if general else [],
        template="plain",
        provenance={"domain": domain, **tables.provenance},
    )


@dataclass(frozen=True)
class Knowundo(Continued):
    """Questions whose answers a model is to go on with; each is a group."""

    def metrics_of(self, samples: Sequence[Sample]) -> Metrics:
        metrics: Metrics = {}
        for name in SPLITS:
            metrics |= means(of_set(samples, name), name, SCORES)
        return metrics


def _parts(tables: Tables, domain: str, split: str) -> dict[str, Pairs]:
    """The parts `train` and `val` of a split: two tables, or, as on the hub, one row that holds both as lists."""
    if (domain, f"{split}_train") in tables.layout:
        return {part: list(tables.table(domain, f"{split}_{part}").records) for part in ("train", "val")}
    [(where, whole), *_] = tables.table(domain, split, fields=("train", "val")).records
    parts: dict[str, Pairs] = {}
    for part in ("train", "val"):
        if not isinstance(whole[part], Sequence) or isinstance(whole[part], str) or not whole[part]:
            raise UserError(f"{where}: {part!r} must be a list of rows")
        parts[part] = [(f"{where}, {part} {number + 1}", row) for number, row in enumerate(whole[part])]
    return parts


def _rows(pairs: Pairs, name: str) -> list[Row]:
    rows = []
    for number, (where, pair) in enumerate(pairs):
        if not isinstance(pair, Mapping) or not {"text", "labels"} <= set(pair):
            raise UserError(f"{where}: a row must have the fields 'text' and 'labels'")
        question, answer = (checked_text(where, key, pair[key]) for key in ("text", "labels"))
        form = ("prompt", "completion")
        rows.append(Row(form, f"{question}\n\n", answer, f"{name} {number}", where, fields=dict(pair)))
    return rows
