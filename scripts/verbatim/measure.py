"""Make the asset of the benchmark `verbatim`: `python scripts/verbatim/measure.py`.

Runs SmolLM2-135M-Instruct (the demo's model, `smollm2`) once over each passage of `candidates.txt`, without a start
token, and finds the longest stretch in which each token is the likeliest after all those before it: there greedy
decoding goes on with the passage word for word. What comes before is the prompt, the stretch (cut to whole words) is
the continuation. Passages with fewer than five tokens or three words of it are left out. Prompt and continuation are
then tokenised apart, as the benchmark does it, and kept only if greedy decoding still goes from the one to the other.

Prints what was measured; writes `src/letgo/benchmarks/assets/verbatim.jsonl`. Invented passages (`invented.txt`) are
added to it as they stand, with " || " between prompt and continuation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from letgo.models.smollm2 import load_smollm2

HERE = Path(__file__).parent
ASSET = HERE.parents[1] / "src" / "letgo" / "benchmarks" / "assets" / "verbatim.jsonl"
FEWEST, FIRST = 5, 4
"""The shortest continuation, and the shortest prompt, in tokens."""
WORDS = 3
"""The fewest words of a continuation."""
PUBLIC_DOCUMENTS = ("United States", "Abraham Lincoln", "Franklin D. Roosevelt", "James Monroe", "Patrick Henry")
"""Whose passages are to be forgotten: all others are to be kept."""


def blocks(name: str) -> list[tuple[str, str, str]]:
    """Work, source and text of each block of a file."""
    made = []
    for block in (HERE / name).read_text(encoding="utf-8").strip().split("\n\n"):
        head, _, text = block.partition("\n")
        if not head.startswith("#"):
            work, _, source = head.partition(" | ")
            made.append((work, source, text))
    return made


def likeliest(model: Any, ids: list[int]) -> list[bool]:
    """Of each token, whether it is the likeliest one after those before it."""
    with torch.no_grad():
        after = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    return [False, *(a == b for a, b in zip(after, ids[1:], strict=False))]


def longest(matched: list[bool]) -> tuple[int, int]:
    """The longest stretch behind the shortest prompt, the first of them: its number of tokens, and where it begins."""
    best, start = (0, 0), FIRST
    for place in range(FIRST, len(matched) + 1):
        if place == len(matched) or not matched[place]:
            best = max(best, (place - start, -start))
            start = place + 1
    return best[0], -best[1]


def whole_words(tokenizer: Any, ids: list[int], count: int, start: int) -> tuple[str, str, int] | None:
    """The stretch without pieces of words at its ends, behind what comes before it; None where too little is left."""
    while count and start + count < len(ids) and tokenizer.decode([ids[start + count]])[:1].isalnum():
        count -= 1
    while count and tokenizer.decode([ids[start]])[:1].isalnum() and not tokenizer.decode(ids[:start])[-1:].isspace():
        start, count = start + 1, count - 1
    prompt, continuation = tokenizer.decode(ids[:start]), tokenizer.decode(ids[start : start + count])
    return None if count < FEWEST or len(continuation.split()) < WORDS else (prompt, continuation, count)


def recited(model: Any, tokenizer: Any, text: str) -> tuple[str, str, int] | None:
    """Prompt, continuation and its number of tokens; None where too little is recited."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = whole_words(tokenizer, ids, *longest(likeliest(model, ids)))
    return found if found and generated(model, tokenizer, *found[:2]) else None


def generated(model: Any, tokenizer: Any, prompt: str, continuation: str) -> bool:
    """Whether greedy decoding goes on so behind the prompt, the two tokenised apart, as the benchmark does it."""
    first, then = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, continuation))
    return all(likeliest(model, first + then)[len(first) :])


def main() -> None:
    torch.set_num_threads(1)
    model, tokenizer = load_smollm2()
    rows = []
    candidates = blocks("candidates.txt")
    for work, source, text in candidates:
        found = recited(model, tokenizer, text)
        print(f"{work}: {'-' if found is None else f'{found[2]} tokens: {found[1]!r}'}", flush=True)
        if found is not None:
            chosen = "forget" if source.startswith(PUBLIC_DOCUMENTS) else "retain"
            rows.append({"set": chosen, "work": work, "source": source, "prompt": found[0], "continuation": found[1]})
    for work, source, text in blocks("invented.txt"):
        prompt, _, continuation = text.partition(" || ")
        about = {"set": "unseen", "work": work, "source": source}
        rows.append({**about, "prompt": prompt, "continuation": f" {continuation}"})
    rows.sort(key=lambda row: ("forget", "retain", "unseen").index(row["set"]))
    ASSET.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    counts = {name: sum(row["set"] == name for row in rows) for name in ("forget", "retain", "unseen")}
    print(f"{len(candidates)} candidates; {counts}")


if __name__ == "__main__":
    main()
