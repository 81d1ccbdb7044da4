"""The formats in which a model can be exported: what `letgo export --format` and a run's `export:` may name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from letgo.core.catalog import Catalog, Record, check_settings
from letgo.core.values import Seed
from letgo.models.gguf_mixes import ALIASES, MIXES

Rounding = Literal["nearest", "stochastic", "error_feedback"]
EXPORT = "export"
"""The folder of a run in which its exported model is."""
MANIFEST = "export.json"

FORMATS: Catalog[Record] = Catalog(
    "format",
    [
        Record(
            name="own",
            target="letgo.models.export:export",
            summary="the format in which the original came: its block types and the scales of its blocks",
            source="letgo; docs/formats.md",
            faithfulness="ours",
            extra="gguf",
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
