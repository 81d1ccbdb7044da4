"""Primal-dual unlearning's forget term: no word is to stand out from the others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from letgo.models.head import output_head
from letgo.objectives.chunks import summed
from letgo.objectives.likelihood import Part, label_hidden, over_tokens


def logit_margin(model: Any, forget: Part) -> Tensor:
    """ℓ_f = mean_t (max_v z_t(v) − mean_v z_t(v))², z_t the logits at the position that predicts label token t   (PDU,
    arXiv 2506.05314).

    It is 0 where all words are equally likely, so it is bounded from below. The weight of the retain term is a dual
    variable: see `letgo.objectives.schedules.Dual`.
    """

    def summand(logits: Tensor) -> Tensor:
        return (logits.amax(-1) - logits.mean(-1)).square().sum()

    return over_tokens(summed(output_head(model), summand, label_hidden(model, forget)), forget)
