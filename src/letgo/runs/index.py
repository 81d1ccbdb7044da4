"""The index of runs: one SQLite file, `runs.sqlite`, in the folder that the runs lie in.

It holds nothing that the run directories do not, with paths relative to it: the folder can be moved, and `rebuild`
makes it again from the directories alone. Several processes may write at once (WAL); a run is recorded in one
transaction after its own files are whole, so a writer that is killed loses nothing finished.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from letgo.core.errors import UserError, first_line
from letgo.runs.query import MISSING, check_field, parse_field, parse_query
from letgo.runs.record import RunRecord, relative, write_tags
from letgo.runs.results import is_run

INDEX_FILE = "runs.sqlite"
INDEX_VERSION = 4
"""Version of the table, in SQLite's `user_version`. An older index is made again; a newer one is refused."""
_TABLE = "CREATE TABLE runs (path TEXT PRIMARY KEY, record TEXT NOT NULL)"
"""A `RunRecord` as JSON under its path: queries and lists are answered from these, and no `result.json` is opened."""
ENVIRONMENT = "LETGO_RUNS"
"""The folder whose index takes all runs, wherever they are written."""


class Index:
    """The index of the runs below the folder `root`; it is made there when something is first recorded."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / INDEX_FILE

    # -- writing ------------------------------------------------------------------------------------------------------

    def record(self, directory: Path) -> RunRecord:
        """Record a run directory as it is now, in place of what was known of it."""
        record = RunRecord.read(directory, self.root)
        with self._connection() as connection:
            _insert(connection, [record])
        return record

    def record_all(self, directories: Sequence[Path]) -> list[str]:
        """Record many run directories in one transaction; returns a message for each that could not be read."""
        records, problems = _read_all(directories, self.root)
        with self._connection() as connection:
            _insert(connection, records)
        return problems

    def tag(self, run: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> RunRecord:
        """Add and remove a run's tags; they are written to its directory, then to the index."""
        record = self.find(run)
        tags = record.own_tags
        for tag in remove:
            if tag not in tags:
                known = ", ".join(tags) or "none"
                raise UserError(f"run {record.name} has no tag {tag!r} that could be removed; its own tags: {known}")
        write_tags(self.root / record.path, tuple(dict.fromkeys([*(tag for tag in tags if tag not in remove), *add])))
        return self.record(self.root / record.path)

    def rebuild(self) -> tuple[int, list[str]]:
        """Make the index again from the run directories below the root, in one transaction; returns how many runs it
        has now, and a message for each directory that could not be read."""
        if not self.root.is_dir():
            raise UserError(f"no such folder: {self.root}")
        with self._connection() as connection:
            return self._fill(connection)

    # -- reading ------------------------------------------------------------------------------------------------------

    def all(self) -> list[RunRecord]:
        """Every run that is recorded and still there, oldest first."""
        return [record for record in self._records() if is_run(self.root / record.path)]

    def gone(self) -> list[str]:
        """Paths of recorded runs whose directories are no longer there."""
        return [record.path for record in self._records() if not is_run(self.root / record.path)]

    def select(self, where: str | None = None, sort: str | None = None) -> list[RunRecord]:
        """Runs that match an expression (`letgo.runs.query`), sorted by comma-separated fields, "-" for descending.
        A run without the field comes last either way."""
        records = self.all()
        if where is not None:
            records = parse_query(where).select(records)
        for key in reversed([key.strip() for key in (sort or "").split(",") if key.strip()]):
            field = parse_field(key.removeprefix("-"))
            check_field(field, records)
            have = [record for record in records if field.of(record) is not MISSING]
            have.sort(key=lambda record: _sort_key(field.of(record)), reverse=key.startswith("-"))
            records = have + [record for record in records if field.of(record) is MISSING]
        return records

    def find(self, run: str) -> RunRecord:
        """The one run that a path, a directory's name, or the beginning of an id means."""
        records, paths = self.all(), (run.rstrip("/"), relative(Path(run), self.root))
        for matches in (
            [record for record in records if record.path in paths],
            [record for record in records if run in (record.run_id, record.name)],
            [record for record in records if record.run_id.startswith(run)],
        ):
            if len(matches) == 1:
                return matches[0]
            if matches:
                names = ", ".join(f"{record.run_id} ({record.path})" for record in matches[:5])
                raise UserError(f"{run!r} means {len(matches)} runs: {names}; give the whole id or the path")
        for directory in (Path(run), self.root / run):
            if is_run(directory):
                return RunRecord.read(directory, self.root)
        raise UserError(f"no run {run!r} in {self.root}; `letgo runs list` names them, `letgo runs rebuild` finds more")

    def _records(self) -> list[RunRecord]:
        if not os.path.lexists(self.file):
            return []
        with self._connection() as connection:
            records = [RunRecord.model_validate_json(text) for (text,) in connection.execute("SELECT record FROM runs")]
        return sorted(records, key=lambda record: (record.created, record.run_id, record.path))

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection in one transaction: all of the block is written, or nothing of it."""
        try:
            if os.path.lexists(self.file) and not self.file.is_file():
                raise UserError(f"the index {self.file} is not a regular file: remove it, and `letgo runs rebuild`")
            if not self.file.exists():
                self.file.touch()  # as the umask says: SQLite's own would be for its owner alone to write
            connection = sqlite3.connect(self.file, timeout=60, isolation_level=None)
        except (sqlite3.OperationalError, OSError) as error:
            raise UserError(f"the index {self.file} can't be opened ({error})") from error
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE")
            self._check_version(connection)
            yield connection
            connection.execute("COMMIT")
        except (sqlite3.DatabaseError, ValidationError, UnicodeDecodeError) as error:
            raise UserError(
                f"the index {self.file} can't be used ({first_line(error)})\n"
                "  nothing is lost with it: remove it, and make it again with `letgo runs rebuild`"
            ) from error
        finally:
            # Without a COMMIT, closing takes everything in the block back.
            connection.close()

    def _check_version(self, connection: sqlite3.Connection) -> None:
        """Make the table where there is none, and make an older version's again from the directories."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > INDEX_VERSION:
            raise UserError(
                f"the index {self.file} is of version {version}, this letgo's is {INDEX_VERSION}; upgrade letgo"
            )
        if version < INDEX_VERSION:
            connection.execute(_TABLE) if version == 0 else self._fill(connection)
            connection.execute(f"PRAGMA user_version={INDEX_VERSION}")

    def _fill(self, connection: sqlite3.Connection) -> tuple[int, list[str]]:
        """Make the table, of this version or an older one, again from the run directories."""
        # Runs recorded from outside the root (LETGO_RUNS) have no other trace here: kept while they exist.
        outside = [self.root / path for (path,) in connection.execute("SELECT path FROM runs WHERE path LIKE '..%'")]
        unlisted: list[str] = []
        directories = [*run_directories(self.root, unlisted), *filter(is_run, outside)]
        records, problems = _read_all(directories, self.root)
        for table in ("runs", "metrics", "attacks", "tags"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        connection.execute(_TABLE)
        _insert(connection, records)
        return len(records), unlisted + problems


def _read_all(directories: Iterable[Path], root: Path) -> tuple[list[RunRecord], list[str]]:
    records, problems = [], []
    for directory in directories:
        try:
            records.append(RunRecord.read(directory, root))
        except UserError as error:
            problems.append(str(error))
    return records, problems


def _insert(connection: sqlite3.Connection, records: Iterable[RunRecord]) -> None:
    rows = [(record.path, record.model_dump_json()) for record in records]
    connection.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?)", rows)


