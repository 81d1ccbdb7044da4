"""The backend of a model in memory: torch, on its own device.

What begins alike is run once: the answers to a question become a tree (`prefix_tree`), a prefix that many questions
share (worked examples) is kept as keys and values (`cache`). Rows of like length form batches under a token budget; the
output layer sees only the positions that predict something, some hundred at a time (`head`). Padding stands behind
what it could disturb, or is masked. No sampling, no dropout: the same inputs give the same bits, and any batching
gives the one-by-one scores within rounding (`tests/scoring/test_scoring.py`: 1e-5 relative in float32).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from letgo.core import processes
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.models.forward import through
from letgo.models.running import device_of, evaluating, is_sharded, learned_positions, scoring_budget
from letgo.scoring.abilities import Abilities, abilities
from letgo.scoring.backend import Query, query_key
from letgo.scoring.cache import Prefix, behind, prefix_length, run_prefix
from letgo.scoring.decoding import Generation
from letgo.scoring.generation import generate
from letgo.scoring.head import (
    Scores,
    Wanted,
    hidden_states,
    packed_scores,
    score_tokens,
    unpacked_scores,
)
from letgo.scoring.packed import packed
from letgo.scoring.prefix_tree import Tree, additive, ancestors, build_trees, shared_prefixes
from letgo.scoring.resume_log import ResumeLog

_MOST_NODES = 4096
"""Nodes of a tree: bounds its mask to 64 MB."""
_SHORT_PREFIX = 8
"""Queries whose equal prefixes are shorter (a start token) stay apart."""


@dataclass(frozen=True)
class InMemory:
    """A causal LM of transformers as a backend: everything can be asked of it."""

    model: Any
    gives_logps = True
    has_weights = True

    def answers(self, prompt: Sequence[int]) -> bool:
        return True

    def score(
        self,
        queries: Sequence[Query],
        wanted: Wanted,
        *,
        token_budget: int | None,
        advance: Callable[[int], None],
        log: ResumeLog | None,
    ) -> list[list[Scores]]:
        _check_lengths(self.model, queries)

        def scored(some: Sequence[Query], _: Sequence[int], advance: Callable[[int], None]) -> list[list[Scores]]:
            return through(self.model, lambda inside: _score(inside, some, wanted, token_budget, advance, log))

        return processes.shared(
            queries,
            scored,
            pack=lambda row: [packed_scores(scores) for scores in row],
            unpack=lambda row: [unpacked_scores(scores) for scores in row],
            advance=advance,
            together=is_sharded(self.model),
        )

    def generate(self, tokenizer: Any, prompts: Sequence[Sequence[int]], **settings: Any) -> list[list[Generation]]:
        return generate(self.model, tokenizer, prompts, **settings)


def _score(
    model: Any,
    queries: Sequence[Query],
    wanted: Wanted,
    token_budget: int | None,
    advance: Callable[[int], None],
    log: ResumeLog | None,
) -> list[list[Scores]]:
    scored: list[dict[int, Scores]] = [{} for _ in queries]
    keys = [] if log is None else [query_key(query, wanted) for query in queries]
    done = {index for index, key in enumerate(keys) if log is not None and key in log}
    for index in done:
        scored[index] = dict(enumerate(map(unpacked_scores, log.get(keys[index]))))  # type: ignore[union-attr]
    if done:
        advance(len(done))
    if len(done) == len(queries):
        return [_in_order(row) for row in scored]

    def missing(trees: Sequence[Tree]) -> bool:
        return any(index not in done for tree in trees for index, _ in tree.paths)

    device = device_of(model)
    able = abilities(model) if _may_share(queries) else Abilities()
    trees = _trees(queries, able)
    with evaluating(model), packed(model, sum(len(tree) for tree in trees if missing([tree]))):
        for length, group in _stemmed(trees, able):
            prefix: Prefix | None = None
            for batch in _batches(group, length, token_budget or scoring_budget(device)):
                if not missing(batch):
                    continue
                if length and prefix is None:
                    prefix = run_prefix(model, group[0].tokens[:length], able.layers, device)
                fresh = []
                for (index, number), scores in _score_batch(model, batch, prefix, wanted).items():
                    if index not in done:
                        scored[index][number] = scores
                        if len(scored[index]) == len(queries[index].continuations):
                            fresh.append(index)
                done.update(fresh)
                if log is not None:
                    log.put({keys[index]: [packed_scores(row) for row in _in_order(scored[index])] for index in fresh})
                if fresh:
                    advance(len(fresh))
    return [_in_order(row) for row in scored]


def _in_order(row: dict[int, Scores]) -> list[Scores]:
    return [row[number] for number in range(len(row))]


def _check_lengths(model: Any, queries: Sequence[Query]) -> None:
    positions = learned_positions(model)
    if positions is None:
        return
    for index, query in enumerate(queries):
        length = len(query.prefix) + max(map(len, query.continuations)) - 1
        if length > positions:
            raise UserError(
                f"query {index} has {length} tokens, but the model has {positions} positions; cut the text shorter"
            )


def _may_share(queries: Sequence[Query]) -> bool:
    """Whether anything begins alike, so that it is worth to test the model's abilities."""
    prefixes = [tuple(query.prefix) for query in queries]
    return (
        any(len(query.continuations) > 1 for query in queries)
        or len(set(prefixes)) < len([p for p in prefixes if len(p) >= _SHORT_PREFIX])
        or any(length for length, _ in shared_prefixes(prefixes))
    )


