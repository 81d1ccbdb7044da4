"""The files that pages are made of."""

from __future__ import annotations

from importlib.resources import files


def asset(name: str) -> str:
    """A file of the templates' folder as text."""
    return files("letgo.report").joinpath("templates", name).read_text(encoding="utf-8")
