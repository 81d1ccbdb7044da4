"""Looking at a model's surroundings in weight space: what an attack would have to move, and how far.

An analysis is a function that takes a run (or models) and returns a record of its own kind, written beside the run's
result. Each is a file of its own and one line here.
"""

from __future__ import annotations

from letgo.core.catalog import Catalog, Record

ANALYSES: Catalog[Record] = Catalog(
    "analysis",
    [
        Record(
            name="connectivity",
            target="letgo.analysis.connectivity:connectivity",
            summary="losses and metrics on the straight line between models, and the barrier on it",
            source="linear mode connectivity (arXiv 1912.05671), barrier as in arXiv 2110.06296",
            faithfulness="faithful",
            aliases=("lmc",),
        ),
        Record(
            name="landscape",
            target="letgo.analysis.landscape:landscape",
            summary="forget and retain loss around a run, along filter-normalised random directions or an attack's own",
            source="filter-normalised loss landscapes (arXiv 1712.09913)",
            faithfulness="variant",
            note="a filter is a weight matrix's row that makes one output; directions toward other models are not "
            "normalised",
        ),
        Record(
            name="sharpness",
            target="letgo.analysis.sharpness:sharpness",
            summary="worst-case and average change of loss at given radii, and the Hessian's trace",
            source="SAM (arXiv 2010.01412), projected ascent (arXiv 1706.06083), Hutchinson's trace estimate",
            faithfulness="variant",
            note="several projected steps where SAM takes one; one step is SAM's own",
        ),
        Record(
            name="certificate",
            target="letgo.analysis.certificate:certificate",
            summary="a radius of weight changes within which the smoothed model does not reveal, with confidence",
            source="randomized smoothing (arXiv 1902.02918)",
            faithfulness="variant",
            note="the noise is on the weights, and the events are that questions' answers are revealed",
        ),
        Record(
            name="depth",
            target="letgo.analysis.depth:depth",
            summary="in which layers the forget set's answers still are, by patching states into the original",
            source="unlearning depth score, UDS (arXiv 2605.24614)",
            faithfulness="variant",
            note="all tokens of an answer count, where the source marks an entity in each",
            aliases=("uds",),
        ),
        Record(
            name="spectrum",
            target="letgo.analysis.spectrum:spectrum",
            summary="over how many directions unlearning and each attack spread their change of every weight matrix",
            source="letgo",
            faithfulness="ours",
        ),
    ],
)

__all__ = ["ANALYSES"]
