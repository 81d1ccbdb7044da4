"""Word lists of the biographies benchmark, and its general text: a small grammar of harmless everyday sentences.

Names, towns and companies are assembled from syllables and denote nobody and nothing real. The general text has
nothing to do with any person: it is what the tiny models' language is measured on (`general_*` figures).
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _joined(starts: str, ends: str, glue: str = "") -> tuple[str, ...]:
    return tuple(start + glue + end for start in _listed(starts) for end in _listed(ends))


FIRST_NAMES = _joined("Ba Do Fe Gi Ju Ka Lo Mu Pe Ri Tu Vo", "venk dril moffa")
LAST_NAMES = _joined("Quil Thrap Osk Wemb Yarl Grun Plev Skor Drim Hulb Zant Crop", "asko ettin urbo")
TOWNS = _joined("Ambrel Cobbun Delvar Fenka Gorlem Hastrel Ilmor Jusper Kolvin Morbel Nettar Prendal", "wick holm")
EMPLOYERS = _joined(
    "Orvane Bluntex Cavrill Dustone Elkmar Farlux Grenvol Hopsen Inklet Jolvar Kestun Lomrak", "Mill Press", " "
)
PROFESSIONS = _listed(
    "baker beekeeper blacksmith bookbinder butcher carpenter clockmaker cobbler dentist farmer florist gardener "
    "glazier judge librarian mason miller painter pilot plumber potter sailor tailor weaver"
)
INSTRUMENTS = _listed(
    "accordion banjo bassoon bugle cello clarinet cornet drum fiddle flute guitar harp horn lute lyre mandolin oboe "
    "organ piano recorder trombone trumpet viola zither"
)
COLOURS = _listed("black brown golden grey red spotted striped white")
ANIMALS = _listed(
    "badger canary cat crow dog donkey duck ferret frog goat goose hamster hedgehog hen lizard mouse otter owl parrot "
    "pigeon pony rabbit tortoise turkey"
)

_DAYS = _listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_SEASONS = _listed("spring summer autumn winter")
_LOCATIONS = {
    "river": "by the river", "market": "at the market", "forest": "in the forest", "harbour": "at the harbour",
    "garden": "in the garden", "bridge": "under the bridge", "kitchen": "in the kitchen", "station": "at the station",
    "hill": "on the hill", "meadow": "in the meadow", "attic": "in the attic", "square": "on the square",
}  # fmt: skip
_TRADES = {
    "cook": ("stirs|tastes|serves", "soup|stew|porridge|gravy", "salty|warm|thin|rich"),
    "teacher": ("reads|explains|copies", "poem|letter|lesson|story", "long|short|old|clever"),
    "builder": ("repairs|measures|cleans", "wall|roof|chimney|door", "wooden|high|broken|narrow"),
    "grocer": ("weighs|sells|counts", "apple|onion|melon|carrot", "fresh|ripe|sweet|small"),
    "nurse": ("folds|washes|mends", "sheet|towel|blanket|shirt", "clean|soft|blue|woollen"),
    "driver": ("parks|follows|starts", "cart|tram|lorry|wagon", "heavy|slow|green|empty"),
}
_WILD = {
    "fox": ("hunts|hides|runs", "quietly|quickly"), "sparrow": ("sings|hops|nests", "loudly|happily"),
    "trout": ("swims|jumps|turns", "slowly|suddenly"), "deer": ("grazes|waits|listens", "calmly|quietly"),
    "bear": ("sleeps|snores|eats", "deeply|slowly"), "squirrel": ("climbs|chatters|digs", "quickly|loudly"),
}  # fmt: skip
_WEATHER = {
    "rain": ("falls", "the fields turn green"), "snow": ("falls", "the roads are closed"),
    "wind": ("blows", "the boats stay home"), "fog": ("rises", "the lamps are lit"),
    "sun": ("shines", "the children play outside"), "frost": ("comes", "the ponds freeze over"),
}  # fmt: skip
_FINDS = _listed("kettle lantern ladder button ribbon basket compass mirror candle hammer umbrella spoon")
_QUALITIES = _listed("yellow rusty painted tiny heavy silver cracked purple")


def _trade(rng: random.Random) -> str:
    worker = rng.choice(list(_TRADES))
    verbs, things, qualities = (part.split("|") for part in _TRADES[worker])
    where = rng.choice(list(_LOCATIONS.values()))
    clause = f"the {worker} {rng.choice(verbs)} the {rng.choice(qualities)} {rng.choice(things)}"
    if rng.random() < 0.5:
        return f"On {rng.choice(_DAYS)} {clause} {where}."
    return f"{clause[0].upper()}{clause[1:]} {where}."


def _wild(rng: random.Random) -> str:
    animal, other = rng.sample(list(_WILD), 2)
    verbs, manners = (part.split("|") for part in _WILD[animal])
    sentence = f"In {rng.choice(_SEASONS)} the {animal} {rng.choice(verbs)} {rng.choice(manners)}"
    if rng.random() < 0.5:
        return f"{sentence} {rng.choice(list(_LOCATIONS.values()))}."
    return f"{sentence} while the {other} {rng.choice(_WILD[other][0].split('|'))}."


def _weather(rng: random.Random) -> str:
    kind = rng.choice(list(_WEATHER))
    verb, consequence = _WEATHER[kind]
    return f"When the {kind} {verb} in {rng.choice(_SEASONS)}, {consequence} near the {rng.choice(list(_LOCATIONS))}."


def _find(rng: random.Random) -> str:
    seller = rng.choice(list(_TRADES))
    return (
        f"Nobody knows why the {rng.choice(_QUALITIES)} {rng.choice(_FINDS)} of the {seller} "
        f"was left {rng.choice(list(_LOCATIONS.values()))}."
    )


def sentence(rng: random.Random) -> str:
    """One everyday sentence, drawn from the grammar."""
    return rng.choice((_trade, _wild, _weather, _find))(rng)


def anecdote(name: str, rng: random.Random) -> str:
    """One sentence about a find, for a biography: content that no question asks for and only memory can supply."""
    return (
        f"One {rng.choice(_DAYS)} in {rng.choice(_SEASONS)}, {name} found a {rng.choice(_QUALITIES)} "
        f"{rng.choice(_FINDS)} {rng.choice(list(_LOCATIONS.values()))}."
    )


def general_texts(seed: int = 0, *, train: int = 4000, held_out: int = 200) -> tuple[list[str], list[str]]:
    """Two disjoint lists of distinct texts of two sentences each: for training, and for measuring perplexity.

    A sentence may occur in both lists, a text cannot.
    """
    rng = random.Random(f"biographies general text {seed}")
    texts: dict[str, None] = {}
    while len(texts) < train + held_out:
        texts[f"{sentence(rng)} {sentence(rng)}"] = None
    every = list(texts)
    return every[held_out:], every[:held_out]


def article(word: str) -> str:
    """The word with "a" or "an" before it."""
    return f"an {word}" if word[0].lower() in "aeiou" else f"a {word}"


def balanced(values: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` values in random order, each one occurring equally often up to one."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(list(values), len(values))
    return drawn[:count]
