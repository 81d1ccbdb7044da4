"""Reading forget and retain sets: JSONL, JSON, CSV, Parquet, or a data set of the hub.

A row has one of four forms, which its fields show: `text`; `prompt` + `completion`; `question` + `answer`; `messages`.
An optional `group` names what rows belong together (a person, a country), so that an attack can hold out whole groups.
An optional `end` (true or false) says whether an end token closes the target; by default it does, but not for `text`.
Optional `wrong_answers` and `paraphrases` (lists) are for rows that are scored: other answers to choose from, and the
same question in other words.
Every row remembers where it came from, so that an error can name the file and line.
"""

from __future__ import annotations

import csv
import gzip
import lzma
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.files import parse_json, require_file
from letgo.core.values import flaw, shown

FORMS: tuple[tuple[str, ...], ...] = (("messages",), ("question", "answer"), ("prompt", "completion"), ("text",))
_SCORED_FIELDS = ("wrong_answers", "end")
"""Fields that a paraphrase may have beside those of its form; it takes over its row's where it has none."""
_FORMS_TEXT = "'text', 'prompt'+'completion', 'question'+'answer', or 'messages'"
_ROLES = ("system", "user", "assistant")
_COMPRESSED: Mapping[str, Any] = {".gz": gzip.open, ".xz": lzma.open}


@dataclass(frozen=True)
class Row:
    """One checked row. `context` is what the model is given, `target` what it is to say (or unsay).

    For `text` rows the context is empty. For `messages` rows the context is all messages before the last.
    """

    form: tuple[str, ...]
    context: str | tuple[tuple[str, str], ...]
    target: str
    group: str
    where: str
    ends: bool = True
    """Whether an end token closes the target."""
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """All fields as they were read, for benchmarks that need more of them."""

    @property
    def content(self) -> tuple[Any, str]:
        """What makes two rows the same."""
        return (self.context, self.target)


def read_rows(source: str | Path | Sequence[Mapping[str, Any]], *, name: str = "data") -> list[Row]:
    """Rows of a file, of `hub:ID[@REVISION]:CONFIG:SPLIT`, or of a list of mappings.

    `name` is what messages call the set ("forget set"). Raises `UserError` for a missing or malformed source, a row of
    none of the four forms, an empty field, or an empty set.
    """
    if isinstance(source, str | Path):
        origin = str(source)
        records = _sound(_read_hub(origin)) if origin.startswith("hub:") else read_records(Path(origin), name=name)
    else:
        origin = name
        records = _sound((f"{name}, row {index + 1}", record) for index, record in enumerate(source))
    if not records:
        raise UserError(f"{name}: {origin} has no rows; at least one is needed")
    rows = [_row(where, record) for where, record in records]
    for row in rows:
        # Whoever gives them means them: they are checked also where nothing asks for them.
        wrong_answers(row)
    return rows


def rows_from_records(records: Iterable[Mapping[str, Any]], name: str) -> list[Row]:
    """Rows of built-in data, checked like any other."""
    return read_rows(list(records), name=name)


def check_disjoint(forget: Sequence[Row], retain: Sequence[Row]) -> None:
    """Raise a `UserError` if a row stands in both sets: it would be forgotten and kept at once."""
    seen = {row.content: row for row in forget}
    shared = [(seen[row.content], row) for row in retain if row.content in seen]
    if shared:
        forgotten, kept = shared[0]
        raise UserError(
            f"the forget set and the retain set share {len(shared)} row(s); the first stands at {forgotten.where} "
            f"and at {kept.where}\n  remove them from one of the two"
        )


def wrong_answers(row: Row) -> tuple[str, ...]:
    """The row's `wrong_answers`, none if it has no such field. A `UserError` unless they are texts in a list, none of
    them the right answer."""
    listed = _checked_list(row.where, "wrong_answers", row.fields.get("wrong_answers"))
    answers = tuple(checked_text(row.where, f"wrong_answers[{i}]", answer) for i, answer in enumerate(listed))
    if row.target in answers:
        raise UserError(f"{row.where}: field 'wrong_answers' has the right answer {row.target!r}; take it out")
    return answers


