"""Which block type each tensor of a GGUF file gets: llama.cpp's mixes.

A mix has a type for most matrices, and more bits for some: for values and down projections in a part of the layers, for
attention's output, for the output layer. Rows that no block fits into get another type, as there. After
`llama_tensor_get_type` of llama.cpp (src/llama-quant.cpp, 2025), without an importance matrix, for models without
experts; Falcon's rules of its own are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Rule = Callable[[int, int, int], str | None]
"""From a layer's number, the number of layers and the queries per key to a type; None for the mix's own."""


@dataclass(frozen=True)
class Mix:
    """`base` for most matrices; the rules for others, and whether llama.cpp has such a mix too."""

    base: str
    value: Rule = lambda layer, layers, queries: None
    down: Rule = lambda layer, layers, queries: None
    attention_output: str | None = None
    joint_attention: str | None = None
    known: bool = True


def _more(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


MIXES: Mapping[str, Mix] = {
    "Q2_K": Mix(
        "Q2_K",
        value=lambda layer, layers, queries: "Q4_K" if queries >= 4 else "Q3_K",
        down=lambda layer, layers, queries: "Q3_K",
        attention_output="Q3_K",
    ),
    "Q3_K_S": Mix("Q3_K"),
    "Q3_K_M": Mix(
        "Q3_K",
        value=lambda layer, layers, queries: "Q5_K" if layer < 2 else "Q4_K",
        down=lambda layer, layers, queries: "Q5_K" if layer < layers // 16 else "Q4_K",
        attention_output="Q4_K",
        joint_attention="Q4_K",
    ),
    "Q3_K_L": Mix(
        "Q3_K",
        value=lambda layer, layers, queries: "Q5_K",
        down=lambda layer, layers, queries: "Q5_K",
        attention_output="Q5_K",
        joint_attention="Q4_K",
    ),
    "Q4_0": Mix("Q4_0"),
    "Q4_1": Mix("Q4_1"),
    "Q4_K_S": Mix(
        "Q4_K",
        value=lambda layer, layers, queries: "Q5_K" if layer < 4 else None,
        down=lambda layer, layers, queries: "Q5_K" if layer < layers // 8 else None,
    ),
    "Q4_K_M": Mix(
        "Q4_K",
        value=lambda layer, layers, queries: "Q6_K" if _more(layer, layers) else None,
        down=lambda layer, layers, queries: "Q6_K" if _more(layer, layers) else None,
        joint_attention="Q5_K",
    ),
    "Q5_0": Mix("Q5_0"),
    "Q5_1": Mix("Q5_1"),
    "Q5_K_S": Mix("Q5_K"),
    "Q5_K_M": Mix(
        "Q5_K",
        value=lambda layer, layers, queries: "Q6_K" if _more(layer, layers) else None,
        down=lambda layer, layers, queries: "Q6_K" if _more(layer, layers) else None,
        joint_attention="Q6_K",
    ),
    "Q6_K": Mix("Q6_K"),
    "Q8_0": Mix("Q8_0"),
    "IQ4_NL": Mix(
        "IQ4_NL",
        value=lambda layer, layers, queries: "Q5_K" if queries >= 4 else None,
        down=lambda layer, layers, queries: "Q5_K" if layer < layers // 8 else None,
    ),
    "IQ4_XS": Mix(
        "IQ4_XS",
        value=lambda layer, layers, queries: "Q5_K" if queries >= 4 else None,
        down=lambda layer, layers, queries: "Q5_K" if layer < layers // 8 else None,
    ),
    # llama.cpp gives these types to experts alone; here every matrix of a layer has them.
    "MXFP4": Mix("MXFP4", known=False),
    "NVFP4": Mix("NVFP4", known=False),
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""As llama.cpp's own quantizer has them."""

BLOCK = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"), 32),
    "NVFP4": 64,
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"), 256),
}
"""How many weights a block of each type has."""
_INSTEAD = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "NVFP4": "MXFP4",
}
"""What a matrix gets whose rows are no multiple of 256 (64 for NVFP4)."""


def types_of(
    mix: str, shapes: Mapping[str, tuple[int, ...]], *, layers: int, queries: int
) -> tuple[dict[str, str], list[str]]:
    """The type of each tensor of a model, and notes of those that got another one than the mix says.

    Args:
        mix: a name of `MIXES`.
        shapes: by the tensors' GGUF names, (rows, columns) of matrices.
        layers: of the model.
        queries: query heads per key head.
    """
    rules = MIXES[mix]
    types: dict[str, str] = {}
    fallen: dict[tuple[str, str, int], list[str]] = {}
    for name, shape in shapes.items():
        if len(shape) < 2 or not name.endswith(".weight") or "_norm." in name or name in ("position_embd.weight",):
            types[name] = "F32"
            continue
        wanted = _wanted(rules, name, "output.weight" in shapes, layers, queries)
        types[name] = _fitting(wanted, shape[-1])
        if types[name] != wanted:
            fallen.setdefault((wanted, types[name], shape[-1]), []).append(name)
    notes = [
        f"{len(names)} of {len(shapes)} tensors are {given} instead of {wanted}, whose blocks of "
        f"{BLOCK[wanted]} weights do not fit into rows of {columns}: {names[0]}" + (", …" if names[1:] else "")
        for (wanted, given, columns), names in fallen.items()
    ]
    return types, notes


def _wanted(rules: Mix, name: str, has_output: bool, layers: int, queries: int) -> str:
    if name == "output.weight" or (name == "token_embd.weight" and not has_output):
        # A tied embedding is the output layer too.
        return "Q8_0" if rules.base in ("Q8_0", "MXFP4", "NVFP4") else "Q6_K"
    found = re.match(r"blk\.(\d+)\.(.+)\.weight", name)
    layer, part = (int(found[1]), found[2]) if found else (0, name)
    if part == "attn_v":
        wanted = rules.value(layer, layers, queries) or rules.base
        if layers == 80 and queries > 1 and wanted in ("Q3_K", "Q4_K"):
            return "Q5_K"  # a model of 70B: eight query heads share a key, so that its values are cheap
        return wanted
    if part == "ffn_down":
        return rules.down(layer, layers, queries) or rules.base
    if part == "attn_output":
        return rules.attention_output or rules.base
    if part == "attn_qkv":
        return rules.joint_attention or rules.base
    return rules.base


def _fitting(wanted: str, columns: int) -> str:
    """The type, or what stands in for it, of whose blocks rows of so many weights are made up; F16 where none is."""
    while columns % BLOCK[wanted]:
        if wanted not in _INSTEAD:
            return "F16"
        wanted = _INSTEAD[wanted]
    return wanted
