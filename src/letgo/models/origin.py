"""What can be said of a model that somebody else made, from its own files: which it is, and who made it, and how.

What the files say is taken over as it stands: letgo has not checked it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from letgo.core.errors import UserError
from letgo.core.extras import need
from letgo.models.adapters import is_adapter
from letgo.models.files import ADAPTER_CONFIG
from letgo.models.gguf import is_gguf
from letgo.models.load import BUILTIN, resolve_model

LONGEST = 200
"""Characters of a statement that are kept."""
_CARD = ("base_model", "author", "license", "library_name", "tags")
_CONFIG = ("transformers_version", "_name_or_path")
_ADAPTER = ("base_model_name_or_path", "peft_type", "r")
_GGUF = ("author", "organization", "quantized_by", "name", "version", "license")


def kind_of_model(model: str) -> str:
    """What a model's name stands for, in a word or two."""
    if model in BUILTIN:
        return "built-in model"
    path = Path(model)
    if is_gguf(path) and path.is_file():
        return "GGUF file"
    if not path.is_dir():
        return "hub model"
    return "adapter" if is_adapter(path) else "directory"


def made_by(model: str) -> dict[str, str]:
    """What a model's own files say of who made it, and from what; nothing where they say nothing."""
    path = Path(model)
    if is_gguf(path) and path.is_file():
        return dict(_of_gguf(path))
    folder = Path(resolve_model(model))
    statements: dict[str, str] = {}
    for name, keys in (("config.json", _CONFIG), (ADAPTER_CONFIG, _ADAPTER)):
        statements |= _chosen(name, _mapping(folder / name), keys)
    statements |= _chosen("README.md", _front_matter(folder / "README.md"), _CARD)
    record = _mapping(folder / "result.json")
    if "run_id" in record:
        config = record.get("config")
        statements |= _chosen("result.json", record, ("letgo", "run_id"))
        statements |= _chosen("result.json", config if isinstance(config, dict) else {}, ("objective", "optimizer"))
    return statements


def _of_gguf(path: Path) -> Iterator[tuple[str, str]]:
    reader = need("gguf", "gguf", what=f"reading {path}").GGUFReader(path)
    for key in _GGUF:
        field = reader.fields.get(f"general.{key}")
        if field is not None and (text := _short(field.contents())):
            yield f"{path.name}: {key}", text


def _chosen(file: str, settings: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, str]:
    return {f"{file}: {key}": text for key in keys if (text := _short(settings.get(key)))}


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(str(one) for one in value)
    return str(value)[:LONGEST] if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON file that is a mapping; nothing where it is missing, or none: it is only asked for what it may say."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        read = json.loads(path.read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else {}
    return {}


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML at the beginning of a model card."""
    with contextlib.suppress(OSError, ValueError, RecursionError, yaml.YAMLError, UserError):
        match = re.match(r"---\r?\n(.*?)\r?\n---", path.read_text(encoding="utf-8"), re.DOTALL)
        read = yaml.safe_load(match[1]) if match else None
        return read if isinstance(read, dict) else {}
    return {}
