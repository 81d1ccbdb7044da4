"""Questions put differently: what prompt attacks do to the items of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, Literal

from letgo.attacks.engine.base import Victim
from letgo.benchmarks.engine.base import Benchmark, Item
from letgo.benchmarks.engine.questions import first_line
from letgo.benchmarks.engine.requests import Work
from letgo.core.errors import UserError
from letgo.data.encode import question_text, resolve_template
from letgo.data.rows import Row
from letgo.scoring.scoring import Sampling, generate

Form = Literal["question", "completion", "messages"]


def form_of(row: Row) -> Form | None:
    """How a row asks: by a question, by a prompt to be continued, by messages; None of a bare text."""
    if row.form == ("messages",):
        return "messages"
    if row.form == ("question", "answer"):
        return "question"
    return "completion" if row.context else None


def question_of(row: Row) -> str:
    """What is asked: the question, the prompt, or the user's last message."""
    return row.context if isinstance(row.context, str) else row.context[-1][1]


def with_question(row: Row, question: str) -> Row:
    """The row with another question in the same place."""
    if isinstance(row.context, str):
        return replace(row, context=question)
    return replace(row, context=(*row.context[:-1], (row.context[-1][0], question)))


def asked_otherwise(victim: Victim, change: Callable[[Item], Item | None]) -> Benchmark:
    """The benchmark with its forget items and controls asked otherwise, and nothing else: the weights are the same.
    Items for which `change` gives None are left out; a `UserError` where none remains."""
    changed = [new for item in askable(victim.benchmark) if (new := change(item)) is not None]
    if not changed:
        raise UserError(f"benchmark {victim.benchmark.name!r} has no forget item that can be asked in this way")
    return only(victim.benchmark, changed)


def askable(benchmark: Benchmark) -> list[Item]:
    """The forget items and the controls that ask something; rows that are only there for membership inference don't."""
    return [
        item
        for item in benchmark.items
        if item.set in ("forget", "control") and item.task != "membership" and form_of(item.row) is not None
    ]


def only(benchmark: Benchmark, items: Sequence[Item]) -> Benchmark:
    """The benchmark with these items alone. Another model's recorded scores are of its own questions: they go."""
    recorded: dict[str, Any] = {"reference": None} if any(f.name == "reference" for f in fields(benchmark)) else {}
    return replace(benchmark, items=items, texts=(), **recorded)


def makes_prompts(benchmark: Benchmark) -> bool:
    """Whether a benchmark makes its prompts itself, of a row's question, whatever the row's form."""
    work: Any = benchmark.work
    return work.__func__ is not Benchmark.work


def roomier(benchmark: Benchmark, times: int) -> Benchmark:
    """The benchmark with room for so many questions and answers, where it gives one so many tokens (TOFU)."""
    room = getattr(benchmark, "length", None)
    longer: dict[str, Any] = {"length": room * times} if isinstance(room, int) else {}
    return replace(benchmark, **longer)


def work_of(victim: Victim, benchmark: Benchmark, model: Any, tokenizer: Any) -> Work:
    """What a benchmark would ask a model about its items, every one answered by generation too."""
    return replace(benchmark, generated=None).work(model, tokenizer, template=victim.template)


def answers_of(
    victim: Victim,
    attack: str,
    benchmark: Benchmark,
    model: Any,
    tokenizer: Any,
    name: str,
    sampling: Sampling | None = None,
    samples: int = 1,
) -> list[list[str]]:
    """The model's answers to each item of a benchmark, each up to its first line's end, as in the plain scoring."""
    asks = work_of(victim, benchmark, model, tokenizer).asks
    if len(asks) != len(benchmark.items):
        raise UserError(f"{attack}: benchmark {benchmark.name!r} does not answer its items by generation")
    with victim.reporter.task(name, len(asks)) as task:
        drawn = generate(
            model,
            tokenizer,
            [ask.prompt for ask in asks],
            max_new_tokens=[ask.max_new_tokens for ask in asks],
            sampling=sampling,
            samples=samples,
            advance=task.advance,
        )
    return [[first_line(answer.text) for answer in answers] for answers in drawn]


def spaced(item: Item) -> Item:
    """The item with its answers led in by a space, for a prompt that ends in a word."""

    def lead(text: str) -> str:
        return text if text[:1].isspace() else " " + text

    return replace(
        item,
        row=replace(item.row, target=lead(item.row.target)),
        wrong=tuple(map(lead, item.wrong)),
        paraphrase=None if item.paraphrase is None else lead(item.paraphrase),
        wrong_paraphrases=tuple(map(lead, item.wrong_paraphrases)),
    )


class Writer:
    """Puts words before questions, among them and after them, under a tokenizer and a template."""

    def __init__(self, victim: Victim) -> None:
        self.victim, self.made = victim, makes_prompts(victim.benchmark)

    @cached_property
    def tokenizer(self) -> Any:
        return self.victim.tokenizer()

    @cached_property
    def template(self) -> str:
        asked = self.victim.benchmark.template_for(self.victim.template)
        return "plain" if self.made else resolve_template(self.tokenizer, asked)

    def in_chat(self, row: Row) -> bool:
        return not self.made and (row.form == ("messages",) or (form_of(row) == "question" and self.template == "chat"))

    def shots(self, item: Item, pairs: Iterable[Row]) -> Item:
        """Questions with their answers before the item's own, as earlier turns or as text."""
        row, pairs = item.row, list(pairs)
        if self.in_chat(row):
            turns: list[tuple[str, str]] = []
            for pair in pairs:
                turns += [("user", question_of(pair)), ("assistant", pair.target.strip())]
            return replace(item, row=replace(row, form=("messages",), context=(*turns, *_turns(row))))
        if form_of(row) == "question":
            # The template writes "Question: … Answer:" around the whole; what lies between comes from here.
            before = "".join(f"{question_of(pair)}\nAnswer: {pair.target.strip()}\n\nQuestion: " for pair in pairs)
        else:
            before = "".join(f"{question_of(pair)} {pair.target.strip()}\n\n" for pair in pairs)
        return replace(item, row=with_question(row, before + question_of(row)))

    def dialogue(self, item: Item, turns: Iterable[tuple[str, str]]) -> Item:
        """The item's question, answers to it, and after each what is then said, as turns or as text. Where {q} stands
        in what is said, the question stands."""
        row, question = item.row, question_of(item.row)
        turns = [(answer, said.replace("{q}", question)) for answer, said in turns]
        if self.in_chat(row):
            said = [turn for answer, again in turns for turn in (("assistant", answer), ("user", again))]
            return replace(item, row=replace(row, form=("messages",), context=(*_turns(row), *said)))
        between = "\nAnswer: {}\n\nQuestion: {}" if form_of(row) == "question" else " {}\n\n{}"
        return replace(item, row=with_question(row, question + "".join(between.format(*turn) for turn in turns)))

    def prefilled(self, item: Item, start: str) -> Item:
        """The answer begun for the model: the prompt goes on with `start`."""
        row = item.row
        if self.in_chat(row):
            messages = [{"role": role, "content": content} for role, content in _turns(row)]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            # The encoding puts the template's start token there again.
            text = text.removeprefix(self.tokenizer.bos_token or "") + start
        elif form_of(row) == "question":
            text = f"{question_text(str(row.context))} {start}"
        else:
            text = question_of(row) + start
        return spaced(replace(item, row=replace(row, form=("prompt", "completion"), context=text)))


def _turns(row: Row) -> tuple[tuple[str, str], ...]:
    return (("user", row.context),) if isinstance(row.context, str) else row.context
