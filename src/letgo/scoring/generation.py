"""Greedy and sampled answers, many at a time.

The loop is letgo's own (`decoding`): it writes the key-value cache in place, computes logits for the last position
only, takes out rows that are finished, and runs once what many prompts begin with, and a prompt with n samples. Rows
that differ in length begin with padding that nothing sees. Tokens are those of `model.generate` with `do_sample=False`
(`tests/scoring/test_generation.py`), up to ties within rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from letgo.core import processes
from letgo.core.errors import UserError
from letgo.models.forward import through
from letgo.models.running import device_of, evaluating, generation_budget, is_sharded, learned_positions
from letgo.scoring.abilities import Abilities, abilities
from letgo.scoring.cache import Prefix, run_prefix
from letgo.scoring.decoding import DecodedRow, Decoder, Generation, decode_batch
from letgo.scoring.packed import packed
from letgo.scoring.prefix_tree import shared_prefixes
from letgo.scoring.resume_log import ResumeLog, content_key
from letgo.scoring.sampling import Sampling


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
        max_new_tokens: most tokens of an answer, one number or one for each prompt.
        sampling: how tokens are drawn; None for greedy answers.
        samples: answers to each prompt, with `sampling` (leak@k).
        stop: strings; an answer ends where one of them appears, and its text is cut before it.
        clean_up: `clean_up_tokenization_spaces` of the decoding; None leaves it to the tokenizer.
        token_budget: most tokens in a batch's cache; by default what suits the device's memory.
        advance: called with the number of prompts done.
        log: keeps finished prompts, and has them again after a kill.

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
    queue: list[_Prompt] = []
    seen: Counter[tuple[int, ...]] = Counter()
    for prompt, room in zip(prompts, rooms, strict=True):
        tokens = tuple(map(int, prompt))
        queue.append(_Prompt(len(queue), tokens, room, seen[tokens]))
        seen[tokens] += 1

    def answered(some: Sequence[_Prompt], _: Any, advance: Callable[[int], None]) -> list[list[Generation]]:
        def within(inside: Any) -> list[list[Generation]]:
            decoder = Decoder(tokenizer, tuple(stop), clean_up, sampling, end_tokens(inside, tokenizer))
            return _generate(inside, decoder, some, samples, token_budget, advance, log)

        return through(model, within)

    together = is_sharded(model)
    return processes.shared(
        queue, answered, pack=packed_answers, unpack=unpacked_answers, advance=advance, together=together
    )


@dataclass(frozen=True)
class _Prompt:
    """A prompt, with the most tokens of an answer. `repetition` is the number of equal prompts before it: their samples
    must not be the same."""

    number: int
    tokens: tuple[int, ...]
    room: int
    repetition: int

    def __len__(self) -> int:
        return len(self.tokens)

    def key(self, decoder: Decoder, samples: int) -> str:
        """The key of its answers in a log."""
        drawn = decoder.sampling
        how = None if drawn is None else [drawn.temperature, drawn.top_p, drawn.seed]
        repetition = 0 if drawn is None else self.repetition
        style = (how, samples, list(decoder.stop), decoder.clean_up)
        return content_key("generate", list(self.tokens), repetition, self.room, *style)

    def rows(self, sampling: Sampling | None, samples: int) -> list[DecodedRow]:
        """Its answers, not yet begun."""
        if sampling is None:
            return [DecodedRow(self.room, None)]
        return [DecodedRow(self.room, sampling.generator(self.tokens, self.repetition, n)) for n in range(samples)]


def _generate(
    model: Any,
    decoder: Decoder,
    prompts: Sequence[_Prompt],
    samples: int,
    token_budget: int | None,
    advance: Callable[[int], None],
    log: ResumeLog | None,
) -> list[list[Generation]]:
    answers: dict[int, list[Generation]] = {}
    if log is not None:
        keys = {prompt.number: prompt.key(decoder, samples) for prompt in prompts}
        answers = {number: unpacked_answers(log.get(key)) for number, key in keys.items() if key in log}
        if answers:
            advance(len(answers))
    missing = [prompt for prompt in prompts if prompt.number not in answers]
    if not missing:
        return [answers[prompt.number] for prompt in prompts]
    able = abilities(model)
    budget = max(1, (token_budget or generation_budget(model)) // samples)
    with evaluating(model), packed(model, sum(len(prompt) + prompt.room * samples for prompt in missing)):
        for stem, group in _families(prompts, able):
            prefix: Prefix | None = None
            for batch in _batches(group, able, budget):
                fresh = {prompt.number for prompt in batch} - answers.keys()
                if not fresh:
                    continue
                if stem and prefix is None:
                    prefix = run_prefix(model, list(group[0].tokens[:stem]), able.layers, device_of(model))
                rows = {prompt.number: prompt.rows(decoder.sampling, samples) for prompt in batch}
                everything = [row for of_prompt in rows.values() for row in of_prompt]
                decode_batch(model, everything, [list(prompt.tokens) for prompt in batch], prefix, able, decoder)
                done = {n: [decoder.finished(row) for row in rows[n]] for n in rows if n in fresh}
                answers |= done
                if log is not None:
                    log.put({keys[number]: packed_answers(generations) for number, generations in done.items()})
                advance(len(done))
    return [answers[prompt.number] for prompt in prompts]


def most_generated_tokens(prompts: Sequence[tuple[Sequence[int], int]], samples: int, token_budget: int) -> int:
    """The most tokens, padding too, that answering prompts runs through a model, if no two begin alike. Beside each
    prompt stand the most tokens of its answer."""
    queue = [_Prompt(number, tuple(tokens), room, 0) for number, (tokens, room) in enumerate(prompts)]
    batches = _batches(queue, Abilities(padding=True), max(1, token_budget // samples))
    return sum(len(batch) * len(batch[-1]) + samples * sum(prompt.room for prompt in batch) for batch in batches)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: those of the model's generation config, else the tokenizer's."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        ends = tokenizer.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or [])


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


def packed_answers(answers: Sequence[Generation]) -> list[Any]:
    """Answers as JSON values."""
    return [[answer.text, list(answer.tokens), answer.end] for answer in answers]


def unpacked_answers(answers: Sequence[Any]) -> list[Generation]:
    """Answers of JSON values."""
    return [Generation(text, tuple(tokens), end) for text, tokens, end in answers]


def _families(prompts: Sequence[_Prompt], able: Abilities) -> Iterator[tuple[int, list[_Prompt]]]:
    """Prompts in groups with the length of the prefix that a group shares and that is worth keeping."""
    if not able.padding:
        yield 0, list(prompts)
        return

    def worth(length: int, group: list[int]) -> bool:
        return able.fits(max(len(prompts[index]) + prompts[index].room for index in group))

    for stem, indices in shared_prefixes([prompt.tokens for prompt in prompts], worth):
        yield stem, [prompts[index] for index in indices]


def _batches(group: Sequence[_Prompt], able: Abilities, budget: int) -> Iterator[list[_Prompt]]:
    """Prompts of like length; of equal length where the model can't take padding."""
    batch: list[_Prompt] = []
    longest = 0
    for prompt in sorted(group, key=lambda prompt: (len(prompt), prompt.room, prompt.number)):
        longest = max(longest, prompt.room)
        apart = not able.padding and batch and len(batch[0]) != len(prompt)
        if batch and (apart or (len(batch) + 1) * (len(prompt) + longest) > budget):
            yield batch
            batch, longest = [], prompt.room
        batch.append(prompt)
    if batch:
        yield batch