def _trees(queries: Sequence[Query], able: Abilities) -> list[Tree]:
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, query in enumerate(queries):
        same = able.trees and len(query.prefix) >= _SHORT_PREFIX
        groups[tuple(query.prefix) if same else index].append(index)
    trees: list[Tree] = []
    for group in groups.values():
        together = _group_trees(queries, group, able)
        if len(together) > 1 and len(group) > 1:
            together = [tree for index in group for tree in _group_trees(queries, [index], able)]
        trees += together
    return trees


def _group_trees(queries: Sequence[Query], group: Sequence[int], able: Abilities) -> list[Tree]:
    texts = [
        ((index, number), queries[index].prefix, continuation)
        for index in group
        for number, continuation in enumerate(queries[index].continuations)
    ]
    most = min(_MOST_NODES, able.window or _MOST_NODES) if able.trees else None
    return build_trees(texts, share=able.share, most=most)


def _stemmed(trees: list[Tree], able: Abilities) -> Iterator[tuple[int, list[Tree]]]:
    """Trees in groups with the length of the stem that a group shares."""
    if not able.trees or len(trees) < 2:
        yield 0, trees
        return

    def worth(length: int, group: list[int]) -> bool:
        sizes = [len(trees[index]) for index in group]
        return length * (len(group) - 1) > 0.1 * sum(sizes) and able.fits(max(sizes))

    prefixes = [tree.tokens[: 1 + min(nodes[0] for nodes, _ in tree.paths.values())] for tree in trees]
    for length, indices in shared_prefixes(prefixes, worth):
        yield length, [trees[index] for index in indices]


def _batches(trees: Sequence[Tree], stem: int, budget: int) -> Iterator[list[Tree]]:
    """Like with like: trees apart from chains, and by length, so that little is padded."""
    for alike in ([tree for tree in trees if tree.chain == chain] for chain in (False, True)):
        ordered = sorted(alike, key=len)
        for part in _cut([len(tree) - stem for tree in ordered], budget):
            yield ordered[part]


def _cut(sizes: Sequence[int], budget: int) -> Iterator[slice]:
    """Rows of these sizes, ascending, in batches: all padded to the longest, a batch stays within the budget."""
    first = 0
    for number, size in enumerate(sizes):
        if number > first and (number - first + 1) * size > budget:
            yield slice(first, number)
            first = number
    if first < len(sizes):
        yield slice(first, len(sizes))


def most_scored_tokens(queries: Sequence[Query], token_budget: int) -> int:
    """The most tokens, padding too, that scoring queries runs through a model that takes a query's continuations as one
    tree, if nothing else is alike."""
    chains = sorted(len(q.prefix) + len(q.continuations[0]) - 1 for q in queries if len(q.continuations) == 1)
    trees = sorted(
        len(q.prefix) + sum(len(c) - 1 for c in q.continuations) for q in queries if len(q.continuations) > 1
    )
    return sum(len(sizes[part]) * sizes[part][-1] for sizes in (chains, trees) for part in _cut(sizes, token_budget))


def _score_batch(
    model: Any, batch: Sequence[Tree], prefix: Prefix | None, wanted: Wanted
) -> dict[tuple[int, int], Scores]:
    device, stem = device_of(model), prefix_length(prefix)
    hidden = hidden_states(model, **_inputs(model, batch, prefix, device))
    # One entry for a node that predicts something, with all tokens that it is to predict.
    rows: list[int] = []
    nodes: list[int] = []
    positions: list[int] = []
    tokens: list[int] = []
    for row, tree in enumerate(batch):
        asked: dict[int, list[int]] = defaultdict(list)
        for path, continuation in tree.paths.values():
            for node, token in zip(path, continuation, strict=True):
                asked[node].append(token)
        for node in sorted(asked):
            for token in dict.fromkeys(asked[node]):
                positions.append(len(rows))
                tokens.append(token)
            rows.append(row)
            nodes.append(node - stem)
    chosen = hidden.states[torch.tensor(rows, device=device), torch.tensor(nodes, device=device)]
    where = torch.tensor(positions, device=device), torch.tensor(tokens, device=device)
    scores = score_tokens(hidden, chosen, *where, wanted)
    if not torch.isfinite(scores.logps).all():
        raise NonFiniteLossError("a log-probability came out as NaN or infinite; the model's weights are broken")
    indices = {
        (rows[position], nodes[position] + stem, token): index
        for index, (position, token) in enumerate(zip(positions, tokens, strict=True))
    }
    results = {}
    for row, tree in enumerate(batch):
        for name, (path, continuation) in tree.paths.items():
            take = torch.tensor([indices[row, node, token] for node, token in zip(path, continuation, strict=True)])
            given = {key: values[take] for key, values in vars(scores).items() if isinstance(values, Tensor)}
            results[name] = Scores(**given)
    return results


def _inputs(model: Any, batch: Sequence[Tree], prefix: Prefix | None, device: torch.device) -> dict[str, Any]:
    widest, stem = max(map(len, batch)), prefix_length(prefix)
    # Padding repeats a token of the row: an id that every vocabulary has. It stands behind all that is scored.
    ids = torch.tensor([(tree.tokens + tree.tokens[-1:] * (widest - len(tree)))[stem:] for tree in batch])
    if prefix is None and batch[0].chain:
        return {"input_ids": ids.to(device), "use_cache": False}
    seen = np.zeros((len(batch), widest - stem, widest - stem), dtype=bool)
    seen[:, np.arange(widest - stem), np.arange(widest - stem)] = True
    for row, tree in enumerate(batch):
        size = len(tree) - stem
        # The stem is a chain from which every node of the rest descends.
        seen[row, :size, :size] = ancestors([max(parent - stem, -1) for parent in tree.parents[stem:]])
    depths = [(tree.depths + tree.depths[-1:] * (widest - len(tree)))[stem:] for tree in batch]
    inputs = {
        "input_ids": ids.to(device),
        "position_ids": torch.tensor(depths, device=device),
        "attention_mask": additive(torch.from_numpy(seen), stem, model.dtype, device),
        "use_cache": prefix is not None,
    }
    return inputs if prefix is None else inputs | {"past_key_values": behind(prefix)}
