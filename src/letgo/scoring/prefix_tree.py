"""Texts that begin alike as one tree, so that each token of them is run once.

A node is a token together with all that comes before it. A question with six answers is a stem with branches, and
answers that begin with the same words share those too. The nodes of a tree are one row of a batch; a mask lets each
see its ancestors only, and its position is its depth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

STEM_KEY = 32
"""Prefixes that agree in so many first tokens may be worth a common stem."""


@dataclass
class Tree:
    """Nodes in an order in which each comes after its parent.

    Attributes:
        tokens: each node's token; parents: its parent's index, −1 for the root; depths: its number of ancestors.
        paths: for each continuation, by the caller's name for it: the nodes that predict its tokens, and its tokens.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: dict[tuple[int, int], tuple[list[int], list[int]]] = field(default_factory=dict)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def chain(self) -> bool:
        """Whether no node has two children: an ordinary sequence."""
        return not self.tokens or self.depths[-1] == len(self.tokens) - 1

    def child(self, node: int, token: int) -> int:
        child = self._children.setdefault((node, token), len(self.tokens))
        if child == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(node)
            self.depths.append(self.depths[node] + 1 if node >= 0 else 0)
        return child

    def add(self, name: tuple[int, int], prefix: Sequence[int], continuation: Sequence[int]) -> None:
        """Add a continuation; its last token needs no node, since nothing is predicted from it."""
        node = -1
        for token in prefix:
            node = self.child(node, token)
        nodes = [node]
        for token in continuation[:-1]:
            nodes.append(node := self.child(node, token))
        self.paths[name] = (nodes, list(continuation))

    def cost(self, share: float) -> float:
        """What the tree costs, in tokens of linear layers; a chain's attention sees half of its keys."""
        return len(self) * (1.0 + share * len(self) * (0.5 if self.chain else 1.0))


def build_trees(
    texts: Sequence[tuple[tuple[int, int], Sequence[int], Sequence[int]]], *, share: float, most: int | None
) -> list[Tree]:
    """Continuations of one prefix as a tree, or each by itself where that costs less.

    Args:
        texts: for each continuation its name in `Tree.paths`, the prefix, and the continuation.
        share: see `Abilities.share`.
        most: nodes that a tree may have; None for no trees at all.
    """
    alone, together = [Tree() for _ in texts], Tree()
    for tree, text in zip(alone, texts, strict=True):
        tree.add(*text)
    if most is None or len(alone) < 2:
        return alone
    for text in texts:
        together.add(*text)
    if together.chain or (len(together) <= most and together.cost(share) < sum(tree.cost(share) for tree in alone)):
        return [together]
    return alone


def shared_prefixes(prefixes: Sequence[Sequence[int]]) -> Iterable[tuple[int, list[int]]]:
    """Groups of prefixes, each with the number of first tokens that all of it share; 0 where sharing is not worth it.

    At least one token of every prefix is left outside of its stem.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    alone: list[int] = []
    for index, prefix in enumerate(prefixes):
        if len(prefix) > STEM_KEY:
            groups[tuple(prefix[:STEM_KEY])].append(index)
        else:
            alone.append(index)
    for group in groups.values():
        if len(group) < 2:
            alone += group
            continue
        # The first and the last in order differ from each other no later than any two between them.
        low, high = min(tuple(prefixes[i]) for i in group), max(tuple(prefixes[i]) for i in group)
        length = next((n for n, (x, y) in enumerate(zip(low, high, strict=False)) if x != y), min(len(low), len(high)))
        yield min(length, min(len(prefixes[i]) for i in group) - 1), group
    if alone:
        yield 0, sorted(alone)


def ancestors(parents: Sequence[int]) -> np.ndarray:
    """Which node sees which, (nodes, nodes) of bool: itself and its ancestors."""
    seen = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen


def additive(seen: Tensor, prefix: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A mask to be added to attention's scores, (rows, 1, queries, prefix + keys): 0 for what is seen, else the type's
    least value. A shared prefix is seen by all. `seen` is bool, (rows, queries, keys)."""
    rows, queries, _ = seen.shape
    whole = torch.cat([torch.ones((rows, queries, prefix), dtype=torch.bool), seen], dim=-1).to(device)
    mask = torch.zeros(whole.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~whole, torch.finfo(dtype).min)[:, None]
