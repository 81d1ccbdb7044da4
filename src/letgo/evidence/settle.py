"""From a tuned sweep to the grid of the evidence, which names what was chosen and uses seeds that tuning did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from letgo.core.catalog import parse_spec
from letgo.core.errors import UserError
from letgo.runs.sweeps import Sweep, read_sweep


def settle(tuned: Path, attacks: Path, *, seeds: Sequence[int], output: Path, first: Sequence[str] = ()) -> list[str]:
    """Write the grid of the groups that reached the target in a tuned sweep; returns the names of those that did not.

    Args:
        tuned: the folder of a sweep whose grid has the one axis `optimizer` beside `seed`, and a `tune`.
        attacks: a YAML with `attacks`, and `held_back`.
        seeds: of the evidence.
        first: optimizers that are run before the others, in this order.
        output: where the grid is written; its runs go to `letgo-runs/evidence/` and the file's name.

    Raises:
        UserError: a seed was used in tuning, tuning is not finished, or nothing reached the target.
    """
    sweep = read_sweep(tuned)
    used = {cell.seed for group in sweep.groups for cell in group.cells}
    if both := used & set(seeds):
        raise UserError(f"seed {min(both)} was tuned on; the evidence needs others")
    if pending := [group.name for group in sweep.groups if group.reached is None]:
        raise UserError(f"{tuned}: tuning is not finished ({', '.join(pending)}); letgo sweep {sweep.source} --resume")
    values = _axis(sweep)
    chosen = [
        _settings(value) | {key: group.chosen[key] for key in group.chosen}
        for value, group in zip(values, sweep.groups, strict=True)
        if group.reached
    ]
    order = list(first)
    chosen.sort(key=lambda one: order.index(name) if (name := _name(one)) in order else len(order))
    missed = [group.name for group in sweep.groups if not group.reached]
    if not chosen:
        raise UserError(f"{tuned}: no group reached {sweep.target} within {sweep.bound}")
    given = read_attacks(attacks)
    document = {
        "output_dir": f"letgo-runs/evidence/{output.stem}",
        "base": sweep.document["base"],
        "grid": {"optimizer": chosen, "seed": list(seeds)},
        "attacks": [*given["attacks"], *given["held_back"]],
        "workers": sweep.document.get("workers", 1),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_HEAD.format(output=output, source=sweep.source) + _dumped(document), encoding="utf-8")
    return missed


def read_attacks(path: Path) -> dict[str, list[str]]:
    """`attacks` and `held_back` of a YAML."""
    loaded = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get("attacks"), list):
        raise UserError(f"{path}: must be a YAML with 'attacks', a list, and perhaps 'held_back', another")
    return {"attacks": list(map(str, loaded["attacks"])), "held_back": list(map(str, loaded.get("held_back") or []))}


_HEAD = """# letgo sweep {output} --resume
#
# Made by `python -m letgo.evidence settle` from {source}: the grades that reached the
# target within the bound, each at the rate that was chosen on the tuning's seed. The seeds here are others.
"""


def _axis(sweep: Sweep) -> list[Any]:
    grid = sweep.document.get("grid", {})
    others = set(grid) - {"optimizer", "seed"}
    if others or "optimizer" not in grid:
        raise UserError(f"{sweep.source}: the grid must have the axes optimizer and seed, not {', '.join(grid)}")
    return list(grid["optimizer"])


def _settings(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"optimizer": value}


def _name(settings: Mapping[str, Any]) -> str:
    return parse_spec(str(settings["optimizer"]))[0]


def _dumped(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=160, default_flow_style=None)
