"""How fast this machine computes, and how much memory this process takes before anything is loaded."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from letgo.models.files import trusted

_SECONDS = 0.3
_OF_A_PRODUCT = 0.5
"""What a training step reaches of the rate of a matrix product alone."""


@dataclass(frozen=True)
class Speed:
    """Floating-point operations a second, and where the figure comes from."""

    flops: float
    how: str


def product_speed(width: int, inner: int, rows: int, dtype: torch.dtype, device: torch.device) -> Speed:
    """From a third of a second of matrix products of the model's own shape."""
    generator = torch.Generator(device).manual_seed(0)
    rows = max(64, min(rows, 4096))
    a = torch.randn((rows, width), generator=generator, device=device).to(dtype)
    b = torch.randn((width, inner), generator=generator, device=device).to(dtype)
    a @ b
    _wait(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        a @ b
        _wait(device)
        count += 1
    reached = count * 2 * rows * width * inner / (time.perf_counter() - start)
    how = f"half of what a {rows}x{width}x{inner} matrix product reached here ({reached:.3g} FLOP/s), measured just now"
    return Speed(reached * _OF_A_PRODUCT, how)


def layers_speed(config: Any, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> Speed:
    """From a forward and a backward pass through two layers of the architecture, with random weights, at the run's own
    batch shape: the better of two."""
    from transformers import AutoModel

    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers, text.vocab_size = 2, 256
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:2]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    with torch.random.fork_rng():
        model = AutoModel.from_config(small, dtype=dtype, trust_remote_code=trusted()).to(device)
    ids = torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(0)).to(device)
    best, flops = float("inf"), 0.0
    for attempt in range(3):
        with FlopCounterMode(display=False) as counter:
            start = time.perf_counter()
            model(input_ids=ids).last_hidden_state.float().square().mean().backward()
            _wait(device)
        model.zero_grad()
        flops = float(counter.get_total_flops())
        # The first pass allocates.
        best = min(best, time.perf_counter() - start) if attempt else best
    how = f"a forward and a backward pass of two layers at {rows}x{length} tokens, measured just now"
    return Speed(flops / best, how)


def resident_bytes() -> int:
    """Resident memory of this process now; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
