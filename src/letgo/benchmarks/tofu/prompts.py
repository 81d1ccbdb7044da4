"""TOFU's own way from a question and an answer to tokens and labels.

The benchmark's code tokenises question and answer as one text, leaves unlabelled as many tokens as the question's part
has by itself, and puts one labelled end token behind. In its plain template "Answer: " belongs to the answer's part: it
is labelled and scored, and the model writes it itself when it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from letgo.core.errors import UserError
from letgo.data.encode import IGNORE, Encoded, LongRows
from letgo.data.rows import Row

Form = Literal["llama2", "plain", "chat"]
FORMS: tuple[Form, ...] = ("llama2", "plain", "chat")


@dataclass(frozen=True)
class Answer:
    """A question with an answer as tokens: `tokens[start:]` are labelled; `ended` says whether the last of them is the
    end token (a text cut to its length has none)."""

    tokens: tuple[int, ...]
    start: int
    ended: bool

    @property
    def question(self) -> tuple[int, ...]:
        return self.tokens[: self.start]

    @property
    def labelled(self) -> tuple[int, ...]:
        return self.tokens[self.start :]


def resolve_form(tokenizer: Any, form: Form | Literal["auto"]) -> Form:
    """`auto` is llama2 for a tokenizer with Llama-2's chat template ("[INST]", "<<SYS>>"), else plain."""
    template = getattr(tokenizer, "chat_template", None)
    if form == "auto":
        return "llama2" if isinstance(template, str) and "[INST]" in template and "<<SYS>>" in template else "plain"
    if form == "chat" and not template:
        raise UserError("tofu: template chat was asked for, but this tokenizer has no chat template; use plain")
    if form not in FORMS:
        raise UserError(f"tofu has no template {form!r}; it has auto, {', '.join(FORMS)}")
    return form


def texts(tokenizer: Any, form: Form, question: str, answer: str) -> tuple[str, str]:
    """The question's part and the answer's part of the text."""
    if form == "llama2":
        return f"[INST] {question} [/INST]", answer
    if form == "plain":
        return f"Question: {question}\n", f"Answer: {answer}"
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), answer


def encode_question(tokenizer: Any, form: Form, question: str) -> list[int]:
    """The prompt that is answered greedily."""
    text, _ = texts(tokenizer, form, question, "")
    # A chat template writes its start token itself.
    return list(tokenizer(text, add_special_tokens=form != "chat")["input_ids"])


def encode_answer(tokenizer: Any, form: Form, question: str, answer: str, *, length: int, where: str) -> Answer:
    """Question and answer as one text, cut to `length` tokens; an end token where there is room for it.

    Raises:
        UserError: the answer has no tokens (within `length`), or the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("tofu labels an end token after every answer, but this tokenizer has none; set its eos_token")
    first, second = texts(tokenizer, form, question, answer)
    special = form != "chat"
    start = len(tokenizer(first, add_special_tokens=special)["input_ids"])
    tokens = list(tokenizer(first + second, add_special_tokens=special)["input_ids"])
    if len(tokens) <= start or not tokenizer(answer, add_special_tokens=False)["input_ids"]:
        raise UserError(f"{where}: the answer {answer!r} has no tokens in this tokenizer, so it can't be scored")
    ended = len(tokens) < length
    tokens = [*tokens, tokenizer.eos_token_id] if ended else tokens[:length]
    if len(tokens) <= start:
        raise UserError(
            f"{where}: the question alone has {start} tokens; within {length} there is no room for its answer"
        )
    if start < 1:
        raise UserError(f"{where}: the question {question!r} has no tokens in this tokenizer")
    return Answer(tuple(tokens), start, ended)


def encode_tofu_rows(
    tokenizer: Any, rows: Sequence[Row], form: Form, *, max_length: int, long_rows: LongRows, name: str
) -> tuple[list[Encoded], list[str]]:
    """Rows to train on, and what is to be said of those that are longer than `max_length`: an error, cut (as the
    benchmark does at 500), or dropped."""
    encoded, long = [], []
    for row in rows:
        answer = encode_answer(tokenizer, form, str(row.context), row.target, length=1 << 30, where=row.where)
        tokens = list(answer.tokens)
        labels = [IGNORE] * answer.start + tokens[answer.start :]
        if len(tokens) > max_length:
            long.append((len(tokens), row))
            if long_rows == "drop":
                continue
            if long_rows == "cut" and answer.start >= max_length:
                raise UserError(f"{row.where}: cut to max_length {max_length} the row has no answer left")
            tokens, labels = tokens[:max_length], labels[:max_length]
        encoded.append(Encoded(tokens, labels, row))
    if not long:
        return encoded, []
    longest, row = max(long, key=lambda found: found[0])
    said = (
        f"{name}: {len(long)} of {len(rows)} rows are longer than max_length {max_length} tokens "
        f"(longest {longest}, at {row.where})"
    )
    if long_rows == "error":
        raise UserError(f"{said}\n  raise max_length, or set long_rows: cut or long_rows: drop")
    if not encoded:
        raise UserError(f"{said}: nothing is left after dropping them")
    return encoded, [f"{said}; {'cut' if long_rows == 'cut' else 'dropped'}"]
