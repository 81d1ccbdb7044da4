"""A served model as a backend: what is asked of it goes to its server, several requests at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from letgo.core import processes
from letgo.core.errors import UserError
from letgo.core.fingerprints import seed_of
from letgo.models.load import load_model, load_tokenizer, weights_fingerprint
from letgo.scoring.backend import Query, query_key
from letgo.scoring.decoding import Generation
from letgo.scoring.generation import packed_answers, unpacked_answers
from letgo.scoring.head import Scores, Wanted, packed_scores, unpacked_scores
from letgo.scoring.resume_log import ResumeLog, content_key
from letgo.scoring.sampling import Sampling
from letgo.scoring.server.client import Client
from letgo.scoring.server.dialects import Written
from letgo.scoring.server.probe import LEVELS, Found, probe
from letgo.scoring.server.words import Words

TOKENS_PER_WORD = 2
"""How many tokens are asked for where an answer's length counts words; the answer is cut to its words."""


def connect(
    url: str,
    model: str | None = None,
    *,
    tokenizer: str | None = None,
    key_env: str | None = None,
    at_once: int = 8,
    timeout: float = 120.0,
    tries: int = 6,
) -> Served:
    """A model of an OpenAI-compatible server, to be given wherever a model is scored: to `letgo.evaluate`, and to
    `letgo.attack` as the model and as the original.

    Args:
        url: "http://HOST:PORT", with or without "/v1" at its end.
        model: its name there; it may be left out where the server has one model.
        tokenizer: the model's tokenizer: a directory, hub id or built-in name. Without it nothing is asked by token
            ids, so that no log-probabilities of given answers are had.
        key_env: the environment variable that holds the server's key.
        at_once: how many requests are under way at a time.
        timeout: seconds after which a request has failed.
        tries: how often a request is made in all, where its failure may pass.

    Raises:
        UserError: the address, the model's name, the tokenizer or the key is wrong.
        WorldError: the server does not answer.
    """
    if processes.asked() > 1:
        raise UserError("a server is asked by one process; start letgo without a launcher")
    client = Client(url, key_env=key_env, at_once=at_once, timeout=timeout, tries=tries)
    words = None if tokenizer is None else load_tokenizer(tokenizer)
    return Served(probe(client, model, words), words)


