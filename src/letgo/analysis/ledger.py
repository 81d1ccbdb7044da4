"""What a long analysis has done so far, a line at a time, so that a killed one goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from letgo.core.fingerprints import digest_of


class Ledger:
    """Values by key in a file of JSON lines beside the result to be; the file's name holds a digest of all that the
    values depend on. JSON writes floats so that they are read back to the same bits.

    Args:
        directory: where the file lies; None keeps everything in memory.
        kind: what is done.
        depends_on: settings and weights; another value of any of them is another ledger.
    """

    def __init__(self, directory: Path | None, kind: str, depends_on: Mapping[str, Any]) -> None:
        self.done: dict[str, Any] = {}
        self.path: Path | None = None
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f".analysis-{kind}-{digest_of(depends_on)}.jsonl"
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        if self.path is None:
            return
        text = self.path.read_text(encoding="utf-8")
        for line in text.splitlines():
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):
                continue  # the line that a kill cut short
            self.done[json.dumps(key)] = value
        if text and not text.endswith("\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def get(self, key: Sequence[Any]) -> Any:
        """The value under a key, None where there is none yet."""
        return self.done.get(json.dumps(list(key)))

    def put(self, key: Sequence[Any], value: Any) -> None:
        self.done[json.dumps(list(key))] = value
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([list(key), value], allow_nan=False) + "\n")

    def remove(self) -> None:
        """When the result is written: nothing is left to resume."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
