"""A grid of runs: axes over a base, read from YAML and expanded into cells.

    output_dir: letgo-runs/sweep-tiny
    base: {model: biographies, benchmark: biographies, max_steps: 80}     # a run's YAML
    grid:                                       # every combination is a cell
      objective: [npo_gdr, graddiff]
      optimizer: [adamw, "compressed:bits=1", {optimizer: ada_zo, max_steps: 400}]
      seed: [0, 1]
    attacks: ["quantize:bits=4", "relearn:steps=20,holdout=0.5"]
    tune:                                       # optional: each group's setting at matched forgetting
      learning_rate: {"*": [1.0e-4, 1.0e-3], ada_zo: [1.0e-5, 1.0e-4]}
      target: forget_accuracy <= 0.4
      bound: retain_accuracy >= 0.95*before
    workers: 2
    backend: local                              # or ray; how many machines: docs/sweeps.md
    resources: {cpus: 2, gpus: 1, memory: 20GB} # optional: of one cell
    retries: 2                                  # of a cell whose process was killed
    ray: {address: "10.0.0.1:6379", wait: 0}    # optional: which cluster, and how long it may take to start a node

An axis is a key of a run's YAML, or one inside a mapping (`optimizer_args.mu`); its values are such values, or mappings
that set several keys at once. A group is what is left of a cell without its seed: the seeds of a group are compared as
one, and tuned as one.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from letgo.attacks.engine.run import plan_attack
from letgo.core.catalog import did_you_mean, parse_spec
from letgo.core.errors import UserError
from letgo.core.files import load_settings
from letgo.core.fingerprints import digest_of
from letgo.optim import OPTIMIZERS
from letgo.sweep.resources import RayCluster, Resources, read_cluster, read_resources
from letgo.sweep.tuning import Tune, read_tune
from letgo.training.config import make_config
from letgo.training.run_plan import objective_of

_HOW = ("output_dir", "workers", "backend", "resources", "retries", "ray")
"""Where and how it is run: nothing of what comes out is decided by these."""
_KEYS = ("base", "grid", "attacks", "tune", "name", *_HOW)

BACKENDS = ("local", "ray")
RETRIES = 2


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its settings but for the output directory, and which group and seed it belongs to."""

    name: str
    group: str
    axes: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 42))


@dataclass(frozen=True)
class Group:
    """Cells that differ by their seed alone."""

    name: str
    axes: Mapping[str, Any]
    cells: tuple[Cell, ...]

    @property
    def optimizer(self) -> str:
        return parse_spec(str(self.cells[0].settings.get("optimizer", "adamw")))[0]


@dataclass(frozen=True)
class Grid:
    """A grid as read: where it came from, its groups, and what is done to each."""

    source: str
    output: Path
    groups: tuple[Group, ...]
    attacks: tuple[str, ...] = ()
    tune: Tune | None = None
    workers: int | None = None
    """Cells side by side, at most; None for one on this machine, and as many as there is room for on a cluster."""
    backend: str = "local"
    resources: Resources = field(default_factory=Resources)
    retries: int = RETRIES
    """How often a run is tried again whose process was killed."""
    ray: RayCluster = field(default_factory=RayCluster)
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        return [cell for group in self.groups for cell in group.cells]

    @property
    def fingerprint(self) -> str:
        """Of all that decides what comes out: not of where and how it is run, nor of where it is written."""
        decides = {k: v for k, v in self.document.items() if k not in _HOW}
        return digest_of(decides)


