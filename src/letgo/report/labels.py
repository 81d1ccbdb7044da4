"""Attacks' labels, and short forms of them for the heads of columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from letgo.core.catalog import parse_spec
from letgo.runs.results import Result


def attack_labels(results: Iterable[Result]) -> list[str]:
    """The labels of the attacks on some runs, each once, in order of meeting."""
    return list(dict.fromkeys(attack.label for result in results for attack in result.attacks))


def short_labels(labels: Sequence[str]) -> dict[str, str]:
    """A name for each label: the attack's own, with those settings alone by which attacks of one name differ."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for label in dict.fromkeys(labels):
        by_name[label.partition(":")[0]].append(label)
    short = {}
    for name, members in by_name.items():
        settings = {label: {key: str(value) for key, value in parse_spec(label)[1].items()} for label in members}
        keys = dict.fromkeys(key for known in settings.values() for key in known)
        differing = [key for key in keys if len({known.get(key) for known in settings.values()}) > 1]
        for label, known in settings.items():
            short[label] = f"{name} {', '.join(f'{key}={known[key]}' for key in differing if key in known)}".strip()
    if len(set(short.values())) < len(short):
        return {label: label for label in short}
    return short
