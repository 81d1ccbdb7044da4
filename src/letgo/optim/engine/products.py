"""Linear layers by oneDNN where PyTorch would take another library.

PyTorch multiplies float32 matrices on a CPU with MKL. oneDNN, called with the same tensors, took 0.8 to 0.95 of the
time for the shapes of a 135M model, and half of it for a product with a whole vocabulary and few rows (AMD EPYC, two
cores; docs/benchmarks.md). Results differ by rounding. For work without gradients only.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FEWEST_ELEMENTS = 1 << 16
"""Weights with fewer are not worth the choice."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, by whichever is faster. (..., in), (out, in), (out,) -> (..., out)"""
    return onednn_linear(x, weight, bias) if serves(x, weight) else F.linear(x, weight, bias)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by oneDNN, for tensors that it `serves`; the weight may have been put in oneDNN's own order."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can take these tensors; it knows neither vmap nor autocast."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and weight.numel() >= FEWEST_ELEMENTS
        and x.numel() > 0
        and weight.dim() == 2
        and weight.is_contiguous()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch._C._functorch.is_functorch_wrapped_tensor(weight)
        and works()
    )


def works() -> bool:
    """Whether this build of PyTorch has the operators, is allowed to use them, and they do what they are said to."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled) and _tried()


@functools.lru_cache(maxsize=1)
def _tried() -> bool:
    with torch.no_grad():
        x: Any = torch.arange(24, dtype=torch.float32).view(3, 8) / 10
        weight = torch.arange(32, dtype=torch.float32).view(4, 8) / 7
        bias = torch.arange(4, dtype=torch.float32)
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight)
            results = [onednn_linear(x, w, bias) for w in (weight, packed)]
        except (AttributeError, RuntimeError, TypeError):
            return False
        return all(torch.allclose(result, x @ weight.t() + bias, rtol=1e-4, atol=1e-4) for result in results)
