"""Quantization to the formats in which models are served: GGUF, packed safetensors, and the original's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from letgo.attacks.displacement import Rounded, apply_quantizer, changed_model, matrices
from letgo.attacks.engine.base import Attacked, Victim
from letgo.core.errors import UserError
from letgo.core.files import read_json
from letgo.core.fingerprints import file_digest
from letgo.core.values import Rounding, Seed
from letgo.models.format_plans import check_own, plan_format
from letgo.models.formats import EXPORT, FORMATS, MANIFEST
from letgo.models.gguf_mixes import MIXES
from letgo.models.gguf_types import library
from letgo.models.load import DTYPES


def quantize_gguf(victim: Victim, *, type: str = "q4_k_m", rounding: Rounding = "nearest", seed: Seed = 0) -> Attacked:
    """Round the weights to the block types of a GGUF file, the embedding and the output layer among them, and
    dequantize them: the model that llama.cpp would run, without the file.

    Args:
        type: a format of `letgo list formats`, such as q8_0, q4_k_m, q3_k_m, q2_k, iq4_xs, mxfp4.
        rounding: nearest, as llama.cpp's quantizer does; stochastic; or error_feedback.
        seed: of stochastic rounding.
    """
    name = FORMATS.record(type).name
    if name.upper() not in MIXES:
        raise UserError(f"quantize_gguf: type: {name} is not GGUF; see the attacks requantize and quantize_packed")
    library()
    return _quantized(victim, name, rounding, seed)


def quantize_packed(
    victim: Victim, *, format: Literal["fp8", "int4", "nf4"] = "fp8", rounding: Rounding = "nearest", seed: Seed = 0
) -> Attacked:
    """Round the linear layers' weights as packed safetensors hold them, and dequantize them.

    Args:
        format: fp8 (E4M3, a scale per output channel), int4 (symmetric, groups of 128, 64 or 32), nf4 (blocks of 64).
        rounding, seed: as in `quantize_gguf`.
    """
    return _quantized(victim, format, rounding, seed)


def requantize(victim: Victim, *, rounding: Rounding = "nearest", seed: Seed = 0) -> Attacked:
    """Write the weights back to the format in which the original came: a GGUF file's block types with its blocks' own
    scales, or the grid on which the original's weights are found to be.

    Who downloads a quantized model unlearns it in floating point and quantizes it again. On the levels that the model
    is on already, an update that is smaller than half a bin is undone whole.

    Args:
        rounding, seed: as in `quantize_gguf`.
    """
    if victim.original is not None:
        check_own(str(victim.original))
    return _quantized(victim, "own", rounding, seed)


def exported(victim: Victim, *, seed: Seed = 0) -> Attacked:
    """What a run's `export:` wrote, as it will be served. The original and the retrained model are rounded likewise in
    memory."""
    model, did = served_model(victim)
    if victim.is_reference:
        return Attacked(model, {})
    attacked = changed_model(victim, model, **did)
    return replace(attacked, did={**attacked.did, **did})


def check_exported(victim: Victim) -> tuple[Path, dict[str, Any]]:
    """The folder of what a run exported, and its manifest; a `UserError` where there is none."""
    victim.check_first("what a run exported is read from its own files")
    folder = victim.run_directory() / EXPORT
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} has no {MANIFEST}: the run exported nothing; give export: in its YAML")
    manifest = read_json(folder / MANIFEST)
    return folder, manifest


def served_model(victim: Victim) -> tuple[Any, dict[str, Any]]:
    """The model that a run exported, in floats, and what its manifest says; of a model that it is compared with, that
    one rounded likewise.

    Raises:
        UserError: the run exported nothing, or its files are others by now.
    """
    folder, manifest = check_exported(victim)
    format, rounding = manifest["format"], manifest["rounding"]
    if victim.is_reference:
        return _quantized(victim, format, rounding, manifest["seed"] or 0).model, {}
    for name, known in manifest["files"].items():
        path = folder / name
        if not path.is_file() or file_digest(path) != known["sha256"]:
            raise UserError(f"{path} is not the file that was exported (sha256 {known['sha256'][:12]}…)")
    model = replace(victim, directory=folder / manifest["file"]).load()
    if getattr(model, "is_quantized", False):
        model = model.dequantize(DTYPES[victim.dtype])
    about = {"format": format, "rounding": rounding, "rounding_seed": manifest["seed"], "files": manifest["files"]}
    return model, {**manifest["did"], **about}


def _quantized(victim: Victim, format: str, rounding: Rounding, seed: int) -> Attacked:
    model = victim.load()
    shapes = {key: tuple(weight.shape) for key, weight in matrices(model).items()}
    plan = plan_format(format, model.config, shapes, None if victim.original is None else str(victim.original))

    def quantizer(key: str, weight: Tensor) -> Rounded:
        chosen = plan.rounded(key, weight, rounding, seed=seed)
        if chosen is None:
            return Rounded(weight.half().float() if plan.kind(key) == "F16" else weight)
        levels, index = chosen
        return Rounded(levels.values(index), levels, index)

    what = "the model's own format" if format == "own" else format
    attacked = apply_quantizer(victim, quantizer, f"quantizing to {what}", weights_of=matrices, model=model)
    if not attacked.did:
        return attacked
    kinds = sorted({plan.kind(key) for key in shapes})
    return replace(attacked, did={**attacked.did, "types": kinds, "notes": plan.notes})
