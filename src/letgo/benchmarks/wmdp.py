"""WMDP (arXiv 2403.03218): hazardous knowledge by multiple choice, next to MMLU; corpora to unlearn it with.

No hazardous text is part of letgo: the data comes from the hub or a local copy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from letgo.benchmarks import BENCHMARKS
from letgo.benchmarks.engine.base import checked_limit, spec_settings
from letgo.benchmarks.engine.corpora import LazyRows, encode_chunks, named_corpus, opened, texts_of, wikitext
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.benchmarks.engine.multiple_choice import Engine, MultipleChoice, Question, read_questions
from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.data.encode import Encoded, LongRows, Template
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
    limit: int | None = None,
    train_limit: int | None = None,
) -> WMDP:
    """Multiple choice on hazardous topics (to be forgotten) and on MMLU (to be kept), zero-shot, as lm-eval asks them.

    The corpora are read only when a model is unlearned.

    Args:
        topics: of bio, cyber and chem, joined by "+".
        mmlu: "all", "none", or subjects joined by "+".
        engine: "letgo" or "lm_eval"; both pick the same answer to every question.
        data: a folder of local copies, each under its own name: `wmdp` (with `wmdp-bio/test…` and so on), `mmlu`,
            `wmdp-corpora`, `wmdp-bio-forget-corpus`, `wikitext`. By default those under $LETGO_DATA, else the hub.
        forget: a file of your own to unlearn, in place of the topics' forget corpora.
        retain: "wikitext" (the test split of wikitext-2, what RMU's published results are with), "corpora" (the
            topics' own retain corpora), or a file of yours.
        documents: "whole" leaves texts longer than max_length to `long_rows` (RMU cuts them); "chunks" trains on all
            of them, in pieces of max_length.
        limit: at most so many questions of each topic and subject.
        train_limit: at most so many texts of each corpus.
    """
    given = dict(locals())
    chosen = _listed("topics", topics, TOPICS)
    if documents not in ("whole", "chunks"):
        raise UserError(f"benchmark 'wmdp': documents is {documents!r}; known: whole, chunks")
    trained = checked_limit(train_limit)
    tables = opened("wmdp", data)
    questions = []
    for topic in chosen:
        table = tables.table(f"wmdp-{topic}", "test", fields=_FIELDS, limit=checked_limit(limit))
        rows = zip(table.places, table.rows, strict=True)
        questions += read_questions(rows, "forget", f"wmdp-{topic}", f"wmdp_{topic}", TOPICS[topic])
    # In a spec's text, none is no value.
    mmlu = "none" if mmlu is None else mmlu
    kept, of_mmlu = _mmlu_questions(mmlu, data, limit) if mmlu != "none" else ([], {})
    return WMDP(
        name="wmdp",
        settings=spec_settings(given | {"topics": "+".join(chosen), "mmlu": mmlu}),
        forget=LazyRows(_forget_loader(chosen, forget, data, trained)),
        retain=LazyRows(_retain_loader(chosen, retain, data, trained)),
        items=[],
        texts=general_paragraphs(held_out=True),
        headlines=BENCHMARKS.record("wmdp").headlines,
        template="plain",
        provenance={"wmdp": tables.provenance} | of_mmlu,
        notes=() if kept else ("MMLU was left out (mmlu=none): what the model still knows is told by prose alone",),
        questions=[*questions, *kept],
        engine=engine,
        documents=documents,
    )


def mmlu(
    *,
    subjects: str = "all",
    engine: Engine = "letgo",
    data: str | Path | None = None,
    limit: int | None = None,
) -> MultipleChoice:
    """MMLU alone (57 subjects, zero-shot): only to score a model, there is nothing in it to unlearn.

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
        forget=LazyRows(lambda: nothing_to_unlearn("mmlu")),
        retain=[],
        items=[],
        texts=[],
        headlines=(),
        template="plain",
        provenance=provenance,
        questions=questions,
        engine=engine,
    )


