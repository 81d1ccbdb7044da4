"""A record's figures in the hub's own forms: `model-index` in a card's head, and `.eval_results/*.yaml`.

Only metrics and kept shares go there: no samples, no subjects, no paths.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from letgo.benchmarks import OWN_ROWS
from letgo.core.catalog import parse_spec
from letgo.runs.results import AttackResult, Metric, Result

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_PLAIN = re.compile(r"[\w :=.,+*-]*")
"""Text that is no path and no markup: a card's head is shown by whoever reads it as he likes."""
EVAL_RESULTS_FILE = ".eval_results/letgo.yaml"
_SETTINGS = ("split", "corpus", "topics", "subjects", "template", "length")
"""Of what was scored, what tells one test of a data set from another."""


def model_index(result: Result, name: str) -> list[dict[str, Any]]:
    """The value of `model-index`: the metrics after unlearning, and what each attack left of the forgetting; empty
    where nothing was measured."""
    metrics = [
        {"type": key, "name": f"{key.replace('_', ' ')} after unlearning", "value": metric.value}
        for key, metric in result.after.items()
    ]
    metrics += [
        {"type": "kept", "name": f"share of the forgetting kept under {_label(attack)}", "value": attack.kept}
        for attack in result.attacks
        if attack.kept is not None
    ]
    if not metrics:
        return []
    task = {"type": "text-generation", "name": "machine unlearning"}
    name = name if HUB_ID.fullmatch(name) or _PLAIN.fullmatch(name) else "an unlearned model"
    return [{"name": name, "results": [{"task": task, "dataset": _dataset(result), "metrics": metrics}]}]


def eval_results(result: Result) -> str | None:
    """The content of `.eval_results/letgo.yaml`: an entry for each metric after unlearning. None where the data scored
    is not that of a data set on the hub, or the installed hub library does not know the form."""
    repository = _repository(result)
    if repository is None:
        return None
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:
        return None
    scored = result.config["scored"]
    entries = [
        EvalResultEntry(
            dataset_id=repository,
            task_id=key,
            value=metric.value,
            dataset_revision=scored.get("revision"),
            date=result.created,
            notes=_notes(result, metric),
        )
        for key, metric in result.after.items()
    ]
    return (
        yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True) if entries else None
    )


def _notes(result: Result, metric: Metric) -> str:
    said = [f"{key}={value}" for key, value in _tested(result).items()]
    interval = f"95 % interval {metric.ci95[0]:.4g} to {metric.ci95[1]:.4g} over {metric.n} samples"
    return "; ".join([*said, interval, f"unlearned and scored with letgo {result.letgo}"])


def _tested(result: Result) -> dict[str, Any]:
    scored = result.config.get("scored") or {}
    return {key: scored[key] for key in _SETTINGS if isinstance(scored.get(key), str | int)}


def _repository(result: Result) -> str | None:
    """The data set on the hub that was scored: with a commit beside it, as folders of this machine have none."""
    scored = result.config.get("scored") or {}
    data, revision = scored.get("data"), scored.get("revision")
    return data if isinstance(data, str) and isinstance(revision, str) and HUB_ID.fullmatch(data) else None


def _dataset(result: Result) -> dict[str, Any]:
    repository = _repository(result)
    spec = str(result.config.get("benchmark") or "")
    name = parse_spec(spec)[0] if spec and not any(result.config.get(key) for key in OWN_ROWS) else "own data"
    dataset: dict[str, Any] = {"type": repository or name.replace(" ", "-"), "name": name}
    if repository is not None:
        dataset["revision"] = result.config["scored"]["revision"]
    if tested := _tested(result):
        dataset["args"] = tested
    return dataset


def _label(attack: AttackResult) -> str:
    """The attack with its settings, but where these may be paths of this machine."""
    return next((text for text in (attack.label, attack.name) if _PLAIN.fullmatch(text)), "an attack")
