"""How far an attack moves the weights, beside how far unlearning moved them, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from letgo.attacks.engine.base import Attacked, Victim, linear_layers, output_first
from letgo.attacks.rounding import Levels
from letgo.core.errors import UserError, first_line

Quantizer = Callable[[str, Tensor], tuple[Tensor, Levels | None]]
"""From a layer's name and weight (outputs, inputs) to the weight quantized and dequantized, and its levels."""
WeightsOf = Callable[[Any], dict[str, Tensor]]


def layer_weights(model: Any) -> dict[str, Tensor]:
    """The weights of a model's linear layers, each of shape (outputs, inputs)."""
    return {name: output_first(layer) for name, layer in linear_layers(model).items()}


def original_weights(
    victim: Victim, weights_of: Callable[[Any], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], str]:
    """The original model's weights by name; empty where it can't be loaded, with the reason."""
    try:
        return dict(weights_of(victim.load_original())), ""
    except UserError as error:
        return {}, first_line(error)


def apply_quantizer(victim: Victim, quantizer: Quantizer, task_name: str) -> Attacked:
    """Put every linear layer of the saved model through a quantizer; the result has a row for each (`layer_row`)."""
    model = victim.load()
    layers = layer_weights(model)
    original, why = ({}, "") if victim.is_reference else original_weights(victim, layer_weights)
    rows = []
    with victim.reporter.task(task_name, len(layers)) as task, torch.no_grad():
        for name, weight in layers.items():
            rounded, levels = quantizer(name, weight)
            if not victim.is_reference:
                rows.append(layer_row(name, weight, rounded, original.get(name), levels))
            weight.copy_(rounded.to(weight.dtype))
            task.advance()
    return Attacked(model, summary(rows, why) if rows else {}, layers=rows)


def layer_row(
    name: str, weight: Tensor, attacked: Tensor, original: Tensor | None, levels: Levels | None = None
) -> dict[str, Any]:
    """One layer's numbers: `attack` ‖Q(θ_u) − θ_u‖ and `norm` ‖θ_u‖; where the original of the same shape is known,
    `unlearning` ‖θ_u − θ_o‖ and `changed`, the share of weights that unlearning changed at all; where the levels are
    known too, `same_bin`, the share of weights in the bin in which the original's weight would be on the same levels,
    and `undone`, that share among the weights that unlearning changed."""
    row: dict[str, Any] = {
        "layer": name,
        "weights": weight.numel(),
        "norm": _norm(weight),
        "attack": _norm(attacked.to(weight.dtype) - weight),
    }
    if original is None or original.shape != weight.shape:
        return row
    original = original.to(weight.device)
    changed = weight != original
    row |= {"unlearning": _norm(weight - original), "changed": float(changed.double().mean())}
    if levels is not None:
        same = levels.index(weight) == levels.index(original)
        row["same_bin"] = float(same.double().mean())
        if changed.any():
            row["undone"] = float(same[changed].double().mean())
    return row


def summary(rows: Sequence[Mapping[str, Any]], why: str = "") -> dict[str, Any]:
    """Over all layers' rows: displacements in norm, shares weighted by the number of weights. `why` is the reason where
    the original is not known."""
    total: dict[str, Any] = {
        "layers": len(rows),
        "weights": sum(row["weights"] for row in rows),
        "displacement": _joint(rows, "attack"),
        "relative_displacement": _joint(rows, "attack") / (_joint(rows, "norm") or 1.0),
    }
    known = [row for row in rows if "unlearning" in row]
    if not known:
        return total | {"original": why or "not compared: it has other layers"}
    total["unlearning_displacement"] = _joint(known, "unlearning")
    changed = sum(row["changed"] * row["weights"] for row in known)
    total["changed"] = changed / sum(row["weights"] for row in known)
    if binned := [row for row in known if "same_bin" in row]:
        total["same_bin"] = sum(r["same_bin"] * r["weights"] for r in binned) / sum(r["weights"] for r in binned)
        moved = sum(r["changed"] * r["weights"] for r in binned)
        if moved:
            total["undone"] = sum(r.get("undone", 0.0) * r["changed"] * r["weights"] for r in binned) / moved
    return total


def weight_change(victim: Victim, model: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The same numbers, parameter by parameter, for an attack that has changed a model in any way; none of a
    reference."""
    if victim.is_reference:
        return [], {}
    saved = dict(victim.load().named_parameters())
    original, why = original_weights(victim, lambda original: dict(original.named_parameters()))
    rows = []
    for name, parameter in model.named_parameters():
        before = saved.get(name)
        if before is None or before.shape != parameter.shape or not parameter.is_floating_point():
            continue
        with torch.no_grad():
            rows.append(layer_row(name, before, parameter, original.get(name)))
    if not rows:
        return [], {"original": "not compared: the weights are packed, or others"}
    return rows, summary(rows, why)


def changed_model(victim: Victim, model: Any, **numbers: Any) -> Attacked:
    """What an attack on the weights leaves, with a row for each parameter that it moved."""
    rows, total = weight_change(victim, model)
    return Attacked(model, total | numbers, layers=[row for row in rows if row["attack"] > 0])


def _norm(values: Tensor) -> float:
    return float(values.double().norm())


def _joint(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(row[key] ** 2 for row in rows) ** 0.5
