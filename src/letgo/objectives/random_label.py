"""Random labels: the model is taught noise in the place of the answer."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from letgo.core.values import Seed
from letgo.models.forward import unwrapped
from letgo.objectives.likelihood import Part, label_counts, over_tokens, summed_logps


def random_label(model: Any, forget: Part, *, seed: Seed = 0) -> Tensor:
    """ℓ_f = mean −log π_θ(z_t | x, y_<t), z_t uniform on the vocabulary (Yao et al., arXiv 2402.15159).

    A row's labels z are a function of the seed and of its place in the forget set (`index`): the same whenever it is
    seen, so that all evaluations of a step are of one function.

    Args:
        seed: draws the labels.
    """
    vocabulary = int(unwrapped(model).config.get_text_config().vocab_size)
    return over_tokens(-summed_logps(model, forget, random_labels(forget, vocabulary, seed)), forget)


def random_labels(part: Part, vocabulary: int, seed: Seed) -> Tensor:
    """Tokens in the labels' places, packed, of shape (tokens,)."""
    rows = []
    for index, count in zip(part["index"].tolist(), label_counts(part).tolist(), strict=True):
        # Not torch's: under vmap, where all evaluations of a step run at once, its draws are not allowed.
        drawn = numpy.random.default_rng((seed, index)).integers(vocabulary, size=count)
        rows.append(torch.from_numpy(drawn))
    return torch.cat(rows).to(part["labels"].device)
