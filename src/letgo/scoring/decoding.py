"""The decoding loop of a batch: it writes a cache in place, and takes rows out when they are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.core.errors import NonFiniteLossError
from letgo.models.forward import logits_at
from letgo.models.running import device_of, scoring_budget
from letgo.scoring.abilities import Abilities
from letgo.scoring.cache import Prefix, buffers, prefix_length
from letgo.scoring.sampling import Sampling

End = Literal["end", "stop", "length"]


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: the tokens decoded without special tokens, cut before the first stop string; white space is kept.
        tokens: all that was generated, an end token included.
        end: why it ends: an end token, a stop string, or its length.
    """

    text: str
    tokens: tuple[int, ...]
    end: End


@dataclass
class DecodedRow:
    """One answer in the making, of at most `room` tokens."""

    room: int
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    end: End | None = None


@dataclass(frozen=True)
class Decoder:
    """How answers go on, end, and become text; `ends` are the tokens that end one."""

    tokenizer: Any
    stop: tuple[str, ...]
    clean_up: bool | None
    sampling: Sampling | None
    ends: frozenset[int]

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=self.clean_up)

    def pick(self, logits: Tensor, rows: Sequence[DecodedRow]) -> list[int]:
        """The next token of each row, greedily or drawn."""
        if torch.isnan(logits).any():
            raise NonFiniteLossError("the model's logits came out as NaN; its weights are broken")
        if self.sampling is None:
            return logits.argmax(-1).tolist()
        return self.sampling.draw(logits, [row.generator for row in rows if row.generator is not None])

    def add(self, row: DecodedRow, token: int) -> None:
        """Add a token to a row, and end the row where that is due."""
        row.tokens.append(token)
        if token in self.ends:
            row.end = "end"
        elif self.stop and any(end in self.text(row.tokens) for end in self.stop):
            row.end = "stop"
        elif len(row.tokens) >= row.room:
            row.end = "length"

    def finished(self, row: DecodedRow) -> Generation:
        text = self.text(row.tokens)
        cut = min((start for end in self.stop if (start := text.find(end)) >= 0), default=len(text))
        return Generation(text[:cut], tuple(row.tokens), row.end or "length")


def decode_batch(
    model: Any,
    rows: list[DecodedRow],
    prompts: list[list[int]],
    prefix: Prefix | None,
    able: Abilities,
    decoder: Decoder,
) -> None:
    """Fill the rows' tokens: equally many rows for each of the prompts, in order. `prefix` begins all prompts."""
    device = device_of(model)
    samples, stem = len(rows) // len(prompts), prefix_length(prefix)
    lengths = [len(prompt) - stem for prompt in prompts]
    widest = max(lengths)
    padded = min(lengths) < widest
    # The last token of an answer is never read.
    capacity = stem + widest + max(row.room for row in rows) - 1
    mask = torch.ones((len(prompts), capacity), dtype=torch.long)
    for index, length in enumerate(lengths):
        mask[index, stem : stem + widest - length] = 0
    mask = mask.to(device)
    logits, cache = _prefill(model, prompts, samples, prefix, able, mask)
    mask = mask.repeat_interleave(samples, 0)
    positions = torch.tensor([len(prompt) for prompt in prompts], device=device).repeat_interleave(samples)
    going, column = list(rows), stem + widest
    while True:
        tokens = decoder.pick(logits, going)
        for row, token in zip(going, tokens, strict=True):
            if row.end is None:
                decoder.add(row, token)
        keep = [index for index, row in enumerate(going) if row.end is None]
        if not keep:
            return
        fed = torch.tensor(tokens, device=device)[:, None]
        # A row that is done costs as much as one that is not; taking it out costs a copy of the cache.
        if able.layers and len(going) - len(keep) >= max(1, len(going) // 8):
            chosen = torch.tensor(keep, device=device)
            for layer in cache.layers:
                layer.select(chosen)
            fed, mask, positions = fed[chosen], mask[chosen], positions[chosen]
            going = [going[index] for index in keep]
        if isinstance(cache, _OwnState):
            logits = cache.step(fed)
            continue
        extras: dict[str, Any] = {}
        if padded:
            extras = {"attention_mask": mask[:, : column + 1], "position_ids": positions[:, None]}
        logits = logits_at(model, 1, input_ids=fed, past_key_values=cache, use_cache=True, **extras)[:, -1]
        positions, column = positions + 1, column + 1


class _OwnState:
    """Rows of equal length in a model with another kind of state; run whole at each step where it shows no state."""

    def __init__(self, model: Any, ids: Tensor) -> None:
        self.model, self.ids = model, ids
        self.name, self.state = "", None
        self.logits = self._run(ids)

    def _run(self, ids: Tensor) -> Tensor:
        output = self.model(input_ids=ids, use_cache=True, **({self.name: self.state} if self.name else {}))
        states = ("past_key_values", "cache_params")
        self.name = next((name for name in states if getattr(output, name, None) is not None), "")
        self.state = getattr(output, self.name) if self.name else None
        return output.logits[:, -1]

    def step(self, fed: Tensor) -> Tensor:
        self.ids = torch.cat([self.ids, fed], dim=1)
        return self._run(fed if self.name else self.ids)


def _prefill(
    model: Any, prompts: list[list[int]], samples: int, prefix: Prefix | None, able: Abilities, mask: Tensor
) -> tuple[Tensor, Any]:
    """Run the prompts; logits of their last tokens, and the cache, with `samples` rows for each. The mask, (prompts,
    columns), is as wide as the cache."""
    device, stem = mask.device, prefix_length(prefix)
    widest = max(map(len, prompts)) - stem
    if not able.layers:
        state = _OwnState(model, torch.tensor(prompts, device=device).repeat_interleave(samples, 0))
        return state.logits, state
    whole = buffers(able.layers, mask.shape[1])
    size = max(1, scoring_budget(device) // widest)
    logits = []
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        cache = buffers(able.layers, stem + widest)
        for layer, (keys, values) in zip(cache.layers, prefix or [], strict=prefix is not None):
            layer.start_from(keys, values, len(part))
        ids = torch.tensor([[prompt[-1]] * (widest + stem - len(prompt)) + prompt[stem:] for prompt in part])
        extras: dict[str, Any] = {}
        if min(map(len, part)) < stem + widest:
            seen = mask[start : start + len(part), : stem + widest]
            extras = {"attention_mask": seen, "position_ids": (seen.cumsum(-1) - 1).clamp(min=0)[:, stem:]}
        last = logits_at(model, 1, input_ids=ids.to(device), past_key_values=cache, use_cache=True, **extras)[:, -1]
        logits.append(last.repeat_interleave(samples, 0))
        for layer, filled in zip(whole.layers, cache.layers, strict=True):
            layer.take(filled, start * samples, len(prompts) * samples, samples)
    return torch.cat(logits), whole
