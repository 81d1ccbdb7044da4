"""A model's tensors one after another, without the model: so they are read where one after another is written."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from letgo.core.errors import LetgoError
from letgo.models.adapters import is_adapter
from letgo.models.files import tensors_of, weight_files
from letgo.models.load import load_model, resolve_model


@dataclass(frozen=True)
class Weights:
    """A model's tensors, read from its files; of a model that is not in plain files of its own (an adapter, the hub,
    packed weights), from memory.

    Attributes:
        model: as in `resolve_model`.
    """

    model: str
    _stack: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (_, shape) in self._places.items()}

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of a tensor, float32.

        Raises:
            LetgoError: a value is not finite.
        """
        place = self._places[name][0]
        part: Tensor = place[start:stop] if isinstance(place, Tensor) else place.get_slice(name)[start:stop]
        values = part.detach().float().cpu()
        if not torch.isfinite(values).all():
            raise LetgoError(f"{self.model}: tensor {name} has values that are not finite")
        return values

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is stored."""
        place = self._places[name][0]
        dtype: torch.dtype = (place if isinstance(place, Tensor) else place.get_slice(name)[:1]).dtype
        return dtype

    @cached_property
    def _places(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        from safetensors import safe_open

        directory = Path(resolve_model(self.model))
        files = weight_files(directory) if directory.is_dir() and not is_adapter(directory) else []
        headers = {path: tensors_of(path) for path in files}
        kinds = {kind for header in headers.values() for kind, _ in header.values()}
        if not files or not kinds <= {"F64", "F32", "F16", "BF16"}:
            state = load_model(self.model).state_dict()
            return {name: (value, tuple(value.shape)) for name, value in state.items()}
        places: dict[str, tuple[Any, tuple[int, ...]]] = {}
        for path, header in headers.items():
            file = self._stack.enter_context(safe_open(path, "pt"))
            places |= {name: (file, tuple(shape)) for name, (_, shape) in header.items()}
        return places
