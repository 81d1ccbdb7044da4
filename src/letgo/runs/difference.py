"""What differs between two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from letgo.runs.record import RunRecord

_ALWAYS_UNLIKE = ("id", "path", "created", "seconds", "peak_memory", "tags", "letgo")
"""Fields in which no two runs are alike, or that are shown elsewhere."""

Rows = list[tuple[str, Any, Any]]
"""Field, its value in the first run and in the second; None where a run has no such field."""


def difference(first: RunRecord, second: RunRecord) -> Rows:
    """What differs between two runs: first the settings, then versions, then metrics, then what was kept after each
    attack."""
    rows = _differing(first.fields, second.fields, skip=_ALWAYS_UNLIKE)
    names = [name for name, _, _ in rows]
    rows += _differing(_flattened(first.config), _flattened(second.config), skip=("output_dir", *names))
    rows += _differing(first.versions, second.versions, prefix="version of ")
    rows += _differing({"git": first.git}, {"git": second.git})
    for stage in dict.fromkeys([*first.stages, *second.stages]):
        rows += _differing(first.stages.get(stage, {}), second.stages.get(stage, {}), prefix=f"{stage}.")
    return rows + _differing(first.kept, second.kept)


def _differing(
    first: Mapping[str, Any], second: Mapping[str, Any], *, skip: Sequence[str] = (), prefix: str = ""
) -> Rows:
    names = [name for name in dict.fromkeys([*first, *second]) if name not in skip]
    rows = [(prefix + name, first.get(name), second.get(name)) for name in names]
    return [(name, before, after) for name, before, after in rows if before != after]


def _flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat
