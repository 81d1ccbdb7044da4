"""A model's weights as one vector: moved for a while, and put back bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from letgo.core.errors import UserError
from letgo.optim.engine.noise import mix

WeightVector = Mapping[str, Tensor]
"""One tensor for each parameter's name."""


class Weights:
    """All parameters of a model (not its buffers), tied ones once, with a copy of the originals; `dimension` is d,
    their number."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = dict(model.named_parameters())
        for name, parameter in self.parameters.items():
            if not parameter.is_floating_point():
                raise UserError(
                    f"the weights {name} are packed ({parameter.dtype}); analyse the model that was saved before "
                    "it was quantized"
                )
        self.originals = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.dimension = sum(tensor.numel() for tensor in self.originals.values())

    @contextmanager
    def at(self, value: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """Within, each parameter is `value(name, original)`, rounded to its type; after it, whatever happens, the
        original bits. `value` is called in the order of the parameters and must not write to the original."""
        try:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(value(name, self.originals[name]))
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.originals[name])

    def norm(self) -> float:
        return vector_norm(self.originals)


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def vector_norm(vector: WeightVector, scale: Mapping[str, float] | None = None) -> float:
    """‖v‖, or (Σ_l ‖v_l‖²/s_l²)^½ with a scale s_l for each tensor; summed in double precision."""
    squares = (
        float(tensor.double().square().sum()) / (scale[name] ** 2 if scale else 1.0) for name, tensor in vector.items()
    )
    return math.sqrt(math.fsum(squares))


def difference(first: WeightVector, second: WeightVector) -> dict[str, Tensor]:
    """first − second, at least in single precision, on second's devices."""
    return {
        name: first[name].to(tensor.device, torch.promote_types(tensor.dtype, torch.float32))
        - tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        for name, tensor in second.items()
    }


def distance(first: WeightVector, second: WeightVector, scale: Mapping[str, float] | None = None) -> float:
    """‖first − second‖, without keeping the difference of more than one tensor."""
    return math.sqrt(
        math.fsum(vector_norm({name: first[name].to(t.device).double() - t.double()}, scale) ** 2
                  for name, t in second.items())
    )  # fmt: skip


def check_same_shape(first: WeightVector, second: WeightVector, names: tuple[str, str]) -> None:
    """Raise a `UserError` unless two models have the same weights by name and shape."""
    only = [[n for n in a if n not in b] for a, b in ((first, second), (second, first))]
    problems = [f"{missing[0]} is only in {name}" for missing, name in zip(only, names, strict=True) if missing]
    problems += [
        f"{name} has shape {tuple(tensor.shape)} in {names[0]} and {tuple(second[name].shape)} in {names[1]}"
        for name, tensor in first.items()
        if name in second and second[name].shape != tensor.shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(
            f"{names[0]} and {names[1]} are not of one architecture: {'; '.join(problems[:3])}{more}\n"
            "  no straight line leads from one to the other; name models with the same weights by name and shape"
        )


class Normals:
    """Standard normal tensors of one draw of an analysis, in a fixed order, from a generator for each kind of device.

    Consecutive numbers have consecutive seeds, so that no two draws of one analysis share theirs (a generator on a CPU
    takes 32 bits of seed).
    """

    def __init__(self, seed: int, number: int) -> None:
        self.seed = (mix(seed) + number) % (1 << 63)
        self._generators: dict[torch.device, torch.Generator] = {}

    def like(self, tensor: Tensor) -> Tensor:
        """N(0, 1) of a tensor's shape, at least in single precision."""
        if tensor.device not in self._generators:
            self._generators[tensor.device] = torch.Generator(tensor.device).manual_seed(self.seed)
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        empty = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
        return empty.normal_(generator=self._generators[tensor.device])
