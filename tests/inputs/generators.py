"""Inputs of every kind that a user gives, most of them wrong: strategies for hypothesis."""

from __future__ import annotations

import csv
import gzip
import inspect
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from hypothesis import strategies as st

from letgo.attacks import ATTACKS
from letgo.benchmarks import BENCHMARKS
from letgo.core.catalog import Catalog, settings_of
from letgo.data.rows import FORMS
from letgo.objectives import OBJECTIVES, ONE_SHOT
from letgo.optim import OPTIMIZERS
from letgo.training.config import UnlearnConfig, field_types
from letgo.training.settings import ALIASES

CATALOGS: Mapping[str, tuple[Catalog[Any], tuple[str, ...]]] = {
    "attack": (ATTACKS, ("victim",)),
    "optimizer": (OPTIMIZERS, ()),
    "objective": (OBJECTIVES, ("model", "forget", "retain", "alternative", "reference_head")),
    "one-shot method": (ONE_SHOT, ("model", "data")),
    "benchmark": (BENCHMARKS, ()),
}
_SPECIAL = (math.nan, math.inf, -math.inf, 1e30, 1e999, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -0.5, 1.5)
_WORDS = ("", "abc", "true", "none", "nan", "inf", "1e-4", "maybe", "no", "1:30", "\0", "\ud800", "\x1b[31m", "é", "(")

numbers = st.one_of(st.sampled_from(_SPECIAL), st.integers(), st.floats())
texts = st.one_of(st.sampled_from(_WORDS), st.text(st.characters(), max_size=8))
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)


_PUT = (b"", b"\0", b"\xff", b"[", b"{", b'"', b"'", b"\n", b":", b",", b"&a ", b"*a", b"<<: ", b"[" * 3000)


@dataclass(frozen=True)
class Input:
    """One input. What was not garbled means `meant`; `field` is the only one that may be wrong in it, if known."""

    kind: str
    content: Any
    meant: Any = None
    field: str | None = None
    ending: str = ""


def _garbled(content: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    """Bytes with some cut out and others put in, at places that are a share of the length."""
    for place, put, cut in changes:
        at = place * len(content) // 1000
        content = content[:at] + put + content[at + cut :]
    return content


_changes = st.lists(
    st.tuples(
        st.integers(0, 1000),
        st.sampled_from(
            [b"", b"\0", b"\xff", b"[", b"{", b'"', b"'", b"\n", b":", b",", b"&a ", b"*a", b"<<: ", b"[" * 3000]
        ),
        st.integers(0, 9),
    ),
    max_size=2,
)


def _as_yaml(document: Any) -> str:
    return yaml.dump(document, Dumper=yaml.SafeDumper, allow_unicode=False, sort_keys=False)


@st.composite
def settings_files(draw: st.DrawFn) -> Input:
    """A run's YAML with one or two keys of its own, then perhaps garbled."""
    keys = draw(st.lists(st.sampled_from([*field_types(), *ALIASES]), min_size=1, max_size=2, unique=True))
    defaults = UnlearnConfig()
    document: dict[str, Any] = {"model": "m"}
    for key in keys:
        default = getattr(defaults, ALIASES.get(key, key))
        default = getattr(default, "value", default)
        plain = default if isinstance(default, str | int | float | None) else str(default)
        document[key] = draw(st.one_of(values, scalars, st.just(plain)))
    changes = draw(st.one_of(st.just([]), _changes))
    return Input(
        "settings",
        _garbled(_as_yaml(document).encode(), changes),
        None if changes else document,
        keys[0] if len(keys) == 1 and not changes else None,
    )


@st.composite
def specs(draw: st.DrawFn) -> Input:
    """NAME:key=value,… of a catalog, as text; and its settings as a mapping would give them."""
    kind = draw(st.sampled_from(list(CATALOGS)))
    catalog, skip = CATALOGS[kind]
    name = draw(st.sampled_from([record.name for record in catalog if record.extra is None]))
    known = settings_of(catalog.load(name), skip=skip)
    options = ["seeds", "threshold", "search", "bound", "reference"] if kind == "attack" else ["retain_weight"]
    key = draw(st.sampled_from([*known, *options, "nosuch"]))
    # What must be given has none.
    default = st.just(None if known.get(key) is inspect.Parameter.empty else known.get(key))
    if draw(st.booleans()):
        return Input(f"{kind} text", f"{name}:{key}={draw(st.one_of(numbers, texts, texts, default))}", field=key)
    return Input(f"{kind} settings", (name, {key: draw(st.one_of(values, values, default))}), field=key)


_field_names = st.one_of(st.sampled_from([*(key for form in FORMS for key in form), "group", "end", "x"]), texts)


@st.composite
def rows(draw: st.DrawFn) -> Input:
    """A file of rows, each of one form with perhaps a wrong field, then perhaps garbled."""
    records = []
    for _ in range(draw(st.integers(1, 3))):
        form = draw(st.sampled_from(FORMS[1:]))
        record: dict[str, Any] = {key: draw(st.text(min_size=1, max_size=9).filter(str.strip)) for key in form}
        if draw(st.booleans()):
            record[draw(_field_names)] = draw(values)
        if draw(st.booleans()):
            record["wrong_answers"] = draw(st.one_of(values, st.just(["b", "c"])))
        records.append(record)
    ending = draw(st.sampled_from([".jsonl", ".json", ".csv", ".jsonl.gz"]))
    changes = draw(st.one_of(st.just([]), _changes))
    if ending == ".csv":
        text = io.StringIO(newline="")
        names = list(dict.fromkeys(name for record in records for name in record))
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(records)
        content, meant = text.getvalue().encode("utf-8", "surrogatepass"), None
    else:
        whole = json.dumps(records) if ending == ".json" else "".join(json.dumps(record) + "\n" for record in records)
        content, meant = whole.encode(), None if changes else records
    content = _garbled(content, changes)
    return Input("rows", gzip.compress(content) if ending.endswith(".gz") else content, meant, ending=ending)


@st.composite
def grids(draw: st.DrawFn) -> Input:
    """A grid's YAML with one wrong part, then perhaps garbled."""
    document: dict[str, Any] = {
        "output_dir": "out",
        "base": {"model": "m", "benchmark": "biographies", "max_steps": 4},
        "grid": {"optimizer": ["adamw", "sgd:momentum=0.9"], "seed": [0, 1]},
        "attacks": ["quantize:bits=4"],
        "tune": {"learning_rate": [1e-5, 1e-4], "target": "forget_accuracy <= 0.4"},
        "resources": {"cpus": 1},
        "retries": 1,
    }
    place = draw(st.sampled_from([*document, "workers", "backend", "ray", "grid.seed", "grid.objective_args.beta"]))
    place = draw(st.one_of(st.just(place), st.sampled_from(["tune.trials", "tune.learning_rate", "resources.gpus"])))
    outer, dot, inner = place.partition(".")
    wrong = draw(st.one_of(values, st.lists(scalars, min_size=1, max_size=3)))
    if dot:
        document[outer] = {**document[outer], inner: wrong}
    else:
        document[outer] = wrong
    changes = draw(st.one_of(st.just([]), st.just([]), _changes))
    return Input("grid", _garbled(_as_yaml(document).encode(), changes), None if changes else document)


@st.composite
def assignments(draw: st.DrawFn) -> Input:
    """`--set key=value`."""
    key = draw(st.one_of(st.sampled_from([*field_types(), "optimizer_args.mu", "model.x", "seed.x"]), texts))
    value = draw(
        st.one_of(numbers.map(str), texts, values.map(str), st.sampled_from(["[1", "{a: 1, a: 2}", "[" * 3000]))
    )
    return Input("--set", f"{key}={value}")


everything = {
    "settings": settings_files(),
    "specs": specs(),
    "rows": rows(),
    "grids": grids(),
    "--set": assignments(),
}
