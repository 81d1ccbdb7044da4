"""Results of other models as inputs: the scores of the retain (retrained) model, given by their path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.benchmarks.engine.items import Sample
from letgo.core.errors import UserError
from letgo.runs.results import RESULT_FILE, SAMPLES_FILE, Metrics, Result, read_result, read_samples
from letgo.scoring.server.served import Served


@dataclass(frozen=True)
class ReferenceResult:
    """A model's scores on the same benchmark: its metrics, and its samples by their ids.

    `setting` is the setting that names it, and `path` what that says, for messages. A sample without a digest was held
    against the row when it was read (`letgo.benchmarks.engine.open_unlearning`). `engine` is the server that was asked;
    None is torch.
    """

    setting: str
    path: Path
    metrics: Metrics
    samples: Mapping[str, Sample]
    engine: Mapping[str, Any] | None = None

    def has(self, score: str) -> bool:
        return any(score in sample.scores for sample in self.samples.values())

    def check_engine(self, model: Any) -> None:
        """Raise a `UserError` where other scores are made by another engine than the reference's were."""
        if isinstance(model, Served) and not model.gives_logps:
            raise UserError(
                f"{self.setting}={self.path} is compared by log-probabilities, which {model} does not give; leave "
                f"{self.setting}= out"
            )
        ours, theirs = (model.engine if isinstance(model, Served) else None), self.engine
        if ours != theirs:
            names = ["torch" if each is None else str(each.get("server")) for each in (theirs, ours)]
            raise UserError(
                f"{self.setting}={self.path} was scored by another engine ({names[0]}) than what is scored now "
                f"({names[1]}), or by another version or level of it (config.engine)\n  score both by the same"
            )

    def matched(self, samples: Sequence[Sample], score: str) -> list[tuple[float, float]]:
        """A score of each sample with the reference's score of the same row; raises as `check_rows`."""
        self.check_rows([(sample.id, sample.digest) for sample in samples], score)
        return [(sample.scores[score], self.samples[sample.id].scores[score]) for sample in samples]

    def check_rows(self, wanted: Sequence[tuple[str, str]], score: str) -> None:
        """Raise a `UserError` unless the reference has all rows (id, digest) with the score. Checks before a model is
        run for long."""
        missing = [name for name, _ in wanted if name not in self.samples or score not in self.samples[name].scores]
        if missing:
            raise UserError(
                f"{self.setting}={self.path} was scored on other rows: {len(missing)} of the {len(wanted)} rows "
                f"to be scored are not in it, the first {missing[0]!r}\n"
                "  score the reference model with the same benchmark, split and limit"
            )
        for name, digest in wanted:
            if self.samples[name].digest not in ("", digest):
                raise UserError(
                    f"{self.setting}={self.path}: its row {name!r} is another one than that which is scored here "
                    "(question, answers or template differ)\n  score the reference model on the same data and template"
                )


_WORDS = {"version": "version of the benchmark's scores"}
"""Full names of short keys of `config.scored`."""


def read_reference(setting: str, path: str | Path, wanted: Mapping[str, Any]) -> ReferenceResult:
    """A result of `letgo eval` by its directory (or its result.json), or the one that fits in a folder of several.

    Args:
        setting: the setting's name, for messages.
        path: the directory or file.
        wanted: what its `config.scored` must say: benchmark, version, and what else makes scores comparable.

    Raises:
        UserError: there is none, a run wrote it and not an evaluation, or it is a result on something else.
    """
    given = Path(str(path)).expanduser()
    directory = given.parent if given.name == RESULT_FILE else given
    if not directory.is_dir():
        raise UserError(f"{setting}={path}: no such directory; make it with `letgo eval MODEL … --output DIR`")
    directories = sorted(file.parent for file in directory.glob(f"*/{RESULT_FILE}"))
    if (directory / RESULT_FILE).is_file():
        directories = [directory]
    if not directories:
        raise UserError(f"{setting}={path} holds no {RESULT_FILE}; make it with `letgo eval MODEL … --output DIR`")
    results = [read_result(directory) for directory in directories]
    differences = [_differences(result, wanted) for result in results]
    if differences.count([]) == 1:
        fits = differences.index([])
        directory, result = directories[fits], results[fits]
        return ReferenceResult(
            setting, directory, result.after, _samples(setting, directory), result.config.get("engine")
        )
    if [] in differences:
        raise UserError(
            f"{setting}={path} holds {differences.count([])} results that fit; name one of their directories"
        )
    reasons = "\n".join(f"  {d}: {'; '.join(why)}" for d, why in zip(directories, differences, strict=True))
    raise UserError(
        f"{setting}={path} can't be compared with:\n{reasons}\n"
        "  score the reference model with `letgo eval` of this version and the same benchmark settings"
    )


def _samples(setting: str, directory: Path) -> dict[str, Sample]:
    if not (directory / SAMPLES_FILE).is_file():
        raise UserError(f"{setting}={directory}: it has no {SAMPLES_FILE}, which holds its scores")
    samples = (Sample.from_row(row) for row in read_samples(directory) if row.get("stage") == "after")
    return {sample.id: sample for sample in samples}


def _differences(result: Result, wanted: Mapping[str, Any]) -> list[str]:
    """Why a result can't serve; empty where it can."""
    scored = result.config.get("scored") or {}
    if result.before or result.status == "failed":
        return ["it is the record of an unlearning run; evaluate the reference model with `letgo eval`"]
    if not scored:
        return ["it does not say what it was scored on: score the reference model again with this version of letgo"]
    if scored.get("benchmark") != wanted["benchmark"]:
        return [f"it is of benchmark {scored.get('benchmark')!r}, here it is {wanted['benchmark']!r}"]
    return [
        f"its {_WORDS.get(key, key)} is {scored.get(key)!r}, here it is {value!r}"
        for key, value in wanted.items()
        if scored.get(key) != value
    ]
