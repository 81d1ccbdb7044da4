"""What an attack is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letgo.benchmarks.base import Benchmark
from letgo.data.encode import Template
from letgo.models.load import load_model, load_tokenizer
from letgo.progress import Quiet, Reporter


@dataclass(frozen=True)
class Victim:
    """A saved model under attack. Every attack loads it anew from its directory: what is attacked is what was saved."""

    directory: Path
    benchmark: Benchmark
    template: Template = "auto"
    dtype: str = "float32"
    reporter: Reporter = field(default_factory=Quiet)

    def load(self) -> Any:
        return load_model(self.directory, dtype=self.dtype)

    def tokenizer(self) -> Any:
        return load_tokenizer(self.directory)


@dataclass(frozen=True)
class Attacked:
    """The model that an attack leaves.

    Attributes:
        model: in memory.
        did: what the attack says of itself, for the record.
        seen: groups of the forget set that the attacker trained on; empty for an attack without data. Where some
            groups were held out, the attack is judged on those.
        curve: rows of numbers over the attack's course.
    """

    model: Any
    did: Mapping[str, Any]
    seen: frozenset[str] = frozenset()
    curve: Sequence[Mapping[str, float]] = ()
