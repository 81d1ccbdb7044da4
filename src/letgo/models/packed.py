"""Weights rounded and packed in safetensors files, as vLLM and transformers read them: NF4 (bitsandbytes), FP8 and INT4
(compressed-tensors); and levels of the original's own, stored as floats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from letgo.core.errors import UserError
from letgo.core.values import Rounding
from letgo.models.own_grid import OwnLevels, e4m3, own_levels
from letgo.models.weights import Weights
from letgo.optim.engine.rounding import NF4, Codebook, EvenLevels, Levels, flat_blocks, make_grid, rounded

_NF4_BLOCK = 64
_GROUPS = (128, 64, 32)
_TRIED = 5
"""So many matrices tell whether a model is on a grid."""


@dataclass(frozen=True)
class PackedPlan:
    """How a model is written in one of these formats.

    Attributes:
        format: nf4, fp8, int4, or own.
        layers: the tensors that are rounded; all others stay as they are.
        group: of int4, the weights that share a scale.
        before: of `own`, the original's tensors.
        notes: what the user should know of it; `grids` of each tensor written to its own levels, which they are.
    """

    format: str
    layers: frozenset[str]
    group: int = 0
    before: Weights | None = None
    notes: list[str] = field(default_factory=list)
    grids: dict[str, str] = field(default_factory=dict)

    def kind(self, key: str) -> str:
        """What a tensor is stored as, for the record."""
        return self.grids.get(key, self.format.upper()) if key in self.layers else "float"

    def rounded(
        self, key: str, weight: Tensor, rounding: Rounding, *, seed: int, first: int = 0
    ) -> tuple[Levels, Tensor] | None:
        """The levels of a whole tensor, and the index to which each weight is rounded; None where it stays as it is."""
        if key not in self.layers:
            return None
        levels = self._levels(key, weight)
        return None if levels is None else (levels, rounded(levels, weight, rounding, seed=seed, name=key, first=first))

    def _levels(self, key: str, weight: Tensor) -> Levels | None:
        if self.format == "own":
            assert self.before is not None
            return own_levels(self.before.rows(key), self.grids[key])[0]
        values = weight.detach().float()
        if self.format == "int4":
            return make_grid(values, bits=4, group_size=self.group)
        if self.format == "fp8":
            code = e4m3()
            scale = values.abs().amax(dim=1) / code[-1]
            return Codebook(code, torch.where(scale == 0, 1.0, scale), values.shape[1])
        return Codebook(torch.tensor(NF4), flat_blocks(values, _NF4_BLOCK).abs().amax(dim=1), _NF4_BLOCK)

    def packed(self, key: str, levels: Levels, index: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """A rounded tensor as the file has it, by names."""
        if isinstance(levels, OwnLevels):
            return {key: levels.values(index).to(dtype)}
        if isinstance(levels, EvenLevels):
            rows, columns = index.shape
            unsigned, words = (index.int() - levels.low), torch.zeros(rows, columns // 8, dtype=torch.int32)
            for place in range(8):
                words |= unsigned[:, place::8] << (4 * place)
            scale = levels.scale.reshape(rows, -1)
            return {f"{key}_packed": words, f"{key}_scale": scale, f"{key}_shape": torch.tensor(index.shape)}
        assert isinstance(levels, Codebook)
        if self.format == "fp8":
            values = levels.code[index.long()].to(torch.float8_e4m3fn)
            return {key: values, f"{key}_scale": levels.absmax[:, None]}
        flat = torch.nn.functional.pad(index.flatten().to(torch.uint8), (0, index.numel() % 2))
        state = {"quant_type": "nf4", "blocksize": _NF4_BLOCK, "dtype": "float32", "shape": list(index.shape)}
        return {
            key: (flat[0::2] << 4 | flat[1::2])[:, None],
            f"{key}.absmax": levels.absmax,
            f"{key}.quant_map": levels.code,
            f"{key}.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
        }

    def settings(self) -> dict[str, Any]:
        """What config.json says of it beside the model's own settings."""
        if self.format == "own":
            return {}
        if self.format == "nf4":
            library = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
            of_it = {
                "quant_type": "nf4",
                "use_double_quant": False,
                "compute_dtype": "float32",
                "quant_storage": "uint8",
            }
            return {"quantization_config": library | {f"bnb_4bit_{name}": value for name, value in of_it.items()}}
        weights: dict[str, Any] = {"num_bits": 8, "type": "float", "strategy": "channel"}
        if self.format == "int4":
            weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": self.group}
        groups = {"group_0": {"targets": ["Linear"], "weights": weights | {"symmetric": True, "dynamic": False}}}
        about = {
            "quant_method": "compressed-tensors",
            "format": "float-quantized" if self.format == "fp8" else "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": groups,
        }
        return {"quantization_config": about}


def plan_packed(format: str, config: Any, shapes: Mapping[str, tuple[int, ...]], original: str | None) -> PackedPlan:
    """Which tensors are rounded: the linear layers' weights, but not the output layer's; of `own`, every matrix that is
    on a grid in the original.

    Raises:
        UserError: the format has no place for one of them; or the original is on no grid.
    """
    if format == "own":
        return _own_plan(shapes, original)
    layers = frozenset(f"{name}.weight" for name in linear_names(config)) & shapes.keys()
    if not layers:
        raise UserError(f"format {format!r}: a model of the type {config.model_type!r} has no linear layers")
    group = 0
    if format == "int4":
        group = next((g for g in _GROUPS if all(shapes[key][1] % g == 0 for key in layers)), 0)
        if not group:
            width = next(shapes[key][1] for key in sorted(layers) if shapes[key][1] % _GROUPS[-1])
            raise UserError(f"format 'int4': rows of {width} weights can't be cut into groups of 128, 64 or 32")
    return PackedPlan(format, layers, group)


def _own_plan(shapes: Mapping[str, tuple[int, ...]], original: str | None) -> PackedPlan:
    if original is None:
        raise UserError("format 'own': the original is not known; name it with --original MODEL")
    before = check_grid(original)
    grids: dict[str, str] = {}
    for key, shape in before.shapes.items():
        if len(shape) == 2 and shapes.get(key) == shape:
            levels, name, _ = own_levels(before.rows(key))
            grids |= {key: name} if levels is not None else {}
    kinds = ", ".join(sorted(set(grids.values())))
    notes = [f"{len(grids)} of {len(shapes)} tensors are on a grid in the original: {kinds}"]
    return PackedPlan("own", frozenset(grids), before=before, notes=notes, grids=grids)


def check_grid(original: str) -> Weights:
    """An original's weights; a `UserError` where none of some of its matrices is on a grid."""
    before = Weights(original)
    matrices = [key for key, shape in before.shapes.items() if len(shape) == 2 and min(shape) > 1]
    misses: list[tuple[float, str, str]] = []
    for key in matrices[:: max(1, len(matrices) // _TRIED)]:
        levels, name, off = own_levels(before.rows(key))
        if levels is not None:
            return before
        misses.append((off, key, name))
    off, key, name = min(misses, default=(0.0, "", ""))
    nearest = f": {key} is off by up to {off:.2f} of a bin of the nearest ({name})" if misses else ""
    raise UserError(
        f"format 'own': the weights of the original ({original}) are on no grid that letgo knows{nearest}\n"
        "  name the GGUF file that it came as with --original MODEL.gguf, or another format (`letgo list formats`)"
    )


def linear_names(config: Any) -> list[str]:
    """The names of a model's linear layers, but the output layer, from its config alone."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    output = model.get_output_embeddings()
    return [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not output
    ]
