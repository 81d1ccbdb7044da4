"""Drawing a token: temperature and nucleus, with a random generator for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from letgo.core.fingerprints import seed_of

_FIRST_LOOK = 256


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens: from softmax(logits / temperature), within the smallest set of likeliest tokens whose
    probability reaches `top_p` (nucleus sampling, arXiv 1904.09751).

    `seed`, the prompt's tokens and the sample's number seed a `torch.Generator` for each sample, so that it does not
    depend on samples beside it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be above 0, not {self.temperature}; for greedy answers give no sampling"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    def generator(self, prompt: Sequence[int], repetition: int, number: int) -> torch.Generator:
        """The generator of a prompt's sample; `repetition` counts equal prompts."""
        text = repr((self.seed, list(map(int, prompt)), repetition, number))
        return torch.Generator().manual_seed(seed_of(text, size=7, order="big"))

    def draw(self, logits: Tensor, generators: Sequence[torch.Generator]) -> list[int]:
        """A token for each row of (rows, vocabulary) logits."""
        uniform = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]).to(logits.device)
        probabilities = (logits.float() / self.temperature).softmax(-1)
        if self.top_p >= 1:
            return _inverse(probabilities.double().cumsum(-1), uniform).tolist()
        size = min(_FIRST_LOOK, probabilities.shape[-1])
        while True:
            # Sorting whole vocabularies would cost more than the model; the nucleus is mostly among the first.
            likely, tokens = probabilities.topk(size)
            reached = likely.double().cumsum(-1)
            if size == probabilities.shape[-1] or bool((reached[:, -1] >= self.top_p).all()):
                break
            size = min(size * 8, probabilities.shape[-1])
        # A token is in the nucleus if those before it don't reach top_p yet.
        inside = torch.cat([torch.zeros_like(reached[:, :1]), reached[:, :-1]], dim=-1) < self.top_p
        last = inside.sum(-1, keepdim=True) - 1
        reached = torch.where(inside, reached, reached.gather(-1, last))
        return tokens.gather(-1, _inverse(reached, uniform)[:, None])[:, 0].tolist()


def _inverse(reached: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative probability exceeds a uniform share of the whole."""
    asked = uniform[:, None] * reached[:, -1:]
    return torch.searchsorted(reached.contiguous(), asked, right=True)[:, 0].clamp(max=reached.shape[-1] - 1)
