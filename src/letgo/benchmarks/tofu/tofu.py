"""TOFU: unlearn the books' authors that a model was fine-tuned on (arXiv 2401.06121; hub `locuslab/TOFU`).

Prompts, labels, lengths and scores are those of the benchmark's own code. docs/data.md has the details, where other
public code differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Unpack

from letgo.benchmarks.engine.base import (
    Benchmark,
    Learn,
    check_choice,
    check_whole,
    checked_limit,
    spec_settings,
    to_learn,
)
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.benchmarks.engine.items import Item, Sample, limited
from letgo.benchmarks.engine.open_unlearning import TOFU_FILE, eval_file, read_truth_ratios
from letgo.benchmarks.engine.questions import texts_part
from letgo.benchmarks.engine.reference import ReferenceResult, read_reference
from letgo.benchmarks.engine.requests import Work, joined
from letgo.benchmarks.engine.tables import PINNED, Table, Tables
from letgo.benchmarks.tofu.prompts import FORMS, AnswerForm, encode_answer, resolve_form
from letgo.benchmarks.tofu.scores import item_digest, tofu_metrics, tofu_part
from letgo.core.errors import UserError
from letgo.core.values import Count
from letgo.data.encode import IGNORE, Encoded, EncodedRows, EncodeOptions, Template, fit_rows
from letgo.data.rows import Row
from letgo.runs.results import Metrics

SPLITS: Mapping[str, str] = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
"""Forget splits, each with its retain split."""
DEFAULT_SPLIT = "forget10"
ROWS: Mapping[str, int] = {
    "full": 4000,
    "forget01": 40,
    "forget05": 200,
    "forget10": 400,
    "retain99": 3960,
    "retain95": 3800,
    "retain90": 3600,
    "forget01_perturbed": 40,
    "forget05_perturbed": 200,
    "forget10_perturbed": 400,
    "retain_perturbed": 400,
    "real_authors_perturbed": 100,
    "world_facts_perturbed": 117,
    "holdout01": 40,
    "holdout05": 200,
    "holdout10": 400,
}
"""Rows of the hub's tables; a copy of another size is noted."""
SCORED_ROWS = 300
"""The benchmark's own code scores the first 300 rows of each set."""
AUTHOR_ROWS = 20
LENGTH = 200
"""Tokens, prompt and all, of what is scored and of what is generated."""
_FEWEST_TOKENS = 16
VERSION = 1


def tofu(
    *,
    split: str = DEFAULT_SPLIT,
    retain: str | None = None,
    retrained: str | None = None,
    template: str = "auto",
    length: Count = LENGTH,
    holdout: bool | None = None,
    gradnorm: bool = False,
    general: bool = True,
    limit: Count | None = None,
    train_limit: Count | None = None,
    learn: Learn | None = None,
    data: str | None = None,
    revision: str | None = None,
) -> Tofu:
    """TOFU's forget set of a split, with its retain set, and all of its scores.

    Args:
        split: forget01, forget05 or forget10: 2, 10 or 20 of 200 authors.
        retain: what `letgo eval` wrote for the retain model on this split, open-unlearning's TOFU_EVAL.json of it, or
            the older TOFU code's aggregated log: gives forget quality.
        retrained: the retain model itself: also scored, and relearned in the same way: R is measured against it.
        template: `llama2` ("[INST] {q} [/INST]{a}"), `plain` ("Question: {q}\\nAnswer: {a}"), or `chat` (the
            tokenizer's own); `auto` is llama2 where the tokenizer is Llama-2's, else plain.
        length: tokens, prompt and all, of what is scored and generated; the benchmark's own number is 200.
        holdout: score membership against the holdout split; by default where the data has it.
        gradnorm: also run the gradient-norm membership attack: a backward pass for each row of both splits.
        general: also measure perplexity on letgo's own paragraphs, to tell a broken model from a forgetful one.
        limit: score at most so many rows of each set; the benchmark's own number is 300.
        train_limit: train on at most so many forget rows, and as many retain rows.
        learn: makes the models that the benchmark begins with, by objective `ft`: nothing is forgotten; the model
            learns forget and retain set (`full`) or the retain set alone (`retain`, the model that never knew).
        data: a folder with the hub's layout; by default LETGO_DATA's `tofu`, else the hub.
        revision: another commit of the hub.

    Raises:
        UserError: an unknown split or template, data that can't be had, a retain result on something else.
    """
    settings = spec_settings(locals(), template="auto", length=LENGTH, gradnorm=False, general=True)
    check_choice("tofu: split", split, SPLITS)
    check_choice("tofu: template", template, ("auto", *FORMS))
    check_whole("tofu: length", length, _FEWEST_TOKENS)
    scored, trained = checked_limit(limit), checked_limit(train_limit)
    tables = PINNED["tofu"].open(data=data, revision=revision)
    notes: list[str] = []
    reader = _TofuReader(tables, split, notes)
    items = [*reader.scored(scored), *reader.membership(scored, holdout, gradnorm)]
    forget, kept = reader.trained(trained, learn)
    return Tofu(
        name="tofu",
        settings=settings,
        forget=forget,
        retain=kept,
        items=items,
        texts=general_paragraphs(held_out=True) if general else [],
        # An attack or an analysis that asks items in its own words uses the template that the model was trained with.
        template="chat" if template == "chat" else "plain",
        references={} if retrained is None else {"retrained": retrained},
        version=VERSION,
        provenance={"split": split, "length": length, **tables.provenance},
        form=template,  # type: ignore[arg-type]
        length=length,
        gradnorm=gradnorm,
        reference=_retain_result(retain, split, length, items, notes),
        notes=tuple(notes),
    )


