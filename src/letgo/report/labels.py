"""Attacks' labels made short enough for the head of a column."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from letgo.core.catalog import parse_spec


def short_labels(labels: Sequence[str]) -> dict[str, str]:
    """A name for each label: the attack's own, with those settings alone by which attacks of one name differ."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for label in dict.fromkeys(labels):
        by_name[label.partition(":")[0]].append(label)
    short = {}
    for name, alike in by_name.items():
        settings = {label: {key: str(value) for key, value in parse_spec(label)[1].items()} for label in alike}
        keys = dict.fromkeys(key for known in settings.values() for key in known)
        telling = [key for key in keys if len({known.get(key) for known in settings.values()}) > 1]
        for label in alike:
            told = ", ".join(f"{key}={settings[label][key]}" for key in telling if key in settings[label])
            short[label] = f"{name} {told}".strip()
    if len(set(short.values())) < len(short):
        return {label: label for label in short}
    return short
