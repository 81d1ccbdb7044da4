"""How a model is run for scores: without gradients and dropout, on its own device, under a token budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in eval mode without gradients, and back in its former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def device_of(model: Any) -> torch.device:
    return next(model.parameters()).device


def is_sharded(model: Any) -> bool:
    """Whether the model's weights are shared out over processes (FSDP2), so that it runs in all of them at once, or
    not at all."""
    # By its modules: a parameter is a plain tensor for as long as it is gathered.
    return any(hasattr(module, "unshard") for module in model.modules())


def scoring_budget(device: torch.device) -> int:
    """Tokens of a batch to score. A CPU is busy with few hundred, and larger activations leave its caches."""
    return 768 if device.type == "cpu" else 16384


def generation_budget(model: Any) -> int:
    """Tokens, prompts and answers together, that a batch to generate holds in its key-value cache.

    Every step reads all weights once, so the more rows share it the better; the memory of the cache bounds them: half
    of what is free on a CUDA GPU, else 2 GiB.
    """
    device = device_of(model)
    room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2 << 30
    return min(most_generation_budget(device), max(room // key_value_bytes(model.config, model.dtype), 1024))


def most_generation_budget(device: torch.device) -> int:
    """The same where memory does not bound it."""
    return 262144 if device.type == "cuda" else 32768


def key_value_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes that a token's keys and values take in the cache of a model with this config."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None) or 1
    width = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 1024) // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    return int(2 * getattr(text, "num_hidden_layers", 32) * kept * width * dtype.itemsize)


def learned_positions(model: Any) -> int | None:
    """Rows of a learned table of positions, beyond which a model can't go; None where positions are computed."""
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    tables = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding))
    learned = any(name.rpartition(".")[2] in ("wpe", "embed_positions", "position_embeddings") for name in tables)
    return int(most) if most is not None and learned else None
