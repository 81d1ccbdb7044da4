"""Attacks done the plain way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from letgo.attacks import ATTACKS
from letgo.attacks.engine.base import Attacked, Victim


def chain_over_the_disk(
    victim: Victim, links: Sequence[tuple[str, Mapping[str, Any]]], seed: int, folder: Path
) -> Attacked:
    """A chain by hand: each link's model is saved, and the next link attacks that directory."""
    for number, (name, settings) in enumerate(links[:-1]):
        left = ATTACKS.load(name)(victim, seed=seed, **settings).model
        left.save_pretrained(folder / str(number))
        victim.tokenizer().save_pretrained(folder / str(number))
        victim = replace(victim, directory=folder / str(number))
    name, settings = links[-1]
    attacked: Attacked = ATTACKS.load(name)(victim, seed=seed, **settings)
    return attacked
