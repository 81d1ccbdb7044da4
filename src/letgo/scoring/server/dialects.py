"""How different servers are asked the same things: to score given tokens, to go on from a prompt, to answer messages.

What every server has is `Endpoints`; how token ids are scored differs (`PromptLogprobs`, `Echo`, `Forced`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from letgo.core.errors import LetgoError, NonFiniteLossError
from letgo.scoring.sampling import Sampling
from letgo.scoring.server.client import Client

_PLAIN: Mapping[str, Mapping[str, Any]] = {
    "vllm": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "llama.cpp": {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "cache_prompt": True},
}
"""By the server, what turns off samplers of its own that were not asked for."""


class MalformedError(LetgoError):
    """A server answered in another form than its interface has."""


@dataclass(frozen=True)
class Written:
    """What a server wrote: its text, its token ids where it says them, and whether it ended by itself."""

    text: str
    tokens: tuple[int, ...] | None
    ended: bool


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of given tokens, and, where asked for, whether each is the likeliest one."""

    logps: list[float]
    matches: list[bool] | None = None


@dataclass(frozen=True)
class Endpoints:
    """The OpenAI-compatible endpoints of one model of a server; `kind` is the server's program, where it is known."""

    client: Client
    model: str
    kind: str

    def complete(
        self,
        prompt: str | Sequence[int],
        room: int,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Written:
        """A text, or token ids, continued."""
        body = self._body(room, sampling, seed, stop) | {"prompt": prompt if isinstance(prompt, str) else list(prompt)}
        if self.kind == "vllm":
            body["return_token_ids"] = True
        choice = first_choice(self.client.post("/v1/completions", body))
        return Written(_text(choice, "text"), _ids(choice.get("token_ids")), choice.get("finish_reason") != "length")

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        room: int,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Written:
        """The assistant's next message."""
        body = self._body(room, sampling, seed, stop) | {"messages": [dict(message) for message in messages]}
        choice = first_choice(self.client.post("/v1/chat/completions", body))
        message = choice.get("message")
        if not isinstance(message, dict):
            raise MalformedError("a chat answer without a message")
        # A model that has only "reasoned" so far has said nothing.
        text = "" if message.get("content") is None else _text(message, "content")
        return Written(text, None, choice.get("finish_reason") != "length")

    def _body(self, room: int, sampling: Sampling | None, seed: int, stop: Sequence[str]) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "max_tokens": room, **_PLAIN.get(self.kind, {})}
        body |= {"temperature": 0} if sampling is None else {"temperature": sampling.temperature, "seed": seed}
        if sampling is not None:
            body["top_p"] = sampling.top_p
        # OpenAI's interface takes four; an answer is cut here anyway.
        return body | ({"stop": list(stop)} if 0 < len(stop) <= 4 else {})


class Scorer(Protocol):
    """A way to score token ids. `name` is what a record calls it."""

    @property
    def name(self) -> str: ...

    def score(self, prefix: Sequence[int], continuation: Sequence[int], *, matches: bool) -> Scored: ...


@dataclass(frozen=True)
class PromptLogprobs:
    """vLLM's `prompt_logprobs`: the log-probability of every token of a prompt, by token ids."""

    at: Endpoints
    name: str = "prompt_logprobs"

    def score(self, prefix: Sequence[int], continuation: Sequence[int], *, matches: bool) -> Scored:
        tokens = [*prefix, *continuation]
        body = {"prompt": tokens, "prompt_logprobs": 1, "max_tokens": 1, "temperature": 0}
        choice = first_choice(self.at.client.post("/v1/completions", {"model": self.at.model, **body}))
        rows = choice.get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(tokens):
            raise MalformedError("no prompt_logprobs of all tokens of the prompt")
        logps, likeliest = [], []
        for token, row in zip(continuation, rows[len(prefix) :], strict=True):
            given = row.get(str(token)) if isinstance(row, dict) else None
            if not isinstance(given, dict):
                raise MalformedError("prompt_logprobs are of other tokens than those asked for")
            logps.append(_logp(given.get("logprob")))
            others = [_logp(other.get("logprob")) for other in row.values() if isinstance(other, dict)]
            likeliest.append(logps[-1] >= max(others))
        return Scored(logps, likeliest if matches else None)


