"""A grid of runs: axes over a base, read from YAML and expanded into cells.

    output_dir: letgo-runs/sweep-tiny
    base: {model: biographies, benchmark: biographies, max_steps: 80}     # a run's YAML
    grid:                                       # every combination is a cell
      optimizer: [adamw, "compressed:bits=1", {optimizer: ada_zo, max_steps: 400}]
      seed: [0, 1]
    attacks: ["quantize:bits=4", "relearn:steps=20,holdout=0.5"]
    tune:                                       # optional: each group's setting at matched forgetting
      learning_rate: {"*": [1.0e-4, 1.0e-3], ada_zo: [1.0e-5, 1.0e-4]}
      target: forget_accuracy <= 0.4
      bound: retain_accuracy >= 0.95*before

An axis is a key of a run's YAML, or one inside a mapping (`optimizer_args.mu`); its values are such values, or mappings
that set several keys at once. A group is what is left of a cell without its seed: the seeds of a group are compared as
one, and tuned as one. docs/sweeps.md has the keys of where and how a grid is run.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from letgo.attacks.engine.spec import plan_attacks
from letgo.core.catalog import did_you_mean, parse_spec
from letgo.core.errors import UserError, located
from letgo.core.files import load_settings
from letgo.core.fingerprints import digest_of
from letgo.core.values import shown
from letgo.sweep.resources import RayCluster, Resources, mapping, read_cluster, read_resources, whole_number
from letgo.sweep.tuning import Tune, read_tune
from letgo.training.config import make_config
from letgo.training.run_plan import check_parts

_HOW = ("output_dir", "workers", "backend", "resources", "retries", "ray")
"""Where and how it is run: nothing of what comes out is decided by these."""
_KEYS = ("base", "grid", "attacks", "tune", "name", *_HOW)

BACKENDS = ("local", "ray")
_MOST_CELLS = 10_000
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
        return digest_of({key: value for key, value in self.document.items() if key not in _HOW})

    def candidates(self, group: Group) -> int:
        """How many candidates the tuning of a group has, at most."""
        return self.tune.candidates(group.optimizer) if self.tune else 0


@dataclass(frozen=True)
class SweepPart:
    """The `number`-th of `of` parts of a sweep's cells, counted from 1: for tasks that share one sweep and do not
    communicate (a SLURM array)."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def cells(self, grid: Grid) -> frozenset[str]:
        """Names of the cells: every `of`-th, from the `number`-th on; of a tuned grid those of every `of`-th group:
        a group's seeds share the setting that its first cell finds."""
        if grid.tune is None:
            return frozenset(cell.name for cell in grid.cells[self.number - 1 :: self.of])
        return frozenset(cell.name for group in grid.groups[self.number - 1 :: self.of] for cell in group.cells)


