"""Checkpoints of a run: which of them are whole, and how many are kept.

Trainer writes a checkpoint file by file. What makes it whole is the file `letgo_complete`, written last, which has the
digest of every other one: a checkpoint that was cut off while it was saved, or damaged since, is not gone on from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from letgo.core.files import write_text
from letgo.core.fingerprints import file_digest

COMPLETE = "letgo_complete"


def mark_complete(checkpoint: Path, **facts: Any) -> None:
    """Say that a checkpoint is whole. `facts` are kept with the digests of its files."""
    digests = {name: file_digest(checkpoint / name) for name in _files(checkpoint)}
    write_text(checkpoint / COMPLETE, json.dumps({**facts, "files": digests}) + "\n")


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What was kept with a checkpoint that was once whole."""
    text = (checkpoint / COMPLETE).read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text) if text.strip() else {}
    return facts


def checkpoints(directory: Path) -> list[Path]:
    """All checkpoints in a run directory, whole or not, the newest first."""
    found = (path for path in directory.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdecimal())
    return sorted(found, key=_step, reverse=True)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint in a run directory that was written to its end; its files are not looked at."""
    return next((path for path in checkpoints(directory) if (path / COMPLETE).is_file()), None)


def whole_checkpoint(directory: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint in a run directory whose files are all as they were written. Newer ones are named and
    removed."""
    for path in checkpoints(directory):
        if not (damage := _damage(path)):
            return path
        say(f"  {path} is not gone on from: {damage}")
        remove_checkpoint(path)
    return None


def remove_older(directory: Path, newest: Path, keep: int) -> None:
    """Leave so many checkpoints: `newest` and those before it."""
    for path in [path for path in checkpoints(directory) if _step(path) <= _step(newest)][max(1, keep) :]:
        remove_checkpoint(path)


def remove_checkpoint(path: Path) -> None:
    # First of all it must not count as whole: a kill may leave the half of it.
    (path / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint; empty where nothing is."""
    if not (checkpoint / COMPLETE).is_file():
        return "it was cut off while it was saved"
    try:
        digests = facts_of(checkpoint).get("files")
    except (ValueError, AttributeError):
        return f"{COMPLETE} is damaged"
    if not isinstance(digests, dict):
        return "an older letgo wrote it, without the digests of its files"
    for name, digest in digests.items():
        if not (checkpoint / name).is_file():
            return f"it lacks {name}"
        if file_digest(checkpoint / name) != digest:
            return f"{name} is damaged"
    return ""


def _files(checkpoint: Path) -> list[str]:
    names = (path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    return sorted(name for name in names if name != COMPLETE)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[11:])
