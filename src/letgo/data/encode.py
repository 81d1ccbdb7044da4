"""Rows to tokens: the template that turns a question into a prompt, and labels that cover the answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Required, TypedDict

from letgo.core.errors import UserError
from letgo.data.rows import Row

Template = Literal["auto", "plain", "chat"]
LongRows = Literal["error", "cut", "drop"]
IGNORE = -100
"""The label that no loss and no score counts."""


@dataclass(frozen=True)
class Encoded:
    """A row as tokens. `labels` equals `input_ids` on the target's tokens and `IGNORE` elsewhere."""

    input_ids: list[int]
    labels: list[int]
    row: Row

    def __len__(self) -> int:
        return len(self.input_ids)


EncodedRows = tuple[list[Encoded], list[str]]
"""Rows as tokens, and notes about them."""


class EncodeOptions(TypedDict, total=False):
    """How rows become tokens; see `encode_rows`."""

    template: Template | None
    max_length: Required[int]
    long_rows: LongRows
    name: str


def resolve_template(tokenizer: Any, template: Template) -> Literal["plain", "chat"]:
    """`auto` is the chat template where the tokenizer has one, else plain."""
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if template == "auto":
        return "chat" if has_chat else "plain"
    if template == "chat" and not has_chat:
        raise UserError("template 'chat' was asked for, but this tokenizer has no chat template; use template: plain")
    if template not in ("plain", "chat"):
        raise UserError(f"unknown template {template!r}; known: auto, plain, chat")
    return template


def question_text(question: str) -> str:
    """The plain template without its answer: "Question: {q}\\nAnswer:"; the answer follows after a space."""
    return f"Question: {question}\nAnswer:"


def encode_prompt(tokenizer: Any, row: Row, template: Literal["plain", "chat"]) -> list[int]:
    """Tokens of what the model is given before the row's target."""
    if row.form == ("text",):
        return start_tokens(tokenizer)
    if row.form == ("messages",) or (row.form == ("question", "answer") and template == "chat"):
        turns = (("user", row.context),) if isinstance(row.context, str) else row.context
        messages = [{"role": role, "content": content} for role, content in turns]
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"{row.where}: rows of 'messages' need a tokenizer with a chat template; this one has none")
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    text = question_text(str(row.context)) if row.form == ("question", "answer") else str(row.context)
    return start_tokens(tokenizer) + list(tokenizer(text, add_special_tokens=False)["input_ids"])


def target_text(row: Row, template: Literal["plain", "chat"], target: str | None = None) -> str:
    """The target as it follows its prompt: after a space in the plain template, as it stands elsewhere."""
    text = row.target if target is None else target
    return " " + text if row.form == ("question", "answer") and template == "plain" else text


def encode_target(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_rows(
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    template: Template | None = "auto",
    max_length: int,
    long_rows: LongRows = "error",
    name: str = "data",
) -> EncodedRows:
    """Tokenise rows; returns them with notes about them (how many were cut or dropped). `name` is theirs in messages.

    Prompt and target are tokenised apart, so the border between context and label is exact. One end token closes a
    target that ends (`Row.ends`). A row of more than `max_length` tokens is an error, cut at the right, or dropped, as
    `long_rows` says.
    """
    form = resolve_template(tokenizer, template or "auto")
    encoded = []
    for row in rows:
        prompt = encode_prompt(tokenizer, row, form)
        target = encode_target(tokenizer, target_text(row, form))
        if not target:
            raise UserError(f"{row.where}: the target {row.target!r} has no tokens in this tokenizer")
        if row.ends and tokenizer.eos_token_id is not None:
            target = [*target, tokenizer.eos_token_id]
        encoded.append(Encoded(prompt + target, [IGNORE] * len(prompt) + target, row))
    return fit_rows(encoded, max_length, long_rows, name)


def fit_rows(rows: Sequence[Encoded], max_length: int, long_rows: LongRows, name: str) -> EncodedRows:
    """Encoded rows within `max_length`: longer ones are an error, cut, or dropped, as in `encode_rows`."""
    fitting: list[Encoded] = []
    long = [row for row in rows if len(row) > max_length]
    for row in rows:
        if len(row) <= max_length:
            fitting.append(row)
        elif long_rows == "cut":
            fitting.append(Encoded(row.input_ids[:max_length], row.labels[:max_length], row.row))
            if all(label == IGNORE for label in fitting[-1].labels[1:]):
                raise UserError(
                    f"{row.row.where}: cut to max_length {max_length} the row has no target left; "
                    "raise max_length or set long_rows: drop"
                )
    if not long:
        return fitting, []
    longest = max(long, key=len)
    note = (
        f"{name}: {len(long)} of {len(rows)} rows are longer than max_length {max_length} tokens "
        f"(longest {len(longest)}, at {longest.row.where})"
    )
    if long_rows == "error":
        raise UserError(f"{note}\n  raise max_length, or set long_rows: cut or long_rows: drop")
    if not fitting:
        raise UserError(f"{note}: nothing is left after dropping them")
    return fitting, [f"{note}; {'cut' if long_rows == 'cut' else 'dropped'}"]


def start_tokens(tokenizer: Any) -> list[int]:
    """The start token where the tokenizer puts one by itself (Llama does, SmolLM2 does not)."""
    ids = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and ids and ids[0] == bos else []
