"""Greedy and sampled answers, many at a time.

The loop is our own (`decoding`): the key-value cache is written in place, logits are computed for the last position
only, rows that are finished are taken out, prefixes that many prompts share are run once, and n samples of a prompt
share its run. Rows that differ in length begin with padding that nothing sees. Tokens are those of `model.generate`
with `do_sample=False` (`tests/scoring/test_generation.py`), up to ties within rounding.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from letgo.core import processes
from letgo.core.errors import UserError
from letgo.models.forward import through
from letgo.models.running import device_of, evaluating, generation_budget, is_sharded, learned_positions
from letgo.scoring.abilities import Abilities, abilities
from letgo.scoring.cache import Prefix, run_prefix
from letgo.scoring.decoding import Decoder, Generation, Row, decode_batch
from letgo.scoring.packed import packed
from letgo.scoring.prefix_tree import stems
from letgo.scoring.resume_log import ResumeLog, content_key
from letgo.scoring.sampling import Sampling


def greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop: Sequence[str] = (),
    token_budget: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    log: ResumeLog | None = None,
) -> list[str]:
    """Greedy continuations of token prompts as text, stripped, in the order given: `generate` for those who want
    nothing else. Same arguments and errors."""
    answers = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        stop=stop,
        token_budget=token_budget,
        advance=advance,
        log=log,
    )
    return [answer.text.strip() for [answer] in answers]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    sampling: Sampling | None = None,
    samples: int = 1,
    stop: Sequence[str] = (),
    clean_up: bool | None = None,
    token_budget: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    log: ResumeLog | None = None,
) -> list[list[Generation]]:
    """Answers to token prompts.

    Args:
        model: a causal LM of transformers; of its own generation config only the end tokens count.
        tokenizer: turns tokens into text.
        prompts: token ids, at least one each.
        max_new_tokens: most tokens of an answer, one number or one a prompt.
        sampling: how tokens are drawn; None for greedy answers.
        samples: answers a prompt, with `sampling` (leak@k).
        stop: strings; an answer ends where one of them appears, and its text is cut before it.
        clean_up: `clean_up_tokenization_spaces` of the decoding; None leaves it to the tokenizer.
        token_budget: most tokens in a batch's cache; by default what suits the device's memory.
        advance: called with the number of prompts done.
        log: where finished prompts are kept, and found again after a kill.

    In a run of several processes each answers a part of the prompts, and all get all answers.

    Returns:
        For each prompt its answers.

    Raises:
        ValueError: for an empty prompt, no room for a token, or several greedy answers.
        UserError: a prompt and its answer are longer than the model's table of positions.
        NonFiniteLossError: logits came out NaN.
    """
    rooms = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    _check(model, prompts, rooms, sampling, samples)
    repetitions = _repetitions(prompts)
    style = _Style(sampling, samples, tuple(stop), clean_up)

    def answered(
        some: Sequence[Sequence[int]], places: Sequence[int], advance: Callable[[int], None]
    ) -> list[list[Generation]]:
        def within(inside: Any) -> list[list[Generation]]:
            return _generate(
                inside,
                tokenizer,
                some,
                [rooms[place] for place in places],
                [repetitions[place] for place in places],
                style,
                token_budget=token_budget,
                advance=advance,
                log=log,
            )

        return through(model, within)

    return processes.shared(
        prompts, answered, pack=_packed, unpack=_unpacked, advance=advance, together=is_sharded(model)
    )


@dataclass(frozen=True)
class _Style:
    """How answers are drawn and turned into text: the arguments of `generate` by these names."""

    sampling: Sampling | None
    samples: int
    stop: tuple[str, ...]
    clean_up: bool | None


def _generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    rooms: Sequence[int],
    repetitions: Sequence[int],
    style: _Style,
    *,
    token_budget: int | None,
    advance: Callable[[int], None],
    log: ResumeLog | None,
) -> list[list[Generation]]:
    sampling, samples = style.sampling, style.samples
    answers: list[list[Generation] | None] = [None] * len(prompts)
    keys: list[str] = []
    if log is not None:
        keys = _keys(prompts, rooms, repetitions, style)
        for index, key in enumerate(keys):
            if key in log:
                answers[index] = _unpacked(log.get(key))
        if found := sum(answer is not None for answer in answers):
            advance(found)
    if all(answer is not None for answer in answers):
        return [answer for answer in answers if answer is not None]
    decode = Decoder(tokenizer, style.stop, style.clean_up)
    ends = end_tokens(model, tokenizer)
    able = abilities(model)
    budget = token_budget or generation_budget(model)

    def generator(index: int, number: int) -> torch.Generator | None:
        return None if sampling is None else sampling.generator(prompts[index], repetitions[index], number)

    missing = [index for index, answer in enumerate(answers) if answer is None]
    size = sum(len(prompts[index]) + rooms[index] * samples for index in missing)
    with evaluating(model), packed(model, size):
        for stem, group in _families(prompts, rooms, able):
            prefix: Prefix | None = None
            for batch in _batches(prompts, rooms, group, able, max(1, budget // samples)):
                if all(answers[index] is not None for index in batch):
                    continue
                if stem and prefix is None:
                    prefix = run_prefix(model, list(prompts[group[0]][:stem]), able.layers, device_of(model))
                own = [list(prompts[index]) for index in batch]
                rows = [Row(index, rooms[index], generator(index, n)) for index in batch for n in range(samples)]
                decode_batch(model, rows, own, samples, prefix, stem, able, sampling, ends, decode)
                done: dict[int, list[Generation]] = defaultdict(list)
                for row in rows:
                    done[row.prompt].append(decode.finished(row))
                fresh = [index for index in batch if answers[index] is None]
                for index in fresh:
                    answers[index] = done[index]
                if log is not None:
                    log.put({keys[i]: _packed(done[i]) for i in fresh})
                advance(len(fresh))
    return [answer for answer in answers if answer is not None]


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the model's own (its generation config's), else the tokenizer's."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if own is None:
        own = tokenizer.eos_token_id
    return frozenset([own] if isinstance(own, int) else own or [])


def _check(
    model: Any, prompts: Sequence[Sequence[int]], rooms: Sequence[int], sampling: Sampling | None, samples: int
) -> None:
    if len(rooms) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, but max_new_tokens for {len(rooms)}")
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt needs at least one token")
    if any(room < 1 for room in rooms):
        raise ValueError(f"max_new_tokens must be at least 1, not {min(rooms)}")
    if samples < 1 or (samples > 1 and sampling is None):
        raise ValueError("several answers a prompt need sampling: greedy ones are all the same")
    positions = learned_positions(model)
    for index, (prompt, room) in enumerate(zip(prompts, rooms, strict=True)):
        if positions is not None and len(prompt) + room - 1 > positions:
            raise UserError(
                f"prompt {index} has {len(prompt)} tokens and may get {room} more, but the model has "
                f"{positions} positions; shorten the prompt or ask for fewer tokens"
            )


def _keys(
    prompts: Sequence[Sequence[int]], rooms: Sequence[int], repetitions: Sequence[int], style: _Style
) -> list[str]:
    drawn = style.sampling
    how = None if drawn is None else [drawn.temperature, drawn.top_p, drawn.seed]
    if drawn is None:
        repetitions = [0] * len(prompts)
    rest = (how, style.samples, list(style.stop), style.clean_up)
    return [
        content_key("generate", list(map(int, prompt)), repetition, room, *rest)
        for prompt, repetition, room in zip(prompts, repetitions, rooms, strict=True)
    ]


def _packed(answers: Sequence[Generation]) -> list[Any]:
    return [[answer.text, list(answer.tokens), answer.end] for answer in answers]


def _unpacked(answers: Sequence[Any]) -> list[Generation]:
    return [Generation(text, tuple(tokens), end) for text, tokens, end in answers]


def _repetitions(prompts: Sequence[Sequence[int]]) -> list[int]:
    """How many equal prompts stand before each: their samples must not be the same."""
    seen: Counter[tuple[int, ...]] = Counter()
    numbers = []
    for prompt in prompts:
        numbers.append(seen[tuple(prompt)])
        seen[tuple(prompt)] += 1
    return numbers


def _families(
    prompts: Sequence[Sequence[int]], rooms: Sequence[int], able: Abilities
) -> Iterator[tuple[int, list[int]]]:
    """Prompts in groups with the length of the prefix that a group shares and that is worth keeping."""
    if not able.padding:
        yield 0, list(range(len(prompts)))
        return
    apart: list[int] = []
    for stem, group in stems(prompts):
        if stem and able.fits(max(len(prompts[i]) + rooms[i] for i in group)):
            yield stem, group
        else:
            apart += group
    if apart:
        yield 0, apart


def _batches(
    prompts: Sequence[Sequence[int]], rooms: Sequence[int], group: Sequence[int], able: Abilities, budget: int
) -> Iterator[list[int]]:
    """Prompts of like length; of equal length where the model can't take padding."""
    batch: list[int] = []
    longest = widest = 0
    for index in sorted(group, key=lambda i: (len(prompts[i]), rooms[i], i)):
        length = len(prompts[index])
        longest, widest = max(longest, rooms[index]), length
        apart = not able.padding and batch and len(prompts[batch[0]]) != length
        if batch and (apart or (len(batch) + 1) * (widest + longest) > budget):
            yield batch
            batch, longest = [], rooms[index]
        batch.append(index)
    if batch:
        yield batch
