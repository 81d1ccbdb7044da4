"""The schema of `analysis-<kind>.json`, its reading and writing: a file for each kind, an entry for each settings.
Reading them needs no torch: reports are made from these files alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from letgo.core.errors import not_writable
from letgo.core.files import write_text
from letgo.runs.documents import read_document
from letgo.runs.results import Metric, Metrics, Strict

SCHEMA = 1
KINDS = ("connectivity", "landscape", "sharpness", "certificate", "depth", "spectrum")


class MeanEstimate(Strict):
    """A mean over `n` independent draws with its standard error s/√n (None over one draw)."""

    value: float
    standard_error: float | None
    n: int = Field(ge=1)


class AnalysisEntry(Strict):
    """What every analysis carries.

    `settings` are all that its figures depend on, beside the models themselves; an entry with the same subject and
    settings takes the older one's place. `rows` are the rows of each set that losses are over.
    """

    subject: str
    """The name of the run or model; of connectivity, all names, joined."""
    settings: dict[str, Any]
    parameters: int
    """The number d of weights."""
    rows: dict[str, int] = Field(default_factory=dict)
    created: str
    letgo: str
    versions: dict[str, str]
    git: str | None
    notes: list[str] = Field(default_factory=list)
    seconds: float = 0.0


class Barrier(Strict):
    """How far a quantity leaves the straight line between its values at the two ends.

    rise = max_a [ v(θ(a)) − ((1−a) v(θ_A) + a v(θ_B)) ], fall = max_a of the negative; both at least 0, for the ends
    are on the line. The rise of a loss is its barrier.
    """

    rise: float
    rise_at: float
    fall: float
    fall_at: float


class PathPoint(Strict):
    alpha: float
    values: Metrics


class LinearPath(Strict):
    """θ(a) = (1−a) θ_A + a θ_B between two models; `distance` is ‖θ_B − θ_A‖."""

    first: str
    second: str
    distance: float
    relative_distance: float
    """The distance over ‖θ_A‖."""
    points: list[PathPoint]
    barriers: dict[str, Barrier]
    lost: list[float] = Field(default_factory=list)
    """Where on the path the model gave no finite values."""


class Connectivity(AnalysisEntry):
    kind: Literal["connectivity"] = "connectivity"
    models: list[str]
    paths: list[LinearPath]


class LandscapeAxis(Strict):
    """One direction of a landscape; θ(a) = θ + a · direction."""

    name: str
    toward: Literal["random", "attack", "model"]
    norm: float
    """‖direction‖: what one unit of the axis is in weight space."""
    coordinates: list[float]


class Mark(Strict):
    """A model that lies in the picture."""

    name: str
    at: list[float]


class GridPoint(Strict):
    at: list[float]
    losses: dict[str, float | None]
    """None where the loss was not finite."""


class Landscape(AnalysisEntry):
    kind: Literal["landscape"] = "landscape"
    axes: list[LandscapeAxis]
    cosine: float | None = None
    """Of the angle between the two directions of a plane."""
    points: list[GridPoint]
    """Row by row: the last axis runs fastest."""
    marks: list[Mark] = Field(default_factory=list)


class Radius(Strict):
    """Sharpness within one radius: ρ = ‖ε‖ for the worst case, (E‖ε‖²)^½ for the average."""

    radius: float
    relative: float
    """ρ / ‖θ‖."""
    rise: dict[str, float]
    """By how much the worst ε of the search raises each loss; `fall`, by how much the best one lowers it."""
    fall: dict[str, float]
    average: dict[str, MeanEstimate]


class Sharpness(AnalysisEntry):
    kind: Literal["sharpness"] = "sharpness"
    norm: float
    """‖θ‖."""
    base: dict[str, float]
    radii: list[Radius]
    trace: dict[str, MeanEstimate] = Field(default_factory=dict)


class Displacement(Strict):
    """How far an attack, or unlearning itself, moved the weights: in the certificate's own metric."""

    name: str
    what: Literal["unlearning", "attack"]
    value: float | None
    note: str = ""
    """Where the value is from, or why there is none."""


class Bound(Strict):
    """k of n draws did not reveal; p_lower ≤ P(not reveal) with confidence 1 − alpha; R = σ Φ⁻¹(p_lower), 0 if that
    is not above 1/2."""

    revealed: int
    draws: int
    alpha: float
    p_lower: float
    radius: float


class QuestionBound(Strict):
    id: str
    question: str
    plain: bool
    """Whether the model without noise reveals it."""
    bound: Bound