def _sort_key(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def run_directories(root: Path, unlisted: list[str]) -> Iterator[Path]:
    """Every run directory below a folder; hidden folders and checkpoints are skipped. A message on each folder that
    can't be listed is added to `unlisted`."""
    folders = [root]
    while folders:
        folder = folders.pop()
        if is_run(folder):
            yield folder
        try:
            children = sorted(folder.iterdir(), reverse=True)
            folders += [path for path in children if path.is_dir() and not path.is_symlink() and _may_hold_runs(path)]
        except OSError as error:
            unlisted.append(f"{folder} can't be listed ({error.strerror or error})")


def _may_hold_runs(folder: Path) -> bool:
    return not folder.name.startswith((".", "checkpoint-"))


def root_of(start: Path) -> Path | None:
    """The folder whose index covers a path: LETGO_RUNS, or the nearest folder at or above it that has one. Where
    everybody may write, as in the folder of temporary files, an index covers only what lies directly there."""
    if os.environ.get(ENVIRONMENT):
        return Path(os.environ[ENVIRONMENT])
    start = start.resolve()
    return next(
        (
            folder
            for folder in (start, *start.parents)
            if (folder / INDEX_FILE).is_file() and (folder == start or not _everybodys(folder))
        ),
        None,
    )


def _everybodys(folder: Path) -> bool:
    """Whether a folder is for temporary files: this process's own, or one where all may write and each owns what is
    his."""
    both = stat.S_ISVTX | stat.S_IWOTH
    return folder == Path(tempfile.gettempdir()).resolve() or folder.stat().st_mode & both == both


def index_for(directory: Path) -> Index:
    """The index that a run directory belongs to: the nearest one above it, else a new one beside it."""
    folder = directory.resolve().parent
    return Index(root_of(folder) or folder)


_RECORDING: ContextVar[bool] = ContextVar("recording", default=True)


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Leave the index alone within the block, for work whose caller records it: one file of SQLite is not to be
    written by several machines."""
    token = _RECORDING.set(False)
    try:
        yield
    finally:
        _RECORDING.reset(token)


def record_run(directory: Path, say: Callable[[str], None]) -> None:
    """Record a run in the index that it belongs to. Where that can't be written, a message says so; the run's directory
    is whole all the same, and `letgo runs rebuild` finds it."""
    try:
        if _RECORDING.get():
            index_for(directory).record(directory)
    except (UserError, OSError) as error:
        say(f"  not recorded: {error}")
