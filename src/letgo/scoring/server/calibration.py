"""How far a server's scores are from those of the same weights in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from letgo.core.errors import UserError
from letgo.models.load import load_model, load_tokenizer, resolve_model
from letgo.scoring.backend import Query
from letgo.scoring.scoring import continuation_logps, generate
from letgo.scoring.server.served import Served

ITEMS = 32
LARGEST, MEAN = 0.3, 0.05
"""Differences in nats a token of two sound engines that compute in floats: vLLM's bfloat16 against transformers'
(vllm#18352)."""


def check_weights(model: Any, weights: str | None) -> None:
    """Raise a `UserError` for weights to compare with that are none, or beside a model that no server serves."""
    if weights is None:
        return
    if not isinstance(model, Served):
        raise UserError("weights are what a server is compared with; name the server (--server URL)")
    resolve_model(weights)


def calibrate(
    served: Served, weights: str, queries: Sequence[Query], asks: Sequence[tuple[Sequence[int], int]], dtype: str
) -> dict[str, Any]:
    """Ask the server and torch about the same items, at most `ITEMS`.

    Args:
        weights: the directory, hub id or built-in name of the weights that the server is said to serve.
        queries: those of the evaluation; compared where the server gives log-probabilities.
        asks: prompts with their rooms, compared (greedy answers) where it does not.
        dtype: of the weights in memory.

    Returns:
        For the record: the number of items, and of log-probabilities the `largest` and the `mean` difference of a
        token's, in nats; or the share of `equal` answers.
    """
    model = load_model(weights, dtype=dtype)
    against = {"weights": weights, "dtype": dtype}
    if served.gives_logps:
        some = _spread(queries)
        differences = [
            abs(float(mine) - float(theirs))
            for ours, others in zip(continuation_logps(model, some), continuation_logps(served, some), strict=True)
            for of_ours, of_theirs in zip(ours, others, strict=True)
            for mine, theirs in zip(of_ours, of_theirs, strict=True)
        ]
        if not differences:
            raise UserError("nothing to calibrate by: the benchmark scores no given answer")
        mean = sum(differences) / len(differences)
        return against | {"items": len(some), "tokens": len(differences), "largest": max(differences), "mean": mean}
    tokenizer = load_tokenizer(weights)
    chosen = _spread(asks)
    prompts, rooms = [list(prompt) for prompt, _ in chosen], [room for _, room in chosen]
    ours = generate(model, tokenizer, [served.prompt_by(tokenizer, prompt) for prompt in prompts], max_new_tokens=rooms)
    theirs = generate(served, served.tokenizer, prompts, max_new_tokens=rooms)
    # Of one length: the server's are cut to words.
    pairs = [(mine.text.split(), other.text.split()) for [mine], [other] in zip(ours, theirs, strict=True)]
    equal = sum(a[: min(len(a), len(b))] == b[: min(len(a), len(b))] and bool(a) == bool(b) for a, b in pairs)
    return against | {"items": len(pairs), "equal": equal / len(pairs)}


def in_words(calibration: dict[str, Any]) -> str:
    """A calibration in a line, with what it means where it is bad."""
    head = f"calibration: {calibration['items']} items, the server against torch on {calibration['weights']}: "
    if "equal" in calibration:
        said = f"{calibration['equal']:.0%} of the greedy answers begin alike"
        return head + said + ("" if calibration["equal"] >= 0.5 else "; does the server serve these weights?")
    largest, mean = calibration["largest"], calibration["mean"]
    said = f"a token's log-probability differs by {largest:.2g} nats at most, {mean:.2g} on average"
    if largest <= LARGEST and mean <= MEAN:
        return head + said
    return (
        f"{head}{said}; engines that compute in floats differ by at most {LARGEST} and {MEAN}: does the server compute "
        "in fewer bits, or is it another model, format or tokenizer?"
    )


def _spread(things: Sequence[Any]) -> list[Any]:
    """At most `ITEMS` things, evenly spread."""
    step = max(1.0, len(things) / ITEMS)
    return [things[int(number * step)] for number in range(min(len(things), ITEMS))]