def read_grid(
    path: Path,
    *,
    output: Path | None = None,
    workers: int | None = None,
    backend: str | None = None,
    ray_address: str | None = None,
) -> Grid:
    """Read and check a grid: every cell's config, objective, optimizer and attack is tried before anything runs.

    Args:
        path: the YAML.
        output: in place of its `output_dir`.
        workers: in place of its `workers`.
        backend: in place of its `backend`.
        ray_address: in place of its `ray.address`.

    Raises:
        UserError: it names the file, the key and the value.
    """
    document = load_settings(path)
    where = str(path)
    for key in document:
        if key not in _KEYS:
            raise UserError(f"{where}: unknown key {key!r}{did_you_mean(key, _KEYS)}; known: {', '.join(_KEYS)}")
    base = _mapping(where, "base", document.get("base"))
    axes = _mapping(where, "grid", document.get("grid"))
    if not axes:
        raise UserError(f"{where}: 'grid' names no axis; give at least one, such as optimizer: [adamw, fozo]")
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: grid.{axis} must be a list of at least one value, not {values!r}")
    for key in ("attacks", "output_dir"):
        if key in base:
            raise UserError(f"{where}: base.{key} belongs beside 'base', not in it")
    if base.get("push_to_hub"):
        raise UserError(f"{where}: base.push_to_hub would push every cell; push the one that is chosen by `letgo push`")
    attacks = document.get("attacks") or []
    if not isinstance(attacks, list):
        raise UserError(f"{where}: 'attacks' must be a list, not {attacks!r}")
    for spec in attacks:
        plan_attack(str(spec))
    target = output or (Path(document["output_dir"]) if document.get("output_dir") else None)
    if target is None:
        raise UserError(f"{where}: no 'output_dir' (--output DIR)")
    number = _whole(where, "workers", workers if workers is not None else document.get("workers"), least=1)
    retries = _whole(where, "retries", document.get("retries", RETRIES), least=0)
    chosen = backend or document.get("backend") or "local"
    if chosen not in BACKENDS:
        flag = f"--backend {chosen}" if backend else f"{where}: backend {chosen!r}"
        raise UserError(f"{flag}: unknown{did_you_mean(str(chosen), BACKENDS)}; known: {', '.join(BACKENDS)}")
    cluster = read_cluster(document.get("ray"), where)
    if ray_address:
        cluster = replace(cluster, address=ray_address)
    if ray_address and chosen != "ray":
        raise UserError(f"--ray-address {ray_address} is of no use to backend {chosen!r}; give --backend ray too")
    tune = read_tune(document["tune"], where) if document.get("tune") else None
    groups = _groups(where, base, axes)
    grid = Grid(
        where,
        target,
        groups,
        tuple(map(str, attacks)),
        tune,
        workers=number,
        backend=chosen,
        resources=read_resources(document.get("resources"), where),
        retries=RETRIES if retries is None else retries,
        ray=cluster,
        document=document,
    )
    for group in groups:
        for cell in group.cells:
            _try(where, cell, tune, group)
    return grid


def _groups(where: str, base: Mapping[str, Any], axes: Mapping[str, list[Any]]) -> tuple[Group, ...]:
    by_group: dict[str, list[Cell]] = {}
    group_axes: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for combination in itertools.product(*axes.values()):
        settings, shown = dict(base), {}
        for axis, value in zip(axes, combination, strict=True):
            changes = value if isinstance(value, Mapping) else {axis: value}
            for key, one in changes.items():
                settings = _set(settings, str(key), one)
            shown[axis] = _shown(axis, value)
        apart = {axis: value for axis, value in shown.items() if axis != "seed"}
        group = _slug(apart.values()) or "all"
        if names.setdefault(group, json.dumps(apart, default=str)) != json.dumps(apart, default=str):
            group = f"{group}-{digest_of(apart)[:4]}"
            names[group] = json.dumps(apart, default=str)
        cell = Cell(f"{group}-seed{settings.get('seed', 42)}", group, shown, settings)
        if any(other.name == cell.name for other in by_group.get(group, [])):
            raise UserError(f"{where}: two cells are the same: {cell.name} ({shown})")
        by_group.setdefault(group, []).append(cell)
        group_axes[group] = apart
    return tuple(Group(name, group_axes[name], tuple(cells)) for name, cells in by_group.items())


def with_setting(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others laid over; a dotted key reaches into a mapping."""
    merged = dict(settings)
    for key, value in changes.items():
        merged = _set(merged, key, value)
    return merged


def _set(settings: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    outer, dot, inner = key.partition(".")
    return settings | {outer: {**(settings.get(outer) or {}), inner: value} if dot else value}


def _try(where: str, cell: Cell, tune: Tune | None, group: Group) -> None:
    """Raise a `UserError` that names the cell if its run could not start."""
    candidates: Sequence[Mapping[str, Any]] = tune.first(group.optimizer) if tune else [{}]
    for changes in candidates:
        name = f"{where}: cell {cell.name}"
        config = make_config(with_setting(cell.settings, changes) | {"output_dir": "."}, where=name)
        try:
            objective_of(config)
            OPTIMIZERS.check_settings(config.optimizer, config.optimizer_args or {})
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        if not config.model:
            raise UserError(f"{name}: no model (base.model)")


def _mapping(where: str, key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: {key!r} must be a mapping, not {value!r}")
    return {str(k): v for k, v in value.items()}


def _whole(where: str, key: str, value: Any, *, least: int) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise UserError(f"{where}: {key} must be a whole number of at least {least}, not {value!r}")
    return value


def _shown(axis: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    named = value.get(axis)
    rest = {k: v for k, v in value.items() if k != axis}
    return named if named is not None and not rest else ", ".join(f"{k}={v}" for k, v in value.items())


def _slug(values: Iterator[Any] | Any) -> str:
    words = [re.sub(r"[^A-Za-z0-9.]+", "_", str(value)).strip("_") for value in values]
    return "-".join(word[:40] for word in words if word)
