"""Linear layers with weights in oneDNN's order, during an evaluation on a CPU.

PyTorch multiplies float32 matrices with MKL, weights in the order in which they are stored. oneDNN, with weights put in
its order beforehand, was 1.4 times as fast for 512 rows, and 1.7 times for 32 (AMD EPYC, two cores; see
docs/benchmarks.md). It needs a copy of the linear layers' weights. Results differ by rounding, 1e-6.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from letgo.optim.engine.products import onednn_linear, works

LEAST_TOKENS = 1500
"""To order the weights takes as long as some hundred tokens: fewer are run without it."""
_SHARE_OF_MEMORY = 0.25
_FEWEST_ELEMENTS = 4096


@contextlib.contextmanager
def packed(model: nn.Module, tokens: int) -> Iterator[None]:
    """Within: the model's float32 linear layers on a CPU run with packed weights, if `tokens` to be run are enough for
    it to pay and the copy takes at most a quarter of the free memory. Only for work without gradients."""
    layers = _layers(model) if tokens >= LEAST_TOKENS and works() else []
    size = sum(layer.weight.nbytes for layer in layers)
    if size > _SHARE_OF_MEMORY * _free_memory():
        layers = []
    try:
        for layer in layers:
            layer.__dict__["forward"] = _forward(layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _layers(model: nn.Module) -> list[nn.Linear]:
    """Plain linear layers, without those whose forward pass is replaced."""
    return [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in module.__dict__
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and module.weight.layout == torch.strided
        and not hasattr(module.weight, "device_mesh")
        and module.weight.numel() >= _FEWEST_ELEMENTS
    ]


def _forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().contiguous())
    bias = None if layer.bias is None else layer.bias.detach()

    def forward(x: Tensor) -> Tensor:
        return onednn_linear(x, weight, bias)

    return forward


def _free_memory() -> float:
    """Bytes that can be used without swapping; infinite where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")
