"""The records of forget and retain terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from letgo.core.catalog import Record


@dataclass(frozen=True, kw_only=True)
class TermRecord(Record):
    """A record of a forget or a retain term: what it needs of a batch and of the reference model."""

    parts: tuple[str, ...] = ("forget",)
    """The parts that it is called with, in this order."""
    reference: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Part -> the quantities of the reference model that it needs there (see `reference_quantities`)."""
    hidden: Literal["label", "layer"] | None = None
    """The hidden states that it is made of, if terms may share a forward pass for them."""


@dataclass(frozen=True, kw_only=True)
class OneShotRecord(Record):
    """A record of a method that changes the weights in one shot."""

    adapters: bool = True
    """Whether it can change adapters in the place of a model's own weights."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveRecord(TermRecord):
    """`target` is the forget term; `retain` the retain term that this name brings along."""

    retain: str = "none"
    retain_weight: float = 1.0
    """The retain term's weight where none is given."""
    schedule: str = "constant"
    """Its schedule where none is given."""
    alternative: Literal["refusal", "own"] | None = None
    """What the part `alternative` holds: a refusal, or the row's own field `alternative`."""
    trainable: str | None = None
    """Where the method says itself which parameters it trains: the function that gives a pattern of their names."""
    adversary: str | None = None
    """Where the forget rows' hidden states are attacked before each step: the function that gives what is added to
    them (the part's `latent`), or None."""
    components: str | None = None
    """Where the forget term's argument `components` is made of the reference quantities of all forget rows: the
    function that makes it."""
    start: str | None = None
    """Where training begins from other weights than the model's: the function that changes them, and gives a note."""
