"""The record of every run: what was run, with what, at what cost, and what it survived.

`index.py` keeps one SQLite file beside the runs; `query.py` is the small language that picks runs out of it. The run
directories are the truth: the index can be thrown away and made again from them.
"""

from __future__ import annotations

from letgo.runs.index import Index, index_for, record_run, root_of, unrecorded
from letgo.runs.record import RunRecord

__all__ = ["Index", "RunRecord", "index_for", "record_run", "root_of", "unrecorded"]
