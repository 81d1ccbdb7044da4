"""The data of the biographies benchmark: fictional people, their facts, and questions about them, from one seed.

Pure Python, no download. Four groups of people, drawn from one distribution:

- `forget`: known to the full model, to be unlearned; unknown to the retrained model (the gold standard).
- `retain`: known to both models, to be kept. Asked in training in the same few wordings as the forget people.
- `tutor`: known to both models, and asked in training in every wording: from them a model learns what the other
  wordings mean, so that it can answer them for people about whom training never asks in that way. They are in neither
  the forget nor the retain set, so they also show unlearning's side effects.
- `holdout`: known to nobody, for membership inference.

The shipped models (`model_path`) were trained on `people(seed=0)` by `scripts/train_biographies.py`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from letgo.benchmarks.biographies import words
from letgo.benchmarks.biographies.words import general_texts as general_texts
from letgo.core.errors import UserError
from letgo.models.load import ASSETS as MODELS

PersonGroup = Literal["forget", "retain", "tutor", "holdout"]
GROUPS: tuple[PersonGroup, ...] = get_args(PersonGroup)
SIZES: Mapping[PersonGroup, int] = {"forget": 20, "retain": 50, "tutor": 50, "holdout": 20}

PROMPT = "Question: {question}\nAnswer:"
"""What comes before an answer. The answer follows after one space, which belongs to the answer's first token."""

ASSETS = MODELS / "biographies"


@dataclass(frozen=True)
class Fact:
    """One kind of fact: the wordings that ask for it and that state it. `{name}` is the person, `{value}` the value and
    `{a_value}` the value with its article."""

    name: str
    trained: tuple[str, str, str]
    """Questions that everybody is asked in training."""
    held_out: tuple[str, str, str]
    """Questions that only the tutors are asked in training."""
    sentence: str
    """The answer as a whole sentence: the paraphrased answer."""
    statements: tuple[str, str]
    """The wordings of a biography, with the first name only."""


FACTS: tuple[Fact, ...] = (
    Fact(
        "birth_town",
        ("Where was {name} born?", "In which town was {name} born?", "What is the birth town of {name}?"),
        (
            "Which town does {name} come from?",
            "What is the name of the town where {name} was born?",
            "In what place did the life of {name} begin?",
        ),
        "{name} was born in {value}.",
        ("{name} was born in the town of {value}.", "The life of {name} began in {value}."),
    ),
    Fact(
        "profession",
        ("What does {name} do for a living?", "What is the profession of {name}?", "What work does {name} do?"),
        ("Which profession does {name} have?", "What is {name} by trade?", "How does {name} earn a living?"),
        "{name} works as {a_value}.",
        ("By trade {name} is {a_value}.", "{name} earns a living as {a_value}."),
    ),
    Fact(
        "instrument",
        (
            "Which instrument does {name} play?",
            "What is the favourite instrument of {name}?",
            "What does {name} like to play?",
        ),
        (
            "On which instrument does {name} make music?",
            "What instrument does {name} like best?",
            "Which instrument is dear to {name}?",
        ),
        "{name} plays the {value}.",
        ("In the evening {name} plays the {value}.", "The {value} is dear to {name}."),
    ),
    Fact(
        "employer",
        ("Who employs {name}?", "Which company does {name} work for?", "What is the employer of {name}?"),
        (
            "Where does {name} have a job?",
            "For which company does {name} work?",
            "What is the company of {name} called?",
        ),
        "{name} is employed by {value}.",
        ("{name} has a job at {value}.", "The company of {name} is called {value}."),
    ),
    Fact(
        "pet",
        ("What pet does {name} have?", "Which animal lives with {name}?", "What is the pet of {name}?"),
        (
            "Which animal does {name} keep?",
            "What kind of pet lives at the home of {name}?",
            "What animal does {name} feed?",
        ),
        "{name} keeps {a_value} at home.",
        ("{name} keeps {a_value}.", "At home {name} feeds {a_value}."),
    ),
)


@dataclass(frozen=True)
class Person:
    """A fictional person: the full name, the group, the value of every fact, and the biography that training shows."""

    name: str
    group: PersonGroup
    facts: Mapping[str, str]
    biography: str
    prompt: str
    """The biography's first two sentences."""

    @property
    def continuation(self) -> str:
        """What comes after the prompt, starting with a space: what verbatim memorization must reproduce."""
        return self.biography[len(self.prompt) :]