def paraphrases(row: Row) -> list[Row]:
    """The row in other words, as its field `paraphrases` lists them; none if it has no such field.

    Each is a question (a text), or an object with the question and, where they differ from the row's own, the answer,
    `wrong_answers` and `end`, under the names that the row has. All are of the row's group. Raises `UserError` for
    anything else.
    """
    question = row.form[0]
    known = (*row.form, *_SCORED_FIELDS)
    own = {key: row.fields[key] for key in known if key in row.fields}
    reworded = []
    for number, given in enumerate(_checked_list(row.where, "paraphrases", row.fields.get("paraphrases")), start=1):
        where = f"{row.where}, paraphrase {number}"
        fields = {question: given} if isinstance(given, str) else given
        if not isinstance(fields, Mapping):
            kind = f"{_name_of(given)} ({str(given)[:60]})"
            raise UserError(f"{where} must be a question (text) or an object with {question!r}, not {kind}")
        # A column of a Parquet file gives every object every field.
        fields = {key: value for key, value in fields.items() if value is not None}
        unknown = next((str(key) for key in fields if key not in known), None)
        if unknown is not None:
            raise UserError(
                f"{where}: unknown field {unknown!r}{did_you_mean(unknown, known)}; known: {', '.join(known)}"
            )
        if question not in fields:
            raise UserError(f"{where} has no {question!r}: give the question in other words")
        reworded.append(_row(where, {**own, **fields, "group": row.group}))
    return reworded


def _checked_list(where: str, key: str, value: Any) -> Sequence[Any]:
    """The value of a field that must be a list and not empty; an empty one where the row has no such field."""
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(
            f"{where}: field {key!r} must be a list, not {_name_of(value)} ({str(value)[:60]})\n"
            "  JSONL, JSON and Parquet can hold lists; CSV can't"
        )
    if not value:
        raise UserError(f"{where}: field {key!r} is an empty list; leave the field out, or fill it")
    return value


