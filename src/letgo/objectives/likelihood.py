"""Label log-probabilities of a batch: what every objective on answers is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from letgo.data.encode import IGNORE
from letgo.models.forward import logits_at


def sequence_logps(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Σ_t log π(y_t | x, y_<t) over the label tokens of each row; labels of −100 never count.

    Args:
        model: a causal LM.
        batch: `input_ids`, `attention_mask`, `labels`, each of shape (rows, length).

    Returns:
        At least float32, of shape (rows,), on the model's device, with gradient where gradients are enabled.

    Logits are computed only at positions that some row's label follows.
    """
    targets = batch["labels"][:, 1:]
    columns = (targets != IGNORE).any(dim=0).nonzero()[:, 0]
    logits = logits_at(
        model, columns, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
    targets = targets[:, columns]
    counted = targets != IGNORE
    logps = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    chosen = logps.gather(-1, targets.masked_fill(~counted, 0)[..., None])[..., 0]
    return torch.where(counted, chosen, 0.0).sum(dim=-1)


def label_count(batch: Mapping[str, Tensor]) -> Tensor:
    """The number of label tokens in a batch, a scalar."""
    return (batch["labels"][:, 1:] != IGNORE).sum()


def over_rows(values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean of per-row values.

    Where the batch is one micro-batch of an accumulation window, `row_share` (set by the trainer) is what to divide
    by, so that the window's loss is the same however it is cut.
    """
    return values.sum() / batch.get("row_share", values.shape[0])


def over_tokens(values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Per-row sums over label tokens as a mean per label token; `token_share` as `row_share` in `over_rows`."""
    return values.sum() / batch.get("token_share", label_count(batch))
