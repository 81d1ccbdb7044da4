"""One forward pass for the rows of several terms, where that is faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from letgo.data.encode import IGNORE
from letgo.models.forward import block_number, padding_waste, stack_rows
from letgo.models.running import is_sharded
from letgo.objectives.likelihood import Part, label_counts, label_hidden, layer_hidden
from letgo.objectives.records import TermRecord

MOST_WASTE = 0.03
"""Rows go through the model together while that makes no more than this share of padding beyond one pass each."""


def joined(
    model: Any, batch: Mapping[str, Part], records: Sequence[TermRecord], layer: int | str | None
) -> dict[str, Part]:
    """The batch with hidden states already in its parts, from one forward pass over the rows of all parts whose terms
    are made of the same hidden states; as it was where there is only one such part, or too much padding would be run.

    The results are those of a pass each but for rounding.
    """
    whole = dict(batch)
    for kind in ("label", "layer"):
        names = list(dict.fromkeys(p for record in records if record.hidden == kind for p in record.parts))
        parts = [batch[name] for name in names]
        # What is added to the hidden states of one part must not reach the others'.
        if len(parts) < 2 or any("latent" in part for part in parts):
            continue
        # Where weights are shared out all processes must run as many passes, whatever the lengths of their own rows.
        if not is_sharded(model) and padding_waste([part["attention_mask"] for part in parts]) > MOST_WASTE:
            continue
        for name, hidden in zip(names, _together(model, parts, kind, layer), strict=True):
            whole[name] = {**batch[name], f"{kind}_hidden": hidden}
    return whole


def _together(model: Any, parts: Sequence[Part], kind: str, layer: Any) -> Sequence[Tensor]:
    """The hidden states of each part, from one forward pass over all of them."""
    fills = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE}
    both = {key: stack_rows([part[key] for part in parts], fill) for key, fill in fills.items()}
    if kind == "label":
        return label_hidden(model, both).split([int(label_counts(part).sum()) for part in parts])
    hidden = layer_hidden(model, both, block_number(model, layer))
    return hidden.split([int(part["attention_mask"].sum()) for part in parts])
