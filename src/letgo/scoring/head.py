"""From hidden states to scores over a vocabulary, some positions at a time.

Logits of a text of 1,700 tokens over a vocabulary of 128,000 are 0.9 GB. So the output layer is cut off from the
forward pass and runs on some hundred hidden states at once; each chunk is reduced before the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letgo.models.forward import output_layer

CHUNK_BYTES = 24 << 20
"""Logits at a time on a CPU: 128 positions at 49,152 words. Memory of more than 32 MB goes back to the system, which
then fetches it anew each time, page by page."""
_CHUNK_BYTES_GPU = 512 << 20
_FEWEST_POSITIONS = 32


@dataclass(frozen=True)
class Wanted:
    """What is computed beside the log-probabilities: the mean and standard deviation of the log-probabilities of the
    whole vocabulary (Min-K++), and whether the token is the likeliest (exact memorization, extraction strength)."""

    statistics: bool = False
    matches: bool = False


@dataclass(frozen=True)
class Scores:
    """A continuation's scores, CPU tensors of shape (its tokens,).

    Attributes:
        logps: log-probability of each token given its prefix and the tokens before it, float32.
        means, deviations: with `statistics`, mean and standard deviation of log p(z) over the vocabulary under p, at
            each token's position (Min-K++'s μ and σ), float32.
        matches: with `matches`, whether each token is the likeliest at its position, bool.
    """

    logps: Tensor
    means: Tensor | None = None
    deviations: Tensor | None = None
    matches: Tensor | None = None


def packed_scores(scores: Scores) -> dict[str, list[Any]]:
    """Scores as JSON values."""
    return {name: values.tolist() for name, values in vars(scores).items() if values is not None}


def unpacked_scores(row: dict[str, list[Any]]) -> Scores:
    """Scores of JSON values, to the same bits."""
    return Scores(**{k: torch.tensor(v, dtype=torch.bool if k == "matches" else torch.float32) for k, v in row.items()})


@dataclass(frozen=True)
class Hidden:
    """What the output layer gets, (rows, length, width), and how some of it becomes logits over `vocabulary` words."""

    states: Tensor
    to_logits: Callable[[Tensor], Tensor]
    vocabulary: int


def hidden_states(model: Any, **inputs: Any) -> Hidden:
    """Run a model without its output layer.

    The output layer runs on one position only. That also shows whether its output are the logits: a model that does
    more with it than this module knows is run whole instead, and its logits stand for hidden states. Any cache among
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
        for to_logits in _ways_to_logits(model, head):
            if torch.equal(to_logits(caught[0][:1, :1]), logits):
                return Hidden(caught[0], to_logits, logits.shape[-1])
        logits = model(**inputs).logits
    return Hidden(logits, lambda states: states, logits.shape[-1])


def _ways_to_logits(model: Any, head: Any) -> list[Callable[[Tensor], Tensor]]:
    """The output layer, and what models are known to do after it."""
    config = model.config.get_text_config(decoder=True)

    def number(name: str) -> float | None:
        value = getattr(config, name, None)
        return float(value) if value else None

    ways: list[Callable[[Tensor], Tensor]] = [head]
    if cap := number("final_logit_softcapping"):
        ways.append(lambda states: torch.tanh(head(states) / cap) * cap)
    if factor := number("logit_scale"):
        ways.append(lambda states: head(states) * factor)
    if divisor := number("logits_scaling"):
        ways.append(lambda states: head(states) / divisor)
    return ways


def score_tokens(hidden: Hidden, chosen: Tensor, positions: Tensor, tokens: Tensor, wanted: Wanted) -> Scores:
    """The scores of tokens at positions, of shape (asked,).

    Args:
        hidden: how hidden states become logits.
        chosen: those of `hidden.states` that predict something, (n, width).
        positions: (asked,), indices into n, ascending.
        tokens: (asked,).
    """
    most = CHUNK_BYTES if chosen.device.type == "cpu" else _CHUNK_BYTES_GPU
    size = max(_FEWEST_POSITIONS, most // (4 * hidden.vocabulary))
    parts: list[Scores] = []
    for start in range(0, len(chosen), size):
        bounds = torch.tensor([start, start + size], device=positions.device)
        low, high = torch.searchsorted(positions, bounds).tolist()
        logits = hidden.to_logits(chosen[start : start + size, None])[:, 0].float()
        parts.append(_reduce(logits, positions[low:high] - start, tokens[low:high], wanted))
    given = [name for name, values in vars(parts[0]).items() if values is not None]
    return Scores(**{name: torch.cat([getattr(part, name) for part in parts]).cpu() for name in given})


def _reduce(logits: Tensor, rows: Tensor, tokens: Tensor, wanted: Wanted) -> Scores:
    """Of (n, vocabulary) logits, which are overwritten."""
    best = logits.argmax(-1)[rows] if wanted.matches else None
    top = logits.amax(-1, keepdim=True)
    shifted = logits.sub_(top)
    picked = shifted[rows, tokens]
    if not wanted.statistics:
        normaliser = shifted.exp_().sum(-1).log()
        return Scores(picked - normaliser[rows], matches=None if best is None else best == tokens)
    normaliser = shifted.exp().sum(-1).log()
    logps = shifted.sub_(normaliser[:, None])
    weights = logps.exp()
    # A word that is masked out has probability 0 and a log-probability of −∞: it adds nothing.
    mean = weights.mul(logps).nan_to_num_(0.0).sum(-1)
    deviation = logps.sub_(mean[:, None]).square_().mul_(weights).nan_to_num_(0.0).sum(-1).sqrt()
    return Scores(picked - normaliser[rows], mean[rows], deviation[rows], None if best is None else best == tokens)