def _retain_result(
    retain: str | None, split: str, length: int, items: Sequence[Item], notes: list[str]
) -> ReferenceResult | None:
    """The retain model's scores, where they are given; a note on metrics that are missing."""
    if retain is None:
        notes.append("tofu: no forget quality, for no retain model's result was given (retain=RESULT)")
        return None
    if file := eval_file(retain, TOFU_FILE):
        forget = [item for item in items if item.set == "forget" and not item.task]
        rows = ROWS[f"{split}_perturbed"]
        reference = read_truth_ratios("retain", file, forget, split, (rows, min(rows, SCORED_ROWS)))
        notes.append(
            f"tofu: forget quality is against {file.name}, which letgo did not make: rows are matched by number and "
            "question; that template, length and tokenizer are the same can't be checked"
        )
    else:
        wanted = {"benchmark": "tofu", "version": VERSION, "split": split, "length": length}
        reference = read_reference("retain", retain, wanted)
    if any(item.task for item in items) and not reference.has("mia_loss"):
        notes.append(
            "tofu: no membership attack against a reference model, for the retain model was not scored on "
            f"{_holdout_of(split)} (holdout=true)"
        )
    return reference


def _holdout_of(split: str) -> str:
    return split.replace("forget", "holdout")


@dataclass(frozen=True)
class Tofu(Benchmark):
    """`form` is the template asked for, `length` that of prompt and answer together; `reference` the retain model's
    result, where it is given."""

    form: AnswerForm | Literal["auto"] = "auto"
    length: int = LENGTH
    gradnorm: bool = False
    reference: ReferenceResult | None = field(default=None, repr=False)

    def form_for(self, tokenizer: Any, asked: Template | None) -> AnswerForm:
        """The benchmark's template; the tokenizer's own where the run asks for `chat`."""
        return resolve_form(tokenizer, "chat" if asked == "chat" else self.form)

    def encode(self, tokenizer: Any, rows: Sequence[Row], **options: Unpack[EncodeOptions]) -> EncodedRows:
        """As the benchmark's own code does it: one text tokenised whole, the question's tokens unlabelled, one end
        token after the answer. (The benchmark cuts at 500 tokens.)"""
        form = self.form_for(tokenizer, options.get("template"))
        encoded = []
        for row in rows:
            answer = encode_answer(tokenizer, form, str(row.context), row.target, length=1 << 30, where=row.where)
            labels = [IGNORE] * len(answer.question) + list(answer.labelled)
            encoded.append(Encoded([*answer.question, *answer.labelled], labels, row))
        return fit_rows(encoded, options["max_length"], options.get("long_rows", "error"), options.get("name", "data"))

    def work(self, model: Any, tokenizer: Any, *, limit: int | None = None, template: Template | None = None) -> Work:
        items, texts = limited(self.items, checked_limit(limit)), limited(self.texts, limit)
        form = self.form_for(tokenizer, template)
        asked, members = ([item for item in items if (item.task == "membership") == of] for of in (False, True))
        parts = [
            tofu_part(model, tokenizer, some, form, length=self.length, gradnorm=self.gradnorm)
            for some in (asked, members)
            if some
        ]
        if self.reference is not None:
            rows = [(item.id, item_digest(item, form)) for item in items if item.set == "forget" and not item.task]
            self.reference.check_rows(rows, "truth_ratio")
        return joined([*parts, texts_part(tokenizer, texts)])

    def metrics_of(self, samples: Sequence[Sample]) -> Metrics:
        """TOFU's metrics: probability, ROUGE and truth ratio of its four sets, model utility, and forget quality where
        the retain model's result is known; extraction strength and exact memorization of the forget set; membership
        AUCs where there is a holdout split."""
        return tofu_metrics(samples, self.reference)

    def compared_with(self) -> ReferenceResult | None:
        return self.reference

    def reference_metrics(self) -> dict[str, Metrics]:
        return {} if self.reference is None else {"retain": self.reference.metrics}

    def identity(self, tokenizer: Any, template: Template | None = None) -> dict[str, Any]:
        form = self.form_for(tokenizer, template)
        return {"benchmark": self.name, "version": self.version, "template": form, **self.provenance}


