"""ROUGE-L as the package rouge-score computes it, but without its quadratic table, and stemming each word once."""

from __future__ import annotations

import functools
import importlib.util
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class Rouge:
    """Shares of the longest common subsequence: of the answer's words (`recall`), of the generated ones (`precision`),
    and their harmonic mean (`f1`). All 0 where one of the texts has no words."""

    recall: float
    precision: float
    f1: float


def rouge_l(answer: str, generated: str, *, stem: bool) -> Rouge:
    """ROUGE-L of a generated text against the true answer; words of more than three letters stemmed (Porter) or not.

    Tokens, counts and quotients are those of rouge-score (tests/metrics/test_rouge.py).
    """
    target, prediction = _words(answer, stem), _words(generated, stem)
    if not target or not prediction:
        return Rouge(0.0, 0.0, 0.0)
    common = _common_subsequence(target, prediction)
    recall, precision = common / len(target), common / len(prediction)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return Rouge(recall, precision, f1)


@functools.cache
def _stemmer() -> Any:
    """Porter's stemmer with a memory: texts of one data set use the same words over and over."""
    porter = _module_alone("nltk.stem.porter")
    return SimpleNamespace(stem=functools.lru_cache(maxsize=1 << 16)(porter.PorterStemmer().stem))


def _module_alone(name: str) -> Any:
    """A module without its packages' `__init__`: nltk's own imports scipy and scikit-learn, which takes a second."""
    package = name.partition(".")[0]
    if package in sys.modules:
        return importlib.import_module(name)
    try:
        parts = name.split(".")
        for parent in (".".join(parts[:depth]) for depth in range(1, len(parts))):
            spec = importlib.util.find_spec(parent)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {parent!r}", name=parent)
            sys.modules[parent] = importlib.util.module_from_spec(spec)
        return importlib.import_module(name)
    finally:
        # Whoever imports the package later gets it whole.
        for loaded in [each for each in sys.modules if each == package or each.startswith(f"{package}.")]:
            del sys.modules[loaded]


@functools.lru_cache(maxsize=4096)
def _words(text: str, stem: bool) -> tuple[str, ...]:
    from rouge_score import tokenize

    return tuple(tokenize.tokenize(text, _stemmer() if stem else None))


def _common_subsequence(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as the bits of one number (Hyyrö 2004)."""
    positions: dict[str, int] = {}
    for index, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << index
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & every
    return len(first) - row.bit_count()
