"""`letgo view`: the report's pages over a folder, live, on a local address.

Who may ask what: the server listens on the loopback address alone, answers GET and HEAD, and refuses a request whose
Host is no loopback name, so that a page of another site can't reach it by a name of its own. It allows no other site to
read or to frame a page. It writes nothing. A page is of a run that was found below the folder without following a link;
a run with a file that leads out of the folder is left out. What a run's files say is text on the page.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from markupsafe import Markup

from letgo.core.errors import UserError, not_writable
from letgo.core.files import strict_json
from letgo.core.locks import LOCK_FILE, holder
from letgo.core.progress import seconds_left
from letgo.core.terminal import visible
from letgo.report import figures
from letgo.report.assets import asset
from letgo.report.html import render
from letgo.report.load import LoadedRun
from letgo.report.rendering import policy, template
from letgo.report.verdict import verdict
from letgo.runs.results import CONFIG_FILE, LIVE_FILE, RESULT_FILE, HistoryRow, Result, is_run, read_result
from letgo.runs.sweeps import SWEEP_FILE, Sweep, read_sweep

ADDRESS = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost", "[::1]")
"""What a request may call this machine."""
EVERY_SECONDS = 3
"""How often a page that may change reads the files again."""
DEPTH = 4
"""How many levels below the folder runs are looked for: a folder of sweeps has them three levels down."""
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass
class Work:
    """A run's directory as it is now: `name` is its path below the folder."""

    name: str
    directory: Path
    result: Result | None = None
    state: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Of a run that is under way: what it has logged so far."""
    headline: str = ""

    @property
    def link(self) -> str:
        return f"/run/{quote(self.name, safe='/')}"

    @property
    def step(self) -> float:
        return self.history[-1]["step"] if self.history else 0

    @property
    def of(self) -> float | None:
        return self.history[-1].get("of") if self.history else None

    @property
    def left(self) -> float | None:
        """Seconds until the training ends, at its pace so far; None where that is not known."""
        timed = [row for row in self.history if "at" in row]
        if self.state != "training" or len(timed) < 2 or timed[-1]["step"] <= timed[0]["step"]:
            return None
        first, last = timed[0], timed[-1]
        return seconds_left(last["at"] - first["at"], last["step"] - first["step"], last["of"] - first["step"])


@dataclass(frozen=True)
class SweepView:
    """A sweep as the page shows it."""

    name: str
    target: str | None
    counts: str
    left: float | None
    cells: list[dict[str, Any]]


def works_in(root: Path) -> tuple[list[Work], list[SweepView], list[str]]:
    """The runs and sweeps at and below a folder, finished or not, and a message for each that can't be shown."""
    works, sweeps, problems = [], [], []
    for directory in _directories(root, DEPTH):
        name = directory.relative_to(root).as_posix()
        try:
            if (directory / SWEEP_FILE).is_file():
                _check_inside(directory, root)
                sweeps.append((directory, read_sweep(directory)))
            elif is_run(directory) or (directory / CONFIG_FILE).is_file():
                _check_inside(directory, root)
                works.append(_work(name, directory))
        except (UserError, OSError) as error:  # one that is removed meanwhile, too
            problems.append(str(error))
    return works, [_sweep(directory, sweep, root, works) for directory, sweep in sweeps], problems


def _directories(folder: Path, depth: int) -> Iterator[Path]:
    """A folder and those below it, without following links; nothing lies below a run but its own files."""
    yield folder
    if depth and not is_run(folder) and not (folder / CONFIG_FILE).is_file():
        with contextlib.suppress(OSError):
            for child in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if child.is_dir(follow_symlinks=False) and not child.name.startswith("."):
                    yield from _directories(Path(child.path), depth - 1)


def _check_inside(directory: Path, root: Path) -> None:
    """Raise a `UserError` where something in a directory is a link that leads out of the root."""
    for path in directory.iterdir():
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UserError(f"{directory}: {path.name} is a link that leads out of {root}")


def _work(name: str, directory: Path) -> Work:
    work = Work(name, directory)
    busy = at_work(directory)
    if is_run(directory):
        stamp = os.stat(directory / RESULT_FILE)
        work.result = _result(directory, stamp.st_mtime_ns, stamp.st_ino)
        work.state = "attacks or card under way" if busy else work.result.status
        work.headline = verdict(work.result).headline
    else:
        work.history = read_live(directory / LIVE_FILE)
        over = work.of is not None and work.step >= work.of
        under_way = "measuring" if over or not work.history else "training"
        work.state = under_way if busy else "stopped: go on with --resume"
    return work


@lru_cache(maxsize=4096)
def _result(directory: Path, written: int, inode: int) -> Result:
    """A result as it was last written: a page of hundreds of runs reads each once."""
    return read_result(directory)


