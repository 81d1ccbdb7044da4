"""Score files of open-unlearning (TOFU_EVAL.json, MUSE_EVAL.json) and of the older TOFU code as references.

open-unlearning writes {metric: {"agg_value": …, "value_by_index": {"0": {"score": …}}}}, the older code's aggregated
log {"eval_log_forget.json": {"avg_paraphrased_loss": {"0": …}, …}}. A row is known by its number alone, so count,
order and, where the file has them, questions are checked before any of it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from letgo.benchmarks.engine.items import Item, Sample
from letgo.benchmarks.engine.reference import ReferenceResult
from letgo.core.errors import UserError
from letgo.core.files import parse_json, read_text
from letgo.metrics.memorization import truth_ratio_score
from letgo.metrics.summary import mean_metric
from letgo.runs.results import RESULT_FILE

TOFU_FILE = "TOFU_EVAL.json"
MUSE_FILE = "MUSE_EVAL.json"
_OLDER_LOG = "eval_log_forget.json"
FORM = "wrong/right"
"""What letgo's own files say of their truth ratios."""
_LOSSES = ("forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob")
_EITHER = ("neither wrong/right nor right/(right + wrong)", "wrong/right as well as right/(right + wrong)")
_LARGEST = math.exp(700.0)
"""The largest truth ratio, as in `letgo.metrics.memorization.truth_ratio`."""


def eval_file(path: str | Path, name: str) -> Path | None:
    """The score file that a path names, or that lies under this name in the folder that it names; None where the path
    is of a result of letgo's own."""
    given = Path(str(path)).expanduser()
    if given.is_dir():
        return given / name if (given / name).is_file() and not (given / RESULT_FILE).exists() else None
    return given if given.suffix == ".json" and given.name != RESULT_FILE else None


def read_truth_ratios(
    setting: str, path: Path, items: Sequence[Item], split: str, counts: Sequence[int]
) -> ReferenceResult:
    """The truth ratios of a TOFU file's forget set as the reference of these items.

    Args:
        setting: the setting that names the file, for messages.
        path: TOFU_EVAL.json, or the older code's aggregated log.
        items: the forget items to be scored, the first of the split in their order.
        split: the split, for messages.
        counts: how many rows a file of the whole split has.

    Raises:
        UserError: another split, rows missing or without a score, other questions, or a truth ratio of unknown form.
    """
    where, logs = f"{setting}={path}", _logs(path)
    older = logs.get(_OLDER_LOG)
    if isinstance(older, dict):
        metric, ratios, asked = f"{_OLDER_LOG} avg_paraphrased_loss", _ratios_of_losses(where, older), _asked_of(older)
    else:
        metric, entry = _metric(where, logs, "forget_truth_ratio")
        ratios, asked = _ratios(where, logs, metric, entry), _inputs(logs, "forget_Q_A_ROUGE")
    # A part of the rows can be that of any split: only its questions tell.
    part = len(ratios) == len(items) and len(asked) >= len(items)
    if len(ratios) < len(items) or not (part or len(ratios) in counts):
        rows = " or ".join(str(count) for count in sorted(set(counts)))
        raise UserError(
            f"{where} can't be compared: its {metric} has {len(ratios)} rows, and {split} has {rows}"
            f"{_unscored(logs)}\n  score the retain model on {split}"
        )
    _check_texts(where, asked, [str(item.row.context) for item in items])
    rated = list(zip(items, ratios, strict=False))
    scores = [truth_ratio_score(ratio, forget=True) for _, ratio in rated]
    return ReferenceResult(
        setting,
        path,
        {"forget_truth_ratio": mean_metric(scores, [item.group for item in items])},
        {item.id: Sample(item.set, item.id, item.group, {"truth_ratio": ratio}) for item, ratio in rated},
    )


