"""A YAML file of settings, read without the libraries that know what may stand in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from letgo.core.errors import UserError


def load_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, keys not yet checked."""
    if not path.is_file():
        raise UserError(f"no such config file: {path}")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, not {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}
