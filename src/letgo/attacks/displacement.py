"""What an attack on the weights leaves, with how far it moved them beside how far unlearning had, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letgo.attacks.engine.base import Attacked, Victim, linear_layers, output_first
from letgo.core.errors import UserError, first_line
from letgo.models.displacement import layer_row, summary
from letgo.optim.engine.rounding import Levels


@dataclass(frozen=True)
class Rounded:
    """A weight quantized and dequantized, its levels, and the indices among them where they are not the nearest."""

    values: Tensor
    levels: Levels | None = None
    index: Tensor | None = None


Quantizer = Callable[[str, Tensor], Rounded]
"""From a layer's name and weight (outputs, inputs) to what is left of it."""
WeightsOf = Callable[[Any], dict[str, Tensor]]


def layer_weights(model: Any) -> dict[str, Tensor]:
    """The weights of a model's linear layers, each of shape (outputs, inputs)."""
    return {name: output_first(layer) for name, layer in linear_layers(model).items()}


def matrices(model: Any) -> dict[str, Tensor]:
    """The weights of a model's linear layers and embeddings by their parameters' names, each of shape (outputs,
    inputs); one that two layers share counts once."""
    from transformers.pytorch_utils import Conv1D

    found: dict[int, tuple[str, Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding | Conv1D):
            found.setdefault(module.weight.data_ptr(), (f"{name}.weight", output_first(module)))
    return dict(found.values())


def original_weights(
    victim: Victim, weights_of: Callable[[Any], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], str]:
    """The original model's weights by name; empty where it can't be loaded, with the reason."""
    try:
        return dict(weights_of(victim.load_original())), ""
    except UserError as error:
        return {}, first_line(error)


def apply_quantizer(
    victim: Victim, quantizer: Quantizer, task_name: str, *, weights_of: WeightsOf = layer_weights, model: Any = None
) -> Attacked:
    """Put every linear layer of the saved model through a quantizer; the result has a row for each (`layer_row`).

    Args:
        weights_of: which of its weights instead.
        model: the saved model, where it has been loaded already.
    """
    model = model or victim.load()
    layers = weights_of(model)
    original, why = ({}, "") if victim.is_reference else original_weights(victim, weights_of)
    rows = []
    with victim.reporter.task(task_name, len(layers)) as task, torch.no_grad():
        for name, weight in layers.items():
            left = quantizer(name, weight)
            if not victim.is_reference:
                rows.append(layer_row(name, weight, left.values, original.get(name), left.levels, left.index))
            weight.copy_(left.values.to(weight.dtype))
            task.advance()
    return Attacked(model, summary(rows, why) if rows else {}, layers=rows)


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
