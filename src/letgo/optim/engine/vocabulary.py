"""Which of a model's matrices are embeddings: optimizers and quantizers treat them otherwise than hidden ones."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def vocabulary_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The modules with a row for each word of a vocabulary or each position: embeddings and the output head."""
    yield from (module for module in model.modules() if isinstance(module, nn.Embedding))
    for name in ("get_input_embeddings", "get_output_embeddings"):  # of transformers; peft puts its adapters into them
        find = getattr(model, name, None)
        module = find() if find is not None else None
        if module is not None:
            yield module
