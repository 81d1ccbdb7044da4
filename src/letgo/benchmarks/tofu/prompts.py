"""TOFU's own way from a question and an answer to tokens and labels.

The benchmark's code tokenises question and answer as one text, leaves unlabelled as many tokens as the question's part
has by itself, and adds one labelled end token. In its plain template "Answer: " belongs to the answer's part: it is
labelled and scored, and the model writes it when it answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from letgo.core.errors import UserError

AnswerForm = Literal["llama2", "plain", "chat"]
FORMS: tuple[AnswerForm, ...] = ("llama2", "plain", "chat")


@dataclass(frozen=True)
class Answer:
    """A question with an answer as tokens. `labelled` are the answer's; `ended` says whether the last of them is the
    end token (a text cut to its length has none)."""

    question: tuple[int, ...]
    labelled: tuple[int, ...]
    ended: bool


def resolve_form(tokenizer: Any, form: AnswerForm | Literal["auto"]) -> AnswerForm:
    """`auto` is llama2 for a tokenizer with Llama-2's chat template ("[INST]", "<<SYS>>"), else plain."""
    template = getattr(tokenizer, "chat_template", None)
    if form == "auto":
        return "llama2" if isinstance(template, str) and "[INST]" in template and "<<SYS>>" in template else "plain"
    if form == "chat" and not template:
        raise UserError("tofu: template chat was asked for, but this tokenizer has no chat template; use plain")
    if form not in FORMS:
        raise UserError(f"tofu has no template {form!r}; it has auto, {', '.join(FORMS)}")
    return form


def texts(tokenizer: Any, form: AnswerForm, question: str, answer: str) -> tuple[str, str]:
    """The question's part and the answer's part of the text."""
    if form == "llama2":
        return f"[INST] {question} [/INST]", answer
    if form == "plain":
        return f"Question: {question}\n", f"Answer: {answer}"
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), answer


def encode_question(tokenizer: Any, form: AnswerForm, question: str) -> list[int]:
    """The prompt that is answered greedily."""
    text, _ = texts(tokenizer, form, question, "")
    # A chat template writes its start token itself.
    return list(tokenizer(text, add_special_tokens=form != "chat")["input_ids"])


def encode_answer(tokenizer: Any, form: AnswerForm, question: str, answer: str, *, length: int, where: str) -> Answer:
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
    return Answer(tuple(tokens[:start]), tuple(tokens[start:]), ended)
