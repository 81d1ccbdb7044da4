"""Quantities of the reference model, taken once before training, so that no second model is held while training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from letgo.core.errors import UserError
from letgo.models.forward import block_number, through
from letgo.models.head import output_head
from letgo.models.running import evaluating
from letgo.objectives.chunks import label_logps
from letgo.objectives.likelihood import Part, label_counts, label_hidden, labels_of, layer_hidden, sum_rows

QUANTITIES = ("logps", "hidden", "layer_hidden")


def reference_quantities(
    model: Any, part: Part, names: Sequence[str], *, layer: int | str | None = None
) -> dict[str, list[Tensor]]:
    """Quantities of the model as it is now for the rows of a part; adapters are off where it has any.

    Args:
        model: a causal LM, with the reference's weights.
        part: `input_ids`, `attention_mask`, `labels` on the model's device.
        names: of `logps`, Σ log π(y_t | x, y_<t) of a row's label tokens, a scalar; `hidden`, the output layer's input
            at the positions that predict label tokens, (label tokens, width); `layer_hidden`, the hidden states after
            block `layer` at all real positions, (real tokens, width).
        layer: for `layer_hidden`, as in `block_number`.

    Returns:
        For each name one CPU tensor a row.
    """
    unknown = set(names) - set(QUANTITIES)
    if unknown:
        raise UserError(f"no such reference quantity: {', '.join(sorted(unknown))}; known: {', '.join(QUANTITIES)}")
    return through(model, lambda inside: _quantities(inside, part, names, layer))


def _quantities(model: Any, part: Part, names: Sequence[str], layer: int | str | None) -> dict[str, list[Tensor]]:
    quantities: dict[str, list[Tensor]] = {}
    base = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    with evaluating(model), base:
        if "logps" in names or "hidden" in names:
            counts = label_counts(part).tolist()
            hidden = label_hidden(model, part)
            if "hidden" in names:
                quantities["hidden"] = [piece.cpu().clone() for piece in hidden.split(counts)]
            if "logps" in names:
                logps = label_logps(output_head(model), hidden, labels_of(part))
                quantities["logps"] = list(sum_rows(logps, part).cpu())
        if "layer_hidden" in names:
            after = layer_hidden(model, part, block_number(model, layer))
            lengths = part["attention_mask"].sum(dim=1).tolist()
            quantities["layer_hidden"] = [piece.cpu().clone() for piece in after.split(lengths)]
    return {name: quantities[name] for name in names}
