"""MUSE: unlearn news articles or books, judged six ways (arXiv 2407.06460; hub `muse-bench/MUSE-News`, `-Books`).

Verbatim and knowledge memorization, privacy leakage and utility are scored with the benchmark's own prompts, lengths
and cuts. For scalability and sustainability it has larger and repeated requests to forget (`request=`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

from letgo.benchmarks.engine.base import (
    Benchmark,
    Item,
    Learn,
    Sample,
    Text,
    check_choice,
    checked_limit,
    spec_settings,
    to_learn,
)
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.benchmarks.engine.items import limited
from letgo.benchmarks.engine.open_unlearning import MUSE_FILE, eval_file, read_membership_auc
from letgo.benchmarks.engine.questions import texts_part
from letgo.benchmarks.engine.reference import ReferenceResult, read_reference
from letgo.benchmarks.engine.requests import Work, joined
from letgo.benchmarks.engine.tables import PINNED, Table, Tables
from letgo.benchmarks.muse.scores import knowledge_part, muse_metrics, privacy_part, verbatim_part
from letgo.core.catalog import format_spec
from letgo.core.errors import UserError
from letgo.core.fingerprints import digest_of
from letgo.core.values import Count
from letgo.data.encode import Encoded, EncodedRows, EncodeOptions, Template, start_tokens
from letgo.data.rows import Row
from letgo.runs.results import Metrics

CORPORA: Mapping[str, float] = {"news": 0.4772, "books": 0.5393}
"""The corpora, and the published AUC of the model retrained without the forget set: Llama-2-7B, Min-40 %."""
SIZES: Mapping[str, int] = {
    "verbmem/forget": 100,
    "knowmem/forget_qa": 100,
    "knowmem/retain_qa": 100,
    "knowmem/forget_qa_icl": 10,
    "knowmem/retain_qa_icl": 10,
    "privleak/forget": 100,
    "privleak/retain": 100,
    "privleak/holdout": 100,
}
SEQUENCES: Mapping[str, tuple[str, ...]] = {
    kind: tuple(f"{kind}_{number}" for number in range(1, 5)) for kind in ("scal", "sust")
}
"""Scalability: four forget sets, each within the next. Sustainability: four requests, one after another."""
CHUNK = 2048
"""Tokens of a chunk in the benchmark's own training."""
VERSION = 1