@dataclass(frozen=True)
class _TofuReader:
    """Makes rows and items of tables; notes tables of another size than on the hub."""

    tables: Tables
    split: str
    notes: list[str]

    @property
    def first_author(self) -> int:
        """The number of the first author to be forgotten; those to be kept begin at 0."""
        return (ROWS["full"] - ROWS[self.split]) // AUTHOR_ROWS

    def scored(self, limit: int | None) -> list[Item]:
        """The items of TOFU's four sets."""
        return [
            *self.items("forget", f"{self.split}_perturbed", limit),
            *self.items("retain", "retain_perturbed", limit),
            *self.items("authors", "real_authors_perturbed", limit),
            *self.items("facts", "world_facts_perturbed", limit),
        ]

    def membership(self, limit: int | None, holdout: bool | None, gradnorm: bool) -> list[Item]:
        """Rows as they were trained on, and rows made in the same way that were not; none without a holdout split."""
        held_out = _holdout_of(self.split)
        if holdout or (holdout is None and held_out in self.tables):
            return [
                *self.items("forget", self.split, limit, task="membership"),
                *self.items("holdout", held_out, limit, task="membership"),
            ]
        if gradnorm:
            raise UserError(f"tofu: gradnorm compares {self.split} with {held_out}, which this data does not have")
        return []

    def trained(self, limit: int | None, learn: Learn | None) -> tuple[list[Row], list[Row]]:
        """The rows to forget and to keep (or, with `learn`, to learn)."""
        forget, kept = self.rows(self.split, limit, self.first_author), self.rows(SPLITS[self.split], limit, 0)
        if limit is not None:
            counts = f"{len(forget)} forget and {len(kept)} retain rows"
            self.notes.append(f"tofu: trained on the first {counts} (train_limit)")
        return to_learn("tofu", learn, forget, kept, self.notes)

    def rows(self, config: str, limit: int | None, first_author: int) -> list[Row]:
        table = self._table(config, (), limit, "what is trained on is")
        return [
            _row(where, row, f"author {first_author + number // AUTHOR_ROWS}")
            for number, (where, row) in enumerate(table.records)
        ]

    def items(self, name: str, config: str, limit: int | None, *, task: str = "") -> list[Item]:
        """The first 300 (or fewer) rows of a table. Rows of one author are one group; other rows are each a group."""
        fields: list[str] = []
        if config.endswith("_perturbed"):
            fields = ["perturbed_answer"] + (["paraphrased_answer"] if name in ("forget", "retain") else [])
        table = self._table(config, fields, min(limit or SCORED_ROWS, SCORED_ROWS), "its scores are over")
        first_author = {"forget": self.first_author, "retain": 0}.get(name)
        items = []
        for number, (where, record) in enumerate(table.records):
            group = f"{name} {number}" if first_author is None else f"author {first_author + number // AUTHOR_ROWS}"
            row = _row(where, record, group)
            wrong, paraphrase = _perturbed(where, record), None
            if wrong:
                # Authors and facts have no paraphrase: the answer stands for itself.
                paraphrase = str(record["paraphrased_answer"]) if "paraphrased_answer" in fields else row.target
            items.append(Item(name, f"{config}/{number}", row.group, row, wrong, paraphrase, task=task))
        return items

    def _table(self, config: str, fields: Sequence[str], limit: int | None, use: str) -> Table:
        table = self.tables.table(config, texts=("question", "answer"), fields=fields, limit=limit)
        if table.whole != ROWS.get(config, table.whole):
            self.notes.append(
                f"tofu: {config} has {table.whole} rows here and {ROWS[config]} on the hub; {use} {len(table)} of them"
            )
        return table


def _row(where: str, record: Mapping[str, Any], group: str) -> Row:
    return Row(("question", "answer"), record["question"], record["answer"], group, where, fields=dict(record))


def _perturbed(where: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    if "perturbed_answer" not in record:
        return ()
    wrong = record["perturbed_answer"]
    wrong = [wrong] if isinstance(wrong, str) else wrong
    if not isinstance(wrong, Sequence) or not wrong or not all(isinstance(w, str) and w.strip() for w in wrong):
        raise UserError(f"{where}: field 'perturbed_answer' must be a list of texts that is not empty, not {wrong!r}")
    return tuple(wrong)
