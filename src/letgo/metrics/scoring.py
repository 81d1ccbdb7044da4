"""The one scorer: log-probabilities of given continuations, and greedy answers, for everything that is measured.

Questions with several answers are scored with the question run once: prefixes of equal length form a batch without
padding, their key-value cache is repeated for the answers. Batches are bounded by a token budget. No sampling, no
dropout, so the same inputs give the same bits.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letgo.errors import NonFiniteLossError
from letgo.models.forward import logits_at

TOKEN_BUDGET = 2048
"""Tokens in a batch. Bounds the logits' memory: 2,048 × 49,152 fp32 logits are 0.4 GB."""


@dataclass(frozen=True)
class Query:
    """A prefix and the continuations to be scored after it, as token ids. The prefix must not be empty."""

    prefix: Sequence[int]
    continuations: Sequence[Sequence[int]]


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in eval mode without gradients, and back in its former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def continuation_logps(
    model: Any,
    queries: Sequence[Query],
    *,
    token_budget: int = TOKEN_BUDGET,
    advance: Callable[[int], None] = lambda _: None,
) -> list[list[Tensor]]:
    """Log-probability of every token of every continuation, given its prefix and the tokens before it.

    Args:
        model: a causal LM of transformers.
        queries: what to score; each has a prefix of at least one token.
        token_budget: most tokens in one batch (one sequence may exceed it by itself).
        advance: called with the number of queries done.

    Returns:
        For each query, for each continuation, a float32 CPU tensor of shape (its tokens,).

    Raises:
        ValueError: for an empty prefix or continuation.
        NonFiniteLossError: if a score comes out NaN.
    """
    for query in queries:
        if not query.prefix or not query.continuations or not all(query.continuations):
            raise ValueError("a query needs a prefix and continuations of at least one token")
    results: list[list[Tensor]] = [[] for _ in queries]
    with evaluating(model):
        for batch in _batches(queries, token_budget):
            for index, scores in zip(batch, _score_batch(model, [queries[i] for i in batch]), strict=True):
                results[index] = scores
            advance(len(batch))
    return results


def greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    token_budget: int = TOKEN_BUDGET,
    advance: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Greedy continuations of token prompts as text, without special tokens, in the order given.

    Prompts of equal length form a batch, so nothing is padded and an answer does not depend on its neighbours' length.
    """
    answers = [""] * len(prompts)
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    device = _device(model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with evaluating(model):
        for length, indices in sorted(by_length.items()):
            size = max(1, token_budget // (length + max_new_tokens))
            for start in range(0, len(indices), size):
                batch = indices[start : start + size]
                ids = torch.tensor([list(prompts[i]) for i in batch], device=device)
                output = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=pad,
                    # Sampling settings of a model's own generation config would only bring warnings here.
                    temperature=None,
                    top_p=None,
                    top_k=None,
                )
                texts = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
                for index, text in zip(batch, texts, strict=True):
                    answers[index] = text.strip()
                advance(len(batch))
    return answers


def _batches(queries: Sequence[Query], budget: int) -> Iterator[list[int]]:
    """Indices of queries with equally long prefixes, as many at a time as the budget allows."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, query in enumerate(queries):
        by_length[len(query.prefix)].append(index)
    for length in sorted(by_length):
        # Like with like: neighbours with continuations of similar length waste least padding.
        indices = sorted(by_length[length], key=lambda i: max(len(c) for c in queries[i].continuations))
        batch: list[int] = []
        for index in indices:
            if batch and _cost([queries[i] for i in [*batch, index]], length) > budget:
                yield batch
                batch = []
            batch.append(index)
        yield batch


def _cost(batch: Sequence[Query], length: int) -> int:
    widest = max(len(c) for query in batch for c in query.continuations)
    count = sum(len(query.continuations) for query in batch)
    return max(len(batch) * length, count * widest)


def _score_batch(model: Any, batch: Sequence[Query]) -> list[list[Tensor]]:
    device = _device(model)
    prefixes = torch.tensor([list(query.prefix) for query in batch], device=device)  # (b, p)
    counts = [len(query.continuations) for query in batch]
    flat = [list(c) for query in batch for c in query.continuations]
    widest = max(len(c) for c in flat)
    if max(counts) == 1:
        last, rest = _plain(model, prefixes, flat)
    else:
        last, rest = _with_cache(model, prefixes, flat, counts, widest)
    scores = []
    for row, tokens in enumerate(flat):
        target = torch.tensor(tokens, device=device)
        first = last[row].log_softmax(-1)[target[:1]]
        others = rest[row, : len(tokens) - 1].float().log_softmax(-1).gather(-1, target[1:, None])[:, 0]
        logps = torch.cat([first, others]).float().cpu()
        if not torch.isfinite(logps).all():
            raise NonFiniteLossError("a log-probability came out as NaN or infinite; the model's weights are broken")
        scores.append(logps)
    grouped = []
    for count in counts:
        grouped.append(scores[:count])
        scores = scores[count:]
    return grouped


def _plain(model: Any, prefixes: Tensor, flat: list[list[int]]) -> tuple[Tensor, Tensor]:
    """One forward over prefix and continuation together; logits of the prefix are not computed."""
    padded = _right_padded(flat, prefixes.device)
    ids = torch.cat([prefixes, padded[:, :-1]], dim=1)
    mask = torch.cat([torch.ones_like(prefixes), _length_mask(flat, prefixes.device)[:, :-1]], dim=1)
    logits = logits_at(model, padded.shape[1], input_ids=ids, attention_mask=mask, use_cache=False)
    return logits[:, 0].float(), logits[:, 1:]


def _with_cache(
    model: Any, prefixes: Tensor, flat: list[list[int]], counts: list[int], widest: int
) -> tuple[Tensor, Tensor]:
    """The prefix once, then all its continuations on copies of its cache."""
    repeats = torch.tensor(counts, device=prefixes.device)
    if widest == 1:
        logits = logits_at(model, 1, input_ids=prefixes, use_cache=False)
        return logits[:, -1].float().repeat_interleave(repeats, 0), logits[:, :0].repeat_interleave(repeats, 0)
    output = model(input_ids=prefixes, use_cache=True)
    cache = output.past_key_values
    if len(set(counts)) > 1 or not hasattr(cache, "batch_repeat_interleave"):
        return _plain(model, prefixes.repeat_interleave(repeats, 0), flat)
    cache.batch_repeat_interleave(counts[0])
    padded = _right_padded(flat, prefixes.device)[:, :-1]
    ones = torch.ones((len(flat), prefixes.shape[1]), dtype=torch.long, device=prefixes.device)
    mask = torch.cat([ones, _length_mask(flat, prefixes.device)[:, :-1]], dim=1)
    rest = model(input_ids=padded, attention_mask=mask, past_key_values=cache, use_cache=True).logits
    return output.logits[:, -1].float().repeat_interleave(repeats, 0), rest


def _right_padded(flat: list[list[int]], device: torch.device) -> Tensor:
    widest = max(len(c) for c in flat)
    # Padding repeats a token of the row itself: an id that every vocabulary has, masked out in any case.
    return torch.tensor([c + [c[-1]] * (widest - len(c)) for c in flat], device=device)


def _length_mask(flat: list[list[int]], device: torch.device) -> Tensor:
    widest = max(len(c) for c in flat)
    return torch.tensor([[1] * len(c) + [0] * (widest - len(c)) for c in flat], device=device)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
