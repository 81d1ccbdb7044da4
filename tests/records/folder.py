"""A folder of runs with every kind of record, made without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from letgo.analysis.records import (
    Barrier,
    Bound,
    Certificate,
    Change,
    Connectivity,
    Depth,
    DepthLayer,
    Displacement,
    GridPoint,
    Landscape,
    LandscapeAxis,
    LinearPath,
    Mark,
    MatrixSpectrum,
    MeanEstimate,
    PathPoint,
    QuestionBound,
    Radius,
    Reach,
    Sharpness,
    Smoothed,
    Spectrum,
    write_analysis,
)
from letgo.runs import Index
from letgo.runs.record import write_tags
from letgo.runs.sweeps import CellState, GroupState, Sweep, TrialState, write_sweep
from tests.report import runs as made

FILES = (
    "result.json",
    "samples.jsonl",
    "history.jsonl",
    "tags.json",
    "analysis-connectivity.json",
    "analysis-landscape.json",
    "analysis-sharpness.json",
    "analysis-certificate.json",
    "analysis-depth.json",
    "analysis-spectrum.json",
)
"""The records of a run."""


def write(root: Path) -> Path:
    """Runs `good` and `bad`, a sweep with the cells `one` and `two`, and the index of all four."""
    for seed, name in enumerate(("good", "bad")):
        directory = made.write_run(root / name, made.result(run_id=f"id-{name}", seed=seed))
        write_tags(directory, ("mine",))
    for entry in analyses():
        write_analysis(root / "bad", entry)
    cells = []
    for seed, name in enumerate(("one", "two")):
        made.write_run(root / "sweep" / "runs" / name, made.result(run_id=f"id-{name}", seed=seed))
        cells.append(CellState(name=name, seed=seed, status="finished", run=f"runs/{name}"))
    trials = [TrialState(changes={"learning_rate": 1e-5}, verdict="reached", distance=0.1, run="runs/one")]
    group = GroupState(
        name="npo", axes={"objective": "npo"}, optimizer="fozo", reached=True, trials=trials, cells=cells
    )
    write_sweep(root / "sweep", Sweep(source="grid.yaml", fingerprint="f", document={}, target="t", groups=[group]))
    Index(root).rebuild()
    return root


def analyses() -> list[Connectivity | Landscape | Sharpness | Certificate | Depth | Spectrum]:
    shared = {
        "subject": "bad",
        "settings": {"points": 3},
        "parameters": 100,
        "created": "2026-11-21T11:20:00+00:00",
        "letgo": "0.1.0",
        "versions": {"python": "3.11"},
        "git": None,
        "notes": ["a note"],
    }
    points = [PathPoint(alpha=a / 2, values={"forget_loss": made.metric(1.0 + a)}) for a in range(3)]
    barriers = {"forget_loss": Barrier(rise=0.1, rise_at=0.5, fall=0.0, fall_at=0.0)}
    path = LinearPath(first="a", second="b", distance=1.0, relative_distance=0.1, points=points, barriers=barriers)
    axes = [LandscapeAxis(name=n, toward="random", norm=1.0, coordinates=[-1.0, 0.0, 1.0]) for n in ("x", "y")]
    grid = [GridPoint(at=[x, y], losses={"forget": x * x + y, "retain": y}) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    radius = Radius(
        radius=0.1,
        relative=0.01,
        rise={"forget": 0.2},
        fall={"forget": 0.1},
        average={"forget": MeanEstimate(value=0.1, standard_error=0.01, n=4)},
    )
    layer = DepthLayer(layer=0, retrained=0.5, unlearned=0.2, counted=3)
    matrix = MatrixSpectrum(name="m", norm=1.0, relative=0.1, stable_rank=2.0, energy=0.9)
    names: tuple[Literal["unlearning", "attack"], ...] = ("unlearning", "attack")
    changes = [Change(name=n, what=n, norm=1.0, relative=0.1, matrices=[matrix], undone=0.5, kept=1.0) for n in names]
    bound = Bound(revealed=1, draws=20, alpha=0.01, p_lower=0.8, radius=0.3)
    smoothed = Smoothed(
        sigma=0.1,
        noise_norm=1.0,
        together=bound,
        questions=[QuestionBound(id="q", question="who?", plain=False, bound=bound)],
        reach=[Reach(name="unlearning", displacement=0.1, inside=True, reveals_at_most=0.2)],
        utility={"retain_accuracy": made.metric(0.9)},
        utility_draws=2,
        broken=0,
    )
    return [
        Connectivity(**shared, models=["a", "b"], paths=[path]),
        Landscape(**shared, axes=axes, cosine=0.1, points=grid, marks=[Mark(name="m", at=[0.0, 0.0])]),
        Sharpness(**shared, norm=10.0, base={"forget": 1.0}, radii=[radius], trace={}),
        Certificate(
            **shared,
            criterion="c",
            event="e",
            asked=1,
            plain_revealed=0,
            alpha=0.01,
            relative=False,
            plain_utility={"retain_accuracy": made.metric(0.9)},
            smoothed=[smoothed],
            displacements=[Displacement(name="unlearning", what="unlearning", value=0.1)],
            certified=["yes"],
            not_certified=["no"],
        ),
        Depth(**shared, score=made.metric(0.5), left_out=1, layers=[layer], broken=["it is broken"]),
        Spectrum(**shared, top=8, changes=changes),
    ]
