"""Mathematics over the whole vocabulary, a chunk of tokens at a time.

The logits of a batch, (tokens, vocabulary), are the largest tensor of a training step by far. Here no more than one
chunk of them exists at once, with gradients or without, and a sum over tokens whose weights are known beforehand (a
mean of divergences) takes its gradient while its chunk is there, so that no logits are computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from letgo.models.head import OutputHead

CHUNK_ELEMENTS = 1 << 24
"""Logits in one chunk: 64 MB of float32; with 50,000 words, 340 tokens."""
KEPT_ELEMENTS = 1 << 26
"""Log-probabilities that may be kept for the backward pass rather than computed anew there: 256 MB of float32."""

Summand = Callable[..., Tensor]


def even_chunks(tensor: Tensor, size: int) -> list[Tensor]:
    """The fewest pieces of at most `size` rows, as even as they can be (one of no rows, of a tensor of none)."""
    count = max(1, -(-len(tensor) // size))
    return list(tensor.tensor_split(count))


def chunk_rows(vocabulary: int) -> int:
    """Tokens in one chunk."""
    return max(1, CHUNK_ELEMENTS // max(1, vocabulary))


def vocabulary_of(head: OutputHead, hidden: Tensor) -> int:
    """The number of logits that the output layer gives."""
    weight = getattr(head.layer, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point() and weight.dim() == 2:
        return weight.shape[0]
    features = getattr(head.layer, "out_features", None)
    return features if isinstance(features, int) else head(hidden[:1].detach()).shape[-1]


def label_logps(head: OutputHead, hidden: Tensor, labels: Tensor) -> Tensor:
    """log softmax(W h_t)[y_t] of every token, of shape (tokens,), with gradient where gradients are enabled.

    The log-probabilities of all words are kept for the backward pass while they are few (`KEPT_ELEMENTS`); of more
    tokens every chunk's are computed anew there. Without gradients there is never more than one chunk of them.
    """
    vocabulary = vocabulary_of(head, hidden)
    if torch.is_grad_enabled() and len(hidden) * vocabulary <= KEPT_ELEMENTS:
        return _label_logps(head, hidden, labels)
    pieces = []
    for h, y in zip(*(even_chunks(t, chunk_rows(vocabulary)) for t in (hidden, labels)), strict=True):
        if torch.is_grad_enabled():
            pieces.append(checkpoint(_label_logps, head, h, y, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(_label_logps(head, h, y))
    return torch.cat(pieces)


def label_logps_sum(head: OutputHead, hidden: Tensor, labels: Tensor) -> Tensor:
    """Σ_t log softmax(W h_t)[y_t], a scalar: nothing of the vocabulary's size is kept for the backward pass."""
    return -summed(head, lambda logits, y: F.cross_entropy(logits, y, reduction="sum"), hidden, labels)


def _label_logps(head: OutputHead, hidden: Tensor, labels: Tensor) -> Tensor:
    return -F.cross_entropy(head(hidden), labels, reduction="none")


def summed(head: OutputHead, summand: Summand, hidden: Tensor, *aligned: Tensor) -> Tensor:
    """Σ over chunks of summand(logits, *aligned), a scalar, where logits are the head's of a chunk of hidden states.

    Args:
        head: the output layer, with gradients for its trained parameters.
        summand: of logits (tokens, vocabulary) and the chunks of `aligned`: a sum over its tokens, a scalar.
        hidden: (tokens, width).
        aligned: tensors of as many entries as there are tokens, which get no gradient.
    """
    size = chunk_rows(vocabulary_of(head, hidden))

    def pieces(h: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        cut = [even_chunks(t, size) for t in (h, *aligned)]
        yield from ((first, rest) for first, *rest in zip(*cut, strict=True))  # type: ignore[misc]

    if not len(hidden):
        return summand(head(hidden), *aligned)
    trains = torch.is_grad_enabled() and (hidden.requires_grad or bool(head.trained))
    if not trains or torch._C._functorch.is_batchedtensor(hidden):
        return torch.stack([summand(head(h), *rest) for h, rest in pieces(hidden)]).sum()

    def piecewise(h: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each chunk of hidden states as a leaf of its own graph, with its sum."""
        for first, rest in pieces(h):
            leaf = first.detach().requires_grad_()
            with torch.enable_grad():
                yield leaf, summand(head(leaf), *rest)

    def whole(h: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        there = head.at(parameters)
        return torch.stack([summand(there(first), *rest) for first, rest in pieces(h)]).sum()

    return _Summed.apply(piecewise, whole, hidden, *head.trained)


class _Summed(torch.autograd.Function):
    """A sum whose gradient is taken in the forward pass, chunk by chunk; one that is to be differentiated again is
    taken the ordinary way, with all chunks' graphs."""

    @staticmethod
    def forward(ctx: Any, piecewise: Any, whole: Any, hidden: Tensor, *parameters: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        of_hidden = []
        of_parameters: list[Tensor | None] = [None] * len(parameters)
        for leaf, value in piecewise(hidden):
            first, *rest = torch.autograd.grad(value, [leaf, *parameters], allow_unused=True)
            of_hidden.append(torch.zeros_like(leaf) if first is None else first)
            for index, gradient in enumerate(rest):
                if gradient is not None:
                    kept = of_parameters[index]
                    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                    of_parameters[index] = wide if kept is None else kept.add_(wide)
            total = total + value.detach()
        ctx.whole = whole
        ctx.gradients = (torch.cat(of_hidden), *of_parameters)
        ctx.save_for_backward(hidden, *parameters)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Of other names for the inputs: a tied embedding has its part in the hidden states too, which is not asked
            # for here.
            hidden, *parameters = names = [t.view_as(t) for t in inputs]
            wanted = [t for t in names if t.requires_grad]
            total = ctx.whole(hidden, parameters)
            gradients = iter(torch.autograd.grad(total, wanted, gradient, create_graph=True, allow_unused=True))
            return None, None, *(next(gradients) if t.requires_grad else None for t in names)
        return (
            None,
            None,
            *(None if g is None else (g * gradient).to(t.dtype) for g, t in zip(ctx.gradients, inputs, strict=True)),
        )
