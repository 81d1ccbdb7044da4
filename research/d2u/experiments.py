"""Testbeds and experiments: read from YAML, and expanded into the grids that `letgo sweep` reads.

A testbed (`TESTBED/testbed.yaml`) fixes what is unlearned from which model, the attacks, and how much utility a run
may lose. An experiment (`TESTBED/OBJECTIVE.yaml`) holds what differs: the objective's settings, the runs by name,
optimizer, learning rate and seeds, and the candidates that were tuned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from letgo import UserError

HERE = Path(__file__).parent
RUNS = Path("letgo-runs/d2u")
TESTBEDS = ("biographies", "capitals", "tofu", "tofu-forget10")
OBJECTIVES: Mapping[str, str] = {"npo": "NPO", "graddiff": "GradDiff", "rmu": "RMU"}
MOVED = ("forget_accuracy", "forget_probability", "retain_accuracy", "retain_probability", "general_perplexity")
"""The metrics that the tables of tuning show, and those of forgetting and utility unless a testbed names others."""

_ABOUT = ("name", "seeds", "superseded", "control")
"""What an entry of `runs` says beside the settings of its runs."""


@dataclass(frozen=True)
class Testbed:
    """A benchmark and a model, the attacks on them, and the room within which grades are compared."""

    name: str
    title: str
    """Stands behind an objective's name in text; empty for the first testbed."""
    base: Mapping[str, Any]
    """The settings of every run."""
    tuning: Mapping[str, Any]
    """The settings of a run that tunes, where they differ; `seed`, `target` and `bound` are those of the tuning."""
    attacks: Sequence[str]
    held_back: Sequence[str]
    """Attacks that are used only to confirm a ranking: they take no part in R and Q."""
    half: str
    everything: str
    """The labels of the attacks that claims name: relearning on half of the forget groups, and on all of them."""
    room: Mapping[str, float]
    """The most that the mean over seeds may be (of the retain set: the least, as a share of that before unlearning;
    perplexity: as a multiple of that before). Tuning asks for more on its seed, since other seeds scatter around it."""
    room_of_retrained: Mapping[str, float] = field(default_factory=dict)
    """As `room`, in multiples of what the retrained model has."""
    retrained: bool = True
    """Whether a model that never saw the forget set is known: R is measured by it."""
    outcome: Sequence[str] = MOVED
    """The metrics that the tables of forgetting and utility show."""
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    """The seeds that each setting was meant to have."""
    workers: int = 2
    resources: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Configs of `letgo unlearn` that make the testbed's models, by name."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """The benchmark, and perhaps the limit, by which `letgo eval` scores the retrained model."""


@dataclass(frozen=True)
class Sweep:
    """One grid of an experiment: its entries, in the order of the sweep's groups, and what `letgo sweep` reads."""

    name: str
    entries: Sequence[Mapping[str, Any]]
    document: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return Path(self.document["output_dir"])

    @property
    def path(self) -> Path:
        return self.folder.with_suffix(".yaml")


@dataclass(frozen=True)
class Experiment:
    """One objective on one testbed."""

    testbed: Testbed
    objective: str
    base: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    tuning: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.testbed.name}/{self.objective}"

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.testbed.base, **self.base}

    def run_sweeps(self) -> list[Sweep]:
        """The grids of the runs: one for each set of seeds, with all attacks."""
        by_seeds: dict[tuple[int, ...], list[Mapping[str, Any]]] = {}
        for entry in self.runs:
            by_seeds.setdefault(tuple(entry["seeds"]), []).append(entry)
        attacks = [*self.testbed.attacks, *self.testbed.held_back]
        return [
            self._sweep(f"seeds-{'-'.join(map(str, seeds))}", entries, self.settings, seeds, attacks=attacks)
            for seeds, entries in by_seeds.items()
        ]

    def tuning_sweeps(self) -> list[Sweep]:
        """The grids that tune: one for each target and bound, and more where an optimizer's name has several lists of
        rates, since `letgo sweep` knows rates by that name."""
        given = self.testbed.tuning
        changes = {key: value for key, value in given.items() if key not in ("seed", "target", "bound")}
        sweeps: list[Sweep] = []
        for block in self.tuning:
            for rates, entries in _by_rates(block["candidates"]):
                tune = {"learning_rate": rates, "target": block.get("target", given["target"])}
                tune["bound"] = block.get("bound", given["bound"])
                base = {**self.settings, **changes, **block.get("base", {})}
                name = f"tuning-{len(sweeps) + 1}"
                sweeps.append(self._sweep(name, entries, base, [given["seed"]], tune=tune))
        return sweeps

    def _sweep(
        self,
        name: str,
        entries: Sequence[Mapping[str, Any]],
        base: Mapping[str, Any],
        seeds: Sequence[int],
        **more: Any,
    ) -> Sweep:
        left_out = (*_ABOUT, "learning_rate") if "tune" in more else _ABOUT
        values = [{key: value for key, value in entry.items() if key not in left_out} for entry in entries]
        document: dict[str, Any] = {
            "output_dir": str(RUNS / self.name / name),
            "base": dict(base),
            "grid": {"optimizer": values, "seed": list(seeds)},
            **more,
            "workers": self.testbed.workers,
        }
        if self.testbed.resources:
            document["resources"] = dict(self.testbed.resources)
        return Sweep(name, entries, document)


@cache
def read_testbed(name: str) -> Testbed:
    path = HERE / name / "testbed.yaml"
    if not path.is_file():
        raise UserError(f"there is no testbed {name!r}; there are {', '.join(TESTBEDS)}")
    return Testbed(name=name, **_read(path))


def read_experiment(name: str) -> Experiment:
    """The experiment of a name, such as "biographies/npo"."""
    folder, _, objective = name.partition("/")
    path = HERE / folder / f"{objective}.yaml"
    if name not in experiments():
        raise UserError(f"there is no experiment {name!r}; there are {', '.join(experiments())}")
    document = _read(path)
    return Experiment(
        read_testbed(folder), objective, document["base"], document.get("runs") or [], document.get("tuning") or []
    )


def experiments() -> list[str]:
    """All experiments: testbed after testbed, objectives in the order of `OBJECTIVES`."""
    return [f"{bed}/{name}" for bed in TESTBEDS for name in OBJECTIVES if (HERE / bed / f"{name}.yaml").is_file()]


def title_of(name: str) -> str:
    """An experiment's name in text: "NPO", "NPO, SmolLM2's capitals"."""
    folder, _, objective = name.partition("/")
    title = read_testbed(folder).title
    return f"{OBJECTIVES[objective]}, {title}" if title else OBJECTIVES[objective]


def _by_rates(candidates: Sequence[Mapping[str, Any]]) -> list[tuple[dict[str, Any], list[Mapping[str, Any]]]]:
    """Candidates in as few sweeps as possible, so that in each an optimizer's name has one list of rates."""
    sweeps: list[tuple[dict[str, Any], list[Mapping[str, Any]]]] = []
    for candidate in candidates:
        name, rates = str(candidate["optimizer"]).partition(":")[0], candidate["learning_rate"]
        fitting = next((sweep for sweep in sweeps if sweep[0].get(name, rates) == rates), None)
        if fitting is None:
            fitting = ({}, [])
            sweeps.append(fitting)
        fitting[0][name] = rates
        fitting[1].append(candidate)
    return sweeps


def _read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