class Reach(Strict):
    """A displacement against a certificate: whether it is inside the radius, and how likely the smoothed model at most
    reveals after any change of that size."""

    name: str
    displacement: float
    inside: bool
    reveals_at_most: float


class Smoothed(Strict):
    """What holds under one σ."""

    sigma: float
    noise_norm: float
    """σ √d, the size of the noise as a whole."""
    together: Bound
    questions: list[QuestionBound]
    reach: list[Reach]
    utility: Metrics
    """Of the noisy models, over the draws' samples together."""
    utility_draws: int
    broken: int
    """Draws in which the model gave no finite scores; they count as not revealing."""
    collapsed: list[str] = Field(default_factory=list)
    """Why the noisy models are broken rather than forgetful."""


class Certificate(AnalysisEntry):
    kind: Literal["certificate"] = "certificate"
    criterion: str
    """What "reveals" means of one question (or of the whole set)."""
    event: str
    """What "reveals" means of all questions together."""
    asked: int
    plain_revealed: int
    """Questions that the model without noise reveals."""
    alpha: float
    relative: bool
    plain_utility: Metrics
    smoothed: list[Smoothed]
    displacements: list[Displacement]
    certified: list[str]
    """What is certified, in sentences; and what is not."""
    not_certified: list[str]


class DepthLayer(Strict):
    """What the original loses of the answers, in nats a token, when a block's output is another model's; means over
    rows."""

    layer: int
    retrained: float
    unlearned: float
    counted: int
    """Rows for which the layer counts."""


class Depth(AnalysisEntry):
    kind: Literal["depth"] = "depth"
    score: Metric
    """UDS: 1 is erased as in the retrained model, 0 held as in the original."""
    left_out: int
    """Rows for which no layer counts."""
    layers: list[DepthLayer]
    broken: list[str] = Field(default_factory=list)
    """Why the unlearned model is broken: then a high score says nothing."""


class MatrixSpectrum(Strict):
    """The change Δ of one weight matrix; None for what a change of zeros, or a matrix of zeros, has not."""

    name: str
    norm: float
    """‖Δ‖_F."""
    relative: float | None
    """‖Δ‖_F over the matrix's own norm before."""
    stable_rank: float | None
    """‖Δ‖_F² / σ_1²."""
    energy: float | None
    """Σ σ_i² of the top components over ‖Δ‖_F²."""


class Change(Strict):
    """How unlearning, or an attack, changed the weights."""

    name: str
    what: Literal["unlearning", "attack"]
    norm: float
    relative: float | None
    """The norm over ‖θ‖ before."""
    matrices: list[MatrixSpectrum]
    undone: float | None = None
    """Of an attack: the share of unlearning's change that it takes back."""
    kept: float | None = None
    """Of an attack: the share of the forgetting that it leaves, as recorded."""


class Spectrum(AnalysisEntry):
    kind: Literal["spectrum"] = "spectrum"
    top: int
    """Components that the energy is over."""
    changes: list[Change]


class AnalysisFile(Strict):
    """A file of analyses of one kind, schema 1."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: str
    entries: list[
        Annotated[Connectivity | Landscape | Sharpness | Certificate | Depth | Spectrum, Field(discriminator="kind")]
    ]


def _file(directory: Path, kind: str) -> Path:
    return directory / f"analysis-{kind}.json"


def write_analysis(directory: Path, entry: Any) -> Path:
    """Add an analysis to the file of its kind, in the place of one with the same subject and settings; returns the
    file's path."""
    path = _file(directory, entry.kind)
    kept = [old for old in _read(path) if (old.subject, old.settings) != (entry.subject, entry.settings)]
    document = AnalysisFile(kind=entry.kind, entries=[*kept, entry]).model_dump(mode="json", by_alias=True)
    try:
        write_text(path, json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise not_writable(path, error) from error
    return path


def read_analyses(directory: Path, kinds: Sequence[str] = KINDS) -> list[Any]:
    """All analyses in a directory, kind by kind, in the order in which they were made."""
    return [entry for kind in kinds for entry in _read(_file(directory, kind))]


def _read(path: Path) -> list[Any]:
    return read_document(path, AnalysisFile, SCHEMA).entries if os.path.lexists(path) else []


def exact_percent(share: float) -> str:
    """A share of one as it was asked for (99.9 %), not rounded to a whole per cent as measured shares are."""
    return f"{share * 100:.6g} %"
