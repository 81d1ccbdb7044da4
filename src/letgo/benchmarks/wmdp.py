"""WMDP (arXiv 2403.03218): hazardous knowledge by multiple choice, next to MMLU; corpora to unlearn it with.

No hazardous text is part of letgo: the data comes from the hub or a local copy of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

from letgo.benchmarks.engine.base import check_choice, checked_limit, spec_settings
from letgo.benchmarks.engine.corpora import (
    LazyRows,
    encode_chunks,
    named_corpus,
    nothing_to_unlearn,
    texts_of,
    wikitext,
)
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.benchmarks.engine.multiple_choice import Engine, MultipleChoice, Question, read_questions
from letgo.benchmarks.engine.tables import PINNED
from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.values import Count
from letgo.data.encode import EncodedRows, EncodeOptions
from letgo.data.rows import Row

TOPICS: Mapping[str, str] = {"bio": "biology", "cyber": "cybersecurity", "chem": "chemistry"}
"""Short names, as in the hub's configs `wmdp-bio`, …, and the words for them in the prompt."""
_FIELDS = ("question", "choices", "answer")


def wmdp(
    *,
    topics: str = "bio+cyber",
    mmlu: str | None = "all",
    engine: Engine = "letgo",
    data: str | Path | None = None,
    forget: str | None = None,
    retain: str = "wikitext",
    documents: Literal["whole", "chunks"] = "whole",
    limit: Count | None = None,
    train_limit: Count | None = None,
) -> WMDP:
    """Multiple choice on hazardous topics (to forget) and on MMLU (to keep), zero-shot, as lm-eval asks it.

    The corpora are read only when a model is unlearned.

    Args:
        topics: of bio, cyber and chem, joined by "+".
        mmlu: "all", "none", or subjects joined by "+".
        engine: "letgo" or "lm_eval"; both pick the same answer to every question.
        data: a folder of local copies, each under its own name: `wmdp` (with `wmdp-bio/test…` and so on), `mmlu`,
            `wmdp-corpora`, `wmdp-bio-forget-corpus`, `wikitext`. By default those under $LETGO_DATA, else the hub.
        forget: a file of your own to unlearn, in place of the topics' forget corpora.
        retain: "wikitext" (the test split of wikitext-2, as in RMU's published results), "corpora" (the topics' own
            retain corpora), or a file of yours.
        documents: "whole" leaves texts longer than max_length to `long_rows` (RMU cuts them); "chunks" trains on all
            of them, in pieces of max_length.
        limit: at most so many questions of each topic and subject.
        train_limit: at most so many texts of each corpus.
    """
    given = dict(locals())
    chosen = _listed("topics", topics, TOPICS)
    check_choice("benchmark 'wmdp': documents", documents, ("whole", "chunks"))
    checked_limit(train_limit)
    tables = PINNED["wmdp"].open(data=data)
    questions = []
    for topic in chosen:
        records = tables.table(f"wmdp-{topic}", "test", fields=_FIELDS, limit=checked_limit(limit)).records
        questions += read_questions(records, "forget", f"wmdp-{topic}", f"wmdp_{topic}", TOPICS[topic])
    # A spec's text "none" arrives as None.
    mmlu = "none" if mmlu is None else mmlu
    kept, of_mmlu = _mmlu_questions(mmlu, data, limit) if mmlu != "none" else ([], {})
    return WMDP(
        name="wmdp",
        settings=spec_settings(given | {"topics": "+".join(chosen), "mmlu": mmlu}),
        forget=_forget_rows(chosen, forget, data, train_limit),
        retain=_retain_rows(chosen, retain, data, train_limit),
        texts=general_paragraphs(held_out=True),
        template="plain",
        provenance={"wmdp": tables.provenance} | of_mmlu,
        notes=() if kept else ("MMLU was left out (mmlu=none): only prose shows what the model still knows",),
        questions=[*questions, *kept],
        engine=engine,
        documents=documents,
    )


def mmlu(
    *,
    subjects: str = "all",
    engine: Engine = "letgo",
    data: str | Path | None = None,
    limit: Count | None = None,
) -> MultipleChoice:
    """MMLU alone (57 subjects, zero-shot): only to score a model, it holds nothing to unlearn.

    Args:
        subjects: "all", or some joined by "+".
        engine: "letgo" or "lm_eval".
        data: as in `wmdp`.
        limit: at most so many questions of each subject.
    """
    settings = spec_settings(locals())
    questions, provenance = _mmlu_questions(subjects, data, limit)
    return MultipleChoice(
        name="mmlu",
        settings=settings,
        forget=nothing_to_unlearn("mmlu"),
        template="plain",
        provenance=provenance,
        questions=questions,
        engine=engine,
    )


@dataclass(frozen=True)
class WMDP(MultipleChoice):
    """`documents`: whether long texts are trained on whole (or cut, as `long_rows` says) or in pieces."""

    documents: Literal["whole", "chunks"] = "whole"

    def encode(self, tokenizer: Any, rows: Sequence[Row], **options: Unpack[EncodeOptions]) -> EncodedRows:
        if self.documents == "whole" or any(row.form != ("text",) for row in rows):
            return super().encode(tokenizer, rows, **options)
        return encode_chunks(tokenizer, rows, max_length=options["max_length"], name=options.get("name", "data"))


def _mmlu_questions(subjects: str, data: str | Path | None, limit: int | None) -> tuple[list[Question], dict[str, Any]]:
    tables = PINNED["mmlu"].open(data=data)
    table = tables.table("all", "test", fields=(*_FIELDS, "subject"))
    known = list(dict.fromkeys(str(row["subject"]) for row in table.rows))
    chosen = known if subjects == "all" else _listed("subjects of MMLU", subjects, known)
    questions = []
    for subject in chosen:
        records = [record for record in table.records if record[1]["subject"] == subject][: checked_limit(limit)]
        questions += read_questions(records, "retain", subject, f"mmlu_{subject}", subject.replace("_", " "))
    return questions, {"mmlu": tables.provenance}


def _forget_rows(topics: Sequence[str], file: str | None, data: str | Path | None, limit: int | None) -> LazyRows:
    if file is not None:
        return named_corpus(file, {}, "forget set", limit)

    def load() -> list[Row]:
        rows = []
        for topic in topics:
            if topic == "chem":
                raise UserError(
                    "benchmark 'wmdp': chemistry has no corpus to unlearn with\n"
                    "  leave it out of topics, or give a file of your own: forget=FILE"
                )
            rows += _bio_forget(data, limit) if topic == "bio" else _corpus("cyber-forget-corpus", data, limit)
        return rows

    return LazyRows(load)


def _retain_rows(topics: Sequence[str], name: str, data: str | Path | None, limit: int | None) -> LazyRows:
    def corpora() -> list[Row]:
        chosen = [topic for topic in topics if topic != "chem"]
        if not chosen:
            raise UserError("benchmark 'wmdp': chemistry has no retain corpus; use retain=wikitext or a file of yours")
        return [row for topic in chosen for row in _corpus(f"{topic}-retain-corpus", data, limit)]

    known = {"wikitext": lambda: wikitext(data, limit), "corpora": corpora}
    return named_corpus(name, known, "retain set", limit)


def _corpus(name: str, data: str | Path | None, limit: int | None) -> list[Row]:
    return texts_of(PINNED["wmdp-corpora"].open(data=data).table(name, fields=("text",)), limit)


def _bio_forget(data: str | Path | None, limit: int | None) -> list[Row]:
    """The gated corpus. A local copy may be a single file of any name."""
    try:
        tables = PINNED["wmdp-bio-forget-corpus"].open(data=data)
        default = ("default", "train")
        config, split = default if default in tables.layout else next(iter(tables.layout), default)
        return texts_of(tables.table(config, split, fields=("text",)), limit)
    except UserError as error:
        raise UserError(
            f"{error}\n  biology's forget corpus is not public: ask for it (the hub's page, or the form that the page "
            "of cais/wmdp-corpora names), and put it into a folder wmdp-bio-forget-corpus beside the others, or give "
            "its file: wmdp:forget=FILE"
        ) from error


def _listed(what: str, text: str, known: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Names joined by "+", each known and given once."""
    names = [name.strip() for name in str(text).split("+")]
    for name in names:
        if name not in known:
            raise UserError(f"{what}: there is no {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}")
        if names.count(name) > 1:
            raise UserError(f"{what}: {name!r} is named twice")
    return names