class Served:
    """A model behind a server, as the backend that scores it.

    Attributes:
        tokenizer: the model's own at level 1, else words in the place of tokens.
        context_length: the longest sequence that the server takes.
        level: what can be asked of it (`letgo.scoring.server.probe.LEVELS`).
    """

    has_weights = False

    def __init__(self, found: Found, tokenizer: Any | None) -> None:
        self.found, self.level = found, found.level
        self.gives_logps = found.scorer is not None
        self.words = None if self.gives_logps else Words(chat=found.chats)
        self.tokenizer: Any = self.words or tokenizer
        self.context_length = found.context or 2048 if self.gives_logps else 1 << 30
        self._client = found.endpoints.client
        self._log: ResumeLog | None = None
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"{self._client.url}#{self.found.endpoints.model}"

    @property
    def engine(self) -> dict[str, Any]:
        """What asked for the scores, for the record. Scores of two engines are not compared."""
        scorer = self.found.scorer
        return {
            "server": self.found.endpoints.kind,
            "version": self.found.version,
            "level": self.level,
            "chats": self.found.chats,
            "scores_by": scorer.name if scorer else None,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What a log of its answers depends on."""
        return {"model": str(self), **self.engine}

    def describe(self) -> str:
        """In a line: the server and what it gives; then, why not more."""
        program = " ".join(filter(None, (self.found.endpoints.kind, self.found.version)))
        lines = [f"{self}: {program}, level {self.level}: {LEVELS[self.level]}"]
        return "\n  not more, because ".join([*lines, "; ".join(self.found.why)] if self.level > 1 else lines)

    @contextmanager
    def keeping(self, log: ResumeLog) -> Iterator[None]:
        """Within: what is asked without a log of its own is kept in this one."""
        with log:
            self._log = log
            try:
                yield
            finally:
                self._log = None

    def answers(self, prompt: Sequence[int]) -> bool:
        if self.words is None:
            return True
        text = self.words.decode(prompt)
        plain = self.words.is_plain(text)
        return bool(text) and self.level < 3 if plain else self.found.chats and self.words.messages(text) is not None

    def score(
        self,
        queries: Sequence[Query],
        wanted: Wanted,
        *,
        token_budget: int | None,
        advance: Callable[[int], None],
        log: ResumeLog | None,
    ) -> list[list[Scores]]:
        scorer = self.found.scorer
        if queries and scorer is None:
            raise UserError(f"{self} gives no log-probabilities of given answers: {LEVELS[self.level]}")
        if queries and wanted.statistics:
            raise UserError(f"{self}: Min-K++ needs the whole distribution of each token, which no server gives")

        def scored(query: Query) -> list[Scores]:
            assert scorer is not None
            rows = [scorer.score(query.prefix, part, matches=wanted.matches) for part in query.continuations]
            return [
                Scores(torch.tensor(row.logps), matches=None if row.matches is None else torch.tensor(row.matches))
                for row in rows
            ]

        def pack(rows: list[Scores]) -> Any:
            return [packed_scores(row) for row in rows]

        def unpack(rows: Any) -> list[Scores]:
            return [unpacked_scores(row) for row in rows]

        keys = [query_key(query, wanted) for query in queries]
        return self._each(queries, keys, scored, pack, unpack, advance, log)

    def generate(
        self,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling | None,
        samples: int,
        stop: Sequence[str],
        clean_up: bool | None,
        token_budget: int | None,
        advance: Callable[[int], None],
        log: ResumeLog | None,
    ) -> list[list[Generation]]:
        """Draws of samples are the server's own: its seed is set, but its generator is not ours."""
        rooms = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        manner = _Manner(sampling, samples, tuple(stop), clean_up)
        asks: list[_Ask] = []
        seen: Counter[str] = Counter()
        for prompt, room in zip(prompts, rooms, strict=True):
            if not self.answers(prompt):
                raise UserError(f"{self} can't be asked to go on from this prompt: {LEVELS[self.level]}")
            ask = _Ask(list(prompt) if self.words is None else self.words.decode(prompt), self._messages(prompt), room)
            asks.append(_Ask(ask.prompt, ask.messages, room, seen[repr(ask)] if sampling else 0))
            seen[repr(ask)] += 1

        def answered(ask: _Ask) -> list[Generation]:
            return [self._answer(ask, manner, number) for number in range(samples)]

        keys = [ask.key(manner) for ask in asks]
        return self._each(asks, keys, answered, packed_answers, unpacked_answers, advance, log)

    def prompt_by(self, tokenizer: Any, prompt: Sequence[int]) -> list[int]:
        """A prompt in the tokens of the model's own tokenizer, for a model in memory."""
        if self.words is None:
            return list(prompt)
        messages = self._messages(prompt)
        if messages is None:
            return list(tokenizer(self.words.decode(prompt))["input_ids"])
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"{self} was asked in its chat template, and the tokenizer of the weights at hand has none")
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def _messages(self, prompt: Sequence[int]) -> list[dict[str, str]] | None:
        return None if self.words is None else self.words.messages(self.words.decode(prompt))

    def _answer(self, ask: _Ask, manner: _Manner, number: int) -> Generation:
        room = ask.room if self.words is None else ask.room * TOKENS_PER_WORD
        seed = seed_of(repr((manner.sampling, ask.key(manner), number)), size=4, order="big") >> 1
        how: dict[str, Any] = {"sampling": manner.sampling, "seed": seed, "stop": manner.stop}
        at = self.found.endpoints
        if ask.messages is not None:
            written = at.chat(ask.messages, room, **how)
        else:
            written = at.complete(ask.prompt, room, **how)
        # A tokenizer of the library tokenizers is not for several threads at once.
        with self._lock:
            return self._generation(written, ask.room, manner)

    def _generation(self, written: Written, room: int, manner: _Manner) -> Generation:
        """An answer as torch's backend gives it: cut before the first stop string, white space kept."""
        text, ended = written.text, written.ended
        tokens = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.words is not None and len(tokens) > room:
            tokens, ended = tokens[:room], False
            text = self.words.decode(tokens)
        elif self.words is None and written.tokens is not None:
            tokens = written.tokens
            how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": manner.clean_up}
            text = self.tokenizer.decode(list(tokens), **how)
        cut = min((place for each in manner.stop if (place := text.find(each)) >= 0), default=len(text))
        stopped = cut < len(text)
        return Generation(text[:cut], tokens, "stop" if stopped else "end" if ended else "length")

    def _each(
        self,
        things: Sequence[Any],
        keys: Sequence[str],
        ask: Callable[[Any], Any],
        pack: Callable[[Any], Any],
        unpack: Callable[[Any], Any],
        advance: Callable[[int], None],
        log: ResumeLog | None,
    ) -> list[Any]:
        """Ask about all things that the log does not have; each answer is logged as it comes."""
        values: dict[int, Any] = {}
        log = self._log if log is None else log
        if log is not None:
            values = {number: unpack(log.get(key)) for number, key in enumerate(keys) if key in log}
        if values:
            advance(len(values))
        missing = [number for number in range(len(things)) if number not in values]
        for place, value in self._client.each([things[number] for number in missing], ask):
            number = missing[place]
            values[number] = value
            if log is not None:
                log.put({keys[number]: pack(value)})
            advance(1)
        return [values[number] for number in range(len(things))]


