from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from letgo.runs.results import Result
from tests.report.runs import result, write_run


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run directory: run(name, result, samples)."""

    def make(name: str = "run", value: Result | None = None, rows: list[dict[str, Any]] | None = None) -> Path:
        return write_run(tmp_path / name, value or result(), rows)

    return make
