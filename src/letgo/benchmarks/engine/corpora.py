"""Texts to unlearn and to keep, read when they are first used: scoring a model needs none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from letgo.benchmarks.engine.tables import PINNED, Table
from letgo.core.errors import UserError
from letgo.data.encode import IGNORE, Encoded, EncodedRows, encode_target, start_tokens
from letgo.data.rows import Row, read_rows

LEAST_CHARACTERS = 50
"""Shorter texts (headings of wikitext) are left out, as WMDP's own code does."""
C4_PART = "en/c4-validation.00000-of-00008.json.gz"
"""The part of C4 that is read: all of it is 300 GB. (SOUL takes one file of its training split.)"""


class LazyRows(Sequence[Row]):
    """Rows that `load` reads when the first of them is used; `missing` where it can only say that there are none."""

    def __init__(self, load: Callable[[], list[Row]], *, missing: bool = False) -> None:
        self.load, self.missing = load, missing

    @cached_property
    def _rows(self) -> list[Row]:
        return self.load()

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]


def texts_of(table: Table, limit: int | None) -> list[Row]:
    """Rows of a table's texts of more than `LEAST_CHARACTERS`; each is a group by itself."""
    records = [
        {"text": row["text"], "group": f"{table.name}/{number}"}
        for number, row in enumerate(table.rows)
        if isinstance(row["text"], str) and len(row["text"]) > LEAST_CHARACTERS
    ][:limit]
    if not records:
        raise UserError(f"{table.name}: none of its {len(table)} texts has more than {LEAST_CHARACTERS} characters")
    return read_rows(records, name=table.name)


def wikitext(data: str | Path | None, limit: int | None) -> list[Row]:
    """The test split of wikitext-2 (raw), which WMDP's own code retains."""
    tables = PINNED["wikitext"].open(data=data)
    return texts_of(tables.table("wikitext-2-raw-v1", "test", fields=("text",)), limit)


def c4(data: str | Path | None, limit: int | None) -> list[Row]:
    """English web text."""
    tables = PINNED["c4"].open(data=data)
    split = "validation" if tables.folder is None or ("en", "validation") in tables.layout else "train"
    return texts_of(tables.table("en", split, fields=("text",), part=C4_PART), limit)


def nothing_to_unlearn(benchmark: str) -> LazyRows:
    """The forget set of a benchmark that has none: an error where it is used."""

    def load() -> list[Row]:
        raise UserError(
            f"benchmark {benchmark!r} only scores a model; it has nothing to unlearn: use it with `letgo eval`"
        )

    return LazyRows(load, missing=True)


def named_corpus(name: str, known: Mapping[str, Callable[[], list[Row]]], what: str, limit: int | None) -> LazyRows:
    """A known corpus by its name, or a file (or hub:ID:CONFIG:SPLIT) of the user's."""
    return LazyRows(known.get(name, lambda: read_rows(name, name=what)[:limit]))


def encode_chunks(tokenizer: Any, rows: Sequence[Row], *, max_length: int, name: str) -> EncodedRows:
    """Each text in pieces of at most `max_length` tokens, a start token before each where the tokenizer puts one
    itself. All tokens but the start tokens are labels."""
    start = start_tokens(tokenizer)
    room = max_length - len(start)
    if room < 1:
        raise UserError(f"max_length {max_length} leaves no room for text beside the start token")
    encoded = []
    for row in rows:
        tokens = encode_target(tokenizer, row.target)
        if not tokens:
            raise UserError(f"{row.where}: the text has no tokens in this tokenizer")
        for first in range(0, len(tokens), room):
            piece = tokens[first : first + room]
            encoded.append(Encoded(start + piece, [IGNORE] * len(start) + piece, row))
    return encoded, [f"{name}: {len(rows)} texts in {len(encoded)} pieces of at most {max_length} tokens"]
