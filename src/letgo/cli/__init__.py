"""The command. Every subcommand is a thin mirror of one function of the library.

Exit codes: 0 success, 1 a failure of letgo's own, 2 a user's mistake, 3 a check that is not passed, 130 Ctrl-C.
`--json` prints one JSON document on stdout and nothing else; progress and messages go to stderr. Importing a file of
subcommands here adds them.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
import time
from typing import Any

import typer

# Before torch is imported anywhere: busy-waiting threads of two processes on few cores starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from letgo.cli import analyzing as analyzing
from letgo.cli import attesting as attesting
from letgo.cli import auditing as auditing
from letgo.cli import planning as planning
from letgo.cli import records as records
from letgo.cli import requests as requests
from letgo.cli import running as running
from letgo.cli import showing as showing
from letgo.cli import sweeping as sweeping
from letgo.cli.common import app as app

FIRST_TELLS = 60.0
"""Seconds that the other processes leave the first one to tell a mistake of the user's. What one of them alone has met
is told after that."""
TOGETHER = ("unlearn", "attack", "eval")
"""The commands that the processes of a launcher do together."""


def main() -> None:
    """The entry point: turns errors into messages and exit codes."""
    from letgo.core import processes, terminal
    from letgo.core.progress import quiet_loggers

    terminal.guard()
    quiet_loggers()
    sys.unraisablehook = _interrupt_again
    if not processes.is_first():
        # All have the same results; the first one prints them.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (till the process ends)
    processes.end(_run(sys.argv[1:]))


def _run(words: list[str]) -> int:
    """Do what the command line says; returns the exit code."""
    from letgo.core import processes
    from letgo.core.errors import LetgoError, UserError, as_world_error

    try:
        _check_together(words)
        app()
    except SystemExit as stop:
        # Typer ends every command so; after Ctrl-C with 130, without a word.
        if stop.code != 130:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return _interrupted(words)
    except KeyboardInterrupt:
        return _interrupted(words)
    except Exception as error:
        known = error if isinstance(error, LetgoError) else as_world_error(error)
        if known is None:
            raise
        if isinstance(known, UserError) and not processes.is_first():
            # All processes meet a mistake of the user's alike, and the first one tells it: as it ends, the launcher
            # ends the others. One that ended sooner would have the first one stopped before it has told anything.
            time.sleep(FIRST_TELLS)
        mended = "" if isinstance(known, UserError) else _going_on(words)
        typer.echo(f"letgo: {known}{mended}", err=True)
        return known.exit_code
    return 0


def _interrupted(words: list[str]) -> int:
    typer.echo(f"\nletgo: interrupted; what was finished is kept{_going_on(words)}", err=True)
    return 130


def _going_on(words: list[str]) -> str:
    """The last line of a message: the command that goes on with what was finished, where there is one."""
    command = next((word for word in words if not word.startswith("-")), "")
    resumes = (
        command in ("unlearn", "sweep", "audit")
        or words[:2] == ["requests", "run"]
        or (command == "eval" and any(re.match(r"-o|--output(=|$)", word) for word in words))
    )
    if not resumes and command not in ("attack", "analyze"):
        return ""
    again = [*words, "--resume"] if resumes and "--resume" not in words else words
    return f"\n  go on with: {shlex.join(['letgo', *again])}"


def _interrupt_again(ignored: Any) -> None:
    """Of an exception that Python can't raise, from a destructor: a Ctrl-C must stop the command all the same."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(ignored)


def _check_together(words: list[str]) -> None:
    """Raise a `UserError` for a command that several processes can't do together."""
    from letgo.core import processes
    from letgo.core.errors import UserError

    command = next((word for word in words if not word.startswith("-")), "")
    if processes.asked() > 1 and command and command not in TOGETHER:
        raise UserError(
            f"`letgo {command}` runs in one process, but the launcher started {processes.asked()}; those that share "
            f"their work are {', '.join(TOGETHER)}"
        )
