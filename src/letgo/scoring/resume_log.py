"""The finished results of a long evaluation or analysis, so that a killed one goes on where it stopped."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from letgo.core import processes
from letgo.core.errors import UserError
from letgo.core.files import written_whole
from letgo.core.fingerprints import text_fingerprint
from letgo.core.locks import take

_VERSION = 1
PARTIAL = "scores-{}.partial.jsonl"
"""In an unfinished run: what has been scored of the model whose weights have this fingerprint."""


class ResumeLog:
    """A JSON-lines file of finished results: lines `{"key": …, "value": …}` after a first line with the identity.

    The engine (`score`, `generate`) takes one as `log=`: it appends each batch when it is finished, and does not
    compute again what is already there. A key is a hash of everything that a sample's score depends on beside the model
    (its tokens and the settings), so a changed prompt is scored anew; `identity` must say what the *model* is. An
    analysis keeps each point that it has measured (`value`). JSON gives floats back to the same bits.

        with ResumeLog(output / "scores.jsonl", {"weights": weights_fingerprint(model)}) as log:
            score(model, queries, log=log)

    Where several processes score together each writes its own file (`path` and the process's number), and begins with
    what is in all files: a run may go on with another number of processes.

    Args:
        path: the file; made (with its folder) where there is none. None keeps everything in memory.
        identity: what all lines depend on, as JSON values: the model's fingerprint, its dtype, the tokenizer.

    Raises:
        UserError: the file belongs to another identity, or is not such a log; or another process writes it.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any]) -> None:
        self._values: dict[str, Any] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        first = Path(path)
        number = processes.number()
        self.path = first if number == 0 else first.with_name(f"{first.name}.{number}")
        self.identity = json.loads(json.dumps(dict(identity)))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for other in _files(first):
            if other != self.path:
                self._read(other, _bytes(other))
        head = _line({"letgo_scores": _VERSION, "identity": self.identity})
        if os.path.lexists(self.path):
            _bytes(self.path)  # a pipe in its place must not be opened
        self._file = self.path.open("a", encoding="utf-8")
        try:
            if take(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB) == "taken":
                raise UserError(f"another process writes {self.path}: wait until it has ended, or stop it")
            raw = _bytes(self.path)
            # Killed in its first line: nothing is lost by starting anew.
            new = b"\n" not in raw and head.encode().startswith(raw)
            self._file.truncate(0 if new else len(self._read(self.path, raw)))
            if new:
                self._file.write(head)
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: Path, raw: bytes) -> bytes:
        """Add the results of a file; returns its whole lines."""
        # A process killed while it wrote leaves half a line: that result is made again.
        whole = raw[: raw.rfind(b"\n") + 1]
        if not whole and path != self.path:
            return whole  # another process has just made it
        try:
            head, *entries = map(json.loads, whole.decode("utf-8").split("\n")[:-1] or ["{}"])
            self._values |= {entry["key"]: entry["value"] for entry in entries}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _no_log(path, str(error)) from error
        theirs, ours = head.get("identity") if isinstance(head, dict) else None, self.identity
        if not isinstance(theirs, dict) or head.get("letgo_scores") != _VERSION:
            raise _no_log(path, "its first line is not that of this version")
        if theirs != ours:
            fields = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
            raise UserError(
                f"{path} holds the results of another evaluation (it differs in {', '.join(map(repr, fields))}): "
                "delete it, or write to another place"
            )
        return whole

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Any:
        """The value of a finished result; `KeyError` for one that is not."""
        return self._values[key]

    def value(self, key: str, make: Callable[[], Any]) -> Any:
        """The finished value of a key, as JSON values; made and kept where there is none yet."""
        if key not in self._values:
            self.put({key: make()})
        return self._values[key]

    def put(self, values: Mapping[str, Any]) -> None:
        """Add finished samples and hand them to the operating system: a kill after this loses none of them."""
        for key, value in values.items():
            if key not in self._values:
                self._values[key] = value
                if self._file is not None:
                    self._file.write(_line({"key": key, "value": value}))
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @staticmethod
    def begin_with(path: Path, shared: Path) -> None:
        """Begin a log with what another evaluation of the same model has left at `shared`, if it has."""
        if shared.is_file() and not path.exists():
            _copy(shared, path)

    @staticmethod
    def leave_at(path: Path, shared: Path) -> None:
        """Leave a finished log for others, instead of one that has less; whole or not at all."""
        if not shared.is_file() or shared.stat().st_size < path.stat().st_size:
            _copy(path, shared)

    @staticmethod
    def remove(path: str | Path) -> None:
        """Delete a log, with the files of all processes."""
        for file in _files(Path(path)):
            file.unlink(missing_ok=True)

    def __enter__(self) -> ResumeLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _no_log(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a log of finished results ({why}); delete it or name another file")


def _copy(source: Path, target: Path) -> None:
    with written_whole(target) as temporary:
        shutil.copyfile(source, temporary)


def _bytes(path: Path) -> bytes:
    # A pipe in its place would be waited for.
    if not path.is_file():
        raise _no_log(path, "not a regular file")
    return path.read_bytes()


def _files(first: Path) -> list[Path]:
    return [
        path for path in (first, *sorted(first.parent.glob(f"{glob.escape(first.name)}.*"))) if os.path.lexists(path)
    ]


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def content_key(*parts: Any) -> str:
    """A hash of JSON values: the key of a sample."""
    return text_fingerprint(json.dumps(parts, separators=(",", ":")))
