"""Ways to run a causal LM no further than is needed: logits at some positions only, hidden states without the output
layer, hidden states after one of the blocks without the blocks that follow it.

They work on what all decoders of transformers have in common (an output layer, a list of blocks), so no architecture
has code of its own here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError

Outcome = TypeVar("Outcome")


def through(model: Any, work: Callable[[Any], Outcome]) -> Outcome:
    """Do all of some work on a model within one forward call of what is wrapped around it.

    DDP and FSDP2 watch over the model's forward method: gradients are averaged, and shards gathered, for
    what runs in it. A loss is made of several passes and of the output layer on its own, so the loss as a whole is what
    they must watch. `work` is given the model inside.
    """
    inside = model.module if hasattr(model, "module") else model
    if inside is model and not hasattr(model, "unshard"):
        return work(model)

    forward = inside.forward

    def redirected(*_: Any, **__: Any) -> Outcome:
        with _replaced(inside, "forward", forward):
            return work(inside)

    with _replaced(inside, "forward", redirected):
        return model()


def logits_at(model: Any, positions: Tensor | int, **inputs: Any) -> Tensor:
    """Logits of a forward pass at `positions` of the sequence: a tensor of indices, or the last n.

    The output layer runs on those positions alone where the architecture allows it (with a vocabulary of 50,000 and a
    small model it costs as much as several layers). Shape (rows, positions, vocabulary).
    """
    if _takes_logits_to_keep(type(unwrapped(model))):
        return model(logits_to_keep=positions, **inputs).logits
    logits = model(**inputs).logits
    return logits[:, -positions:] if isinstance(positions, int) else logits[:, positions]


def hidden_before_head(model: Any, **inputs: Any) -> Tensor:
    """What the output layer would be given, of shape (rows, length, width); it does not run itself.

    The forward pass goes through the model as it is wrapped (DDP, peft), so that their bookkeeping stays right.
    """
    layer = output_layer(model)
    caught: list[Tensor] = []

    def catch(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        caught.append(hidden)
        # No positions are left, so whatever the model does to its logits costs nothing. (FSDP2 warns of views.)
        return hidden[:, :0].clone()

    with _replaced(layer, "forward", catch):
        model(use_cache=False, **inputs)
    return caught[0]


def hidden_after(model: Any, layer: int, **inputs: Any) -> Tensor:
    """Hidden states after block number `layer` (from 0), as `output_hidden_states` gives them at `layer + 1` (but for
    the last block, where those are normalised too). Shape (rows, length, width).

    The blocks above it do not run: the model's list of blocks is cut short for the pass.
    """
    name, blocks = find_blocks(model)
    owner_name, _, attribute = name.rpartition(".")
    owner = unwrapped(model).get_submodule(owner_name)
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: Any, output: Any) -> None:
        caught.append(output if isinstance(output, Tensor) else output[0])

    handle = blocks[layer].register_forward_hook(catch)
    try:
        with _replaced(owner, attribute, nn.ModuleList(list(blocks)[: layer + 1])):
            hidden_before_head(model, **inputs)
    finally:
        handle.remove()
    return caught[0]


@contextmanager
def shifted(model: Any, layer: int, shift: Tensor) -> Iterator[None]:
    """Within: block number `layer` reads its input plus `shift`, of the input's shape (rows, length, width)."""
    name, blocks = find_blocks(model)
    owner_name, _, attribute = name.rpartition(".")
    changed = [_Shifted(block, shift) if number == layer else block for number, block in enumerate(blocks)]
    with _replaced(unwrapped(model).get_submodule(owner_name), attribute, nn.ModuleList(changed)):
        yield


class _Shifted(nn.Module):
    """A block behind a sum. The sum is outside the block: one that is recomputed in the backward pass keeps it."""

    def __init__(self, block: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.block, self.shift = block, shift

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.block(hidden_states + self.shift.to(hidden_states.dtype), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # What a model asks of its blocks, such as the kind of their attention.
        return super().__getattr__(name) if name == "block" else getattr(self.block, name)


def output_layer(model: Any) -> nn.Module:
    """The module that turns hidden states into logits."""
    bare = unwrapped(model)
    layer = bare.get_output_embeddings() if hasattr(bare, "get_output_embeddings") else None
    if not isinstance(layer, nn.Module):
        raise UserError(f"{type(bare).__name__} has no output layer over a vocabulary: letgo needs a causal LM")
    return layer


def find_blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks, and its name in the model without its wrappers ("model.layers").

    It is the outermost `nn.ModuleList` of as many modules as the config has layers.
    """
    bare = unwrapped(model)
    config = bare.config.get_text_config()
    wanted = getattr(config, "num_hidden_layers", None)
    for name, module in bare.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted and len(module) > 0:
            return name, module
    raise UserError(f"{type(bare).__name__} has no list of {wanted} blocks that could be found")


def block_number(model: Any, layer: int | str | None) -> int:
    """The block that `layer` means: a number (negative ones from the end), a module's name ("model.layers.7"), or
    None: the block at 7/32 of the depth, where RMU's authors work in a model of 32.

    Raises:
        UserError: there is no such block.
    """
    name, blocks = find_blocks(model)
    if layer is None:
        return min(len(blocks) - 1, round(len(blocks) * 7 / 32))
    if isinstance(layer, str):
        names = [f"{name}.{number}" for number in range(len(blocks))]
        if layer not in names:
            raise UserError(
                f"layer {layer!r} is no block of this model{did_you_mean(layer, names)}\n"
                f"  its blocks are {names[0]} to {names[-1]}"
            )
        return names.index(layer)
    if not -len(blocks) <= layer < len(blocks):
        raise UserError(f"layer {layer} is outside this model: its blocks are 0 to {len(blocks) - 1}")
    return layer % len(blocks)


def unwrapped(model: Any) -> Any:
    """The transformers model inside what DDP and peft put around it."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _replaced(module: nn.Module, attribute: str, value: Any) -> Iterator[None]:
    """Within: a module has another submodule, or another method, under a name. After, whatever happened: its own."""
    submodule = attribute in module._modules
    space: dict[str, Any] = module._modules if submodule else module.__dict__
    there, before = attribute in space, space.get(attribute)
    space[attribute] = value
    try:
        yield
    finally:
        if there:
            space[attribute] = before
        else:
            del space[attribute]


def _takes_logits_to_keep(kind: Any) -> bool:
    return "logits_to_keep" in inspect.signature(kind.forward).parameters


def real_columns(attention_mask: Tensor) -> slice:
    """The columns from the first to the last that are real in some row: padding that a whole batch shares is cut off
    before a forward pass, so that it changes no bit of it."""
    columns = attention_mask.any(dim=0).nonzero()[:, 0]
    return slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 0)


def padding_waste(masks: list[Tensor]) -> float:
    """The share of tokens by which one forward pass over the rows of all masks together is larger than one each."""
    widths = [columns.stop - columns.start for columns in map(real_columns, masks)]
    apart = sum(mask.shape[0] * width for mask, width in zip(masks, widths, strict=True))
    together = sum(mask.shape[0] for mask in masks) * max(widths)
    return together / max(1, apart) - 1


def stack_rows(tensors: list[Tensor], fill: int) -> Tensor:
    """Batches of (rows, length) below each other, filled up at the right to the longest."""
    width = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([nn.functional.pad(t, (0, width - t.shape[1]), value=fill) for t in tensors])
