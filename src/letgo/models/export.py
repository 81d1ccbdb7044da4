"""A saved model in the format in which it will be served, with a record of what rounding did to it.

Weights are read, rounded and written piece by piece, so that a model of any size takes little memory.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from letgo.core.environment import versions
from letgo.core.errors import LetgoError, UserError, first_line
from letgo.core.extras import need
from letgo.core.files import write_json, written_whole
from letgo.core.fingerprints import file_digest
from letgo.core.progress import Quiet, Reporter
from letgo.core.sizes import size
from letgo.models.adapters import is_adapter
from letgo.models.displacement import layer_row, summary
from letgo.models.files import tensors_of, weight_files
from letgo.models.formats import FORMATS, MANIFEST, Rounding
from letgo.models.gguf import is_gguf
from letgo.models.gguf_file import GgufFile, Names, names_of, stored_bytes
from letgo.models.gguf_mixes import types_of
from letgo.models.gguf_types import TYPES, BlockLevels, round_to_blocks
from letgo.models.load import load_model, load_tokenizer, model_config, resolve_model
from letgo.models.rounding import rounded

SCHEMA = 1
FLOATS = ("F32", "F16")
"""Types of tensors that are not in blocks."""
_PIECE = 1 << 24
"""Weights that are rounded at a time."""


@dataclass(frozen=True)
class Weights:
    """A model's tensors, read from its files one after another; of a model that is not in plain files of its own (an
    adapter, the hub), from memory.

    Attributes:
        model: as in `resolve_model`.
    """

    model: str
    _stack: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (_, shape) in self._places.items()}

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of a tensor, float32."""
        place = self._places[name][0]
        part: Tensor = place[start:stop] if isinstance(place, Tensor) else place.get_slice(name)[start:stop]
        return part.detach().float().cpu()

    @cached_property
    def _places(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        from safetensors import safe_open

        directory = Path(resolve_model(self.model))
        if not directory.is_dir() or is_adapter(directory) or not weight_files(directory):
            state = load_model(self.model).state_dict()
            return {name: (value, tuple(value.shape)) for name, value in state.items()}
        places: dict[str, tuple[Any, tuple[int, ...]]] = {}
        for path in weight_files(directory):
            file = self._stack.enter_context(safe_open(path, "pt"))
            places |= {name: (file, tuple(shape)) for name, (_, shape) in tensors_of(path).items()}
        return places


@dataclass(frozen=True)
class FormatPlan:
    """How a model is written in a format: by its tensors' names, in the file's order.

    Attributes:
        names: in the file.
        types: "F32", "F16" or a block type.
        blocks: of a tensor that is written to blocks that are there already, their bytes in the model's order.
        notes: what the user should know of it.
    """

    names: Mapping[str, str]
    types: Mapping[str, str]
    blocks: Mapping[str, np.ndarray]
    notes: list[str]

    def rounded(
        self, key: str, weight: Tensor, rounding: Rounding, *, seed: int, first: int = 0
    ) -> tuple[BlockLevels, Tensor] | None:
        """Of rows of a tensor, beginning with the row `first`: the levels, and the index to which each weight is
        rounded. None for a tensor that is written as floats."""
        kind = self.types[key]
        if kind in FLOATS:
            return None
        if key not in self.blocks:
            return round_to_blocks(weight, kind, rounding, seed=seed, tensor=key, first=first)
        levels = BlockLevels(kind, self.blocks[key][first : first + len(weight)], weight.shape[1])
        return levels, rounded(levels, weight, rounding, seed=seed, name=key, first=first)


def plan_format(format: str, names: Names, shapes: Mapping[str, tuple[int, ...]], original: str | None) -> FormatPlan:
    """Which type each tensor of a model gets in a format of `FORMATS`.

    Args:
        shapes: of the tensors, by their names in the model.
        original: the model before unlearning, of which the format `own` takes types and blocks.

    Raises:
        UserError: a tensor has no name in such a file; or the original has no format of its own that letgo can write.
    """
    table = names.of(shapes)
    name = FORMATS.record(format).name
    if name != "own":
        in_file = {table[key]: shapes[key] for key in table}
        types, notes = types_of(name.upper(), in_file, layers=names.layers, queries=names.queries)
        return FormatPlan(table, {key: types[table[key]] for key in table}, {}, notes)
    path = own_file(original)
    gguf = need("gguf", "gguf", what=f"reading {path}")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    own, blocks = dict[str, str](), dict[str, np.ndarray]()
    for key, of_file in table.items():
        tensor = tensors.get(of_file)
        if tensor is None or tensor.tensor_type.name not in (*FLOATS, *TYPES):
            kind = "not in it" if tensor is None else f"of the type {tensor.tensor_type.name}, which letgo can't write"
            raise UserError(f"format 'own': {path}: the tensor {of_file} is {kind}")
        own[key] = tensor.tensor_type.name
        if own[key] not in FLOATS:
            blocks[key] = names.in_model(of_file, np.asarray(tensor.data))
    return FormatPlan(table, own, blocks, [f"the blocks are those of {path.name}"])


def export(
    model: str | Path,
    format: str,
    output: Path,
    *,
    rounding: Rounding = "nearest",
    seed: int = 0,
    original: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write a model in a format of `FORMATS` into a directory, with `export.json`, its manifest.

    Args:
        model: a directory, a hub id or a built-in name.
        rounding: how each weight finds its level (`letgo.models.rounding`).
        seed: of stochastic rounding.
        original: the model before unlearning: the manifest then says how much of the update the format keeps. The
            format `own` is read off it.

    Returns:
        The manifest.

    Raises:
        UserError: the format can't hold this model, or there is no room for it.
    """
    record, reporter = FORMATS.record(format), reporter or Quiet()
    name = resolve_model(model)
    config, tokenizer = model_config(name), load_tokenizer(name)
    names = names_of(config)
    weights, before, why = Weights(name), None, "the original is not known; name it with --original"
    if original is not None:
        try:
            before = Weights(resolve_model(original))
        except UserError as error:
            before, why = None, first_line(error)
    plan = plan_format(record.name, names, weights.shapes, original)
    for note in plan.notes:
        reporter.say(note)
    path = output / f"model-{record.name.upper()}.gguf"
    mix = None if record.name == "own" else record.name.upper()
    tensors = {plan.names[key]: (weights.shapes[key], plan.types[key]) for key in plan.names}
    _check_room(output, sum(stored_bytes(shape, kind) for shape, kind in tensors.values()))
    rows: dict[str, list[dict[str, Any]]] = {}
    everything = sum(math.prod(shape) for shape, _ in tensors.values())
    with written_whole(path) as temporary, reporter.task(f"exporting to {record.name}", everything) as task:
        file = GgufFile(temporary, config, tokenizer, names, tensors, file_type=mix)
        file.begin()
        for key in plan.names:
            rows[key] = []
            parts = list(_written(key, plan, weights, before, rounding, seed, rows[key]))
            file.add(names.in_file(plan.names[key], np.concatenate(parts)))
            task.advance(math.prod(weights.shapes[key]))
        file.close()
    pieces = [row for each in rows.values() for row in each]
    manifest = {
        "schema": SCHEMA,
        "format": record.name,
        "rounding": rounding,
        "seed": seed if rounding == "stochastic" else None,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": file_digest(path),
        "model": str(model),
        "model_sha256": _digests(name),
        "original": original,
        "did": summary(pieces, "" if before else why),
        "tensors": [
            {"tensor": key, "name": plan.names[key], "type": plan.types[key]}
            | (summary(rows[key], "" if before else why) if rows[key] else {})
            for key in plan.names
        ],
        "notes": plan.notes,
        "versions": versions() | _library_versions(),
    }
    write_json(output / MANIFEST, manifest)
    return manifest


def own_file(original: str | None) -> Path:
    """The GGUF file as which an original came; a `UserError` where it did not."""
    if original == "smollm2":
        from letgo.models.smollm2 import find_gguf

        return find_gguf()
    if original is not None and is_gguf(Path(original)) and Path(original).is_file():
        return Path(original)
    raise UserError(
        f"format 'own': the original ({original}) did not come as a GGUF file, so that it has no blocks to write to\n"
        "  name the file that it was made of with --original MODEL.gguf, or another format"
    )


def _written(
    key: str,
    plan: FormatPlan,
    weights: Weights,
    before: Weights | None,
    rounding: Rounding,
    seed: int,
    rows: list[dict[str, Any]],
) -> Iterator[np.ndarray]:
    """A tensor's rows as they are written, piece by piece; of rounded ones, adds what rounding did to `rows`."""
    shape, kind = weights.shapes[key], plan.types[key]
    if kind in FLOATS:
        yield weights.rows(key).numpy().astype(np.float32 if kind == "F32" else np.float16)
        return
    step = max(1, _PIECE // shape[1])
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        weight = weights.rows(key, start, stop)
        if not torch.isfinite(weight).all():
            raise LetgoError(f"tensor {key} has values that are not finite")
        compared = None
        if before is not None and before.shapes.get(key) == shape:
            compared = before.rows(key, start, stop)
        chosen = plan.rounded(key, weight, rounding, seed=seed, first=start)
        assert chosen is not None
        levels, index = chosen
        if key in plan.blocks:
            check_own(key, levels, compared)
        rows.append(layer_row(key, weight, levels.values(index), compared, levels, index))
        yield levels.bytes_of(index)


def check_own(key: str, levels: BlockLevels, original: Tensor | None) -> None:
    """Raise a `UserError` unless the original is on its own levels: written to its own format, nothing is lost."""
    if original is None:
        raise UserError(f"format 'own': the original has no tensor {key} of this shape")
    error = float((levels.values(levels.index(original)) - original).abs().max())
    if error:
        raise UserError(
            f"format 'own': the original's tensor {key} is not on the levels of its file (off by up to {error:.3g}): "
            "it is another model's file"
        )


def _check_room(output: Path, needed: int) -> None:
    exists = next(path for path in (output.resolve(), *output.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(exists).free
    if needed > free:
        raise UserError(
            f"output {output}: the file takes {size(needed)}, and {size(free)} are free there\n"
            "  name a folder on another disk, or make room"
        )


def _digests(name: str) -> dict[str, str]:
    """The digests of the files of a model's weights; none of one that is not in files here."""
    directory = Path(name)
    return {path.name: file_digest(path) for path in weight_files(directory)} if directory.is_dir() else {}


def _library_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in ("gguf", "libgguf")}
