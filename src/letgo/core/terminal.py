"""Text that a terminal, a page or a file may be given: what it shows, and nothing that it obeys.

Names of runs, settings, answers and messages of errors come from elsewhere, and may hold a terminal's escapes. `guard`
is the one place that keeps them from it, for all that a process prints.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

_UNSAFE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def visible(text: str) -> str:
    """The text with control characters (terminal escapes among them), unpaired surrogates and overrides of the writing
    direction replaced by U+FFFD. Line breaks and tabs stay."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def escaped(json_text: str) -> str:
    """A JSON document that says the same, with such characters in JSON's own escapes."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", json_text)


class TextStream:
    """A stream that gives on what is visible. Rich, whose colours are escapes, writes past it: see `guard`."""

    buffer = None  # click would write past it too

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    @property
    def rich_proxied_file(self) -> Any:
        """What rich asks a stream for that stands before another."""
        stream = self._stream
        while hasattr(stream, "rich_proxied_file"):
            stream = stream.rich_proxied_file
        return stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard() -> None:
    """Keep all that this process prints from now on to visible text, and to rich's own colours and bars."""
    from rich.console import Console

    for name in ("stdout", "stderr"):
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            # As click has it for one stream: no text is a reason to fail.
            ascii_alone = (stream.encoding or "").lower() in ("ascii", "us-ascii", "ansi_x3.4-1968")
            stream.reconfigure(encoding="utf-8" if ascii_alone else None, errors="replace")
    guard_streams()
    if not hasattr(Console.render, "__wrapped__"):
        Console.render = _text_alone(Console.render)  # type: ignore[method-assign]


def guard_streams() -> None:
    """`guard` for the streams that are now in place: rich puts others there while it shows a bar."""
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), TextStream):
            setattr(sys, name, TextStream(stream))


def _text_alone(render: Any) -> Any:
    """`Console.render` with the text of each segment made visible; those without text move a bar's cursor."""
    from rich.segment import Segment

    @functools.wraps(render)
    def rendered(*given: Any, **options: Any) -> Iterator[Segment]:
        for segment in render(*given, **options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    return rendered