@dataclass(frozen=True)
class WMDP(MultipleChoice):
    """`documents`: whether long texts are trained on whole (or cut, as `long_rows` says) or in pieces."""

    documents: Literal["whole", "chunks"] = "whole"

    def encode(
        self,
        tokenizer: Any,
        rows: Sequence[Row],
        *,
        template: Template | None = None,
        max_length: int,
        long_rows: LongRows = "error",
        name: str = "data",
    ) -> tuple[list[Encoded], list[str]]:
        if self.documents == "whole" or any(row.form != ("text",) for row in rows):
            return super().encode(
                tokenizer, rows, template=template, max_length=max_length, long_rows=long_rows, name=name
            )
        encoded, said = encode_chunks(tokenizer, rows, max_length=max_length)
        return encoded, [f"{name}: {line}" for line in said]


def nothing_to_unlearn(name: str) -> list[Row]:
    raise UserError(f"benchmark {name!r} only scores a model; it has nothing to unlearn: use it with `letgo eval`")


def _mmlu_questions(subjects: str, data: str | Path | None, limit: int | None) -> tuple[list[Question], dict[str, Any]]:
    tables = opened("mmlu", data)
    table = tables.table("all", "test", fields=(*_FIELDS, "subject"))
    known = list(dict.fromkeys(str(row["subject"]) for row in table.rows))
    chosen = known if subjects == "all" else _listed("subjects of MMLU", subjects, known)
    questions = []
    for subject in chosen:
        own = [(where, row) for where, row in zip(table.places, table.rows, strict=True) if row["subject"] == subject]
        rows = own[: checked_limit(limit)]
        questions += read_questions(rows, "retain", subject, f"mmlu_{subject}", subject.replace("_", " "))
    return questions, {"mmlu": tables.provenance}


def _forget_loader(
    topics: Sequence[str], own: str | None, data: str | Path | None, limit: int | None
) -> Callable[[], list[Row]]:
    if own is not None:
        return named_corpus(own, {}, "forget set", limit)

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

    return load


def _retain_loader(
    topics: Sequence[str], name: str, data: str | Path | None, limit: int | None
) -> Callable[[], list[Row]]:
    def corpora() -> list[Row]:
        chosen = [topic for topic in topics if topic != "chem"]
        if not chosen:
            raise UserError("benchmark 'wmdp': chemistry has no retain corpus; use retain=wikitext or a file of yours")
        return [row for topic in chosen for row in _corpus(f"{topic}-retain-corpus", data, limit)]

    known = {"wikitext": lambda: wikitext(data, limit), "corpora": corpora}
    return named_corpus(name, known, "retain set", limit)


def _corpus(name: str, data: str | Path | None, limit: int | None) -> list[Row]:
    return texts_of(opened("wmdp-corpora", data).table(name, fields=("text",)), limit=limit)


def _bio_forget(data: str | Path | None, limit: int | None) -> list[Row]:
    """The one gated corpus. A local copy may be a single file of any name."""
    try:
        tables = opened("wmdp-bio-forget-corpus", data)
        configs = list(tables.layout)
        config, split = (
            ("default", "train") if ("default", "train") in configs else (configs or [("default", "train")])[0]
        )
        return texts_of(tables.table(config, split, fields=("text",)), limit=limit)
    except UserError as error:
        raise UserError(
            f"{error}\n  biology's forget corpus is not public: ask for it (the hub's page, or the form that the page "
            "of cais/wmdp-corpora names), and put it into a folder wmdp-bio-forget-corpus beside the others, or give "
            "its file: wmdp:forget=FILE"
        ) from error


def _listed(what: str, text: str, known: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Names joined by "+", each of them known and named once."""
    names = [name.strip() for name in str(text).split("+")]
    for name in names:
        if name not in known:
            raise UserError(f"{what}: there is no {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}")
        if names.count(name) > 1:
            raise UserError(f"{what}: {name!r} is named twice")
    return names
