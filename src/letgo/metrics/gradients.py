"""How much a text would change the model: the norm of its loss's gradient, one text at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from letgo.core.errors import NonFiniteLossError
from letgo.models.running import device_of
from letgo.scoring.head import CHUNK_BYTES, hidden_states
from letgo.scoring.scoring import Query


def gradient_norms(
    model: Any, queries: Sequence[Query], *, advance: Callable[[int], None] = lambda _: None
) -> list[float]:
    """‖∇_θ L‖₂ of each text's mean token loss, over all parameters (the gradient-norm membership attack, white box,
    arXiv 2402.17012). A text that the model knows by heart hardly changes it: members have *small* norms, so the
    membership score is the negative norm.

    Memory: a parameter's gradient is reduced to its norm and dropped as soon as it is whole, and logits exist for some
    positions at a time; beside the model and one text's activations that is about one layer's weights.

    Args:
        model: a causal LM; its parameters' `requires_grad` and `.grad` are as before afterwards.
        queries: each with one continuation, whose tokens make the loss.
        advance: called with 1 for each query done.

    Raises:
        ValueError: a query has several continuations, or an empty part.
        NonFiniteLossError: a norm is NaN or infinite.
    """
    for query in queries:
        if len(query.continuations) != 1 or not len(query.prefix) or not len(query.continuations[0]):
            raise ValueError("a gradient norm is of one continuation of at least one token, after a prefix")
    norms = []
    with _reduced_gradients(model) as squares:
        for query in queries:
            squares.clear()
            _mean_loss(model, query).backward()
            norm = math.sqrt(sum(squares))
            if not math.isfinite(norm):
                raise NonFiniteLossError(f"a gradient's norm came out as {norm}; the model's weights are broken")
            norms.append(norm)
            advance(1)
    return norms


def _mean_loss(model: Any, query: Query) -> Tensor:
    prefix, [continuation] = list(query.prefix), query.continuations
    device = device_of(model)
    ids = torch.tensor([prefix + list(continuation)[:-1]], device=device)
    targets = torch.tensor(list(continuation), device=device)
    hidden = hidden_states(model, input_ids=ids, use_cache=False)
    chosen = hidden.states[0, len(prefix) - 1 :]
    size = max(32, CHUNK_BYTES // (4 * hidden.vocabulary))

    def part(some: Tensor, wanted: Tensor) -> Tensor:
        logits = hidden.to_logits(some[:, None])[:, 0].float()
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")

    # Logits are made anew for the backward pass, so that only one chunk of them exists at a time.
    parts = [
        checkpoint(part, chosen[start : start + size], targets[start : start + size], use_reentrant=False)
        for start in range(0, len(targets), size)
    ]
    return torch.stack(parts).sum() / len(targets)


@contextlib.contextmanager
def _reduced_gradients(model: torch.nn.Module) -> Iterator[list[float]]:
    """Within: a backward pass puts each parameter's squared gradient norm into the list, and leaves no gradient."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    before = [(p, p.requires_grad, p.grad) for p in parameters]
    squares: list[float] = []
    handles = []
    was_training = model.training
    model.eval()

    def reduce(parameter: Tensor) -> None:
        if parameter.grad is not None:
            squares.append(float(parameter.grad.double().square().sum()) if parameter.grad.numel() else 0.0)
        parameter.grad = None

    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.grad = None
            handles.append(parameter.register_post_accumulate_grad_hook(reduce))
        with torch.enable_grad():
            yield squares
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
        model.train(was_training)
