"""What differs between two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letgo.runs.record import RunRecord

_UNLIKE_ANYWAY = ("id", "path", "created", "seconds", "peak_memory", "tags", "letgo")
"""Fields in which no two runs are alike, or that are told elsewhere."""


def difference(one: RunRecord, two: RunRecord) -> list[tuple[str, Any, Any]]:
    """Field, its value in the first run and in the second, wherever these differ: first the settings, then versions,
    then metrics, then what was kept after each attack. None where a run has no such field."""
    rows = _differing(one.fields, two.fields, skip=_UNLIKE_ANYWAY)
    seen = {name for name, _, _ in rows}
    rows += _differing(_flattened(one.config), _flattened(two.config), skip=("output_dir", *seen))
    rows += _differing(one.versions, two.versions, prefix="version of ")
    rows += _differing({"git": one.git}, {"git": two.git})
    for stage in dict.fromkeys([*one.stages, *two.stages]):
        rows += _differing(one.stages.get(stage, {}), two.stages.get(stage, {}), prefix=f"{stage}.")
    kept = [{f"kept({attack.label})": attack.kept for attack in record.attacks} for record in (one, two)]
    return rows + _differing(*kept)


def _differing(
    one: Mapping[str, Any], two: Mapping[str, Any], *, skip: tuple[str, ...] = (), prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    names = [name for name in dict.fromkeys([*one, *two]) if name not in skip]
    return [(prefix + name, one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)]


def _flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": v for inner, v in value.items()})
        else:
            flat[key] = value
    return flat
