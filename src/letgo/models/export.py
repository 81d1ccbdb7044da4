"""A saved model in the format in which it will be served, with a record of what rounding did to it.

Weights are read, rounded and written one tensor after another, large ones of a GGUF file piece by piece: a model of any
size takes the memory of a layer.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from letgo.core.environment import versions
from letgo.core.errors import UserError, first_line
from letgo.core.files import write_json, write_text, written_whole
from letgo.core.fingerprints import file_digest
from letgo.core.locks import LOCK_FILE
from letgo.core.progress import Reporter, Task, usual
from letgo.core.sizes import size
from letgo.core.values import Rounding
from letgo.models.displacement import layer_row, summary
from letgo.models.files import INDEX, WEIGHTS, weight_files
from letgo.models.format_plans import FLOATS, GgufPlan, check_own, own_file, plan_format
from letgo.models.formats import FORMATS, MANIFEST, UNFINISHED
from letgo.models.gguf_file import GgufFile, names_of, stored_bytes
from letgo.models.gguf_types import BlockLevels
from letgo.models.load import load_tokenizer, model_config, resolve_model
from letgo.models.packed import PackedPlan
from letgo.models.weights import Weights

SCHEMA = 1
_PIECE = 1 << 24
"""Weights of a GGUF file that are rounded at a time."""
_SHARD = 2 << 30
"""Bytes of a safetensors file."""


@dataclass
class _Export:
    """An export under way."""

    weights: Weights
    before: Weights | None
    rounding: Rounding
    seed: int
    task: Task
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What rounding did, by tensor; a row for each piece."""

    def compared(self, key: str, start: int = 0, stop: int | None = None) -> Tensor | None:
        """The original's rows, where it has such a tensor."""
        known = self.before is not None and self.before.shapes.get(key) == self.weights.shapes[key]
        return self.before.rows(key, start, stop) if self.before is not None and known else None

    def note(self, key: str, weight: Tensor, levels: Any, index: Tensor, compared: Tensor | None) -> None:
        self.rows.setdefault(key, []).append(layer_row(key, weight, levels.values(index), compared, levels, index))


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
        rounding: how each weight finds its level (`letgo.optim.engine.rounding`).
        seed: of stochastic rounding.
        original: the model before unlearning: the manifest then says how much of the update the format keeps. The
            format `own` is read off it.

    Returns:
        The manifest.

    Raises:
        UserError: the format can't hold this model, or there is no room for it.
    """
    record, reporter = FORMATS.record(format), usual(reporter)
    name = resolve_model(model)
    config, tokenizer = model_config(name), load_tokenizer(name)
    weights, before, why = Weights(name), None, "the original is not known; name it with --original"
    if original is not None:
        try:
            before = Weights(resolve_model(original))
        except UserError as error:
            before, why = None, first_line(error)
    plan = plan_format(record.name, config, weights.shapes, original)
    for note in plan.notes:
        reporter.say(note)
    _check_room(output, _least_bytes(plan, weights.shapes))
    everything = sum(map(math.prod, weights.shapes.values()))
    write_text(output / UNFINISHED, "this export is not finished; run the same command again\n")
    try:
        with reporter.task(f"exporting to {record.name}", everything) as task:
            work = _Export(weights, before, rounding, seed, task)
            write = _write_gguf if isinstance(plan, GgufPlan) else _write_packed
            files = write(work, plan, config, tokenizer, output, record.name)  # type: ignore[arg-type]
    except BaseException:
        # A directory that is not whole is none.
        _clear(output)
        raise
    unknown = "" if before else why
    pieces = [row for each in work.rows.values() for row in each]
    manifest = {
        "schema": SCHEMA,
        "format": record.name,
        "rounding": rounding,
        "seed": seed if rounding == "stochastic" else None,
        # What is given to a loader: the file, or the directory.
        "file": files[0].name if isinstance(plan, GgufPlan) else ".",
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in files},
        "bytes": sum(path.stat().st_size for path in files),
        "model": str(model),
        "model_sha256": _digests(name),
        "original": original,
        "did": summary(pieces, unknown),
        "tensors": [
            {"tensor": key, "type": plan.kind(key)} | (summary(work.rows[key], unknown) if key in work.rows else {})
            for key in weights.shapes
        ],
        "notes": plan.notes,
        "versions": versions() | versions(("gguf", "libgguf") if isinstance(plan, GgufPlan) else ()),
    }
    write_json(output / MANIFEST, manifest)
    (output / UNFINISHED).unlink()
    return manifest


def check_export(model: str, shapes: Mapping[str, tuple[int, ...]], format: str) -> int:
    """Raise a `UserError` where what is trained from a model can't be written in a format afterwards, as far as the
    model's config, tokenizer and grid tell.

    Args:
        shapes: of the tensors of the model's weights.

    Returns:
        The least bytes of the files.
    """
    name = FORMATS.record(format).name
    if name == "own":
        check_own(model)
        if own_file(model) is None:
            return 0
    config = model_config(model)
    plan = plan_format(name, config, shapes, model)
    if isinstance(plan, GgufPlan):
        with tempfile.TemporaryDirectory() as folder:
            _begin_gguf(Path(folder) / "header.gguf", plan, shapes, config, load_tokenizer(model), name).close()
    return _least_bytes(plan, shapes)


def _least_bytes(plan: GgufPlan | PackedPlan, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """What a plan's files take; of packed weights, what stays in floats, for the rest is smaller."""
    if isinstance(plan, GgufPlan):
        return sum(stored_bytes(shapes[key], plan.types[key]) for key in plan.names)
    return sum(4 * math.prod(shape) for key, shape in shapes.items() if key not in plan.layers)


