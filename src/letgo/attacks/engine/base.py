"""What an attack is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from letgo.benchmarks.engine.base import Benchmark, Sample
from letgo.core.errors import LetgoError, UserError
from letgo.core.progress import Quiet, Reporter
from letgo.data.encode import Template
from letgo.metrics.judgement import Placed
from letgo.metrics.records import Headline
from letgo.runs.results import Metrics, Share
from letgo.scoring.server.served import Served, open_model, open_tokenizer

Probe = Callable[[Any, frozenset[str]], dict[str, float]]
"""A cheap look at a model during an attack: from it and the groups that the attacker trains on to a few numbers."""
Role = Literal["unlearned", "original", "retrained"]


@dataclass(frozen=True)
class Victim:
    """A saved model under attack. Every attack loads it again from its directory, as it was saved; in a chain, each
    link the model that the one before it left.

    Attributes:
        directory: or the model behind a server.
        original: the model that the forgetting started from: a directory, a hub id or a built-in name.
        run: the run directory of the model attacked, also of the two that it is compared with; None for a bare model.
        unlearned: the model attacked, also of the two that it is compared with.
        role: the saved model itself, or one of the two that it is compared with, which are attacked alike.
        limit: at most so many items of each set are scored.
        recorded: the samples of the run's stages ("before", "after"), scored without an attack.
        earlier: in a chain of attacks, what gives the model that the links before this one leave of a saved one.
        later: whether a link of a chain follows this one.
    """

    directory: Path | str | Served
    benchmark: Benchmark
    template: Template = "auto"
    dtype: str = "float32"
    original: str | Served | None = None
    run: Path | None = None
    unlearned: Path | str | Served | None = None
    role: Role = "unlearned"
    limit: int | None = None
    recorded: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    probe: Probe | None = None
    reporter: Reporter = field(default_factory=Quiet)
    earlier: Callable[[Victim], Any] | None = None
    later: bool = False

    @property
    def is_reference(self) -> bool:
        """Whether it is attacked only to be compared with: nobody asks how far its weights moved."""
        return self.role != "unlearned"

    def load(self) -> Any:
        """The model as it was saved; in a chain as the links before this one left it."""
        return open_model(self.directory, dtype=self.dtype) if self.earlier is None else self.earlier(self)

    def reference(self, role: Role, directory: str | Served) -> Victim:
        """Another model that is attacked alike, to compare with."""
        return replace(self, directory=directory, role=role)

    def check_first(self, why: str) -> None:
        """Raise a `UserError` where other links of a chain come before this attack."""
        if self.earlier is not None:
            raise UserError(f"{why}: in a chain it can only stand first")

    def check_last(self, why: str) -> None:
        """Raise a `UserError` where other links of a chain follow this attack."""
        if self.later:
            raise UserError(f"{why}: in a chain it can only stand last")

    def tokenizer(self) -> Any:
        return open_tokenizer(self.directory)

    def run_directory(self) -> Path:
        """The run's directory; a `UserError` where a bare model is attacked."""
        if self.run is None:
            raise UserError("this attack is of a run, which `letgo unlearn` made; here a bare model is attacked")
        return self.run

    def attacked_original(self) -> Victim:
        """The original model, to be attacked alike; a `UserError` where it is not known."""
        if not self.original:
            raise UserError("the original model is not known; name it with --original MODEL")
        return self.reference("original", self.original)

    def load_original(self) -> Any:
        """The original model as it is, whatever the links of a chain; a `UserError` where it can't be loaded."""
        original = self.attacked_original().directory
        try:
            return open_model(original, dtype=self.dtype)
        except LetgoError as error:
            raise UserError(f"the original model can't be loaded: {error}") from error


@dataclass(frozen=True)
class Judged:
    """One seed's outcome.

    Attributes:
        metrics: after the attack; the forget set's over the rows judged, those trained on as `seen_*`.
        baseline: "before" and "after" unlearning over the same rows.
        part: whether a part of the rows is judged (groups held out, items that could be asked).
        kept: K, 0…1, the smallest over the headlines; None where the attacked original no longer knows.
        placed: the scores that K is made of; `shares` what they say. An attack that judges itself has only shares.
        left: the share of the forgetting left, held to the untouched original, for TOFU's scores R and Q.
        revealed: subjects that the attack reveals.
        reasons: why the attack broke the model; empty where it did not.
        loss: of utility, by the attack.
        samples: all that were scored.
        seen: groups that the attacker trained on, of those scored; `everything_seen` if there are no others.
        ways: of an attack by prompts, each way of asking and what it left.
        curve: the attack's course, with K at each look.
        gain: R of this seed, against the retrained model under the same attack; None where it was not attacked.
    """

    metrics: Metrics
    baseline: dict[str, Metrics]
    part: bool
    kept: float | None
    placed: Sequence[Placed] = ()
    shares: Sequence[Share] = ()
    left: float = 0.0
    revealed: Sequence[str] = ()
    reasons: Sequence[str] = ()
    loss: float | None = 0.0
    samples: Sequence[Sample] = ()
    seen: frozenset[str] = frozenset()
    everything_seen: bool = False
    ways: Sequence[dict[str, Any]] = ()
    curve: Sequence[Mapping[str, float]] = ()
    gain: float | None = None


@dataclass(frozen=True)
class Attacked:
    """What an attack leaves: another model, or the same model asked in other ways, or scores of its own.

    Attributes:
        model: in memory.
        did: what the attack did, for the record.
        seen: groups of the forget set, and of the controls, that the attacker trained on; empty for an attack without
            data. Where some groups were held out, the attack is judged on those.
        curve: rows of numbers over the attack's course; a look has the headline metrics.
        layers: a row of numbers for every layer whose weights it changed.
        links: of a chain, what each link did.
        asked: for an attack by prompts, its ways of asking: by name, the benchmark with its questions put differently;
            the judge takes the one that brings most back.
        scored: for an attack that scores by itself (sampling): its samples; `headlines` are then its own.
        measured: for an attack that compares all models by itself (membership inference): its judgement.
        tokenizer: what asks the model, where the attack has given it new words.
    """

    model: Any
    did: Mapping[str, Any]
    seen: frozenset[str] = frozenset()
    curve: Sequence[Mapping[str, float]] = ()
    layers: Sequence[Mapping[str, Any]] = ()
    links: Sequence[Mapping[str, Any]] = ()
    asked: Mapping[str, Benchmark] = field(default_factory=dict)
    scored: Sequence[Sample] = ()
    headlines: Sequence[Headline] = ()
    measured: Judged | None = None
    tokenizer: Any = None


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
