"""A record's scores in other tools' files: open-unlearning's TOFU_EVAL.json and MUSE_EVAL.json, lm-eval's results.

Aggregates are the record's own metrics, rows its samples: nothing is scored again, and what the record does not have is
left out. `letgo.benchmarks.engine.open_unlearning` reads the former two back.
"""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from letgo.benchmarks.engine.open_unlearning import FORM, MUSE_FILE, TOFU_FILE
from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.files import write_json
from letgo.runs.results import Metrics, Result, read_result, read_samples

Row = Mapping[str, Any]
Entries = dict[str, dict[str, Any]]

_TOFU_SETS = {"forget": "forget", "retain": "retain", "authors": "ra", "facts": "wf"}
"""letgo's sets, and what open-unlearning puts before its metrics' names."""
_MEMBERSHIP = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm")
REFERENCE = "reference:"
"""What the stage of another model measured the same way begins with, in a run's samples."""


def write_scores(run: str | Path, tool: str, folder: str | Path, *, stage: str = "after") -> Path:
    """Write a record's scores as another tool's file; returns its path.

    Args:
        run: the directory of a run or of an evaluation.
        tool: `open-unlearning` or `lm-eval`.
        folder: where the file goes, under the name that the tool gives it; made if it is not there.
        stage: whose scores: after, before, or one of the record's references (retrained).

    Raises:
        UserError: an unknown tool or stage, a benchmark that the tool does not have, or a file that is there already.
    """
    directory, folder = Path(run), Path(folder)
    if tool not in WRITERS:
        raise UserError(f"unknown tool {tool!r}{did_you_mean(tool, WRITERS)}; known: {', '.join(WRITERS)}")
    result = read_result(directory)
    known = {"before": result.before, "after": result.after, **result.references}
    known = {name: metrics for name, metrics in known.items() if metrics}
    if stage not in known:
        raise UserError(
            f"{directory} has no scores of stage {stage!r}{did_you_mean(stage, known)}; it has {list(known)}"
        )
    stages = (stage, f"{REFERENCE}{stage}")
    rows = [row for row in read_samples(directory) if row["stage"] in stages]
    if not rows:
        raise UserError(f"{directory} has no samples of stage {stage!r}: without them there is nothing to write")
    name, document = WRITERS[tool](result, known[stage], rows, str(directory))
    path = folder / name
    if os.path.lexists(path):
        raise UserError(f"{path} is there already; name another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, document)
    return path


def _open_unlearning(
    result: Result, metrics: Metrics, rows: Sequence[Row], where: str
) -> tuple[str, Mapping[str, Any]]:
    scored = (result.config.get("scored") or {}).get("benchmark")
    if scored not in ("tofu", "muse"):
        raise UserError(
            f"{where} was scored on {scored or 'rows of its own'}; open-unlearning has files of tofu and muse"
        )
    name, entries = (TOFU_FILE, _tofu(metrics, rows)) if scored == "tofu" else (MUSE_FILE, _muse(metrics, rows))
    return name, dict(sorted(entries.items()))


def _tofu(metrics: Metrics, rows: Sequence[Row]) -> Entries:
    entries: Entries = {}
    for name, prefix in _TOFU_SETS.items():
        asked = [row for row in rows if row["set"] == name and "probability" in row["scores"]]
        plain = [row for row in asked if "answer_probability" in row["scores"]]
        raw, of = ("answer_probability", plain) if plain else ("probability", asked)
        if of:
            mean = math.fsum(row["scores"][raw] for row in of) / len(of)
            entries[f"{prefix}_Q_A_Prob"] = {"agg_value": mean, "value_by_index": _by_index(of, _probability(raw))}
        if plain:
            normalised = _score("probability", "prob")
            _add(entries, f"{prefix}_Q_A_Prob_normalised", metrics, f"{name}_probability", of, normalised)
        rouge = _having(asked, "rouge")
        _add(entries, f"{prefix}_Q_A_ROUGE", metrics, f"{name}_rouge", rouge, _written("rouge", "rougeL_recall"))
        ratio = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        rated = _having(asked, "truth_ratio")
        _add(entries, ratio, metrics, f"{name}_truth_ratio", rated, _score("truth_ratio"), form=FORM)
    forget = [row for row in rows if row["set"] == "forget"]
    _add_of(entries, "extraction_strength", metrics, forget)
    _add_of(entries, "exact_memorization", metrics, forget)
    for name in _MEMBERSHIP:
        _add_membership(entries, f"mia_{name}", metrics, f"forget_mia_{name}_auc", rows, f"mia_{name}")
    _add_value(entries, "mia_reference", metrics, "forget_mia_reference_auc")
    _add_value(entries, "model_utility", metrics, "model_utility")
    _add_value(entries, "forget_quality", metrics, "forget_quality")
    return entries


def _add_of(entries: Entries, score: str, metrics: Metrics, forget: Sequence[Row]) -> None:
    """A score of the forget set that both call the same."""
    _add(entries, score, metrics, f"forget_{score}", _having(forget, score), _score(score))


def _add_value(entries: Entries, name: str, metrics: Metrics, metric: str) -> None:
    if metric in metrics:
        entries[name] = {"agg_value": metrics[metric].value}


def _muse(metrics: Metrics, rows: Sequence[Row]) -> Entries:
    entries: Entries = {}
    for name, score in (("forget", "verbmem"), ("forget", "knowmem"), ("retain", "knowmem")):
        asked = _having([row for row in rows if row["set"] == name], score)
        key = f"{name}_{score}_ROUGE"
        _add(entries, key, metrics, f"{name}_{score}", asked, _written(score, "rougeL_f1", 0.01), scale=0.01)
    _add_membership(entries, "mia_min_k", metrics, "forget_membership_auc", rows, "min_k")
    if "forget_privleak" in metrics:
        entries["privleak"] = {"agg_value": metrics["forget_privleak"].value}
    return entries


def _add(
    entries: Entries,
    name: str,
    metrics: Metrics,
    metric: str,
    rows: Sequence[Row],
    shown: Callable[[Row], Any],
    *,
    scale: float = 1.0,
    **more: str,
) -> None:
    """Add a metric that the record has, with its rows; `scale` is that of the record's to the tool's."""
    if metric in metrics and rows:
        value = metrics[metric].value * scale
        entries[name] = {"agg_value": value, **more, "value_by_index": _by_index(rows, shown)}


def _add_membership(
    entries: Entries, name: str, metrics: Metrics, metric: str, rows: Sequence[Row], score: str
) -> None:
    """Add an attack: its AUC and each text's score, which in open-unlearning is the larger, the less familiar."""
    if metric not in metrics:
        return
    entries[name] = {"agg_value": metrics[metric].value, "auc": metrics[metric].value}
    for part in ("forget", "holdout"):
        members = _having([row for row in rows if row["set"] == part], score)
        if not members:
            continue
        mean = -math.fsum(row["scores"][score] for row in members) / len(members)
        by_index = _by_index(members, lambda row: {"score": -row["scores"][score]})
        entries[name][part] = {"agg_value": mean, "value_by_index": by_index}


def _having(rows: Sequence[Row], score: str) -> list[Row]:
    return [row for row in rows if score in row["scores"]]


def _by_index(rows: Sequence[Row], shown: Callable[[Row], Any]) -> dict[str, Any]:
    """Rows by their numbers in the benchmark's table: the end of a sample's id."""
    return {row["id"].rpartition("/")[2]: shown(row) for row in rows}


def _score(score: str, name: str = "score") -> Callable[[Row], Any]:
    return lambda row: {name: row["scores"][score]}


def _probability(score: str) -> Callable[[Row], Any]:
    def shown(row: Row) -> dict[str, float]:
        value = row["scores"][score]
        # The loss of a probability that is too small for a float is not known.
        return {"prob": value} | ({"avg_loss": -math.log(value)} if value > 0.0 else {})

    return shown


def _written(score: str, name: str, scale: float = 1.0) -> Callable[[Row], Any]:
    """A row that was answered in words, with the texts as the record has them."""

    def shown(row: Row) -> dict[str, Any]:
        texts = {"input": row.get("question", ""), "ground_truth": row.get("answer", "")}
        return {name: row["scores"][score] * scale, **texts, "generation": row.get("generated", "")}

    return shown


def _lm_eval(result: Result, metrics: Metrics, rows: Sequence[Row], where: str) -> tuple[str, Mapping[str, Any]]:
    """What lm-eval writes as `results_DATE.json`, as far as a record knows it."""
    scored = result.config.get("scored") or {}
    if scored.get("benchmark") != "lm_eval":
        raise UserError(f"{where} was scored on {scored.get('benchmark') or 'rows of its own'}, not on lm_eval's tasks")
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row["set"], []).append(row)
    fewshot = scored.get("fewshot")
    filters, versions = (said if isinstance(said := scored.get(key), dict) else {} for key in ("filters", "lm_eval"))
    if not (by_task.keys() <= filters.keys() and by_task.keys() <= versions.keys()):
        raise UserError(f"{where} does not say by which filter of lm-eval it was scored: score the model again")
    model = str(result.config.get("model") or "")
    return f"results_{result.created.replace(':', '-')}.json", {
        "results": {task: _task(task, asked, metrics, filters[task]) for task, asked in by_task.items()},
        "versions": {task: versions[task] for task in by_task},
        "n-shot": {} if fewshot is None else dict.fromkeys(by_task, fewshot),
        "n-samples": {task: {"effective": len(asked)} for task, asked in by_task.items()},
        "config": {"model": "hf", "model_args": f"pretrained={model}"},
        "date": datetime.fromisoformat(result.created).timestamp(),
        "model_name": model,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model),
        "letgo_version": result.letgo,
    }


def _task(task: str, rows: Sequence[Row], metrics: Metrics, kind: str) -> dict[str, Any]:
    """A task's metrics with their standard errors over its documents."""
    found: dict[str, Any] = {"alias": task, "sample_len": len(rows)}
    for key in dict.fromkeys(key.removesuffix("/total") for key in rows[0]["scores"]):
        metric = metrics.get(f"retain_{task}_{key}")
        if metric is None or key == "cut":
            continue
        values = [row["scores"][key] for row in rows if key in row["scores"]]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else "N/A"
        found |= {f"{key},{kind}": metric.value, f"{key}_stderr,{kind}": error}
    return found


Writer = Callable[[Result, Metrics, Sequence[Row], str], tuple[str, Mapping[str, Any]]]
WRITERS: Mapping[str, Writer] = {"open-unlearning": _open_unlearning, "lm-eval": _lm_eval}
"""The tools whose files can be written: each takes a record's result, the stage's metrics and samples, and the record's
place for messages, and gives the file's name and its content."""
