"""The output layer as a function of hidden states, so that logits can be made of a few tokens at a time, and of hidden
states that were stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from letgo.core.errors import UserError
from letgo.models.forward import hidden_before_head, output_layer, through, unwrapped


@dataclass(frozen=True)
class OutputHead:
    """logits = cap · tanh(s W h / cap), with what the architecture has of it: most have the product alone."""

    layer: Callable[[Tensor], Tensor]
    trained: tuple[nn.Parameter, ...] = ()
    """The parameters of it that are being trained."""
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits of shape (..., vocabulary), at least float32, of hidden states of shape (..., width)."""
        logits = self.layer(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def at(self, parameters: Sequence[Tensor]) -> OutputHead:
        """The same with other tensors in the place of the trained parameters, in their order."""
        if not self.trained:
            return self
        layer: Any = self.layer
        names = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
        values = dict(zip(names, parameters, strict=True))
        return replace(self, layer=lambda hidden: torch.func.functional_call(layer, values, (hidden,)))


def output_head(model: Any) -> OutputHead:
    """The model's output layer as it is, with its gradients."""
    layer = output_layer(model)
    trained = tuple(parameter for parameter in layer.parameters() if parameter.requires_grad)
    return OutputHead(layer, trained, **_after(model))


def reference_head(model: Any) -> OutputHead:
    """The output layer with the weights that it has now, for good: without adapters, and copied where it is trained.

    Hold on to it for as long as the stored hidden states are used. A tied embedding counts as trained with its other
    end.
    """
    layer = output_layer(model)
    for attribute in ("original_module", "base_layer"):
        # What peft has put around it; its adapters are off where the reference is concerned.
        layer = getattr(layer, attribute, layer)
    if any(parameter.requires_grad for parameter in layer.parameters()):
        weight = _copy(layer.get_parameter("weight"))
        bias = getattr(layer, "bias", None)
        bias = None if bias is None else _copy(bias)
        return OutputHead(lambda hidden: F.linear(hidden, weight, bias), **_after(model))
    return OutputHead(layer, **_after(model))


def _copy(tensor: Tensor) -> Tensor:
    """Its values, whole where they are shared out over processes."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def check_head(model: Any) -> None:
    """Raise a `UserError` where the output layer on the hidden states does not give this architecture's logits."""
    bare = unwrapped(model)
    device = next(bare.parameters()).device
    ids = torch.tensor([[0, 1]], device=device)
    was_training = bare.training
    bare.eval()

    def both(inside: Any) -> tuple[Tensor, Tensor]:
        logits = inside(input_ids=ids, use_cache=False).logits
        return logits, output_head(inside)(hidden_before_head(inside, input_ids=ids))

    try:
        with torch.no_grad():
            logits, from_head = through(bare, both)
    finally:
        bare.train(was_training)
    if not torch.allclose(logits.float(), from_head.float(), rtol=1e-2, atol=1e-2, equal_nan=True):
        raise UserError(
            f"{type(bare).__name__} does something to its logits after the output layer that letgo does not know of, "
            "so objectives on label tokens cannot be computed"
        )


def _after(model: Any) -> dict[str, Any]:
    """What the architecture does to the product: Cohere multiplies, Granite divides, Gemma 2 caps."""
    bare = unwrapped(model)
    config = bare.config.get_text_config()
    scale = getattr(bare, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    return {
        "scale": float(scale if scale is not None else 1.0) / float(divisor if divisor is not None else 1.0),
        "cap": None if cap is None else float(cap),
    }