@dataclass(frozen=True)
class _Manner:
    """How answers are drawn and end."""

    sampling: Sampling | None
    samples: int
    stop: tuple[str, ...]
    clean_up: bool | None


@dataclass(frozen=True)
class _Ask:
    """What is sent: token ids or a text, or messages. `repetition` counts equal asks: their samples must differ."""

    prompt: str | list[int]
    messages: list[dict[str, str]] | None
    room: int
    repetition: int = 0

    def key(self, manner: _Manner) -> str:
        """The key of its answers in a log."""
        drawn = manner.sampling
        how = None if drawn is None else [drawn.temperature, drawn.top_p, drawn.seed]
        asked = self.prompt if self.messages is None else self.messages
        style = (how, manner.samples, list(manner.stop), manner.clean_up)
        return content_key("ask", asked, self.repetition, self.room, *style)


def open_model(model: str | Path | Served, *, dtype: str = "float32") -> Any:
    """A model to be scored: loaded, or the served one as it is."""
    return model if isinstance(model, Served) else load_model(model, dtype=dtype)


def open_tokenizer(model: str | Path | Served) -> Any:
    """The tokenizer by which a model is asked."""
    return model.tokenizer if isinstance(model, Served) else load_tokenizer(model)


def identity_of(model: Any, dtype: str) -> dict[str, Any]:
    """What a log of an opened model's answers depends on."""
    return model.identity if isinstance(model, Served) else {"weights": weights_fingerprint(model), "dtype": dtype}


def same_engine(models: Sequence[Any]) -> None:
    """Raise a `UserError` unless models that are to be compared are asked by one engine: log-probabilities and answers
    of two differ by more than many models do."""
    engines = [(str(model), model.engine if isinstance(model, Served) else {"server": None}) for model in models]
    (first, engine), *others = engines
    for name, other in others:
        differing = [key for key in {**engine, **other} if engine.get(key) != other.get(key)]
        if differing:
            shown = "; ".join(
                f"{key}: {engine.get(key) or 'torch'} and {other.get(key) or 'torch'}" for key in differing
            )
            raise UserError(
                f"{first} and {name} are asked by different engines ({shown}): their scores can't be compared\n"
                "  serve both by the same program and version, or score both by torch from their weights"
            )
