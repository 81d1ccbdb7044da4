"""The formats in which a model can be exported: what `letgo export --format` and a run's `export:` may name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from letgo.core.catalog import Catalog, Record, check_settings
from letgo.core.values import Rounding, Seed
from letgo.models.gguf_mixes import ALIASES, MIXES

EXPORT = "export"
"""The folder of a run in which its exported model is."""
MANIFEST = "export.json"
UNFINISHED = "export.unfinished"
"""In the folder of an export that is under way: what other files are there may be written over."""

FORMATS: Catalog[Record] = Catalog(
    "format",
    [
        Record(
            name="own",
            target="letgo.models.export:export",
            summary="the format in which the original came: its GGUF file's blocks, or its weights' grid",
            source="letgo; docs/formats.md",
            faithfulness="ours",
        ),
        Record(
            name="nf4",
            target="letgo.models.export:export",
            summary="safetensors; linear layers in 4 bits, an absmax per 64 weights (bitsandbytes)",
            source="QLoRA (arXiv 2305.14314)",
            faithfulness="faithful",
        ),
        Record(
            name="fp8",
            target="letgo.models.export:export",
            summary="safetensors; linear layers in E4M3, a scale per output channel (compressed-tensors)",
            source="FP8 formats (arXiv 2209.05433)",
            faithfulness="faithful",
            aliases=("fp8_e4m3",),
        ),
        Record(
            name="int4",
            target="letgo.models.export:export",
            summary="safetensors; linear layers in 4 bits, symmetric, a scale per group (compressed-tensors)",
            source="letgo",
            faithfulness="ours",
            aliases=("w4a16",),
        ),
        *(
            Record(
                name=name.lower(),
                target="letgo.models.export:export",
                summary=f"a GGUF file; most matrices {mix.base}"
                if mix.known
                else f"a GGUF file; all matrices {mix.base}",
                source="llama.cpp, llama_tensor_get_type" if mix.known else "letgo",
                faithfulness="variant" if mix.known else "ours",
                note="" if not mix.known else "without an importance matrix; for models without experts",
                aliases=tuple(alias.lower() for alias, of in ALIASES.items() if of == name),
                extra="gguf",
            )
            for name, mix in MIXES.items()
        ),
    ],
)


@dataclass(frozen=True)
class ExportSettings:
    """A run's `export:`."""

    format: str
    rounding: Rounding = "nearest"
    seed: Seed = 0


def export_settings(given: Mapping[str, Any], where: str = "export") -> ExportSettings:
    """A run's `export:`, checked; a `UserError` names what is wrong."""
    check_settings(where, [ExportSettings], given)
    FORMATS.record(given["format"])
    return ExportSettings(**given)
