"""A suffix searched by gradient that makes the forgotten answers likelier, judged on questions it was not made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.attacks.engine.base import Attacked, Victim
from letgo.attacks.engine.prompts import askable, form_of, only, question_of, with_question, work_of
from letgo.attacks.relearn import drawn_groups
from letgo.benchmarks.engine.base import Item
from letgo.core.errors import UserError
from letgo.core.values import Count, Natural, Part, Seed
from letgo.data.encode import encode_target
from letgo.data.rows import Row
from letgo.scoring.scoring import Query, continuation_logps

Place = Literal["auto", "suffix", "prefix"]
"""After the question, or before it; "auto": before prompts that the answer completes, else after."""


def suffix(
    victim: Victim,
    *,
    length: Count = 8,
    steps: Natural = 20,
    candidates: Count = 32,
    top_k: Count = 64,
    items: Count = 8,
    holdout: Part = 0.5,
    place: Place = "auto",
    seed: Seed = 0,
) -> Attacked:
    """Greedy coordinate gradient (GCG): one string for all questions.

    Each step takes the gradient of the right answers' loss with respect to the string's one-hot tokens, proposes
    exchanges of one token by those that it favours most, scores them, and keeps the best. A suffix made for one
    question can make a model say anything, known or not; so the search is on some groups' questions and the judgement
    on the groups held out.

    Args:
        length, steps: tokens of the string, and exchanges.
        candidates: exchanges scored a step.
        top_k: tokens at each position among which they are drawn.
        items: questions that it is searched on.
        holdout: share of the forget groups that are held out.
        place: after the question, or before it; "auto": before prompts that the answer completes, else after.
        seed: draws groups, questions and exchanges.

    Source: arXiv 2307.15043, algorithm 2 without its progressive inclusion of prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    every = askable(victim.benchmark)
    groups = list(dict.fromkeys(item.group for item in every if item.set == "forget"))
    if not groups:
        raise UserError(f"benchmark {victim.benchmark.name!r} has no forget item that can be asked in this way")
    seen = drawn_groups("suffix", groups, holdout, generator)
    known = [item for item in every if item.group in seen]
    order = torch.randperm(len(known), generator=generator).tolist()[:items]
    model, tokenizer = victim.load(), victim.tokenizer()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    search = _SuffixSearch(victim, model, tokenizer, [known[i] for i in order], place, generator)
    best = search.start(length)
    losses = [search.losses([best])[0]]
    curve = [{"step": 0.0, "loss": losses[0]}]
    with victim.reporter.task("searching a suffix", steps) as task:
        for step in range(1, steps + 1):
            proposed = search.proposals(best, candidates, top_k)
            scored = search.losses(proposed) if proposed else []
            if scored and min(scored) < losses[-1]:
                losses.append(min(scored))
                best = proposed[scored.index(losses[-1])]
            curve.append({"step": float(step), "loss": losses[-1]})
            task.describe(f"loss {losses[-1]:.3f}")
            task.advance()
    text = search.text(best)
    changed = [replace(item, row=attached(item.row, text, place)) for item in every if item.group not in seen]
    did = {
        "suffix": text,
        "groups_seen": len(seen),
        "groups_held_out": len(groups) - len(seen),
        "questions": len(order),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    return Attacked(model, did, frozenset(seen), curve, asked={"the suffix": only(victim.benchmark, changed)})


def attached(row: Row, text: str, place: str) -> Row:
    """The row with the string before its question or after it."""
    before = place == "prefix" or (place == "auto" and form_of(row) == "completion")
    question = question_of(row)
    return with_question(row, f"{text} {question}" if before else f"{question} {text}")


@dataclass
class _SuffixSearch:
    """The questions that a string is searched on, and how they are scored with it."""

    victim: Victim
    model: Any
    tokenizer: Any
    items: Sequence[Item]
    place: str
    generator: torch.Generator

    def __post_init__(self) -> None:
        special = set(self.tokenizer.all_special_ids)
        size = self.model.get_input_embeddings().weight.shape[0]
        self.allowed = torch.zeros(size, dtype=torch.bool)
        for token in range(min(size, len(self.tokenizer))):
            text = self.tokenizer.decode([token])
            # Part of a character (it decodes to the replacement sign) can't be typed.
            whole = text.isprintable() and bool(text.strip()) and "\ufffd" not in text
            self.allowed[token] = whole and token not in special

    def start(self, length: int) -> list[int]:
        """Tokens drawn until every prompt reads their string as it was written."""
        pool = self.allowed.nonzero()[:, 0]
        for _ in range(200):
            picked = pool[torch.randint(len(pool), (length,), generator=self.generator)].tolist()
            # Reading it once settles how its tokens join.
            tokens = self._tokens(self.text(picked))
            if tokens and self._prompts(tokens):
                return tokens
        raise UserError("suffix: no string could be drawn that this tokenizer reads as it was written")

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _tokens(self, text: str) -> list[int]:
        return encode_target(self.tokenizer, " " + text)

    def _prompts(self, tokens: Sequence[int]) -> list[tuple[list[int], int, list[int]]] | None:
        """For each item its prompt with the string, the index at which the string begins, and the answer's tokens;
        None where a prompt does not have the string's tokens as they are."""
        text = self.text(tokens)
        prompts = []
        for item in self.items:
            changed = replace(item, row=attached(item.row, text, self.place))
            # The benchmark's own prompt and, first of its continuations, the right answer.
            query = work_of(self.victim, only(self.victim.benchmark, [changed]), self.model, self.tokenizer).queries[0]
            prompt = list(query.prefix)
            starts = range(len(prompt) - len(tokens), -1, -1)
            start = next((i for i in starts if prompt[i : i + len(tokens)] == list(tokens)), None)
            if start is None:
                return None
            prompts.append((prompt, start, list(query.continuations[0])))
        return prompts

    def losses(self, strings: Sequence[Sequence[int]]) -> list[float]:
        """The mean over items of the answer's mean negative log-probability, for each string."""
        queries = []
        for tokens in strings:
            prompts = self._prompts(tokens)
            assert prompts is not None  # strings are checked when they are made
            queries += [Query(prompt, [target]) for prompt, _, target in prompts]
        scored = [-float(logps[0].double().mean()) for logps in continuation_logps(self.model, queries)]
        width = len(self.items)
        return [sum(scored[i : i + width]) / width for i in range(0, len(scored), width)]

    def proposals(self, tokens: Sequence[int], count: int, top_k: int) -> list[list[int]]:
        """Strings with one token exchanged, each readable in every prompt; fewer than asked for where most are not."""
        gradient = self._gradient(tokens)
        gradient[:, ~self.allowed.to(gradient.device)] = float("inf")
        favoured = (-gradient).topk(min(top_k, int(self.allowed.sum())), dim=1).indices.cpu()
        made: list[list[int]] = []
        for _ in range(4 * count):
            if len(made) == count:
                break
            position = int(torch.randint(len(tokens), (1,), generator=self.generator))
            pick = int(torch.randint(favoured.shape[1], (1,), generator=self.generator))
            string = [*tokens]
            string[position] = int(favoured[position, pick])
            if string == list(tokens) or string in made:
                continue
            if self._tokens(self.text(string)) == string and self._prompts(string) is not None:
                made.append(string)
        return made

    def _gradient(self, tokens: Sequence[int]) -> Tensor:
        """Of the mean loss with respect to the string's one-hot rows, shape (length, vocabulary)."""
        words = self.model.get_input_embeddings()
        table = words.weight
        # Some architectures scale what they look up.
        scale = getattr(words, "embed_scale", 1.0)
        one_hot = torch.zeros((len(tokens), table.shape[0]), dtype=table.dtype, device=table.device)
        one_hot[torch.arange(len(tokens)), torch.tensor(list(tokens), device=table.device)] = 1.0
        one_hot.requires_grad_(True)
        prompts = self._prompts(tokens)
        assert prompts is not None
        for prompt, start, target in prompts:
            ids = torch.tensor([*prompt, *target], device=table.device)
            embedded = words(ids)
            embedded = torch.cat([embedded[:start], one_hot @ table * scale, embedded[start + len(tokens) :]])
            logits = self.model(inputs_embeds=embedded[None], use_cache=False).logits[0]
            rows = logits[len(prompt) - 1 : len(ids) - 1].float()
            loss = torch.nn.functional.cross_entropy(rows, ids[len(prompt) :]) / len(prompts)
            loss.backward()
        gradient = one_hot.grad
        assert gradient is not None
        return gradient.float()
