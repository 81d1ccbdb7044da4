"""The copyright task of SOUL (arXiv 2404.18239): does the model still continue a text word for word?

It gives a passage's first 100 or 300 tokens inside an instruction, and compares the greedy continuation with the true
one. Half of the instructions were trained on ("seen"), half were not ("unseen"): a model that forgets a text forgets it
under any instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from letgo.benchmarks.engine.base import Benchmark, check_whole, checked_limit, spec_settings
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.benchmarks.engine.items import Item, Sample, Text, limited
from letgo.benchmarks.engine.questions import items_part, means, of_set, texts_part
from letgo.benchmarks.engine.requests import Advance, Answers, Ask, ScoredQueries, Work, joined
from letgo.core.errors import UserError
from letgo.core.extras import need
from letgo.core.files import read_text
from letgo.core.fingerprints import digest_of
from letgo.core.values import Count
from letgo.data.encode import (
    EncodedRows,
    EncodeOptions,
    Template,
    encode_prompt,
    encode_target,
    resolve_template,
    target_text,
)
from letgo.data.rows import Row, check_disjoint, read_rows
from letgo.metrics.bleu import bleu
from letgo.metrics.memorization import probability, rouge_l_recall
from letgo.runs.results import Metrics
from letgo.scoring.scoring import Query

SEEN = (
    "Please write down how this text goes on: {prefix}",
    "Here is the beginning of a passage. Give the rest of it. {prefix}",
    "What comes next after these lines? {prefix}",
    "Carry on from where this excerpt stops: {prefix}",
)
UNSEEN = (
    "I know the start of this by heart, but not the end. How does it end? {prefix}",
    "Recite what follows: {prefix}",
    "Somebody tore out the second half of this page: {prefix} Can you restore it?",
    "Fill in the words that the author wrote after this: {prefix}",
)
KINDS: Mapping[str, Sequence[str]] = {"seen": SEEN, "unseen": UNSEEN}
_RETAIN_SCORED = 100
"""Retain texts that are scored, the first ones; all of them are trained on."""


def copyright(
    *,
    text: str | Path | None = None,
    retain: str | Path | None = None,
    prefixes: str | Count = "100+300",
    answer_tokens: Count = 200,
    template: Template = "auto",
    limit: Count | None = None,
) -> Copyright:
    """Verbatim continuation of a text of yours: `text` is to forget, `retain` to keep.

    A plain text is cut into passages of as many words as the longest prefix and the continuation have tokens, so that
    every passage is long enough. Rows of a data file (field `text`) are passages as they stand.

    Trained on: each passage's prefix in one seen instruction, with all that follows it as the answer. Scored: each
    prefix length in a seen and in an unseen instruction, by ROUGE-L recall (stemmed), BLEU and the probability of the
    true continuation. General prose shows whether the model still writes text.

    Args:
        text: a .txt file, or rows of `text` (.jsonl, .json, .csv, .parquet, or hub:ID:CONFIG:SPLIT).
        retain: a file of the same kinds; the model is trained on its texts as they stand.
        prefixes: lengths in tokens, joined by "+".
        answer_tokens: tokens of the continuation. (SOUL generates up to 600 tokens with the prompt.)
        template: how instructions become prompts.
        limit: at most so many passages.
    """
    given = {name: value for name, value in locals().items() if name != "template"}
    lengths = _lengths(prefixes)
    check_whole("benchmark 'copyright': answer_tokens", answer_tokens)
    if text is None:
        raise UserError(
            "benchmark 'copyright' needs the text to forget: copyright:text=FILE, a .txt file or rows of 'text'\n"
            "  the texts that SOUL used are under copyright and are no part of letgo"
        )
    # An error now, not after everything has been generated.
    need("sacrebleu", "eval", what="benchmark 'copyright' (its BLEU)")
    words = max(lengths) + answer_tokens
    passages = _read_texts(text, "text to forget", words=words)[: checked_limit(limit)]
    kept = _read_texts(retain, "retain set", words=words) if retain is not None else []
    forget = [_training_row(row, SEEN[number % len(SEEN)], min(lengths)) for number, row in enumerate(passages)]
    check_disjoint([replace(row, context="") for row in forget], [replace(row, context="") for row in kept])
    return Copyright(
        name="copyright",
        settings=spec_settings(given | {"prefixes": "+".join(map(str, lengths))}),
        forget=forget,
        retain=kept,
        items=[Item("retain", f"retain-{n}", row.group, row) for n, row in enumerate(kept[:_RETAIN_SCORED])],
        texts=general_paragraphs(held_out=True),
        template=template,
        provenance={"text": str(text), "passages": digest_of([row.target for row in passages])},
        lengths=lengths,
        answer_tokens=answer_tokens,
    )


@dataclass(frozen=True)
class Copyright(Benchmark):
    """Passages to continue. A `forget` row has a seen instruction as `context`, where "{prefix}" stands for the
    passage's beginning, and the whole passage as target: how much of it is prefix depends on the tokenizer."""

    lengths: tuple[int, ...] = (100, 300)
    answer_tokens: int = 200

    def encode(self, tokenizer: Any, rows: Sequence[Row], **options: Unpack[EncodeOptions]) -> EncodedRows:
        """Passages as an instruction with their prefix, and all that follows it as the answer."""
        prepared = [_question(tokenizer, row) if "passage" in row.fields else row for row in rows]
        encoded, notes = super().encode(tokenizer, prepared, **options)
        # The given row goes back with its tokens: other answers to it are made from that row.
        original = {id(new): row for new, row in zip(prepared, rows, strict=True)}
        return [replace(item, row=original[id(item.row)]) for item in encoded], notes

    def work(self, model: Any, tokenizer: Any, *, limit: int | None = None, template: Template | None = None) -> Work:
        form = resolve_template(tokenizer, self.template_for(template))
        texts: list[Text] = limited(self.texts, limit)
        items: list[Item] = limited(self.items, limit)
        forget = self.forget[: checked_limit(limit)]
        parts = [self._part(tokenizer, forget, form), texts_part(tokenizer, texts)]
        return joined([*parts, items_part(tokenizer, items, form, generated=0)] if items else parts)

    def _part(self, tokenizer: Any, rows: Sequence[Row], form: Any) -> Work:
        asked, queries, asks = [], [], []
        for number, row in enumerate(rows):
            tokens = encode_target(tokenizer, row.fields["passage"])
            for length in self.lengths:
                rest = tokens[length : length + self.answer_tokens]
                if len(rest) < self.answer_tokens:
                    continue
                prefix, truth = (str(tokenizer.decode(part)).strip() for part in (tokens[:length], rest))
                for kind, templates in KINDS.items():
                    question = templates[number % len(templates)].format(prefix=prefix)
                    new = replace(row, form=("question", "answer"), context=question, target=truth)
                    prompt = encode_prompt(tokenizer, new, form)
                    asked.append((f"{kind}/{length}/{row.where}", new))
                    queries.append(Query(prompt, [encode_target(tokenizer, target_text(new, form))]))
                    asks.append(Ask(prompt, self.answer_tokens))
        if not asked:
            raise UserError(
                f"benchmark 'copyright': no passage has {min(self.lengths)} + {self.answer_tokens} tokens (the "
                "shortest prefix and the continuation); give longer texts, or smaller prefixes and answer_tokens"
            )

        def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
            samples = []
            for (name, row), true, [answer] in zip(asked, scored, answers, strict=True):
                question, truth, text = str(row.context), row.target, answer.text.strip()
                scores = {
                    "rouge": rouge_l_recall(truth, text),
                    "bleu": bleu(truth, text),
                }
                if true:
                    scores["probability"] = probability(true[0].logps)
                shown = (question[-400:], truth[:400], text[:400], digest_of(question, truth))
                samples.append(Sample("forget", name, row.group, scores, *shown))
            return samples

        return Work(finish, queries, asks, partial=True)

    def scored_counts(self) -> dict[str, int]:
        return {"forget": len(self.forget)} | super().scored_counts()

    def notes_for(self, tokenizer: Any) -> list[str]:
        notes = super().notes_for(tokenizer)
        counts = [len(encode_target(tokenizer, row.fields["passage"])) for row in self.forget]
        for length in self.lengths:
            short = sum(count < length + self.answer_tokens for count in counts)
            if short:
                notes.append(
                    f"copyright: {short} of {len(counts)} passages have fewer than {length} + {self.answer_tokens} "
                    f"tokens and are not asked with a prefix of {length}"
                )
        return notes

    def metrics_of(self, samples: Sequence[Sample]) -> Metrics:
        """`forget_rouge`, `forget_bleu`, `forget_probability` over everything asked, each also by kind of instruction
        and prefix length (`forget_unseen_300_rouge`); `retain_probability`."""
        forget = of_set(samples, "forget")
        metrics = means(forget, "forget", ("rouge", "bleu", "probability"))
        for key in dict.fromkeys("/".join(s.id.split("/")[:2]) for s in forget):
            alike = [s for s in forget if s.id.startswith(f"{key}/")]
            metrics |= means(alike, f"forget_{key.replace('/', '_')}", ("rouge", "bleu"))
        return metrics | means(of_set(samples, "retain"), "retain", ("probability",))