def _name_of(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _row(where: str, record: Mapping[str, Any]) -> Row:
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: a row must be an object with named fields, not {_name_of(record)}")
    form = next((form for form in FORMS if all(key in record for key in form)), None)
    if form is None:
        raise UserError(_no_form(where, record))
    group = record.get("group")
    if isinstance(group, bool) or not isinstance(group, str | int | None):
        raise UserError(f"{where}: field 'group' must be text or a whole number, not {shown(group)}")
    group = "" if group is None else str(group)
    if form == ("messages",):
        messages = _messages(where, record["messages"])
        context: str | tuple[tuple[str, str], ...] = messages[:-1]
        target = messages[-1][1]
    else:
        values = [checked_text(where, key, record[key]) for key in form]
        context, target = ("", values[0]) if len(values) == 1 else (values[0], values[1])
    ends = record.get("end")
    if ends is not None and not isinstance(ends, bool):
        raise UserError(f"{where}: field 'end' must be true or false, not {ends!r}")
    return Row(
        form=form,
        context=context,
        target=target,
        group=group or where,
        where=where,
        ends=form != ("text",) if ends is None else ends,
        fields=dict(record),
    )


def _no_form(where: str, record: Mapping[str, Any]) -> str:
    for form in FORMS:
        present = [key for key in form if key in record]
        missing = [key for key in form if key not in record]
        if present and missing:
            hint = did_you_mean(missing[0], [str(key) for key in record if key not in present])
            return f"{where}: the row has {present[0]!r} but no {missing[0]!r}{hint}"
    known = [key for form in FORMS for key in form]
    hints = [did_you_mean(str(key), known) for key in record]
    fields = ", ".join(repr(str(key)) for key in record) or "no fields"
    return f"{where}: a row needs {_FORMS_TEXT}; this one has {fields}{next(filter(None, hints), '')}"


def checked_text(where: str, key: str, value: Any) -> str:
    """The value of a field that must be text and not empty; else a `UserError` that says where it stands."""
    if not isinstance(value, str):
        raise UserError(f"{where}: field {key!r} must be text, not {_name_of(value)} ({str(value)[:60]})")
    if not value.strip():
        raise UserError(f"{where}: field {key!r} is empty")
    return value


def _messages(where: str, messages: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"{where}: field 'messages' must be a list of {{role, content}} objects that is not empty")
    result = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise UserError(f"{where}: message {number} must have 'role' and 'content'")
        if message["role"] not in _ROLES:
            raise UserError(f"{where}: message {number} has role {message['role']!r}; known: {', '.join(_ROLES)}")
        result.append((message["role"], checked_text(where, f"messages[{number - 1}].content", message["content"])))
    if result[-1][0] != "assistant":
        raise UserError(f"{where}: the last message must be the assistant's, the one to forget or keep")
    return tuple(result)


def read_records(path: Path, *, name: str = "data") -> list[tuple[str, Any]]:
    """The rows of a JSONL, JSON, CSV or Parquet file, not yet checked, each after the place where it stands."""
    require_file(path, name)
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    kind = kind_of(path)
    reader = readers.get(kind)
    if reader is None:
        raise UserError(f"{name}: {path}: unknown kind of file {kind!r}; known: {', '.join(readers)}")
    try:
        return _sound(reader(path))
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name}: {path} is not a whole {path.suffix} file ({error})") from error
    except RecursionError as error:
        raise UserError(f"{name}: {path}: nested too deeply") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: {path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(f"{name}: {path} can't be read: {error.strerror or error}") from error


def _sound(records: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The records, each of them checked: a text that can't be written again must not be found when scores are."""
    checked = []
    for where, record in records:
        if problem := flaw(record, finite=False):
            raise UserError(f"{where}: {problem}")
        checked.append((where, record))
    return checked


def kind_of(path: Path) -> str:
    """A file's ending that says what is in it: ".jsonl" of rows.jsonl and of rows.jsonl.gz."""
    return (path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path).suffix.lower()


def _opened(path: Path, **settings: Any) -> Any:
    """A text file, unpacked on the way where it is compressed."""
    return _COMPRESSED.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig", **settings)


def _read_jsonl(path: Path) -> list[tuple[str, Any]]:
    records = []
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                records.append((f"{path}:{number}", parse_json(line, path, number)))
    return records


def _read_json(path: Path) -> list[tuple[str, Any]]:
    """A JSON list of rows; a file of one object a line, as some data sets name .json too, is read as JSONL."""
    with _opened(path) as file:
        text = file.read()
    if text.lstrip().startswith("{"):
        return _read_jsonl(path)
    rows = parse_json(text, path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: must be a list of rows, not {type(rows).__name__}")
    return [(f"{path}, row {index + 1}", row) for index, row in enumerate(rows)]


def _read_csv(path: Path) -> list[tuple[str, Any]]:
    with _opened(path, newline="") as file:
        csv.field_size_limit(2**31 - 1)
        reader = csv.DictReader(file, restkey="", strict=True)
        try:
            head, records = list(reader.fieldnames or []), []
            for number, column in enumerate(head):
                if not column or column in head[:number]:
                    problem = f"{column!r} is given twice" if column else f"{number + 1} has no name"
                    raise UserError(f"{path}:1: column {problem}")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if "" in row or None in row.values():
                    raise UserError(f"{where}: the row does not have the {len(head)} columns of the head")
                records.append((where, row))
        except csv.Error as error:
            raise UserError(f"{path}:{reader.reader.line_num}: not CSV ({error})") from error
    return records


def _read_parquet(path: Path) -> list[tuple[str, Any]]:
    import datasets

    try:
        table = datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
    except Exception as error:  # pyarrow raises many kinds for a file that is not Parquet
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error
    return [(f"{path}, row {index + 1}", row) for index, row in enumerate(table)]


def _read_hub(spec: str) -> list[tuple[str, Any]]:
    """`hub:ID[@REVISION]:CONFIG:SPLIT`; CONFIG may be empty for the default one. ID may be a local folder."""
    parts = spec.removeprefix("hub:").split(":")
    if len(parts) != 3 or not parts[0] or not parts[2]:
        raise UserError(f"{spec!r} is not of the form hub:ID[@REVISION]:CONFIG:SPLIT (CONFIG may be empty)")
    repository, config, split = parts
    identifier, _, revision = repository.partition("@")
    import datasets

    try:
        table = datasets.load_dataset(identifier, config or None, split=split, revision=revision or None)
    except Exception as error:  # many kinds: unreachable, gated, unknown config or split
        raise UserError(
            f"{spec}: could not be loaded ({type(error).__name__}: {str(error).splitlines()[0][:200]})\n"
            "  if the hub can't be reached or the data set is gated, download it once and give the file's path"
        ) from error
    return [(f"{spec}, row {index + 1}", row) for index, row in enumerate(table)]
