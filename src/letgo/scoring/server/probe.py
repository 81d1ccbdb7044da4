"""What a server is and what it can be asked, found out by asking it; nothing is measured before that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from letgo.core.catalog import did_you_mean
from letgo.core.errors import LetgoError, UserError, WorldError, first_line
from letgo.scoring.server.client import Client, Refused
from letgo.scoring.server.dialects import Echo, Endpoints, Forced, MalformedError, PromptLogprobs, Scorer

Level = Literal[1, 2, 3]
LEVELS: Mapping[Level, str] = {
    1: "log-probabilities of given token ids, and answers",
    2: "texts that it continues, without log-probabilities of given answers",
    3: "answers to messages alone",
}
_TEXT = "The capital of France is Paris; 7 of 10 people know it."
_NO_INTERFACE = (MalformedError, Refused)
"""Errors that say that a server lacks an interface, and not that it has failed."""


@dataclass(frozen=True)
class Found:
    """What a probe has found.

    Attributes:
        endpoints: of the model.
        version: of the server's program; "" where it does not say.
        level: what can be asked (`LEVELS`); at level 1 by `scorer`.
        chats: whether it takes messages.
        context: the longest sequence in tokens; None where the server does not say.
        why: for each better level that was not reached, why.
    """

    endpoints: Endpoints
    version: str
    level: Level
    scorer: Scorer | None
    chats: bool
    context: int | None
    why: tuple[str, ...]


def probe(client: Client, model: str | None, tokenizer: Any | None) -> Found:
    """Find out what a server can be asked about a model.

    Args:
        model: its name there; it may be left out where the server has one model.
        tokenizer: the model's; without it token ids can't be asked about, and level 1 is out of reach.

    Raises:
        UserError: there is no such model, no such server, or the tokenizer is another model's.
        WorldError: the server does not answer.
    """
    entry = _entry(client, model)
    kind = _kind(entry)
    endpoints = Endpoints(client, str(entry["id"]), kind)
    why: list[str] = []
    scorer = _scorer(endpoints, tokenizer, why)
    chats = _works(lambda: endpoints.chat([{"role": "user", "content": "Hello."}], 1), [])
    level: Level = 1 if scorer else 2 if _works(lambda: endpoints.complete("The", 1), why) else 3
    if level == 3 and not chats:
        raise UserError(
            f"{client.url}: no interface that letgo knows answers there ({'; '.join(why)})\n"
            "  it needs /v1/completions or /v1/chat/completions, as vLLM, SGLang, llama.cpp's server and TGI have them"
        )
    return Found(endpoints, _version(client, kind), level, scorer, chats, _context(entry), tuple(why))


def _entry(client: Client, model: str | None) -> Mapping[str, Any]:
    """The server's own entry of the model."""
    try:
        # Once more at most: whoever mistyped an address does not want to wait.
        said = client.get("/v1/models", tries=min(2, client.tries))
    except Refused as error:
        if model is None:
            raise UserError(f"{error}\n  it does not say which models it has: name one") from error
        return {"id": model}
    rows = said.get("data") if isinstance(said, dict) else None
    entries = [row for row in rows or [] if isinstance(row, dict) and isinstance(row.get("id"), str)]
    names = {client.clean(entry["id"]): entry for entry in entries}
    listed = ", ".join(list(names)[:20]) or "none"
    if model is None:
        if len(entries) != 1:
            raise UserError(f"{client.url} has {len(entries)} models; name one of them: {listed}")
        return entries[0]
    # Some servers answer for any name, with the one model that they have: a slip would be a wrong record.
    if not any(model == name or model in _aliases(entry) for name, entry in names.items()):
        raise UserError(f"{client.url} has no model {model!r}{did_you_mean(model, names)}; it has: {listed}")
    return next(entry for name, entry in names.items() if model == name or model in _aliases(entry)) | {"id": model}


def _aliases(entry: Mapping[str, Any]) -> list[Any]:
    aliases = entry.get("aliases")
    return aliases if isinstance(aliases, list) else []


def _kind(entry: Mapping[str, Any]) -> str:
    return {"llamacpp": "llama.cpp", "vllm": "vllm", "sglang": "sglang"}.get(str(entry.get("owned_by")), "other")


def _version(client: Client, kind: str) -> str:
    path, key = {"vllm": ("/version", "version"), "llama.cpp": ("/props", "build_info")}.get(kind, ("", ""))
    if not path:
        return ""
    try:
        said = client.get(path)
    except Refused:
        return ""
    return client.clean(str(said.get(key, ""))) if isinstance(said, dict) else ""


def _context(entry: Mapping[str, Any]) -> int | None:
    meta = entry.get("meta")
    given = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
    return given if isinstance(given, int) and given > 0 else None


def _works(ask: Any, why: list[str]) -> bool:
    """Whether the server has what is asked; where not, `why` gets to know."""
    try:
        ask()
        return True
    except _NO_INTERFACE as error:
        why.append(first_line(error))
        return False


def _scorer(endpoints: Endpoints, tokenizer: Any | None, why: list[str]) -> Scorer | None:
    """The way in which this server scores token ids; None where it has none."""
    if tokenizer is None:
        why.append("token ids need the model's tokenizer, which was not given (--tokenizer)")
        return None
    tokens = list(tokenizer(_TEXT)["input_ids"])
    _check_tokenizer(endpoints, tokens)
    for scorer in _scorers(endpoints, tokenizer):
        try:
            scored = scorer.score(tokens[:2], tokens[2:], matches=True)
        except _NO_INTERFACE as error:
            why.append(f"{scorer.name}: {first_line(error)}")
        except WorldError as error:
            # llama.cpp's server of before grammars of token ids fails on them.
            if not isinstance(scorer, Forced) or not scorer.grammar:
                raise
            why.append(f"{scorer.name}: {first_line(error)}")
        else:
            if max(scored.logps) <= 1e-6:
                return scorer
            why.append(f"{scorer.name}: its log-probabilities are above 0")
    return None


def _scorers(endpoints: Endpoints, tokenizer: Any) -> Iterator[Scorer]:
    if endpoints.kind == "llama.cpp":
        special = frozenset(tokenizer.all_special_ids)
        yield Forced(endpoints, special)
        yield Forced(endpoints, special, grammar=False)
        return
    yield PromptLogprobs(endpoints)
    yield Echo(endpoints)


def _check_tokenizer(endpoints: Endpoints, tokens: list[int]) -> None:
    """Raise a `UserError` where the server says that it makes other tokens of the same text."""
    asked = {"model": endpoints.model, "prompt": _TEXT, "content": _TEXT, "add_special": True}
    try:
        said = endpoints.client.post("/tokenize", asked | {"add_special_tokens": True}, tries=1)
    except LetgoError:
        return  # Not every server says.
    theirs = said.get("tokens") if isinstance(said, dict) else None
    if isinstance(theirs, list) and theirs and all(type(token) is int for token in theirs) and theirs != tokens:
        raise UserError(
            f"{endpoints.client.url}: the tokenizer given is not that of {endpoints.model!r}: of {_TEXT[:14]!r}… the "
            f"server makes {theirs[:6]}, the tokenizer {tokens[:6]}\n  give the tokenizer of the model that is served"
        )
