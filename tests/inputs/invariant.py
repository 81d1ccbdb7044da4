"""What must hold of any input: it is accepted and means what it says, or one `UserError` says what is wrong with it.
Never another error, never silence, never more than a second."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from letgo.attacks.engine.spec import plan_attack
from letgo.core.catalog import parse_spec
from letgo.core.errors import UserError
from letgo.data import read_rows
from letgo.objectives import create_objective
from letgo.optim import create_optimizer
from letgo.sweep.grid import read_grid
from letgo.training.config import dump_config, make_config, read_config, resolved_settings
from letgo.training.settings import ALIASES, merge_overrides
from tests.inputs.generators import CATALOGS, Input

SECONDS = 1.0
_PYTHONS = re.compile(
    "not supported between|unsupported operand|object is not|positional arg|unexpected keyword|invalid literal|"
    "could not convert|unhashable|has no attribute|Traceback|<class '|NoneType"
)
"""Words of Python's own messages."""


class Wrong(AssertionError):
    """An input was met in a way that is not allowed."""


def meet(given: Input, folder: Path) -> bool:
    """Give letgo the input; returns whether it was accepted. Raises `Wrong`."""
    path = folder / f"given{given.ending or '.yaml'}"
    if isinstance(given.content, bytes):
        path.write_bytes(given.content)
    start = time.process_time()
    try:
        _HOW.get(given.kind, _spec)(given, path)
        accepted = True
    except UserError as error:
        _check_message(given, path, str(error))
        accepted = False
    except Wrong:
        raise
    except BaseException as error:
        raise Wrong(f"{type(error).__name__}: {str(error)[:300]}") from error
    if (took := time.process_time() - start) > SECONDS:
        raise Wrong(f"it took {took:.1f} s")
    return accepted


def _check_message(given: Input, path: Path, message: str) -> None:
    if not message.strip() or _PYTHONS.search(message):
        raise Wrong(f"the message is not ours: {message[:300]!r}")
    if isinstance(given.content, bytes) and path.name not in message:
        raise Wrong(f"the message names no place: {message[:300]!r}")
    field = given.field and ALIASES.get(given.field, given.field)
    # What is missing altogether may be said first.
    if field and "needs a value for" not in message and field not in message and given.field not in message:
        raise Wrong(f"the message does not name {given.field!r}: {message[:300]!r}")
    if len(message) > 5000:
        raise Wrong(f"the message is {len(message)} characters long: {message[:100]!r}")


def _settings(given: Input, path: Path) -> None:
    config = read_config(path)
    settings = resolved_settings(config)
    _check_sound(settings)
    for key, value in (given.meant or {}).items():
        if ALIASES.get(key, key) not in ("objective", "optimizer"):
            _same(key, value, getattr(config, ALIASES.get(key, key)))
    path.write_text(dump_config(config), encoding="utf-8")
    if resolved_settings(read_config(path)) != settings:
        raise Wrong("what is written back is another config")


def _assignment(given: Input, path: Path) -> None:
    _check_sound(resolved_settings(make_config(merge_overrides({"model": "m"}, [given.content]))))


def _spec(given: Input, path: Path) -> None:
    """An attack, optimizer, objective or benchmark, from a text or from a mapping of settings."""
    kind, _, form = given.kind.rpartition(" ")
    name, settings = parse_spec(given.content) if form == "text" else given.content
    if form == "text" and kind == "attack":
        plan = plan_attack(given.content)
        _check_sound(plan.settings)
        kept = {**plan.settings, **plan.given, "seed": plan.seeds[0], "seeds": len(plan.seeds)}
        kept |= {"threshold": plan.threshold, "reference": plan.reference}
        for key, value in settings.items():
            _same(key, value, kept[key])
    elif kind == "optimizer":
        create_optimizer(name, [torch.nn.Parameter(torch.zeros(2, 2))], **settings)
    elif kind == "objective":
        create_objective(name, **settings)
    else:
        catalog, skip = CATALOGS[kind]
        catalog.check_settings(name, settings, skip=skip)
    _check_sound(settings)


def _rows(given: Input, path: Path) -> None:
    read = read_rows(path, name="forget set")
    for number, row in enumerate(read):
        _check_sound(dict(row.fields), finite=False)
        if not row.target.strip() or not row.where or not row.group:
            raise Wrong(f"row {number + 1} is empty or nowhere: {row}")
        wrong = row.fields.get("wrong_answers")
        if wrong is not None and not isinstance(wrong, list):
            raise Wrong(f"wrong_answers is {wrong!r}")
        if given.meant is not None and dict(row.fields) != given.meant[number]:
            raise Wrong(f"row {number + 1} is {row.fields}, not {given.meant[number]}")


def _grid(given: Input, path: Path) -> None:
    grid = read_grid(path)
    for cell in grid.cells:
        _check_sound(dict(cell.settings))
    if given.meant is not None:
        count = math.prod(len(axis) for axis in given.meant["grid"].values())
        if len(grid.cells) != count:
            raise Wrong(f"{len(grid.cells)} cells, not {count}")


_HOW: Mapping[str, Any] = {"settings": _settings, "--set": _assignment, "rows": _rows, "grid": _grid}


def _same(key: str, given: Any, kept: Any) -> None:
    """Whether a setting is kept as it was given; a number may have been given as text, and the like."""
    kept = getattr(kept, "value", kept)
    if given == kept or given is None or str(given) == str(kept):
        return
    try:
        same = float(given) == float(kept)
    except (TypeError, ValueError):
        same = str(given).strip().lower() in ("true", "false", "yes", "no", "on", "off", "y", "n", "t", "f")
    if not same and not isinstance(given, list) and not _as_transformers_has_it(key, given, kept):
        raise Wrong(f"{key} is {kept!r}, but {given!r} was given")


def _as_transformers_has_it(key: str, given: Any, kept: Any) -> bool:
    """Whether it is transformers that turned a setting of its own into something else."""
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    return key in names and getattr(TrainingArguments(use_cpu=True, **{key: given}), key) == kept


def _check_sound(value: Any, *, finite: bool = True) -> None:
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for each in value:
            _check_sound(each, finite=finite)
    elif isinstance(value, float) and finite and not math.isfinite(value):
        raise Wrong(f"{value} was accepted")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Wrong(f"{value!r} was accepted") from error
