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
_MARK = secrets.token_hex(8)
_TURNS = re.compile(rf"<{_MARK}\|(.*?)>", re.DOTALL)
_WORDS: list[str] = [""]
_IDS: dict[str, int] = {"": 0}
_LOCK = threading.Lock()
"""All served models of a process have one vocabulary, as models that are compared have."""


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

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [_id(word) for word in _PIECES.findall(text)]}

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return "".join(_WORDS[token] for token in tokens)

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **settings: Any) -> str:
        text = "".join(f"<{_MARK}|{message['role']}>{message['content']}" for message in messages)
        return f"{text}<{_MARK}|assistant>" if settings.get("add_generation_prompt") else text

    def messages(self, text: str) -> list[dict[str, str]] | None:
        """The conversation that a text was made of, without the answer's place; None of a text that is none, or in
        which the answer is begun already."""
        before, *parts = _TURNS.split(text)
        turns = [{"role": role, "content": content} for role, content in zip(parts[::2], parts[1::2], strict=True)]
        if before or len(turns) < 2 or turns[-1] != {"role": "assistant", "content": ""}:
            return None
        return turns[:-1]

    def is_plain(self, text: str) -> bool:
        """Whether no conversation is in it."""
        return not _TURNS.search(text)


def _id(word: str) -> int:
    with _LOCK:
        if word not in _IDS:
            _WORDS.append(word)
            _IDS[word] = len(_WORDS) - 1
        return _IDS[word]
