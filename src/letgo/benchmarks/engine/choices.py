"""Multiple-choice questions of four answers, in the schema that WMDP and MMLU share, and their exact prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letgo.core.errors import UserError

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Choice:
    """One question: four `choices`, and `answer`, the right one's place (0 to 3). `topic` stands in the prompt."""

    question: str
    choices: tuple[str, str, str, str]
    answer: int
    topic: str
    where: str

    def prompt(self) -> str:
        """The text before the letter, to the byte as lm-eval's wmdp and mmlu tasks have it."""
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True)]
        return (
            f"The following are multiple choice questions (with answers) about {self.topic}.\n\n"
            f"{self.question.strip()}\n" + "\n".join(lines) + "\nAnswer:"
        )

    def row(self) -> dict[str, Any]:
        """The row as the hub has it."""
        return {"question": self.question, "choices": list(self.choices), "answer": self.answer}


def read_choices(rows: Iterable[tuple[str, Mapping[str, Any]]], topic: str) -> list[Choice]:
    """Checked questions from pairs of (where it stands, row of `question`, `choices`, `answer`)."""
    found = []
    for where, row in rows:
        for name in ("question", "choices", "answer"):
            if name not in row:
                raise UserError(
                    f"{where}: a multiple-choice row needs 'question', 'choices' and 'answer'; this one has no {name!r}"
                )
        question, choices, answer = row["question"], row["choices"], row["answer"]
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"{where}: field 'question' must be text that is not empty, not {question!r}")
        texts = choices if isinstance(choices, Sequence) and not isinstance(choices, str) else ()
        if len(texts) != len(LETTERS) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{where}: field 'choices' must be a list of four texts, not {str(choices)[:120]!r}")
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(LETTERS):
            raise UserError(
                f"{where}: field 'answer' must be the right choice's place, 0 to 3, not {answer!r}"
                + ("; letters count from A = 0" if isinstance(answer, str) else "")
            )
        found.append(Choice(question, tuple(texts), answer, topic, where))
    return found


def encode_choice(tokenizer: Any, prompt: str, *, max_length: int) -> tuple[list[int], list[list[int]], bool]:
    """A prompt and its four answers " A" to " D" as tokens.

    Prompt and answer are tokenised together and cut where the prompt's own tokens end, as lm-eval does: a tokenizer
    that begins a text with a space of its own would make other tokens of " A" alone.

    Returns:
        The prompt's tokens, each answer's, and whether the prompt was cut at the left to fit into `max_length`.

    Raises:
        UserError: the tokenizer makes no token of an answer, or nothing of the prompt is left.
    """
    before = list(tokenizer(prompt)["input_ids"])
    answers = []
    for letter in LETTERS:
        whole = list(tokenizer(f"{prompt} {letter}")["input_ids"])
        answer = whole[len(before) :]
        if not answer:
            raise UserError(
                f"this tokenizer makes no token of the answer {letter!r} after a prompt; it can't be scored"
            )
        answers.append(answer)
    # The last token of an answer is only predicted, so one more fits than the model takes.
    room = max_length + 1 - max(map(len, answers))
    if room < 1:
        raise UserError(f"a context of {max_length} tokens leaves no room for a prompt")
    return before[-room:], answers, len(before) > room
