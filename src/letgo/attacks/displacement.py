"""How far an attack moves the weights, beside how far unlearning moved them, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from letgo.attacks.engine.base import Victim, linear_layers, output_first
from letgo.attacks.rounding import Levels
from letgo.core.errors import UserError

Quantizer = Callable[[str, Tensor], tuple[Tensor, Levels | None]]
"""From a layer's name and weight (outputs, inputs) to the weight quantized and dequantized, and its levels."""
Rows = list[dict[str, Any]]


class Original:
    """The original's linear layers, for comparison; where they are not to be had, `why` says so."""

    def __init__(self, victim: Victim) -> None:
        self.why = ""
        self._layers: Mapping[str, Any] = {}
        try:
            self._layers = linear_layers(victim.load_original())
        except UserError as error:
            self.why = str(error).splitlines()[0]

    def weight(self, name: str, like: Tensor) -> Tensor | None:
        if name not in self._layers:
            return None
        found = output_first(self._layers[name]).to(like.device)
        return found if found.shape == like.shape else None


def apply_quantizer(
    victim: Victim, quantizer: Quantizer, what: str
) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """Put every linear layer of the saved model through a quantizer.

    Returns the model, a row of numbers for each layer (`layer_row`), and what is to be said of all of them.
    """
    model = victim.load()
    layers = linear_layers(model)
    original = Original(victim)
    rows = []
    with victim.reporter.task(what, len(layers)) as task, torch.no_grad():
        for name, layer in layers.items():
            weight = output_first(layer)
            rounded, levels = quantizer(name, weight)
            rows.append(layer_row(name, weight, rounded, original.weight(name, weight), levels))
            output_first(layer).copy_(rounded.to(weight.dtype))
            task.advance()
    return model, rows, summary(rows, original.why)


def layer_row(
    name: str, weight: Tensor, attacked: Tensor, original: Tensor | None, levels: Levels | None = None
) -> dict[str, Any]:
    """One layer's numbers.

    `attack` ‖Q(θ_u) − θ_u‖, `norm` ‖θ_u‖, and where the original is known `unlearning` ‖θ_u − θ_o‖, `changed` the
    share of weights that unlearning changed at all, and, where the levels are known, `same_bin`: the share of weights
    that fall into the bin into which the original's weight would fall on the same levels; `undone`: that share among
    the weights that unlearning changed.
    """
    row: dict[str, Any] = {
        "layer": name,
        "weights": weight.numel(),
        "norm": _norm(weight),
        "attack": _norm(attacked.to(weight.dtype) - weight),
    }
    if original is None:
        return row
    changed = weight != original
    row |= {"unlearning": _norm(weight - original), "changed": float(changed.double().mean())}
    if levels is not None:
        same = levels.index(weight) == levels.index(original)
        row["same_bin"] = float(same.double().mean())
        if changed.any():
            row["undone"] = float(same[changed].double().mean())
    return row


def summary(rows: Sequence[Mapping[str, Any]], why: str = "") -> dict[str, Any]:
    """Over all layers: displacements in norm, shares weighted by the number of weights."""
    count = sum(row["weights"] for row in rows)
    said: dict[str, Any] = {
        "layers": len(rows),
        "weights": count,
        "displacement": _joint(rows, "attack"),
        "relative_displacement": _joint(rows, "attack") / (_joint(rows, "norm") or 1.0),
    }
    known = [row for row in rows if "unlearning" in row]
    if not known:
        return said | {"original": why or "not compared: it has other layers"}
    said["unlearning_displacement"] = _joint(known, "unlearning")
    changed = sum(row["changed"] * row["weights"] for row in known)
    said["changed"] = changed / sum(row["weights"] for row in known)
    if binned := [row for row in known if "same_bin" in row]:
        said["same_bin"] = sum(r["same_bin"] * r["weights"] for r in binned) / sum(r["weights"] for r in binned)
        moved = sum(r["changed"] * r["weights"] for r in binned)
        if moved:
            said["undone"] = sum(r.get("undone", 0.0) * r["changed"] * r["weights"] for r in binned) / moved
    return said


def weight_change(victim: Victim, model: Any) -> tuple[Rows, dict[str, Any]]:
    """The same numbers, parameter by parameter, for an attack that has changed a model in whatever way."""
    saved = dict(victim.load().named_parameters())
    why, origin = "", {}
    try:
        origin = dict(victim.load_original().named_parameters())
    except UserError as error:
        why = str(error).splitlines()[0]
    rows = []
    for name, parameter in model.named_parameters():
        before = saved.get(name)
        if before is None or before.shape != parameter.shape or not parameter.is_floating_point():
            continue
        first = origin.get(name)
        first = first.detach() if first is not None and first.shape == before.shape else None
        rows.append(layer_row(name, before.detach(), parameter.detach(), first))
    if not rows:
        return [], {"original": "not compared: the weights are packed, or others"}
    return rows, summary(rows, why)


def _norm(values: Tensor) -> float:
    return float(values.double().norm())


def _joint(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(row[key] ** 2 for row in rows) ** 0.5
