"""From hidden states to what is asked of a vocabulary, some positions at a time.

Logits of a text of 1,700 tokens over a vocabulary of 128,000 are 0.9 GB. So the output layer is cut off from the
forward pass and run on some hundred hidden states at once, each chunk reduced before the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letgo.models.forward import output_layer

CHUNK_BYTES = 24 << 20
"""Logits at a time on a CPU: 128 positions at 49,152 words. What is larger than 32 MB the system gives back and fetches
anew each time, page by page."""
_CHUNK_BYTES_GPU = 512 << 20
_FEWEST_POSITIONS = 32


@dataclass(frozen=True)
class Wanted:
    """What is computed beside the log-probabilities: the mean and standard deviation of the log-probabilities of the
    whole vocabulary (Min-K++), and whether the token is the likeliest (exact memorization, extraction strength)."""

    statistics: bool = False
    matches: bool = False


@dataclass
class Columns:
    """For each asked (position, token): values of shape (asked,)."""

    logps: Tensor
    means: Tensor | None = None
    deviations: Tensor | None = None
    matches: Tensor | None = None


@dataclass(frozen=True)
class Hidden:
    """What the output layer gets, (rows, length, width), and how some of it becomes logits over `vocabulary` words."""

    states: Tensor
    to_logits: Callable[[Tensor], Tensor]
    vocabulary: int


def hidden_states(model: Any, **inputs: Any) -> Hidden:
    """Run a model but for its output layer.

    The output layer runs on one position only, which also shows whether logits are what it gives: a model that does
    more with them than is known here is run whole instead, and its logits stand for hidden states. Any cache among
    `inputs` must be one that stores nothing (`PrefixLayer`), since the model may be run twice.
    """
    head = output_layer(model)
    caught: list[Tensor] = []

    def catch(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or caught:
            return None
        caught.append(args[0])
        return (args[0][:1, :1], *args[1:])

    handle = head.register_forward_pre_hook(catch)
    try:
        logits = model(**inputs).logits
    finally:
        handle.remove()
    if caught:
        for finish in _finishes(model):
            if torch.equal(finish(head(caught[0][:1, :1])), logits):
                return Hidden(caught[0], _composed(finish, head), logits.shape[-1])
        logits = model(**inputs).logits
    return Hidden(logits, lambda some: some, logits.shape[-1])


def _composed(outer: Callable[[Tensor], Tensor], inner: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda some: outer(inner(some))


def _finishes(model: Any) -> list[Callable[[Tensor], Tensor]]:
    """What models are known to do after the output layer."""
    config = model.config.get_text_config(decoder=True)

    def number(name: str) -> float | None:
        value = getattr(config, name, None)
        return float(value) if value else None

    ways: list[Callable[[Tensor], Tensor]] = [lambda logits: logits]
    if cap := number("final_logit_softcapping"):
        ways.append(lambda logits: torch.tanh(logits / cap) * cap)
    if factor := number("logit_scale"):
        ways.append(lambda logits: logits * factor)
    if divisor := number("logits_scaling"):
        ways.append(lambda logits: logits / divisor)
    return ways


def columns(hidden: Hidden, chosen: Tensor, positions: Tensor, tokens: Tensor, wanted: Wanted) -> Columns:
    """What is wanted of tokens at positions.

    Args:
        hidden: how hidden states become logits.
        chosen: those of `hidden.states` that predict something, (n, width).
        positions: (asked,), indices into n, ascending.
        tokens: (asked,).
    """
    most = CHUNK_BYTES if chosen.device.type == "cpu" else _CHUNK_BYTES_GPU
    size = max(_FEWEST_POSITIONS, most // (4 * hidden.vocabulary))
    parts: list[Columns] = []
    for start in range(0, len(chosen), size):
        bounds = torch.tensor([start, start + size], device=positions.device)
        low, high = torch.searchsorted(positions, bounds).tolist()
        logits = hidden.to_logits(chosen[start : start + size, None])[:, 0].float()
        parts.append(_reduce(logits, positions[low:high] - start, tokens[low:high], wanted))

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values).cpu()

    logps = joined("logps")
    assert logps is not None
    return Columns(logps, joined("means"), joined("deviations"), joined("matches"))


def _reduce(logits: Tensor, rows: Tensor, tokens: Tensor, wanted: Wanted) -> Columns:
    """Of (n, vocabulary) logits, which are overwritten."""
    best = logits.argmax(-1)[rows] if wanted.matches else None
    top = logits.amax(-1, keepdim=True)
    shifted = logits.sub_(top)
    picked = shifted[rows, tokens]
    if not wanted.statistics:
        normaliser = shifted.exp_().sum(-1).log()
        return Columns(picked - normaliser[rows], matches=None if best is None else best == tokens)
    normaliser = shifted.exp().sum(-1).log()
    logps = shifted.sub_(normaliser[:, None])
    weights = logps.exp()
    # A word that is masked out has probability 0 and a log-probability of −∞: it adds nothing.
    mean = weights.mul(logps).nan_to_num_(0.0).sum(-1)
    deviation = logps.sub_(mean[:, None]).square_().mul_(weights).nan_to_num_(0.0).sum(-1).sqrt()
    return Columns(picked - normaliser[rows], mean[rows], deviation[rows], None if best is None else best == tokens)