def read_membership_auc(setting: str, path: Path, counts: Mapping[str, int], questions: Sequence[str]) -> float:
    """The AUC by Min-K of a MUSE file: 1 where every forget text is more familiar than every holdout text.

    Args:
        setting: the setting that names the file, for messages.
        path: MUSE_EVAL.json.
        counts: how many texts of the sets forget and holdout are to be scored.
        questions: those of KnowMem's forget set in their order: they tell the corpora apart.

    Raises:
        UserError: it has no such score, or is of other texts.
    """
    where, logs = f"{setting}={path}", _logs(path)
    metric, entry = _metric(where, logs, "mia_min_k")
    auc = _number(where, f"{metric}.agg_value", entry.get("agg_value"))
    if not 0.0 <= auc < 1.0:
        raise UserError(f"{where}: {metric}.agg_value is {auc}; PrivLeak needs an AUC of at least 0 and less than 1")
    for name, count in counts.items():
        rows = _mapping(_mapping(entry.get(name)).get("value_by_index"))
        if rows and len(rows) != count:
            raise UserError(
                f"{where} can't be compared: its {metric} is of {len(rows)} {name} texts, here it is {count}\n"
                "  score both models on the same texts (limit)"
            )
    _check_texts(where, _inputs(logs, "forget_knowmem_ROUGE"), questions)
    return auc


def _logs(path: Path) -> dict[str, Any]:
    logs = parse_json(read_text(path), path)
    if not isinstance(logs, dict):
        raise UserError(f"{path}: not a JSON object of metrics, as open-unlearning or TOFU's code writes it")
    return logs