@dataclass(frozen=True)
class Echo:
    """OpenAI's older way: the prompt is repeated with its log-probabilities (`echo`)."""

    at: Endpoints
    name: str = "echo"

    def score(self, prefix: Sequence[int], continuation: Sequence[int], *, matches: bool) -> Scored:
        tokens = [*prefix, *continuation]
        body = {"prompt": tokens, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
        choice = first_choice(self.at.client.post("/v1/completions", {"model": self.at.model, **body}))
        given = choice.get("logprobs")
        rows = given.get("token_logprobs") if isinstance(given, dict) else None
        # The prompt's tokens, and at most one that was written.
        if not isinstance(rows, list) or not len(tokens) <= len(rows) <= len(tokens) + 1:
            raise MalformedError("no token_logprobs of all tokens of the prompt")
        logps = [_logp(value) for value in rows[len(prefix) : len(tokens)]]
        if not matches:
            return Scored(logps)
        tops = given.get("top_logprobs") if isinstance(given, dict) else None
        if not isinstance(tops, list) or len(tops) != len(rows):
            raise MalformedError("no top_logprobs of all tokens of the prompt")
        best = [max(map(_logp, (top or {"": None}).values())) for top in tops[len(prefix) : len(tokens)]]
        return Scored(logps, [mine >= other for mine, other in zip(logps, best, strict=True)])


@dataclass(frozen=True)
class Forced:
    """llama.cpp's server says log-probabilities of what it writes alone. So it is made to write the continuation: by a
    grammar of token ids, or, where it may not be (tokens that end a text), token by token by a bias. The
    log-probabilities are of the model as it is, before grammar and bias (`post_sampling_probs: false`).

    Attributes:
        single: ids that are forced one by one.
        grammar: whether the server knows grammars of token ids; else all are forced one by one.
    """

    at: Endpoints
    single: Collection[int]
    grammar: bool = True

    @property
    def name(self) -> str:
        return "forced" if self.grammar else "forced one by one"

    def score(self, prefix: Sequence[int], continuation: Sequence[int], *, matches: bool) -> Scored:
        logps: list[float] = []
        likeliest: list[bool] = []
        for piece in self._pieces(continuation):
            before = [*prefix, *continuation[: len(logps)]]
            rows = self._forced(before, piece)
            for token, row in zip(piece, rows, strict=True):
                if row.get("id") != token:
                    raise MalformedError("the server wrote other tokens than it was forced to")
                logps.append(_logp(row.get("logprob")))
                tops = row.get("top_logprobs")
                if matches and not (isinstance(tops, list) and tops and isinstance(tops[0], dict)):
                    raise MalformedError("no top_logprobs of what was written")
                likeliest.append(matches and logps[-1] >= _logp(tops[0].get("logprob")))  # type: ignore[index]
        return Scored(logps, likeliest if matches else None)

    def _pieces(self, tokens: Sequence[int]) -> Iterator[list[int]]:
        for alone, group in groupby(tokens, lambda token: not self.grammar or token in self.single):
            members = list(group)
            yield from ([token] for token in members) if alone else (members,)

    def _forced(self, before: Sequence[int], piece: Sequence[int]) -> list[dict[str, Any]]:
        body: dict[str, Any] = {"prompt": list(before), "n_predict": len(piece), "n_probs": 1, "cache_prompt": True}
        if len(piece) == 1:
            body |= {"logit_bias": [[piece[0], 1e9]], "temperature": 0}
        else:
            body |= {"grammar": "root ::= " + " ".join(f"<[{token}]>" for token in piece), "temperature": 1.0}
            body |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        said = self.at.client.post("/completion", {"model": self.at.model, **body})
        rows = said.get("completion_probabilities") if isinstance(said, dict) else None
        if not isinstance(rows, list) or len(rows) < len(piece) or not all(isinstance(row, dict) for row in rows):
            raise MalformedError("no completion_probabilities of all tokens")
        return rows[: len(piece)]


def first_choice(said: Any) -> dict[str, Any]:
    choices = said.get("choices") if isinstance(said, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedError("an answer without choices")
    return choices[0]


def _text(choice: Mapping[str, Any], key: str) -> str:
    text = choice.get(key)
    if not isinstance(text, str):
        raise MalformedError(f"an answer whose {key!r} is no text")
    # JSON may hold half a character, which no file can.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _ids(tokens: Any) -> tuple[int, ...] | None:
    whole = isinstance(tokens, list) and all(type(token) is int for token in tokens)
    return tuple(tokens) if whole else None


def _logp(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise NonFiniteLossError(
            f"the server gave {value!r} as a log-probability; the model's weights, or the server, are broken"
        )
    return float(value)