def muse(
    *,
    corpus: str = "news",
    request: str | None = None,
    retrain: str | None = None,
    retain: str = "retain1",
    general: bool = True,
    limit: Count | None = None,
    train_limit: Count | None = None,
    learn: Learn | None = None,
    data: str | None = None,
    revision: str | None = None,
) -> Muse:
    """A MUSE corpus: what to forget and what to keep, and all of its scores.

    Args:
        corpus: news or books.
        request: of news only: scal_1 … scal_4 (forget sets of growing size) or sust_1 … sust_4 (one after another) in
            place of the whole forget set; `scal` and `sust` stand for all four (`letgo unlearn` runs them).
        retrain: what `letgo eval` wrote for the retrained model on this corpus, or open-unlearning's MUSE_EVAL.json of
            it; its AUC replaces the published one.
        retain: the raw texts to keep: retain1, with which the benchmark trains, or retain2, with which it scores.
        general: also measure perplexity on letgo's own paragraphs, to tell a broken model from a forgetful one.
        limit: score at most so many rows of each set; the benchmark has 100.
        train_limit: train on at most so many forget texts, and as many retain texts.
        learn: makes the models that the benchmark begins with, by objective `ft`: nothing is forgotten; the model
            learns forget and retain texts (`full`) or the retain texts alone (`retain`, the model that never knew).
        data: a folder with the hub's layout; by default LETGO_DATA's `muse-news` or `muse-books`, else the hub.
        revision: another commit of the hub.

    Raises:
        UserError: an unknown corpus or request, data that can't be had, a retrain result on something else.
    """
    settings = spec_settings(locals(), retain="retain1", general=True)
    check_choice("muse: corpus", corpus, CORPORA)
    check_choice("muse: retain", retain, ("retain1", "retain2"))
    sequence: tuple[str, ...] = ()
    if learn is not None and request in SEQUENCES:
        raise UserError(f"muse: request={request} stands for four runs, and learn={learn} makes one model")
    if request is not None:
        check_choice("muse: request", request, [*SEQUENCES, *chain(*SEQUENCES.values())])
        if corpus != "news":
            raise UserError(f"muse: request={request} is of the news corpus; {corpus} has its whole forget set only")
        # A single request stands for itself alone.
        sequence = SEQUENCES.get(request, ())
    scored, trained = checked_limit(limit), checked_limit(train_limit)
    tables = PINNED[f"muse-{corpus}"].open(data=data, revision=revision)
    notes: list[str] = []
    reader = _MuseReader(tables, corpus, notes)
    kind, _, number = (sequence or (request or "",))[0].partition("_")
    forget = reader.rows(kind, f"forget_{number}", trained) if kind else reader.rows("raw", "forget", trained)
    kept = reader.rows("raw", retain, trained)
    if trained is not None:
        notes.append(f"muse: trained on the first {len(forget)} forget and {len(kept)} retain texts (train_limit)")
    forget, kept = to_learn("muse", learn, forget, kept, notes)
    texts = [text for split in ("forget", "retain", "holdout") for text in reader.texts(split, scored)]
    items = reader.items("verbmem", "forget", ("prompt", "gt"), scored)
    for name in ("forget", "retain"):
        items += reader.items("knowmem", f"{name}_qa", ("question", "answer"), scored)
    foreign = None if retrain is None else eval_file(retrain, MUSE_FILE)
    return Muse(
        name="muse",
        settings=settings,
        forget=forget,
        retain=kept,
        items=items,
        texts=[*texts, *(general_paragraphs(held_out=True) if general else [])],
        template="plain",
        version=VERSION,
        provenance={"corpus": corpus, **tables.provenance},
        sequence=tuple(format_spec("muse", settings | {"request": name}) for name in sequence),
        chained=request == "sust",
        examples={name: reader.examples(name) for name in ("forget", "retain")},
        retrained_auc=CORPORA[corpus] if foreign is None else _foreign_auc(foreign, texts, items, notes),
        reference=None if foreign else _retrained_result(retrain, corpus, notes),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Muse(Benchmark):
    """`examples` are, for each set, the ten worked questions and answers before a question. `retrained_auc` is the
    published one, or that of a file of open-unlearning; `reference` is the retrained model's result, where given."""

    examples: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    retrained_auc: float = 0.5
    reference: ReferenceResult | None = field(default=None, repr=False)

    def encode(self, tokenizer: Any, rows: Sequence[Row], **options: Unpack[EncodeOptions]) -> EncodedRows:
        """The rows' texts joined by an empty line, tokenised without special tokens, and cut into chunks of
        `max_length`, or 2,048 tokens where that is less, each after the start token; every token is labelled.

        As in the benchmark's own code, a last chunk that is shorter is filled up from the beginning of the first. (A
        single chunk stays short: it would be filled with itself.)
        """
        length, name = min(options["max_length"], CHUNK), options.get("name", "data")
        if length < 2:
            raise UserError(f"{name}: max_length must be at least 2 for chunks of text, not {length}")
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        tokens = tokenizer("\n\n".join(row.target for row in rows), add_special_tokens=False)["input_ids"]
        if not len(tokens):
            raise UserError(f"{name}: its texts have no tokens in this tokenizer")
        chunks = [start + list(tokens[first : first + length - 1]) for first in range(0, len(tokens), length - 1)]
        if len(chunks) > 1:
            chunks[-1] = (chunks[-1] + chunks[0])[: len(start) + length - 1]
        encoded = []
        for number, chunk in enumerate(chunks):
            where = f"{name}, chunk {number + 1}"
            text = tokenizer.decode(chunk, skip_special_tokens=True)
            encoded.append(Encoded(chunk, list(chunk), Row(("text",), "", text, where, where, ends=False)))
        return encoded, [f"{name}: {len(rows)} texts as {len(chunks)} chunks of {length} tokens"]

    def encode_alternatives(
        self, tokenizer: Any, encoded: Sequence[Encoded], answers: Sequence[str], **options: Unpack[EncodeOptions]
    ) -> list[Encoded]:
        """Another text in place of each chunk, behind the start token alone."""
        options["name"] = "alternatives"
        alternatives = []
        for chunk, text in zip(encoded, answers, strict=True):
            row = Row(("text",), "", text, chunk.row.group, chunk.row.where)
            alternatives.append(self.encode(tokenizer, [row], **options)[0][0])
        return alternatives

    def work(self, model: Any, tokenizer: Any, *, limit: int | None = None, template: Template | None = None) -> Work:
        items, texts = limited(self.items, checked_limit(limit)), limited(self.texts, limit)
        private = [text for text in texts if text.task == "privleak"]
        if self.reference is not None:
            rows = [(text.id, digest_of(text.text)) for text in private if text.set in ("forget", "holdout")]
            self.reference.check_rows(rows, "min_k")
        parts = [verbatim_part(model, tokenizer, [item for item in items if item.task == "verbmem"])]
        for name, examples in self.examples.items():
            questions = [item for item in items if (item.task, item.set) == ("knowmem", name)]
            parts.append(knowledge_part(model, tokenizer, questions, examples))
        general = [text for text in texts if text.task != "privleak"]
        return joined([*parts, privacy_part(model, tokenizer, private), texts_part(tokenizer, general)])

    def metrics_of(self, samples: Sequence[Sample]) -> Metrics:
        """MUSE's metrics: VerbMem and KnowMem of the forget set, PrivLeak, and KnowMem of the retain set, which is its
        utility; the membership AUCs behind PrivLeak."""
        return muse_metrics(samples, self.retrained_auc, self.reference)

    def compared_with(self) -> ReferenceResult | None:
        return self.reference

    def reference_metrics(self) -> dict[str, Metrics]:
        return {} if self.reference is None else {"retrained": self.reference.metrics}

    def notes_for(self, tokenizer: Any) -> list[str]:
        notes = super().notes_for(tokenizer)
        if tokenizer.bos_token_id is None:
            notes.append("muse: this tokenizer has no start token: chunks to train on begin without one")
        if not start_tokens(tokenizer):
            notes.append("muse: this tokenizer puts no start token before a text: its first token is not scored")
        return notes

    def identity(self, tokenizer: Any, template: Template | None = None) -> dict[str, Any]:
        return {"benchmark": self.name, "version": self.version, **self.provenance}


def _retrained_result(retrain: str | None, corpus: str, notes: list[str]) -> ReferenceResult | None:
    """What `letgo eval` wrote for the retrained model; where it is not given, a note on that."""
    if retrain is not None:
        return read_reference("retrain", retrain, {"benchmark": "muse", "version": VERSION, "corpus": corpus})
    notes.append(
        f"muse: PrivLeak is against the AUC published for Llama-2-7B retrained ({CORPORA[corpus]}); for another model "
        "give its own (retrain=RESULT)"
    )
    return None


def _foreign_auc(file: Path, texts: Sequence[Text], items: Sequence[Item], notes: list[str]) -> float:
    """The retrained model's AUC of a file of open-unlearning; MUSE counts it from the other end."""
    counts = {name: sum(text.set == name for text in texts) for name in ("forget", "holdout")}
    questions = [str(item.row.context) for item in items if (item.task, item.set) == ("knowmem", "forget")]
    auc = 1.0 - read_membership_auc("retrain", file, counts, questions)
    notes.append(
        f"muse: PrivLeak is against the AUC {auc:.4f} of {file.name}, which letgo did not make; its interval takes "
        "that as known"
    )
    return auc


@dataclass(frozen=True)
class _MuseReader:
    """Makes rows, items and texts of tables; notes tables of another size than on the hub."""

    tables: Tables
    corpus: str
    notes: list[str]

    def rows(self, config: str, split: str, limit: int | None) -> list[Row]:
        return [
            Row(("text",), "", row["text"], f"{config}/{split}/{number}", where, ends=False, fields=dict(row))
            for number, (where, row) in enumerate(self._table(config, split, ("text",), limit).records)
        ]

    def items(self, task: str, split: str, fields: tuple[str, str], limit: int | None) -> list[Item]:
        """The items of a task; `fields` name the question (or prompt) and the answer."""
        form = ("prompt", "completion") if task == "verbmem" else ("question", "answer")
        items = []
        for number, (where, row) in enumerate(self._table(task, split, fields, limit).records):
            name = f"{task}/{split}/{number}"
            asked = Row(form, row[fields[0]], row[fields[1]], name, where, fields=dict(row))
            items.append(Item(split.removesuffix("_qa"), name, name, asked, task=task))
        return items

    def examples(self, name: str) -> list[tuple[str, str]]:
        table = self._table("knowmem", f"{name}_qa_icl", ("question", "answer"), None)
        return [(row["question"], row["answer"]) for row in table.rows]

    def texts(self, split: str, limit: int | None) -> list[Text]:
        rows = self._table("privleak", split, ("text",), limit).rows
        names = [f"privleak/{split}/{number}" for number in range(len(rows))]
        return [Text(split, name, name, row["text"], "privleak") for name, row in zip(names, rows, strict=True)]

    def _table(self, config: str, split: str, texts: Sequence[str], limit: int | None) -> Table:
        table = self.tables.table(config, split, texts=texts, limit=limit)
        expected = SIZES.get(table.name, table.whole)
        if table.whole != expected:
            self.notes.append(f"muse: {table.name} has {table.whole} rows here and {expected} on the hub")
        return table