def parse_part(text: str) -> SweepPart:
    """Read "3/8": the third of eight parts."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--cells {text!r} must be PART/PARTS, such as 3/8: the third of eight, from 1/8 to 8/8")
    return SweepPart(int(match[1]), int(match[2]))


def read_grid(
    path: Path,
    *,
    output: Path | None = None,
    workers: int | None = None,
    backend: str | None = None,
    ray_address: str | None = None,
) -> Grid:
    """Read and check a grid's YAML: every cell's config, objective, optimizer and attack is tried before anything runs.
    A `UserError` names the file, the key and the value. What is given here is in place of the YAML's `output_dir`,
    `workers`, `backend`, `ray.address`."""
    where = str(path)
    document = mapping(load_settings(path), where, _KEYS)
    base, axes = (mapping(document.get(key), f"{where}: {key!r}") for key in ("base", "grid"))
    if not axes:
        raise UserError(f"{where}: 'grid' names no axis; give at least one, such as optimizer: [adamw, fozo]")
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: grid.{axis} must be a list of at least one value, not {shown(values)}")
    if (count := math.prod(len(values) for values in axes.values())) > _MOST_CELLS:
        raise UserError(f"{where}: 'grid' has {count:,} combinations; a sweep has at most {_MOST_CELLS:,} cells")
    for key in ("attacks", "output_dir"):
        if key in base:
            raise UserError(f"{where}: base.{key} belongs beside 'base', not in it")
    if base.get("push_to_hub"):
        raise UserError(f"{where}: base.push_to_hub would push every cell; push the one that is chosen by `letgo push`")
    attacks = document.get("attacks") or []
    if not isinstance(attacks, list):
        raise UserError(f"{where}: 'attacks' must be a list, not {attacks!r}")
    for spec in attacks:
        if not isinstance(spec, str):
            raise UserError(f"{where}: 'attacks' must be a list of texts; {shown(spec)} is none")
    with located(f"{where}: attacks"):
        plan_attacks(attacks)
    target = output or document.get("output_dir")
    if not isinstance(target, str | Path | None):
        raise UserError(f"{where}: output_dir must be text, not {shown(target)}")
    if not target:
        raise UserError(f"{where}: no 'output_dir' (--output DIR)")
    retries = whole_number(document.get("retries"), f"{where}: retries", least=0)
    chosen = backend or document.get("backend") or "local"
    if not isinstance(chosen, str) or chosen not in BACKENDS:
        flag = f"--backend {chosen}" if backend else f"{where}: backend {chosen!r}"
        raise UserError(f"{flag}: unknown{did_you_mean(str(chosen), BACKENDS)}; known: {', '.join(BACKENDS)}")
    cluster = read_cluster(document.get("ray"), where)
    if ray_address:
        cluster = replace(cluster, address=ray_address)
        if chosen != "ray":
            raise UserError(f"--ray-address {ray_address} is of no use to backend {chosen!r}; give --backend ray too")
    grid = Grid(
        where,
        Path(target),
        _groups(where, base, axes),
        tuple(map(str, attacks)),
        read_tune(document["tune"], where) if document.get("tune") else None,
        workers=whole_number(document.get("workers") if workers is None else workers, f"{where}: workers", least=1),
        backend=chosen,
        resources=read_resources(document.get("resources"), where),
        retries=RETRIES if retries is None else retries,
        ray=cluster,
        document=document,
    )
    for group in grid.groups:
        tried = grid.tune.tried(group.optimizer) if grid.tune else [{}]
        for cell in group.cells:
            # The seeds of a group differ by nothing else: its candidates are tried with one.
            for changes in tried if cell is group.cells[0] else tried[:1]:
                _try(f"{where}: cell {cell.name}", cell.settings, changes)
    return grid


def _groups(where: str, base: Mapping[str, Any], axes: Mapping[str, list[Any]]) -> tuple[Group, ...]:
    cells: dict[str, list[Cell]] = {}
    group_axes: dict[str, dict[str, Any]] = {}
    for combination in itertools.product(*axes.values()):
        settings, shown = dict(base), {}
        for axis, value in zip(axes, combination, strict=True):
            with located(where):
                settings = with_setting(settings, value if isinstance(value, Mapping) else {axis: value})
            shown[axis] = _shown(axis, value)
        apart = {axis: value for axis, value in shown.items() if axis != "seed"}
        words = [re.sub(r"[^A-Za-z0-9.]+", "_", str(value)).strip("_") for value in apart.values()]
        group = "-".join(word[:40] for word in words if word) or "all"
        if json.dumps(group_axes.setdefault(group, apart), default=str) != json.dumps(apart, default=str):
            group = f"{group}-{digest_of(apart)[:4]}"
            group_axes[group] = apart
        cell = Cell(f"{group}-seed{settings.get('seed', 42)}", group, shown, settings)
        if any(other.name == cell.name for other in cells.get(group, [])):
            raise UserError(f"{where}: two cells are the same: {cell.name} ({shown})")
        cells.setdefault(group, []).append(cell)
    return tuple(Group(name, group_axes[name], tuple(members)) for name, members in cells.items())


def with_setting(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others laid over; a dotted key reaches into a mapping."""
    merged = dict(settings)
    for key, value in changes.items():
        outer, dot, inner = str(key).partition(".")
        if dot and not isinstance(merged.get(outer) or {}, Mapping):
            raise UserError(f"{key}: {outer} is {shown(merged[outer])}, which has no settings inside")
        merged[outer] = {**(merged.get(outer) or {}), inner: value} if dot else value
    return merged


def _try(name: str, settings: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raise a `UserError` that names the cell if its run could not start."""
    with located(name):
        settings = with_setting(settings, changes)
    config = make_config({**settings, "output_dir": "."}, where=name)
    with located(name):
        check_parts(config)
    if not config.model:
        raise UserError(f"{name}: no model (base.model)")


def _shown(axis: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if list(value) == [axis] and value[axis] is not None:
        return value[axis]
    return ", ".join(f"{key}={inner}" for key, inner in value.items())
