"""Words as tokens, for a server whose tokens are not known: it is asked by text or messages, and answers by text.

What benchmarks do with a tokenizer (put a question into a template, count an answer's length, cut a text) they do with
this one too; a count of tokens is then one of words.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Sequence
from typing import Any

_PIECES = re.compile(r"\s*\S+|\s+")


class Words:
    """A tokenizer whose tokens are words with the white space before them. Joined, they are the text again.

    Args:
        chat: whether the server takes messages. A conversation becomes a text with marks that no data can hold, and is
            taken apart again before it is sent.
    """

    bos_token: str | None = None
    bos_token_id: int | None = None
    eos_token = pad_token = ""
    eos_token_id = pad_token_id = 0
    all_special_ids = (0,)

    def __init__(self, *, chat: bool) -> None:
        self.chat_template = "the server's own" if chat else None
        self._mark = secrets.token_hex(8)
        self._turns = re.compile(rf"<{self._mark}\|(.*?)>", re.DOTALL)
        self._words: list[str] = [""]
        self._ids: dict[str, int] = {"": 0}
        self._lock = threading.Lock()

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [self._id(word) for word in _PIECES.findall(text)]}

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return "".join(self._words[token] for token in tokens)

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **settings: Any) -> str:
        text = "".join(f"<{self._mark}|{message['role']}>{message['content']}" for message in messages)
        return f"{text}<{self._mark}|assistant>" if settings.get("add_generation_prompt") else text

    def messages(self, text: str) -> list[dict[str, str]] | None:
        """The conversation that a text was made of, without the answer's place; None of a text that is none, or in
        which the answer is begun already."""
        before, *parts = self._turns.split(text)
        turns = [{"role": role, "content": content} for role, content in zip(parts[::2], parts[1::2], strict=True)]
        if before or len(turns) < 2 or turns[-1] != {"role": "assistant", "content": ""}:
            return None
        return turns[:-1]

    def is_plain(self, text: str) -> bool:
        """Whether no conversation is in it."""
        return not self._turns.search(text)

    def _id(self, word: str) -> int:
        with self._lock:
            if word not in self._ids:
                self._words.append(word)
                self._ids[word] = len(self._words) - 1
            return self._ids[word]
