"""Quantization to what people download: GGUF's block types, and the format in which the original came."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from letgo.attacks.displacement import Rounded, apply_quantizer, changed_model, matrices
from letgo.attacks.engine.base import Attacked, Victim
from letgo.core.errors import UserError
from letgo.core.files import read_json
from letgo.core.fingerprints import file_digest
from letgo.core.values import Seed
from letgo.models.export import own_file, plan_format
from letgo.models.formats import EXPORT, FORMATS, MANIFEST, Rounding
from letgo.models.gguf_file import names_of
from letgo.models.gguf_types import library


def quantize_gguf(victim: Victim, *, type: str = "q4_k_m", rounding: Rounding = "nearest", seed: Seed = 0) -> Attacked:
    """Round the weights to the block types of a GGUF file, the embedding and the output layer among them, and
    dequantize them: the model that llama.cpp would run, without the file.

    Args:
        type: a format of `letgo list formats`, such as q8_0, q4_k_m, q3_k_m, q2_k, iq4_xs, mxfp4.
        rounding: nearest, as llama.cpp's quantizer does; stochastic; or error_feedback.
        seed: of stochastic rounding.
    """
    name = FORMATS.record(type).name
    if name == "own":
        raise UserError("quantize_gguf: type: the model's own format is the attack 'requantize'")
    return _quantized(victim, name, rounding, seed)


def requantize(victim: Victim, *, rounding: Rounding = "nearest", seed: Seed = 0) -> Attacked:
    """Write the weights back to the format in which the original came: its block types, with its blocks' own scales.

    Who downloads a quantized model unlearns it in floating point and quantizes it again. On the levels that the model
    is on already, an update that is smaller than half a bin is undone whole.

    Args:
        rounding, seed: as in `quantize_gguf`.
    """
    return _quantized(victim, "own", rounding, seed)


def exported(victim: Victim, *, seed: Seed = 0) -> Attacked:
    """The file that a run's `export:` wrote, as it will be served. The original and the retrained model are rounded
    likewise in memory."""
    folder = victim.run_directory() / EXPORT
    if not (folder / MANIFEST).is_file():
        raise UserError(f"exported: {folder} has no {MANIFEST}: the run exported nothing; give export: in its YAML")
    manifest = read_json(folder / MANIFEST)
    format, rounding = manifest["format"], manifest["rounding"]
    if victim.is_reference:
        return _quantized(victim, format, rounding, manifest["seed"] or 0)
    path = folder / manifest["file"]
    if not path.is_file() or (digest := file_digest(path)) != manifest["sha256"]:
        raise UserError(f"exported: {path} is not the file that was exported (sha256 {manifest['sha256'][:12]}…)")
    attacked = changed_model(victim, replace(victim, directory=path).load(), **manifest["did"])
    about = {
        "file": path.name,
        "sha256": digest,
        "format": format,
        "rounding": rounding,
        "rounding_seed": manifest["seed"],
    }
    return replace(attacked, did={**attacked.did, **about})


def _quantized(victim: Victim, format: str, rounding: Rounding, seed: int) -> Attacked:
    library()
    if format == "own" and victim.original is not None:
        own_file(victim.original)
    model = victim.load()
    shapes = {key: tuple(weight.shape) for key, weight in matrices(model).items()}
    plan = plan_format(format, names_of(model.config), shapes, victim.original)

    def quantizer(key: str, weight: Tensor) -> Rounded:
        chosen = plan.rounded(key, weight, rounding, seed=seed) if key in plan.types else None
        if chosen is None:
            return Rounded(weight.half().float() if plan.types.get(key) == "F16" else weight)
        levels, index = chosen
        return Rounded(levels.values(index), levels, index)

    what = "the model's own format" if format == "own" else format
    attacked = apply_quantizer(victim, quantizer, f"quantizing to {what}", weights_of=matrices, model=model)
    if not attacked.did:
        return attacked
    return replace(attacked, did={**attacked.did, "types": sorted(set(plan.types.values())), "notes": plan.notes})
