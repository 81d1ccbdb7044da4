"""Texts to unlearn and to keep, read when they are asked for: who only scores a model needs none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from letgo.benchmarks.engine.tables import PINNED, Table, Tables
from letgo.core.errors import UserError
from letgo.data.encode import Encoded, encode_target, start_tokens
from letgo.data.rows import Row, read_rows

LEAST_CHARACTERS = 50
"""Shorter texts (headings of wikitext) are left out, as WMDP's own code does."""
C4_PART = "en/c4-validation.00000-of-00008.json.gz"
"""The part of C4 that is read: all of it is 300 GB. (SOUL takes one file of its training split.)"""


@dataclass(eq=False)
class LazyRows(Sequence[Row]):
    """Rows that `load` reads when the first of them is asked for."""

    load: Callable[[], list[Row]]
    _rows: list[Row] | None = field(default=None, repr=False)

    def all(self) -> list[Row]:
        if self._rows is None:
            self._rows = self.load()
        return self._rows

    def __len__(self) -> int:
        return len(self.all())

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.all()[index]


def opened(name: str, data: str | Path | None) -> Tables:
    """The tables of a pinned data set: under `data`, a folder of local copies each under its own name, or as
    `Source.open` finds them."""
    source = PINNED[name]
    if data is None:
        return source.open()
    folder = Path(str(data)).expanduser()
    if not (folder / name).is_dir():
        what = f"has no folder {name!r}" if folder.is_dir() else f"is no folder; it is to hold a folder {name!r}"
        access = f"ask for access at https://huggingface.co/datasets/{source.repository}, then " * source.gated
        raise UserError(
            f"data={data} {what}, a copy of {source.repository}\n  {access}`hf download {source.repository} "
            f"--repo-type dataset --revision {source.revision} --local-dir {folder / name}` makes it"
        )
    return source.open(data=folder / name)


def texts_of(table: Table, *, field_name: str = "text", limit: int | None = None) -> list[Row]:
    """Rows of a table's texts, those of more than `LEAST_CHARACTERS`; each is a group of its own."""
    records = [
        {"text": row[field_name], "group": f"{table.name}/{place}"}
        for place, row in enumerate(table.rows)
        if isinstance(row[field_name], str) and len(row[field_name]) > LEAST_CHARACTERS
    ][:limit]
    if not records:
        raise UserError(f"{table.name}: none of its {len(table)} texts has more than {LEAST_CHARACTERS} characters")
    return read_rows(records, name=table.name)


def wikitext(data: str | Path | None, limit: int | None) -> list[Row]:
    """The test split of wikitext-2 (raw), which WMDP's own code retains."""
    return texts_of(opened("wikitext", data).table("wikitext-2-raw-v1", "test", fields=("text",)), limit=limit)


def c4(data: str | Path | None, limit: int | None) -> list[Row]:
    """English web text."""
    tables = opened("c4", data)
    split = "validation" if tables.folder is None or ("en", "validation") in tables.layout else "train"
    return texts_of(tables.table("en", split, fields=("text",), part=C4_PART), limit=limit)


def named_corpus(
    name: str, known: Mapping[str, Callable[[], list[Row]]], what: str, limit: int | None
) -> Callable[[], list[Row]]:
    """A corpus by a name that is known, or of a file (or hub:ID:CONFIG:SPLIT) of the user's."""
    if name in known:
        return known[name]
    return lambda: read_rows(name, name=what)[:limit]


def encode_chunks(tokenizer: Any, rows: Sequence[Row], *, max_length: int) -> tuple[list[Encoded], list[str]]:
    """Each text in pieces of at most `max_length` tokens, a start token before each where the tokenizer has one of its
    own. All tokens but the start tokens are labels."""
    start = start_tokens(tokenizer)
    room = max_length - len(start)
    if room < 1:
        raise UserError(f"max_length {max_length} leaves no room for text beside the start token")
    encoded = []
    for row in rows:
        tokens = encode_target(tokenizer, row.target)
        if not tokens:
            raise UserError(f"{row.where}: the text has no tokens in this tokenizer")
        for place in range(0, len(tokens), room):
            piece = tokens[place : place + room]
            encoded.append(Encoded(start + piece, [-100] * len(start) + piece, row))
    return encoded, [f"{len(rows)} texts in {len(encoded)} pieces of at most {max_length} tokens"]