def at_work(directory: Path) -> bool:
    """Whether a process of this machine that is alive, or one of another machine, writes the directory. Its lock is not
    asked for: who only looks must not hold it, be it for a moment."""
    machine, _, number = holder(directory / LOCK_FILE).rpartition(" ")
    if machine != socket.gethostname() or not number.isdigit():
        return bool(machine)
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def read_live(path: Path) -> list[dict[str, Any]]:
    """The rows of a history that is being written; a line that is not whole yet is left out."""
    rows = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with contextlib.suppress(ValueError):  # pydantic's own error is one
                rows.append(HistoryRow.model_validate(strict_json(line)).model_dump())
    return rows


def _sweep(directory: Path, sweep: Sweep, root: Path, works: list[Work]) -> SweepView:
    mine = {work.directory: work for work in works if work.directory.is_relative_to(directory)}
    busy = [work for work in mine.values() if work.result is None and at_work(work.directory)]
    cells, statuses = [], []
    for group in sweep.groups:
        for cell in group.cells:
            run, status = mine.get(directory / cell.run) if cell.run else None, str(cell.status)
            statuses.append(status)
            if status == "pending":
                # Its directory's name is its own, and the digest of what the tuning changed.
                of_cell = re.compile(re.escape(cell.name) + "(-[0-9a-f]{6})?")
                run = next((work for work in busy if of_cell.fullmatch(work.directory.name)), None)
                status = "at work" if run else status
            link = run.link if run else None
            cells.append({"name": cell.name, "seed": cell.seed, "status": status, "reason": cell.reason, "link": link})
    counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
    counts += [f"{len(busy)} at work"] if busy else []
    took = [work.result.total_seconds for work in mine.values() if work.result]
    pending = statuses.count("pending")
    left = sum(took) / len(took) * pending / len(busy) if took and busy and pending else None
    name = directory.relative_to(root).as_posix()
    return SweepView(root.name if name == "." else name, sweep.target, ", ".join(counts), left, cells)


def page_of(root: Path, path: str) -> tuple[str, bool] | None:
    """The page under a path, and whether it may change; None where there is none.

    Args:
        root: the folder, resolved.
        path: of the request, decoded: "/", or "/run/" and a run's name.
    """
    works, sweeps, problems = works_in(root)
    if path == "/":
        return _page(root.name, works=works, sweeps=sweeps, problems=problems), True
    # Looked up among what was found, so that no path of a request is ever opened.
    work = {f"/run/{work.name}": work for work in works}.get(path)
    if work is None:
        return None
    if work.result is not None:
        return render([LoadedRun(work.directory, work.result)]), at_work(work.directory)
    drawn = [figures.training(work.history, "loss"), figures.looks(work.history, "looks")]
    return _page(work.name, works=[work], drawn=[each for each in drawn if each], back=True), True


def _page(title: str, **values: Any) -> str:
    defaults: dict[str, Any] = {"works": [], "sweeps": [], "problems": [], "drawn": [], "back": False}
    return template("view.html.j2").render(
        title=visible(title),
        style=Markup(asset("report.css")),
        now=time.strftime("%H:%M:%S"),
        every=EVERY_SECONDS,
        **(defaults | values),
    )


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    server_version = "letgo"
    sys_version = ""

    def do_GET(self) -> None:
        status, text, changes = self._answer()
        body = visible(text).encode("utf-8", "replace")
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        allowed = policy(asset("report.css"), asset("report.js"))
        self.send_header("Content-Security-Policy", f"{allowed}; frame-ancestors 'none'")
        self.send_header("Content-Type", f"text/{'html' if status == HTTPStatus.OK else 'plain'}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if changes:
            self.send_header("Refresh", str(EVERY_SECONDS))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def _answer(self) -> tuple[HTTPStatus, str, bool]:
        if not self._named_rightly():
            return HTTPStatus.MISDIRECTED_REQUEST, "letgo view answers to the names of this machine alone\n", False
        try:
            made = page_of(self.server.root, unquote(urlsplit(self.path).path))
        except UserError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n", True
        return (HTTPStatus.OK, *made) if made else (HTTPStatus.NOT_FOUND, "there is no such run\n", False)

    def _named_rightly(self) -> bool:
        given = self.headers.get_all("Host") or []
        return len(given) == 1 and given[0] in {f"{name}:{self.server.server_port}" for name in NAMES}

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads a log of one's own looks."""


class Viewer(ThreadingHTTPServer):
    """The server of one folder, bound to the loopback address."""

    daemon_threads = True

    def __init__(self, directory: Path | str, port: int = 0) -> None:
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"no such folder: {directory}; give the one that your runs lie in")
        self.root = directory.resolve()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise not_writable(f"port {port}", error, "name another one with --port") from error

    @property
    def address(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"
