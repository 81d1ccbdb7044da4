"""What is analysed: a run or a model, its data, and what it is held against."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.analysis.weights import Vector, Weights, check_same_shape
from letgo.attacks import ATTACKS
from letgo.attacks.engine.base import Victim
from letgo.attacks.engine.spec import Plan, plan_attack
from letgo.benchmarks import benchmark_of, create_benchmark
from letgo.benchmarks.engine.base import Benchmark
from letgo.core.environment import circumstances
from letgo.core.errors import LetgoError, UserError
from letgo.core.progress import Reporter
from letgo.data.encode import Template
from letgo.models.load import load_model, load_tokenizer, resolve_model
from letgo.runs.results import RESULT_FILE, AttackResult, Result, is_run, now, read_result


@dataclass(frozen=True)
class Subject:
    """A run directory with its result, or a model without one."""

    name: str
    place: str
    result: Result | None

    @property
    def directory(self) -> Path | None:
        """The run directory, where it is one."""
        return Path(self.place) if self.result is not None else None

    def load(self, dtype: str) -> Any:
        """The model in memory, in eval mode, adapters merged into the weights that they change."""
        return merged(load_model(self.place, dtype=dtype))

    def tokenizer(self) -> Any:
        return load_tokenizer(self.place)


def merged(model: Any) -> Any:
    """A model with its adapters merged into it, else the model itself."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def subjects_of(given: Sequence[str | Path]) -> list[Subject]:
    """Subjects with names of their own: the directory's, or what was given where two would be called alike."""
    found = []
    for one in given:
        path = Path(one)
        if path.is_dir() and is_run(path):
            result = read_result(path)
            if result.status == "failed":
                raise UserError(f"{one}: the run failed ({'; '.join(result.reasons)}); there is nothing to analyse")
            found.append(Subject(path.resolve().name, str(one), result))
        else:
            resolve_model(one)
            found.append(Subject(path.resolve().name if path.is_dir() else str(one), str(one), None))
    names = [subject.name for subject in found]
    return [
        subject if names.count(subject.name) == 1 else Subject(subject.place, subject.place, subject.result)
        for subject in found
    ]


def subject_of(given: str | Path, *, benchmark: str | None) -> Subject:
    """One subject: a run, or a model where a benchmark is named too."""
    path = Path(given)
    if benchmark is None and not (path.is_dir() and is_run(path)):
        what = "is a model" if not path.exists() and _is_model(given) else "is not a run directory"
        raise UserError(
            f"{given} {what}: it has no {RESULT_FILE}\n  name a run directory, or a model with --benchmark NAME beside"
        )
    return subjects_of([given])[0]


def _is_model(given: str | Path) -> bool:
    try:
        resolve_model(given)
    except UserError:
        return False
    return True


def data_of(
    subjects: Sequence[Subject], benchmark: str | None, template: Template | None
) -> tuple[Benchmark, Template, str]:
    """The benchmark to measure on: the one named, else that of the first run; its template; and what to call it."""
    runs = [subject.result for subject in subjects if subject.result is not None]
    if benchmark is not None:
        data: Benchmark = create_benchmark(benchmark)
        asked, name = template, benchmark
    else:
        if not runs:
            raise UserError("none of these is a run, so what to measure on is not known: name a --benchmark")
        config = runs[0].config
        data = benchmark_of(config)
        asked, name = template or config.get("template"), str(config.get("benchmark") or "the run's own rows")
    return data, data.template_for(asked), name


def target_of(subjects: Sequence[Subject], output: Path | None) -> Path | None:
    """Where an analysis is written: the output named, else the first run's directory, else nowhere."""
    if output is None:
        return next((subject.directory for subject in subjects if subject.directory is not None), None)
    if output.exists() and not output.is_dir():
        raise UserError(f"output {output} is a file; name a directory")
    return output


def check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"seed must be at least 0, not {seed}")


def original_of(subject: Subject) -> str:
    """What the run's model was before it was unlearned."""
    if subject.result is None or not subject.result.config.get("model"):
        raise UserError(f"{subject.name} is not a run that names the model it began with")
    return str(subject.result.config["model"])


def planned(subject: Subject, text: str) -> tuple[Plan, AttackResult | None]:
    """The attack that a text means: one of the run's own by label or name, with its saved settings and seeds, else a
    new one. An empty text means the attack that left least of the forgetting."""
    recorded = list(subject.result.attacks) if subject.result is not None else []
    if not text:
        if not recorded:
            raise UserError(f"{subject.name} has no recorded attack; name one: attack:NAME:key=value,…")
        found = [min(recorded, key=lambda attack: attack.kept)]
    else:
        found = [a for a in recorded if a.label == text] or [a for a in recorded if a.name == text]
    if len(found) > 1:
        labels = "\n  ".join(attack.label for attack in found)
        raise UserError(f"{subject.name} has several attacks of the name {text!r}; give one in full:\n  {labels}")
    if not found:
        return plan_attack(text), None
    attack = found[0]
    # Of a search, the strongest attacker that it found is run again, not the search.
    own = {key: value for key, value in attack.settings.items() if key not in ("search", "bound")}
    own |= attack.did.get("strongest") or {}
    return Plan(attack.name, own, tuple(attack.seeds) or (0,), attack.threshold), attack


LEAVES_WEIGHTS = "asks or scores otherwise, and leaves the weights as they are"


def changes_weights(attack: str) -> bool:
    return ATTACKS.record(attack).means in ("weights", "data")


def attacked_weights(
    subject: Subject,
    weights: Weights,
    plan: Plan,
    benchmark: Benchmark,
    template: Template,
    reporter: Reporter,
) -> Vector:
    """The weights that an attack leaves, run again with its settings and its first seed.

    Raises:
        UserError: the attack can't be run, or leaves other weights by name, shape or type than the run's.
    """
    if not changes_weights(plan.name):
        raise UserError(f"attack {plan.label} {LEAVES_WEIGHTS}")
    config = subject.result.config if subject.result is not None else {}
    victim = Victim(
        Path(resolve_model(subject.place)),
        benchmark,
        template=template,
        dtype=config.get("dtype") or "float32",
        original=config.get("model"),
        reporter=reporter,
    )
    try:
        attacked = ATTACKS.load(plan.name)(victim, seed=plan.seeds[0], **plan.settings)
    except (TypeError, ValueError) as error:
        if isinstance(error, LetgoError):
            raise
        raise UserError(f"attack {plan.label}: {error}") from error
    found = dict(merged(attacked.model).named_parameters())
    check_same_shape(weights.originals, found, (subject.name, f"what {plan.label} left"))
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            raise UserError(f"attack {plan.label} leaves packed weights ({name}: {tensor.dtype})")
    return {name: tensor.detach() for name, tensor in found.items()}


def other_weights(name: str, place: str, weights: Weights, own: str, dtype: str) -> Vector:
    """Another model's weights, checked against the subject's."""
    found = {n: p.detach() for n, p in merged(load_model(place, dtype=dtype)).named_parameters()}
    check_same_shape(weights.originals, found, (own, name))
    return found


def made(start: float) -> dict[str, Any]:
    """The fields of an analysis that tell when, how long and with what it was made."""
    around = circumstances()
    return {
        "created": now(),
        "seconds": round(time.perf_counter() - start, 3),
        "letgo": around["letgo"],
        "versions": around["versions"],
        "git": around["git"],
    }
