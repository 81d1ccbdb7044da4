"""Records with a schema: how one is read, and what is said of one that is damaged, foreign or of another version."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from letgo.core.errors import EmptyScoreError, NonFiniteLossError, UserError
from letgo.core.files import damaged, read_json

Model = TypeVar("Model", bound=BaseModel)


def read_document(path: Path, model: type[Model], schema: int) -> Model:
    """Read a JSON file of a versioned schema; a broken one, or one of another version, is a `UserError`."""
    raw = read_json(path)
    version = raw.get("schema") if isinstance(raw, dict) else None
    if isinstance(version, int) and version != schema:
        raise UserError(f"{path}: schema {version}, but this letgo reads schema {schema}; {_way_out(version > schema)}")
    if version != schema:
        raise damaged(path, f"schema {_short(repr(version))}, but this letgo reads schema {schema}")
    return validated(path, model, raw)


def validated(where: Path | str, model: type[Model], raw: Any) -> Model:
    """A record as its schema has it; one that is not so is a `UserError` that names the field."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, got = ".".join(str(part) for part in first["loc"]), repr(first["input"])
        raise damaged(where, f"field {_short(repr(field))}: {first['msg']} (got {_short(got)})") from error
    except (NonFiniteLossError, EmptyScoreError) as error:
        raise damaged(where, str(error)) from error


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"


def _way_out(newer: bool) -> str:
    if newer:
        return "it was written by a newer letgo: upgrade"
    return "it was written by an older letgo, whose figures mean something else: run it again"
