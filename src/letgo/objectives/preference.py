"""Another answer in place of the one to forget: a refusal, or an alternative that the data set brings."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

from letgo.core.values import Positive
from letgo.objectives.likelihood import Part, over_rows, over_tokens, sequence_logps, summed_logps


def dpo(model: Any, forget: Part, alternative: Part, *, beta: Positive = 0.1) -> Tensor:
    """ℓ_f = −E log σ( β [log π_θ(y_a|x)/π_ref(y_a|x) − log π_θ(y_f|x)/π_ref(y_f|x)] )   (DPO, arXiv 2305.18290,
    equation 7, with the alternative y_a preferred to the answer to forget, y_f).

    Args:
        forget: the forget part, with `reference_logps` of shape (rows,).
        alternative: the same prompts with their other answers, row by row, with `reference_logps` too.
        beta: inverse temperature β > 0.
    """
    preferred = sequence_logps(model, alternative) - alternative["reference_logps"]
    dispreferred = sequence_logps(model, forget) - forget["reference_logps"]
    return over_rows(-logsigmoid(beta * (preferred - dispreferred)), forget)


def altpo(model: Any, forget: Part, alternative: Part, *, beta: Positive = 0.1) -> Tensor:
    """ℓ_f = −(2/β) E log σ( β [log π_θ(y_a|x)/π_ref(y_a|x) − log π_θ(y_f|x)/π_ref(y_f|x)] ): `dpo` with NPO's factor,
    y_a an invented answer   (AltPO, arXiv 2409.13474).

    Args:
        forget, alternative: as in `dpo`.
        beta: inverse temperature β > 0 (0.05, 0.1 and 0.5 are in use).
    """
    return 2.0 / beta * dpo(model, forget, alternative, beta=beta)


def preference_optimization(model: Any, alternative: Part) -> Tensor:
    """ℓ_f = mean −log π_θ(y_t | x, y_<t) over the refusals' tokens: the model is taught to say that it does not know
    (TOFU, arXiv 2401.06121, section 3: "preference optimization"; PO in SOUL)."""
    return over_tokens(-summed_logps(model, alternative), alternative)
