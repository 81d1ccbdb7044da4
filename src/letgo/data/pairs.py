"""Forget rows paired with retain rows, and their collation into batches.

Which retain row goes with a forget row is a function of (seed, epoch, index) alone, so a resumed run sees the same
pairs without any generator's state having to be saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from letgo.core.fingerprints import seed_of
from letgo.data.encode import IGNORE, Encoded

PARTS = ("forget", "retain", "alternative")
"""What a batch can be made of; alternatives are to the forget rows, aligned with them."""


class ForgetRetainDataset(Dataset[dict[str, Any]]):
    """Item i is forget row i, a retain row, and the alternative to forget row i where there are alternatives; as long
    as the forget set. Without a forget set (a model learns what another run will make it forget) item i is a retain
    row, and the data set is as long as the retain set.

    Over an epoch the retain rows are a seeded permutation of the retain set, repeated where it is the shorter one, so
    none is seen twice before all are seen once. Epoch e goes on where epoch e−1 stopped.

    Args:
        forget: the forget set.
        retain: the retain set; may be empty.
        alternative: for each forget row the same prompt with another answer, in the same order.
        seed: of the retain rows' order.
    """

    def __init__(
        self,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded],
        *,
        alternative: Sequence[Encoded] = (),
        seed: int = 0,
    ) -> None:
        self.forget = list(forget)
        self.retain = list(retain)
        self.alternative = list(alternative)
        if self.alternative and len(self.alternative) != len(self.forget):
            raise ValueError(f"{len(self.alternative)} alternatives for {len(self.forget)} forget rows: one each")
        self.seed = seed
        self.epoch = 0
        self.part_of = (0, 1)
        """Which part of each batch is loaded here: (this process's number, the number of processes)."""
        self.reference: dict[str, dict[str, Sequence[Tensor]]] = {}
        """Part -> quantity of the reference model -> one tensor a row of that part; set by the trainer."""
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.forget) or len(self.retain)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def retain_index(self, index: int) -> int:
        """The retain row of item `index` in this epoch."""
        lap, position = divmod(self.epoch * len(self) + index, len(self.retain))
        if lap not in self._orders:
            generator = torch.Generator().manual_seed((self.seed << 20) + lap)
            self._orders[lap] = torch.randperm(len(self.retain), generator=generator).tolist()
        return self._orders[lap][position]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The items of a batch that this process loads, each with the counts of the whole batch. A process for which
        no item is left loads the first one, marked idle: it must take part, and its rows must not count."""
        number, count = self.part_of
        mine = indices[number::count]
        items = [self[index] for index in mine or indices[:1]]
        if count > 1:
            whole = self._counts(indices)
            for item in items:
                item |= {"whole": whole, "idle": not mine}
        return items

    def _row_numbers(self, index: int) -> dict[str, int]:
        """Part -> the number of the row in it that belongs to an item."""
        numbers = {"forget": index} if self.forget else {}
        if self.retain:
            numbers["retain"] = self.retain_index(index)
        if self.alternative:
            numbers["alternative"] = index
        return numbers

    def _counts(self, indices: Sequence[int]) -> dict[str, tuple[int, int, int]]:
        """Rows, label tokens and real tokens of each part of a batch."""
        counts: dict[str, tuple[int, int, int]] = {}
        for index in indices:
            for part, number in self._row_numbers(index).items():
                row = getattr(self, part)[number]
                rows, tokens, positions = counts.get(part, (0, 0, 0))
                labels = sum(label != IGNORE for label in row.labels[1:])
                counts[part] = (rows + 1, tokens + labels, positions + len(row))
        return counts

    def __getitem__(self, index: int) -> dict[str, Any]:
        numbers = self._row_numbers(index)
        item: dict[str, Any] = {part: getattr(self, part)[number] for part, number in numbers.items()}
        item["index"] = numbers
        item["reference"] = {
            part: {name: values[numbers[part]] for name, values in quantities.items()}
            for part, quantities in self.reference.items()
            if part in numbers
        }
        return item


def generator_of(*key: int) -> torch.Generator:
    """A generator whose draws are a function of a few whole numbers (a seed and a row's place): the same on every
    machine, and unrelated for different ones."""
    return torch.Generator().manual_seed(seed_of(repr(key), size=4, order="little"))


def pad_rows(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels`, each of shape (rows, longest)."""
    return {
        "input_ids": pad_sequence([torch.tensor(row.input_ids) for row in rows], True, pad_id),
        "attention_mask": pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], True),
        "labels": pad_sequence([torch.tensor(row.labels) for row in rows], True, IGNORE),
    }


def take_rows(batch: Mapping[str, Mapping[str, Tensor]], rows: Sequence[int]) -> dict[str, dict[str, Tensor]]:
    """Some rows of every part of a batch as `collate_pairs` makes it, quantities of the reference model among them."""
    return {name: _part_rows(part, list(rows)) for name, part in batch.items()}


def _part_rows(part: Mapping[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    count = part["labels"].shape[0]
    # Packed quantities: how many entries each row has.
    packed = {
        "reference_hidden": (part["labels"][:, 1:] != IGNORE).sum(dim=1).tolist(),
        **dict.fromkeys(("reference_layer_hidden", "latent"), part["attention_mask"].sum(dim=1).tolist()),
    }
    taken: dict[str, Tensor] = {}
    for key, value in part.items():
        if key in packed:
            pieces = value.split(packed[key])
            taken[key] = torch.cat([pieces[row] for row in rows])
        else:
            taken[key] = value[rows] if value.dim() and len(value) == count and key != "whole" else value
    return taken


class collate_pairs:
    """Collate items of `ForgetRetainDataset` into {"forget": part, "retain": part, "alternative": part}.

    A part carries, beside what `pad_rows` gives, `index` of shape (rows,), the rows' places in their data set, and the
    reference quantities that are known: `reference_logps` of shape (rows,), `reference_hidden` and
    `reference_layer_hidden` packed, (tokens, width), rows in order. Where the items are a part of a batch, it carries
    `whole`, of shape (3,): the rows, label tokens and real tokens of the whole batch; and `idle` where the rows are
    none of this process's own, and must not count.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
        batch = {}
        for name in PARTS:
            if name not in items[0]:
                continue
            part = pad_rows([item[name] for item in items], self.pad_id)
            if "index" in items[0]:
                part["index"] = torch.tensor([item["index"][name] for item in items])
            for quantity in items[0].get("reference", {}).get(name, {}):
                values = [item["reference"][name][quantity] for item in items]
                part[f"reference_{quantity}"] = torch.stack(values) if values[0].dim() == 0 else torch.cat(values)
            if "whole" in items[0]:
                part["whole"] = torch.tensor(items[0]["whole"][name])
                if items[0]["idle"]:
                    part["idle"] = torch.tensor(True)
            batch[name] = part
        return batch