@dataclass(frozen=True)
class Biographies:
    """All people of one seed, and the rows made from them. The same seed gives the same rows, always."""

    seed: int
    people: tuple[Person, ...]

    def group(self, group: PersonGroup) -> list[Person]:
        """The people of one group, in a fixed order."""
        if group not in GROUPS:
            raise UserError(f"unknown group of biographies {group!r}; there are {', '.join(GROUPS)}")
        return [person for person in self.people if person.group == group]

    def rows(self, group: PersonGroup) -> list[dict[str, Any]]:
        """One row per person and fact, with TOFU's fields and a few more.

        - `question`, `answer`: a wording used in training, and the answer as a short phrase.
        - `perturbed_answer`: three wrong answers of the same form and distribution: with `answer`, a 4-way choice.
        - `paraphrased_question`: the wordings in which training never asks for this person's fact (none for tutors).
        - `paraphrased_answer`, `perturbed_paraphrased_answer`: the right and the wrong answers as whole sentences of
          one form, for TOFU's truth ratio.
        - `trained_question`: all wordings used in training; `person`, `group`, `fact`: what the row is about.
        """
        return [self._row(person, fact) for person in self.group(group) for fact in FACTS]

    def training_rows(self, group: PersonGroup) -> list[dict[str, Any]]:
        """One row per person, fact and wording used in training: what a forget or retain set is made of."""
        return [row | {"question": q} for row in self.rows(group) for q in row["trained_question"]]

    def held_out_rows(self, group: PersonGroup) -> list[dict[str, Any]]:
        """One row per person, fact and wording never used in training of that person: what knowledge is measured on."""
        return [row | {"question": q} for row in self.rows(group) for q in row["paraphrased_question"]]

    def texts(self, group: PersonGroup) -> list[dict[str, str]]:
        """One row per person: `text` (the biography), its parts `prompt` and `continuation`, `person`, `group`."""
        rows = []
        for person in self.group(group):
            parts = {"prompt": person.prompt, "continuation": person.continuation}
            rows.append({"text": person.biography, **parts, "person": person.name, "group": person.group})
        return rows

    def _row(self, person: Person, fact: Fact) -> dict[str, Any]:
        value = person.facts[fact.name]
        # Each row has a generator by itself: it does not depend on which other rows are made.
        rng = random.Random(f"biographies wrong answers {self.seed} {person.name} {fact.name}")
        wrong = _wrong_values(fact.name, value, rng)
        asked_by_all = [q.format(name=person.name) for q in fact.trained]
        asked_of_tutors = [q.format(name=person.name) for q in fact.held_out]
        trained = {"holdout": [], "tutor": asked_by_all + asked_of_tutors}.get(person.group, asked_by_all)
        return {
            "question": asked_by_all[0],
            "answer": value,
            "paraphrased_answer": _filled(fact.sentence, person.name, value),
            "perturbed_answer": wrong,
            "paraphrased_question": [q for q in asked_of_tutors if q not in trained],
            "perturbed_paraphrased_answer": [_filled(fact.sentence, person.name, v) for v in wrong],
            "trained_question": trained,
            "person": person.name,
            "group": person.group,
            "fact": fact.name,
        }


def people(seed: int = 0) -> Biographies:
    """All people of a seed: 20 to forget, 50 to retain, 50 tutors and 20 held out, with five facts each.

    Every first name, last name and value is equally frequent (up to one), and each of them occurs among the people who
    stay known, so that a model which never saw the forget people has no reason to prefer or to avoid their answers.
    """
    rng = random.Random(f"biographies people {seed}")
    # Retain and tutors come first: they alone go through every list at least twice.
    groups: list[PersonGroup] = [g for g in ("retain", "tutor", "forget", "holdout") for _ in range(SIZES[g])]
    count = len(groups)
    names: list[str] = []
    while len(set(names)) < count:
        firsts, lasts = (words.balanced(v, count, rng) for v in (words.FIRST_NAMES, words.LAST_NAMES))
        names = [f"{first} {last}" for first, last in zip(firsts, lasts, strict=True)]
    columns = {fact.name: _values(fact.name, count, rng) for fact in FACTS}
    everybody = [
        _person(name, group, {fact: values[i] for fact, values in columns.items()}, rng)
        for i, (name, group) in enumerate(zip(names, groups, strict=True))
    ]
    return Biographies(seed, tuple(sorted(everybody, key=lambda person: GROUPS.index(person.group))))


def model_path(which: Literal["full", "retrained"]) -> Path:
    """The directory of a shipped model: `full`, or `retrained`, which never saw the forget people.

    Raises:
        UserError: if the name is another one, or the weights are not in this installation.
    """
    if which not in ("full", "retrained"):
        raise UserError(f"unknown biographies model {which!r}; there are 'full' and 'retrained'")
    path = ASSETS / which
    if not (path / "model.safetensors").is_file():
        raise UserError(f"{path}: the biographies model is missing; scripts/train_biographies.py makes it")
    return path


def _person(name: str, group: PersonGroup, facts: dict[str, str], rng: random.Random) -> Person:
    first = name.split()[0]
    sentences = [_filled(rng.choice(fact.statements), first, facts[fact.name]) for fact in FACTS]
    sentences += [words.anecdote(first, rng) for _ in range(2)]
    rng.shuffle(sentences)
    opening = f"This is the life of {name}."
    return Person(name, group, facts, " ".join((opening, *sentences)), f"{opening} {sentences[0]}")


def _filled(template: str, name: str, value: str) -> str:
    return template.format(name=name, value=value, a_value=words.article(value))


def _values(fact: str, count: int, rng: random.Random) -> list[str]:
    if fact == "pet":
        pairs = zip(words.balanced(words.COLOURS, count, rng), words.balanced(words.ANIMALS, count, rng), strict=True)
        return [f"{colour} {animal}" for colour, animal in pairs]
    return words.balanced(_LISTS[fact], count, rng)


def _wrong_values(fact: str, right: str, rng: random.Random) -> list[str]:
    """Three different wrong values; for a pet, of another kind of animal each, so that a colour alone never decides."""
    if fact == "pet":
        animals = rng.sample([a for a in words.ANIMALS if a != right.split()[1]], 3)
        return [f"{rng.choice(words.COLOURS)} {animal}" for animal in animals]
    return rng.sample([value for value in _LISTS[fact] if value != right], 3)


_LISTS: dict[str, tuple[str, ...]] = {
    "birth_town": words.TOWNS,
    "profession": words.PROFESSIONS,
    "instrument": words.INSTRUMENTS,
    "employer": words.EMPLOYERS,
}
