"""Results of other models as inputs: what `letgo eval` wrote of the retain (retrained) model, given by its path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from letgo.benchmarks.engine.items import Sample
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.runs.results import RESULT_FILE, SAMPLES_FILE, Metrics, Result, read_result


@dataclass(frozen=True)
class ReferenceResult:
    """A model's scores on the same benchmark. `setting` is the setting that named it, for messages."""

    setting: str
    directory: Path
    result: Result

    @property
    def metrics(self) -> Metrics:
        return dict(self.result.after)

    @property
    def scored(self) -> Mapping[str, Any]:
        return self.result.config.get("scored") or {}

    @cached_property
    def samples(self) -> list[Sample]:
        path = self.directory / SAMPLES_FILE
        if not path.is_file():
            raise UserError(f"{self.setting}={self.directory}: it has no {SAMPLES_FILE}, which holds its scores")
        return [Sample.from_row(row) for row in read_json_lines(path) if row.get("stage") == "after"]

    def has(self, score: str) -> bool:
        return any(score in sample.scores for sample in self.samples)

    def matched(self, samples: Iterable[Sample], score: str) -> list[tuple[float, float]]:
        """A score of each sample with the reference's score of the same row.

        Raises:
            UserError: the reference does not have one of the rows, or has another row under its name.
        """
        own = {sample.id: sample for sample in self.samples}
        pairs = []
        for sample in samples:
            other = own.get(sample.id)
            self._check(sample, other, score)
            pairs.append((sample.scores[score], own[sample.id].scores[score]))
        return pairs

    def check_rows(self, wanted: Sequence[tuple[str, str]], score: str) -> None:
        """Raise a `UserError` unless rows (id, digest) are all there with the score: before a model is run for long."""
        own = {sample.id: sample for sample in self.samples}
        missing = [name for name, _ in wanted if name not in own or score not in own[name].scores]
        if missing:
            raise UserError(
                f"{self.setting}={self.directory} was scored on other rows: {len(missing)} of the {len(wanted)} rows "
                f"to be scored are not in it, the first {missing[0]!r}\n"
                "  score the reference model with the same benchmark, split and limit"
            )
        for name, digest in wanted:
            if own[name].digest != digest:
                raise UserError(self._another(name))

    def _check(self, sample: Sample, other: Sample | None, score: str) -> None:
        if other is None or score not in other.scores:
            raise UserError(f"{self.setting}={self.directory} was scored on other rows: it has no {sample.id!r}")
        if other.digest != sample.digest:
            raise UserError(self._another(sample.id))

    def _another(self, name: str) -> str:
        return (
            f"{self.setting}={self.directory}: its row {name!r} is another one than that which is scored here "
            "(question, answers or template differ)\n  score the reference model on the same data and template"
        )


_WORDS = {"version": "version of the benchmark's scores"}
"""What `config.scored` calls shortly."""


def read_reference(setting: str, path: str | Path, wanted: Mapping[str, Any]) -> ReferenceResult:
    """A result of `letgo eval` by its directory (or its result.json), or the one that fits in a folder of several.

    Args:
        setting: the setting's name, for messages.
        path: where it lies.
        wanted: what its `config.scored` must say: benchmark, version, and what else makes scores comparable.

    Raises:
        UserError: there is none, it is a run's and not an evaluation's, or it is of something else.
    """
    given = Path(str(path)).expanduser()
    directory = given.parent if given.name == RESULT_FILE else given
    if not directory.is_dir():
        raise UserError(f"{setting}={path}: no such directory; make it with `letgo eval MODEL … --output DIR`")
    found = (
        [directory]
        if (directory / RESULT_FILE).is_file()
        else sorted(p.parent for p in directory.glob(f"*/{RESULT_FILE}"))
    )
    if not found:
        raise UserError(f"{setting}={path} holds no {RESULT_FILE}; make it with `letgo eval MODEL … --output DIR`")
    references = [ReferenceResult(setting, place, read_result(place)) for place in found]
    fitting = [one for one in references if not _differences(one, wanted)]
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        raise UserError(f"{setting}={path} holds {len(fitting)} results that fit; name one of their directories")
    said = "\n".join(f"  {one.directory}: {'; '.join(_differences(one, wanted))}" for one in references)
    raise UserError(
        f"{setting}={path} can't be compared with:\n{said}\n"
        "  score the reference model with `letgo eval` of this version and the same benchmark settings"
    )


def _differences(reference: ReferenceResult, wanted: Mapping[str, Any]) -> list[str]:
    result = reference.result
    if result.before or result.status == "failed":
        return ["it is the record of an unlearning run; evaluate the reference model with `letgo eval`"]
    if not reference.scored:
        return ["it does not say what it was scored on: score the reference model again with this version of letgo"]
    if reference.scored.get("benchmark") != wanted["benchmark"]:
        return [f"it is of benchmark {reference.scored.get('benchmark')!r}, here it is {wanted['benchmark']!r}"]
    return [
        f"its {_WORDS.get(key, key)} is {reference.scored.get(key)!r}, here it is {value!r}"
        for key, value in wanted.items()
        if reference.scored.get(key) != value
    ]
