"""The record of every run: what was run, with what, at what cost, and what it survived. The run directories are the
truth; `index.py` keeps one SQLite file beside them, and `query.py` is the small language that picks runs out of it."""

from __future__ import annotations

from letgo.runs.index import Index, index_for, record_run, root_of, unrecorded
from letgo.runs.record import RunRecord

__all__ = ["Index", "RunRecord", "index_for", "record_run", "root_of", "unrecorded"]