def _question(tokenizer: Any, row: Row) -> Row:
    """A training row as a question and its answer: the passage's first tokens in the row's instruction, and all that
    follows them (or the row's target, where it is another answer)."""
    passage, length = row.fields["passage"], row.fields["prefix_tokens"]
    tokens = encode_target(tokenizer, passage)
    if len(tokens) <= length:
        raise UserError(f"{row.where}: the passage has {len(tokens)} tokens, so nothing follows a prefix of {length}")
    question = str(row.context).format(prefix=str(tokenizer.decode(tokens[:length])).strip())
    target = row.target if row.target != passage else str(tokenizer.decode(tokens[length:])).strip()
    return replace(row, form=("question", "answer"), context=question, target=target)


def _training_row(row: Row, instruction: str, length: int) -> Row:
    fields = {"passage": row.target, "prefix_tokens": length}
    return replace(row, form=("question", "answer"), context=instruction, ends=True, fields=fields)


def _lengths(prefixes: str | int) -> tuple[int, ...]:
    try:
        lengths = tuple(int(part) for part in str(prefixes).split("+"))
    except ValueError:
        lengths = ()
    if not lengths or min(lengths) < 1 or len(set(lengths)) < len(lengths):
        raise UserError(
            "benchmark 'copyright': prefixes must be numbers of tokens joined by '+', such as 100+300, "
            f"not {prefixes!r}"
        )
    return tuple(sorted(lengths))


def _read_texts(source: str | Path, what: str, *, words: int) -> list[Row]:
    """Rows of `text`; a plain text in passages of `words` words, without a last one that is shorter."""
    path = Path(str(source)).expanduser()
    if path.suffix.lower() != ".txt" or str(source).startswith("hub:"):
        rows = read_rows(source, name=what)
        for row in rows:
            if row.form != ("text",):
                raise UserError(f"{row.where}: the {what} needs rows of 'text', not of {' + '.join(row.form)}")
        return rows
    text = read_text(path, what).split()
    passages = [" ".join(text[start : start + words]) for start in range(0, len(text) - words + 1, words)]
    if not passages:
        raise UserError(
            f"{what}: {path} has {len(text)} words, but a passage needs {words}: the longest prefix and the "
            "continuation, counted in tokens; give a longer text, or smaller prefixes and answer_tokens"
        )
    # Each passage is a group by itself.
    records = [{"text": passage, "group": f"passage {n + 1}"} for n, passage in enumerate(passages)]
    rows = read_rows(records, name=what)
    return [replace(row, where=f"{path.name}, passage {n + 1}") for n, row in enumerate(rows)]
