"""What an attack leaves of the retrained model, attacked once: R compares every run under that attack with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from letgo.attacks.engine.base import Victim
from letgo.benchmarks.engine.base import Sample
from letgo.core import processes
from letgo.core.files import read_json_lines, write_json_lines
from letgo.models.load import arithmetic_of, weights_fingerprint
from letgo.scoring.resume_log import content_key

MOST_REFERENCES = 16
"""How many a process remembers."""
_REMEMBERED: dict[str, Sequence[Sample]] = {}


def attacked_reference(
    victim: Victim, circumstances: Sequence[object], make: Callable[[], Sequence[Sample]], folder: Path | None
) -> Sequence[Sample]:
    """The samples of the attacked reference, made where neither this process nor the folder has them.

    Args:
        victim: the reference.
        circumstances: what the samples depend on beside its weights: values that differ by their `repr`.
        make: attacks and scores it.
        folder: where runs leave them for each other, if anywhere; a file's name depends on the weights, not on their
            directory, and on what the last bits depend on.
    """
    key = repr((str(victim.directory), *circumstances))
    if key in _REMEMBERED:
        return _REMEMBERED[key]
    path: Path | None = None
    if folder is not None and processes.count() == 1:
        model = victim.load()
        name = content_key(weights_fingerprint(model), arithmetic_of(model), repr(circumstances))
        path = folder / f"attacked-{name}.jsonl"
    if path is not None and path.is_file():
        samples: Sequence[Sample] = [Sample.from_row(row) for row in read_json_lines(path)]
    else:
        samples = make()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_lines(path, (sample.as_row("reference", 0) for sample in samples))
    while len(_REMEMBERED) >= MOST_REFERENCES:
        del _REMEMBERED[next(iter(_REMEMBERED))]
    _REMEMBERED[key] = samples
    return samples
