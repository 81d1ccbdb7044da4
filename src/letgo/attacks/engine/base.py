"""What an attack is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from letgo.benchmarks.engine.base import Benchmark, Sample
from letgo.core.errors import LetgoError, UserError
from letgo.core.progress import Quiet, Reporter
from letgo.data.encode import Template
from letgo.models.load import load_model, load_tokenizer
from letgo.runs.results import Metrics

RETRAINED = "retrained"
"""The reference that never saw the forget set."""
Probe = Callable[[Any, frozenset[str]], dict[str, float]]
"""A cheap look at a model during an attack: from it and the groups that the attacker trains on to a few numbers."""


@dataclass(frozen=True)
class Victim:
    """A saved model under attack. Every attack loads it anew from its directory: what is attacked is what was saved.

    Attributes:
        original: the model that the forgetting started from: a directory, a hub id or a built-in name.
        limit: at most so many items of each set are scored.
        recorded: the samples of the run's stages ("before", "after"), scored without an attack.
    """

    directory: Path | str
    benchmark: Benchmark
    template: Template = "auto"
    dtype: str = "float32"
    original: str | None = None
    limit: int | None = None
    recorded: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    probe: Probe | None = None
    reporter: Reporter = field(default_factory=Quiet)

    def load(self) -> Any:
        return load_model(self.directory, dtype=self.dtype)

    def tokenizer(self) -> Any:
        return load_tokenizer(self.directory)

    def load_original(self) -> Any:
        """The original model; a `UserError` where it is not to be had."""
        if not self.original:
            raise UserError("the original model is not known; name it with --original MODEL")
        try:
            return load_model(self.original, dtype=self.dtype)
        except LetgoError as error:
            raise UserError(f"the original model is not to be had: {error}") from error


@dataclass(frozen=True)
class Asked:
    """A way of asking: its name, and the benchmark with its questions put differently."""

    name: str
    benchmark: Benchmark


@dataclass(frozen=True)
class Measured:
    """The result of an attack that scores by itself (sampling many answers, membership inference).

    `kept` is the share of the forgetting that the attack leaves, computed from `metrics` and `baseline`.
    """

    kept: float
    kept_ci95: tuple[float, float]
    metrics: Metrics
    baseline: Mapping[str, Metrics]
    samples: Sequence[Sample] = ()


@dataclass(frozen=True)
class Attacked:
    """What an attack leaves: another model, or the same model asked in other ways, or scores of its own.

    Attributes:
        model: in memory.
        did: what the attack did, for the record.
        seen: groups of the forget set that the attacker trained on; empty for an attack without data. Where some
            groups were held out, the attack is judged on those.
        curve: rows of numbers over the attack's course.
        layers: a row of numbers for every layer whose weights it changed.
        asked: for an attack by prompts, the ways of asking; the judge takes the one that brings most back.
        measured: for an attack that scores by itself.
    """

    model: Any
    did: Mapping[str, Any]
    seen: frozenset[str] = frozenset()
    curve: Sequence[Mapping[str, float]] = ()
    layers: Sequence[Mapping[str, Any]] = ()
    asked: Sequence[Asked] = ()
    measured: Measured | None = None


def linear_layers(model: torch.nn.Module) -> dict[str, Any]:
    """The layers that quantizers quantize: all linear ones (GPT-2's Conv1D too) but the output layer."""
    from transformers.pytorch_utils import Conv1D

    find_output: Any = getattr(model, "get_output_embeddings", None)
    output = find_output() if find_output is not None else None
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    }
    if not layers:
        raise UserError("the model has no linear layer to attack")
    return layers


def output_first(layer: Any) -> torch.Tensor:
    """A linear layer's weight as (outputs, inputs), which is how GPT-2's Conv1D does not keep it."""
    from transformers.pytorch_utils import Conv1D

    weight: torch.Tensor = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight
