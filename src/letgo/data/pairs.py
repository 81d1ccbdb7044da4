"""Forget rows paired with retain rows, and their collation into batches.

Which retain row goes with a forget row is a function of (seed, epoch, index) alone, so a resumed run sees the same
pairs without any generator's state having to be saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from letgo.data.encode import IGNORE, Encoded


class ForgetRetainDataset(Dataset[dict[str, Any]]):
    """Item i is forget row i and a retain row; as long as the forget set.

    Over an epoch the retain rows are a seeded permutation of the retain set, repeated where it is the shorter one, so
    none is seen twice before all are seen once. Epoch e goes on where epoch e−1 stopped.
    """

    def __init__(self, forget: Sequence[Encoded], retain: Sequence[Encoded], *, seed: int = 0) -> None:
        self.forget = list(forget)
        self.retain = list(retain)
        self.seed = seed
        self.epoch = 0
        self.reference_logps: Tensor | None = None
        """Per forget row, the reference model's log-probability of its labels, shape (rows,); set by the trainer."""
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.forget)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def retain_index(self, index: int) -> int:
        """The retain row that goes with forget row `index` in this epoch."""
        position = self.epoch * len(self.forget) + index
        lap, place = divmod(position, len(self.retain))
        if lap not in self._orders:
            generator = torch.Generator().manual_seed((self.seed << 20) + lap)
            self._orders[lap] = torch.randperm(len(self.retain), generator=generator).tolist()
        return self._orders[lap][place]

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"forget": self.forget[index]}
        if self.retain:
            item["retain"] = self.retain[self.retain_index(index)]
        if self.reference_logps is not None:
            item["reference_logp"] = float(self.reference_logps[index])
        return item


def pad_rows(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels`, each of shape (rows, longest)."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORE, dtype=torch.long)
    for index, row in enumerate(rows):
        length = len(row)
        ids[index, :length] = torch.tensor(row.input_ids)
        mask[index, :length] = 1
        labels[index, :length] = torch.tensor(row.labels)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class collate_pairs:
    """Collate items of `ForgetRetainDataset` into {"forget": batch, "retain": batch}; the forget batch carries
    `reference_logps`, shape (rows,), where they are known."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
        batch = {"forget": pad_rows([item["forget"] for item in items], self.pad_id)}
        if "reference_logp" in items[0]:
            logps = torch.tensor([item["reference_logp"] for item in items], dtype=torch.float32)
            batch["forget"]["reference_logps"] = logps
        if "retain" in items[0]:
            batch["retain"] = pad_rows([item["retain"] for item in items], self.pad_id)
        return batch