def _begin_gguf(
    path: Path, plan: GgufPlan, shapes: Mapping[str, tuple[int, ...]], config: Any, tokenizer: Any, format: str
) -> GgufFile:
    tensors = {plan.names[key]: (shapes[key], plan.types[key]) for key in plan.names}
    file = GgufFile(path, config, tokenizer, names_of(config), tensors, mix=format.upper())
    file.begin()
    return file


def _write_gguf(
    work: _Export,
    plan: GgufPlan,
    config: Any,
    tokenizer: Any,
    output: Path,
    format: str,
) -> list[Path]:
    """Write one GGUF file; returns its path."""
    path, shapes = output / f"model-{format.upper()}.gguf", work.weights.shapes
    with written_whole(path) as temporary:
        file = _begin_gguf(temporary, plan, shapes, config, tokenizer, format)
        for key in plan.names:
            file.add(file.names.in_file(plan.names[key], np.concatenate(list(_blocks(work, plan, key)))))
            work.task.advance(math.prod(shapes[key]))
        file.close()
    return [path]


def _blocks(work: _Export, plan: GgufPlan, key: str) -> Iterator[np.ndarray]:
    """A tensor's rows as the file has them, piece by piece."""
    shape, kind = work.weights.shapes[key], plan.types[key]
    if kind in FLOATS:
        yield work.weights.rows(key).numpy().astype(np.float32 if kind == "F32" else np.float16)
        return
    step = max(1, _PIECE // shape[1])
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        weight, compared = work.weights.rows(key, start, stop), work.compared(key, start, stop)
        chosen = plan.rounded(key, weight, work.rounding, seed=work.seed, first=start)
        assert chosen is not None
        levels, index = chosen
        if key in plan.blocks:
            _check_own(key, levels, compared)
        work.note(key, weight, levels, index, compared)
        yield levels.bytes_of(index)


def _write_packed(
    work: _Export,
    plan: PackedPlan,
    config: Any,
    tokenizer: Any,
    output: Path,
    format: str,
) -> list[Path]:
    """Write a model's directory; returns the files of its weights."""
    from safetensors.torch import save_file

    shapes = work.weights.shapes
    shards: list[tuple[Path, list[str], int]] = []
    held: dict[str, Tensor] = {}

    def flush() -> None:
        path = output / f"{Path(WEIGHTS).stem}-{len(shards) + 1:05}.safetensors"
        with written_whole(path) as temporary:
            save_file(held, temporary, {"format": "pt"})
        shards.append((path, list(held), sum(t.numel() * t.element_size() for t in held.values())))
        held.clear()

    for key in shapes:
        weight, dtype = work.weights.rows(key), work.weights.dtype(key)
        chosen = plan.rounded(key, weight, work.rounding, seed=work.seed)
        if chosen is None:
            held[key] = weight.to(dtype)
        else:
            levels, index = chosen
            work.note(key, weight, levels, index, work.compared(key))
            held |= {name: part.contiguous() for name, part in plan.packed(key, levels, index, dtype).items()}
        work.task.advance(math.prod(shapes[key]))
        if sum(tensor.numel() * tensor.element_size() for tensor in held.values()) > _SHARD:
            flush()
    if held:
        flush()
    places = {name: path.name for path, names, _ in shards for name in names}
    write_json(output / INDEX, {"metadata": {"total_size": sum(size for *_, size in shards)}, "weight_map": places})
    tokenizer.save_pretrained(output)
    # Last, for without it the directory is no model.
    settings = {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
    write_json(output / "config.json", settings | plan.settings())
    return [path for path, *_ in shards]


def _clear(output: Path) -> None:
    """Remove what an export that failed has written, the sign that it is not finished last."""
    for path in sorted(output.iterdir(), key=lambda path: path.name == UNFINISHED):
        if path.name != LOCK_FILE:
            path.unlink(missing_ok=True)


def _check_own(key: str, levels: BlockLevels, original: Tensor | None) -> None:
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
