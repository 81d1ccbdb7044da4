"""The pieces of every objective: hidden states and log-probabilities at label tokens, and means over them.

A term is a function of a causal LM, π_θ, and of parts of a batch. A *part* is one of a batch's data sets: `input_ids`,
`attention_mask` and `labels`, each of shape (rows, length), the rows padded at the right. Everything here is packed:
one entry for each label token (or real token) of the part, row by row, without padding. Labels of −100 never count, and
padding that a whole part shares is cut off first, so that it changes no bit of any result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from letgo.core.errors import UserError
from letgo.data.encode import IGNORE
from letgo.data.pairs import take_rows
from letgo.models.forward import hidden_after, hidden_before_head, real_columns
from letgo.models.head import output_head
from letgo.objectives.chunks import label_logps, label_logps_sum

Part = Mapping[str, Tensor]


def label_positions(part: Part) -> tuple[Tensor, Tensor]:
    """Row and column of every position that predicts a label token, each of shape (tokens,)."""
    rows, columns = (part["labels"][:, 1:] != IGNORE).nonzero(as_tuple=True)
    return rows, columns


def labels_of(part: Part) -> Tensor:
    """The label tokens, packed, of shape (tokens,)."""
    rows, columns = label_positions(part)
    return part["labels"][rows, columns + 1]


def label_counts(part: Part) -> Tensor:
    """The number of label tokens of each row, of shape (rows,)."""
    return (part["labels"][:, 1:] != IGNORE).sum(dim=1)


def label_hidden(model: Any, part: Part) -> Tensor:
    """The output layer's input at the positions that predict label tokens, of shape (tokens, width).

    Taken from the part's own `label_hidden` where a joint forward pass has left it there.
    """
    if "label_hidden" in part:
        return part["label_hidden"]
    real = real_columns(part["attention_mask"])
    hidden = hidden_before_head(
        model, input_ids=part["input_ids"][:, real], attention_mask=part["attention_mask"][:, real]
    )
    rows, columns = label_positions(part)
    return hidden[rows, columns - real.start]


def layer_hidden(model: Any, part: Part, layer: int) -> Tensor:
    """Hidden states after block `layer` at every real token, of shape (tokens, width); no later block runs."""
    if "layer_hidden" in part:
        return part["layer_hidden"]
    real = real_columns(part["attention_mask"])
    mask = part["attention_mask"][:, real]
    hidden = hidden_after(model, layer, input_ids=part["input_ids"][:, real], attention_mask=mask)
    rows, columns = mask.nonzero(as_tuple=True)
    return hidden[rows, columns]


def token_logps(model: Any, part: Part, labels: Tensor | None = None) -> Tensor:
    """log π(y_t | x, y_<t) of every label token, of shape (tokens,), at least float32; of other tokens instead where
    `labels`, of shape (tokens,), are given."""
    hidden = label_hidden(model, part)
    return label_logps(output_head(model), hidden, labels_of(part) if labels is None else labels)


def summed_logps(model: Any, part: Part, labels: Tensor | None = None) -> Tensor:
    """Σ of `token_logps`, a scalar; cheaper than one by one."""
    hidden = label_hidden(model, part)
    return label_logps_sum(output_head(model), hidden, labels_of(part) if labels is None else labels)


def sum_rows(values: Tensor, part: Part) -> Tensor:
    """Packed values of label tokens, of shape (tokens,), summed for each row: (rows,)."""
    pieces = values.split(label_counts(part).tolist())
    return torch.stack([piece.sum() for piece in pieces])


def sequence_logps(model: Any, part: Part) -> Tensor:
    """Σ_t log π(y_t | x, y_<t) over the label tokens of each row, of shape (rows,), at least float32."""
    return sum_rows(token_logps(model, part), part)


def over_rows(values: Tensor, part: Part) -> Tensor:
    """The mean of per-row values.

    Where the part is of one micro-batch of an accumulation window, `row_share` (see `share_window`) is what to divide
    by, so that the window's loss is the same however it is cut.
    """
    return values.sum() / part.get("row_share", values.shape[0])


def over_tokens(values: Tensor, part: Part) -> Tensor:
    """Values or sums over label tokens as a mean per label token; `token_share` as `row_share` in `over_rows`."""
    return values.sum() / part.get("token_share", label_counts(part).sum())


def over_positions(values: Tensor, part: Part) -> Tensor:
    """Values at real tokens as a mean per real token; `position_share` as `row_share` in `over_rows`."""
    return values.sum() / part.get("position_share", part["attention_mask"].sum())


def share_window(batches: list[dict[str, Any]], processes: int = 1) -> None:
    """Give each micro-batch of an accumulation window the rows, label tokens and real tokens of the window, per
    micro-batch and process: then the mean of their losses, over the micro-batches and the processes, is the loss of all
    their rows in one batch.

    Each part of each batch gets `row_share`, `token_share` and `position_share`, scalars; a window of one batch in one
    process is left as it is. A part of a batch that several processes share has the counts of the whole batch as
    `whole` (see `collate_pairs`); where its rows are idle the shares are infinite, so that nothing counts.
    """
    if len(batches) * processes < 2:
        return
    for name in {name for batch in batches for name in batch}:
        parts = [batch[name] for batch in batches if name in batch]
        counted = [part["whole"].cpu() if "whole" in part else torch.stack(_counts(part)).cpu() for part in parts]
        sums = torch.stack(counted).sum(dim=0)
        for part in parts:
            _share(part, sums, len(batches) * processes, "idle" in part)


def process_share(batch: Mapping[str, Mapping[str, Tensor]], number: int, count: int) -> dict[str, dict[str, Tensor]]:
    """Of a batch that every process holds, the rows that this process counts, with shares such that the mean over the
    processes is the whole batch's loss."""
    rows = next(iter(batch.values()))["labels"].shape[0]
    mine = range(number, rows, count)
    taken = take_rows(batch, mine or [0])
    for name, part in taken.items():
        whole = batch[name]
        known = [whole[key] for key in SHARES] if SHARES[0] in whole else list(_counts(whole))
        _share(part, torch.stack([total.float().cpu() for total in known]), count, not mine)
    return taken


SHARES = ("row_share", "token_share", "position_share")


def _counts(part: Part) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.tensor(part["labels"].shape[0], device=part["labels"].device)
    return rows, label_counts(part).sum(), part["attention_mask"].sum()


def _share(part: Any, sums: Tensor, pieces: int, nothing: bool) -> None:
    for key, total in zip(SHARES, sums.tolist(), strict=True):
        share = math.inf if nothing else total / pieces
        part[key] = torch.tensor(share, device=part["labels"].device)


def mean_squares(a: Tensor, b: Tensor) -> Tensor:
    """(1/width) ‖a − b‖² of each pair of vectors, of shape (tokens,), at least float32."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return F.mse_loss(a.to(dtype), b.to(dtype).expand_as(a), reduction="none").mean(dim=-1)


def check_above(name: str, setting: str, value: float, bound: float = 0.0, *, equal: bool = False) -> None:
    """Raise a `UserError` for a setting that is not above its bound (or equal to it, where that is allowed)."""
    if not (value > bound or (equal and value == bound)):
        raise UserError(f"{name}: {setting} must be {'at least' if equal else 'above'} {bound:g}, not {value}")


def no_term(model: Any) -> Tensor:
    """Zero: no forget term (fine-tuning on the retain set alone, which forgets by itself), or no retain term."""
    parameter = next(model.parameters())
    return torch.zeros((), device=parameter.device, dtype=torch.promote_types(parameter.dtype, torch.float32))
