"""Which of a model's matrices are embeddings: optimizers and quantizers treat them otherwise than hidden ones."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def vocabulary_parameters(model: nn.Module) -> set[int]:
    """The `id` of each parameter with a row for each word of a vocabulary or each position, or of an adapter on one."""
    return {id(p) for module in _modules(model) for p in module.parameters()}


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """Embeddings and the output head."""
    yield from (module for module in model.modules() if isinstance(module, nn.Embedding))
    for name in ("get_input_embeddings", "get_output_embeddings"):  # of transformers; peft puts its adapters into them
        find = getattr(model, name, None)
        module = find() if find is not None else None
        if module is not None:
            yield module
