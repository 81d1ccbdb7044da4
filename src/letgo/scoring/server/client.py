"""Requests to a server, several at once: tried again where trying again can help, and no secret in what is said."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, TypeVar

from letgo.core.errors import UserError, WorldError, first_line
from letgo.core.terminal import visible

Thing = TypeVar("Thing")
Value = TypeVar("Value")

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, *range(520, 530)}
"""Statuses of a server that is busy, starting, or broken for a moment."""
_MOST_BYTES = 256 << 20
_LONGEST_PAUSE = 60.0
_LONGEST_WAIT = 600.0
"""Of what a server may ask for in `Retry-After`."""


class Refused(UserError):
    """The server does not do what it was asked, and will not do it the next time either. `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Again(Exception):
    """A failure that may pass; `after` is how many seconds the server asked to be left alone."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another place."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Client:
    """Asks one server. Safe to be used by several threads.

    Args:
        url: "http://HOST:PORT", with or without "/v1" at its end.
        key_env: the environment variable that holds the key. The key goes into the requests, and nowhere else.
        at_once: how many requests are under way at a time, in `each`.
        timeout: seconds after which one request has failed.
        tries: how often a request is made in all, where the failure may pass.
        pause: seconds before the second try; each further one waits twice as long.

    Raises:
        UserError: for an address that is none of a server's, or a variable that is not set.
    """

    def __init__(
        self,
        url: str,
        *,
        key_env: str | None = None,
        at_once: int = 8,
        timeout: float = 120.0,
        tries: int = 6,
        pause: float = 0.5,
    ) -> None:
        self.url = _checked(url)
        self.at_once, self.timeout, self.tries = at_once, timeout, tries
        self._key = _key(key_env)
        self._first_pause = pause
        self._stopped = threading.Event()
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._lock = threading.Lock()
        self._quiet_until = 0.0

    def get(self, path: str, *, tries: int | None = None) -> Any:
        """As `post`, without a body."""
        return self._asked(path, None, tries or self.tries)

    def post(self, path: str, body: dict[str, Any], *, tries: int | None = None) -> Any:
        """The JSON that the server answers.

        Raises:
            Refused: by its status, the server will never do this.
            UserError: it wants a key, or another one.
            WorldError: it failed as often as it may be tried.
        """
        return self._asked(path, body, tries or self.tries)

    def each(self, things: Sequence[Thing], ask: Callable[[Thing], Value]) -> Iterator[tuple[int, Value]]:
        """Ask about things, some at a time; yields each one's number and value as it is done. At the first error that
        stays, nothing new is asked, what is under way is waited for and yielded, and then the error is raised."""
        left, under_way = iter(range(len(things))), dict[Future[Value], int]()
        error: BaseException | None = None
        self._stopped.clear()
        with ThreadPoolExecutor(self.at_once, thread_name_prefix="letgo-ask") as pool:
            try:
                while True:
                    for number in islice(left, 0 if error else self.at_once - len(under_way)):
                        under_way[pool.submit(ask, things[number])] = number
                    if not under_way:
                        break
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        number = under_way.pop(future)
                        if (raised := future.exception()) is None:
                            yield number, future.result()
                        elif error is None:
                            error = raised
                            self._stopped.set()
            except BaseException:
                # The caller was interrupted: whoever waits to try again does not.
                self._stopped.set()
                raise
        self._stopped.clear()
        if error is not None:
            raise error

    def clean(self, text: str) -> str:
        """What a server said, as it may be shown: short, visible, without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        return visible(" ".join(text.split())[:300])

    def _asked(self, path: str, body: dict[str, Any] | None, tries: int) -> Any:
        why = _Again("")
        for number in range(tries):
            self._hold()
            if number and self._stopped.is_set():
                break
            try:
                return self._once(path, body)
            except _Again as again:
                why = again
            if number + 1 < tries:
                # Spread, so that requests that failed together do not come back together.
                pause = min(_LONGEST_PAUSE, self._first_pause * 2**number) * random.uniform(0.75, 1.25)
                self._pause(
                    pause if why.after is None else min(why.after, _LONGEST_WAIT), for_all=why.after is not None
                )
        raise WorldError(
            f"{self.url}{path}: no answer in {number + 1} {'tries' if number else 'try'} ({why})\n"
            "  what was finished is kept; once the server answers, go on by the same command (letgo eval: --resume)"
        )

    def _hold(self) -> None:
        """Wait as long as the server asked to be left alone, whichever request it said it to."""
        with self._lock:
            left = self._quiet_until - time.monotonic()
        if left > 0:
            self._stopped.wait(left)

    def _pause(self, seconds: float, *, for_all: bool) -> None:
        if not for_all:
            self._stopped.wait(seconds)
            return
        with self._lock:
            self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Accept": "application/json", "User-Agent": "letgo"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                raw = self._read(response)
        except urllib.error.HTTPError as error:
            with error:
                raise self._failure(path, error) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Again(self.clean(str(getattr(error, "reason", error)) or type(error).__name__)) from None
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise _Again(f"what came is not whole JSON: {self.clean(raw[:80].decode(errors='replace'))!r}") from None

    def _read(self, response: Any) -> bytes:
        """The whole body. A socket's timeout is for one read: one that sends a byte now and then never meets it."""
        until, parts, size = time.monotonic() + self.timeout, [], 0
        while part := response.read1(1 << 16):
            parts.append(part)
            size += len(part)
            if size > _MOST_BYTES:
                raise _Again(f"an answer of more than {_MOST_BYTES >> 20} MiB")
            if time.monotonic() > until:
                raise _Again(f"not whole after {self.timeout:g} s")
        declared = response.headers.get("Content-Length")
        if declared is not None and declared.isdigit() and int(declared) != size:
            raise _Again(f"cut off: {size} of {declared} bytes came")
        return b"".join(parts)

    def _failure(self, path: str, error: urllib.error.HTTPError) -> Exception:
        text = ""
        with contextlib.suppress(OSError, http.client.HTTPException):
            text = error.read(1 << 16).decode(errors="replace")
        said = self.clean(_message(text)) or error.reason
        if error.code in _AGAIN:
            return _Again(f"status {error.code}: {said}", _seconds(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            given = "the key was not accepted" if self._key else "it wants a key: name its variable with --key-env NAME"
            return UserError(f"{self.url}{path}: {given} (status {error.code}: {said})")
        if 300 <= error.code < 400:
            where = self.clean(str(error.headers.get("Location")))
            return Refused(f"{self.url}{path}: the server sends on to {where}; give that address", error.code)
        return Refused(f"{self.url}{path}: status {error.code}: {said}", error.code)


def _checked(url: str) -> str:
    form = "give it as http://HOST:PORT or https://HOST/PATH"
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"server: {first_line(error)}; {form}") from error
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Not repeated in the message: it may hold a secret, as would the record.
        raise UserError(
            f"server: the address must hold no user, password, query or fragment; {form}, and --key-env NAME"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"server: {url!r} is no address of a server; {form}")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/v1"), "", ""))


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        shown = variable if variable.isidentifier() else "what was given"
        raise UserError(f"--key-env: there is no environment variable {shown}, or it is empty; name it, not the key")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"--key-env: what {variable} holds is no key: it has characters that no header may have")
    return key


def _message(text: str) -> str:
    """What a server says is wrong, out of its JSON where it is some."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and name in said:
            said = said[name]
    return said if isinstance(said, str) else json.dumps(said)


def _seconds(after: str | None) -> float | None:
    """`Retry-After`: seconds, or a date; None where there is none that can be read."""
    if not after:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(after)) if float(after) < float("inf") else None
    with contextlib.suppress(ValueError, TypeError):
        date = parsedate_to_datetime(after)
        return max(0.0, (date - datetime.now(date.tzinfo or UTC)).total_seconds())
    return None