def _metric(where: str, logs: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """A metric as the file spells it, with its entry: open-unlearning mixes upper and lower case."""
    spelled = [key for key in logs if key.lower() == name.lower()]
    spelled.sort(key=lambda key: key != name)
    if not spelled or not isinstance(logs[spelled[0]], dict):
        had = ", ".join(sorted(logs)[:8]) or "nothing"
        raise UserError(f"{where} has no {name}, which this reference is for; it has {had}")
    return spelled[0], logs[spelled[0]]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: {name} must be a number, not {value!r}")
    return float(value)


def _in_order(where: str, name: str, by_index: Any) -> list[Any]:
    """What stands at "0", "1", …: no number may be left out."""
    rows = _mapping(by_index)
    missing = [str(number) for number in range(len(rows)) if str(number) not in rows]
    if missing or not rows:
        what = f"row {missing[0]} of {len(rows)} is missing" if rows else "it has no rows"
        raise UserError(f"{where}: {name}: {what}; rows are matched by their numbers, so none may be left out")
    return [rows[str(number)] for number in range(len(rows))]


def _ratios(where: str, logs: Mapping[str, Any], metric: str, entry: Mapping[str, Any]) -> list[float]:
    """R = wrong/right of each row, of either form that open-unlearning writes: R itself with the mean of min(R, 1/R),
    or right/(right + wrong) with its plain mean."""
    rows = _in_order(where, metric, entry.get("value_by_index"))
    scores = [_number(where, f"{metric}, row {n}, score", _mapping(row).get("score")) for n, row in enumerate(rows)]
    negative = [number for number, score in enumerate(scores) if score < 0.0]
    if negative:
        raise UserError(f"{where}: {metric}, row {negative[0]}: a truth ratio can't be {scores[negative[0]]}")
    whole = _number(where, f"{metric}.agg_value", entry.get("agg_value"))
    folded = math.fsum(min(score, 1.0 / (score + 1e-10)) for score in scores) / len(scores)
    if not math.isclose(whole, folded, rel_tol=1e-5):
        raise UserError(
            f"{where}: {metric}.agg_value is {whole}, but neither form of truth ratio with these scores comes to that: "
            f"the mean of min(R, 1/R) is {folded:.6g}, the plain mean {math.fsum(scores) / len(scores):.6g}"
        )
    # Scores that are all below 1 have the same mean in both forms: then the file must say more.
    if max(scores) > 1.0 or entry.get("form") == FORM or _is_ratio(where, logs, metric, scores[0]):
        return scores
    return [(1.0 - score) / score if score > 1.0 / _LARGEST else _LARGEST for score in scores]


def _is_ratio(where: str, logs: Mapping[str, Any], metric: str, score: float) -> bool:
    """Whether the first row's score is R, and not right/(right + wrong), by its losses."""
    losses = []
    for name in _LOSSES:
        entries = [entry for key, entry in logs.items() if key.lower() == name.lower()]
        if not entries:
            raise UserError(
                f"{where}: no score of {metric} is above 1, so it may be wrong/right or right/(right + wrong), and the "
                f"file has no {name} to tell\n  score the retain model with `letgo eval` instead"
            )
        loss = _mapping(_mapping(_mapping(entries[0]).get("value_by_index")).get("0")).get("avg_loss")
        values = [_number(where, f"{name}, row 0, avg_loss", v) for v in (loss if isinstance(loss, list) else [loss])]
        losses.append(math.fsum(values) / len(values))
    ratio = math.exp(min(losses[0] - losses[1], 700.0))
    fits = [math.isclose(score, form, rel_tol=1e-3) for form in (ratio, 1.0 / (1.0 + ratio))]
    if fits[0] == fits[1]:
        raise UserError(
            f"{where}: no score of {metric} is above 1, and by {' and '.join(_LOSSES)} it is {_EITHER[fits[0]]}\n"
            "  score the retain model with `letgo eval` instead"
        )
    return fits[0]


def _ratios_of_losses(where: str, log: Mapping[str, Any]) -> list[float]:
    """R of each row of the older code's log: exp(mean loss of the paraphrase − mean over wrong answers of theirs)."""
    names = ("avg_paraphrased_loss", "average_perturb_loss")
    right, wrong = (_in_order(where, f"{_OLDER_LOG} {name}", log.get(name)) for name in names)
    if len(right) != len(wrong):
        raise UserError(f"{where}: {names[0]} has {len(right)} rows, and {names[1]} {len(wrong)}")
    ratios = []
    for number, (loss, losses) in enumerate(zip(right, wrong, strict=True)):
        row = f"{_OLDER_LOG}, row {number}"
        others = [_number(where, f"{row}, {names[1]}", other) for other in (losses if isinstance(losses, list) else [])]
        if not others:
            raise UserError(f"{where}: {row}: {names[1]} must be a list of losses, not {losses!r}")
        mean = math.fsum(others) / len(others)
        ratios.append(math.exp(min(_number(where, f"{row}, {names[0]}", loss) - mean, 700.0)))
    return ratios


def _asked_of(log: Mapping[str, Any]) -> dict[int, str]:
    """The older code's prompts by their numbers: the first of (prompt, generated, true answer)."""
    written = _mapping(log.get("generated_text"))
    return {int(n): str(row[0]) for n, row in written.items() if n.isdigit() and isinstance(row, list) and row}


def _inputs(logs: Mapping[str, Any], metric: str) -> dict[int, str]:
    """The prompts of a metric with generated answers, by their numbers; none where the file has it not."""
    entries = [entry for key, entry in logs.items() if key.lower() == metric.lower()]
    rows = _mapping(_mapping(entries[0] if entries else None).get("value_by_index"))
    inputs = {int(n): _mapping(row).get("input") for n, row in rows.items() if n.isdigit()}
    return {number: text for number, text in inputs.items() if isinstance(text, str)}


def _check_texts(where: str, asked: Mapping[int, str], questions: Sequence[str]) -> None:
    """Raise a `UserError` where a prompt of the file does not hold the question of the same row."""
    for number, question in enumerate(questions):
        if number in asked and _plain(question) not in _plain(asked[number]):
            raise UserError(
                f"{where} can't be compared: its row {number} asks {_plain(asked[number])[-120:]!r}, here it is "
                f"{_plain(question)[-120:]!r}: another split, or other rows"
            )


def _plain(text: str) -> str:
    return " ".join(text.split())


def _unscored(logs: Mapping[str, Any]) -> str:
    """The first row without a score in the forget set's metrics: the file's numbers are shifted after it."""
    for metric, entry in logs.items():
        if not metric.lower().startswith("forget_"):
            continue
        for number, row in _mapping(_mapping(entry).get("value_by_index")).items():
            if row is None or (isinstance(row, dict) and None in row.values()):
                return f"; row {number} of {metric} has no score, and the rows after it are numbered one less"
    return ""
