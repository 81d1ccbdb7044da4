"""A small model with everything that can trip an optimizer: tied weights, a weight used outside the module that owns
it, nested modules, a non-contiguous tensor, a scalar, a tensor of 0 elements, a frozen parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class TrickyModel(nn.Module):
    """(batch, length) token ids -> (batch, length, vocabulary) logits."""

    def __init__(self, vocabulary: int = 19, width: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.mixing = nn.Parameter(torch.eye(width)[:, torch.randperm(width)].t())  # not contiguous
        self.empty = nn.Parameter(torch.zeros(0, width))
        self.frozen = nn.Parameter(torch.randn(width), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.frozen
        for block in self.blocks:
            x = block(x)
        x = F.linear(x, self.blocks[0].up.weight[:6]) @ self.mixing  # another module's weight
        return self.head(x) * self.temperature + self.empty.sum()


def make_problem(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[TrickyModel, Callable[[], Tensor]]:
    """The model, with weights by the seed, and a function that computes its loss on data that is always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TrickyModel().to(dtype)
    ids = torch.randint(0, 19, (4, 7), generator=torch.Generator().manual_seed(0))

    def loss_of() -> Tensor:
        logits = model(ids[:, :-1]).flatten(0, 1)
        return F.cross_entropy(logits if dtype == torch.float64 else logits.float(), ids[:, 1:].flatten())

    return model, loss_of


def closure_of(optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The one closure of every grade; each term of the loss is all of it."""

    def closure(part: str | None = None) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        if loss.requires_grad:
            loss.backward()
        return loss

    return closure


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
