"""MUSE's training texts: joined, tokenised as one, and cut into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from letgo.core.errors import UserError
from letgo.data.encode import Encoded, EncodedRows
from letgo.data.rows import Row


def chunks_of(tokenizer: Any, rows: Sequence[Row], *, max_length: int, name: str) -> EncodedRows:
    """Texts joined by an empty line, tokenised without special tokens, and cut into chunks of `max_length` − 1 tokens
    with the start token before each; every token is labelled. Returns the chunks, and notes about them.

    As in the benchmark's own code, a last chunk that is shorter is filled up from the beginning of the first. (A single
    chunk stays short: it would be filled with itself.)

    Raises:
        UserError: there are no tokens, or `max_length` leaves none beside the start token.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    size = max_length - 1
    if size < 1:
        raise UserError(f"{name}: max_length must be at least 2 for chunks of text, not {max_length}")
    tokens = tokenizer("\n\n".join(row.target for row in rows), add_special_tokens=False)["input_ids"]
    if not len(tokens):
        raise UserError(f"{name}: its texts have no tokens in this tokenizer")
    chunks = [start + list(tokens[first : first + size]) for first in range(0, len(tokens), size)]
    if len(chunks) > 1:
        chunks[-1] = (chunks[-1] + chunks[0])[: len(start) + size]
    encoded = []
    for number, chunk in enumerate(chunks):
        where = f"{name}, chunk {number + 1}"
        text = tokenizer.decode(chunk, skip_special_tokens=True)
        encoded.append(Encoded(chunk, list(chunk), Row(("text",), "", text, where, where, ends=False)))
    return encoded, [f"{name}: {len(rows)} texts as {len(chunks)} chunks of {max_length} tokens"]
