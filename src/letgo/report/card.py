"""The model card: README.md of a run directory, in the hub's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from letgo.benchmarks import OWN_ROWS
from letgo.core.files import write_text
from letgo.report import audited
from letgo.report.hub_results import HUB_ID, model_index
from letgo.report.numbers import MISSING, measured, percent
from letgo.report.rendering import template
from letgo.report.settings import settings
from letgo.report.table import columns, rows
from letgo.report.verdict import verdict
from letgo.report.wording import wording_caution
from letgo.runs.results import CONFIG_FILE, RESULT_FILE, Metric, Result

CARD_FILE = "README.md"
METHOD = (
    "objective",
    "retain_loss",
    "retain_weight",
    "optimizer",
    "learning_rate",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "base_quantization",
    "trainable",
    "seed",
)
"""Settings that describe the method, where a run has them, in this order."""


def write_model_card(directory: Path, result: Result) -> Path:
    """Write `directory`/README.md from the result; returns its path. It names the base model only where that is a hub's
    (`owner/name`), and no path of this machine."""
    path = directory / CARD_FILE
    write_text(path, card_of(directory, result))
    return path


def card_of(directory: Path, result: Result) -> str:
    """The card that a directory is to have."""
    return card(result, has_config=(directory / CONFIG_FILE).is_file())


def card(result: Result, *, has_config: bool = True, published: bool = False, merged: bool = False) -> str:
    """The card as text.

    Args:
        has_config: whether the run's YAML lies beside it.
        published: for a hub, where the run's own files are not.
        merged: it is of a LoRA run's merged model.
    """
    model = str(result.config.get("model") or "")
    base = model if HUB_ID.fullmatch(model) and not Path(model).exists() else None
    # A hub id stays as it is; of a path the last part is the model's own name.
    model_name = model if HUB_ID.fullmatch(model) else (Path(model).name or "a language model")
    adapter = result.config.get("lora_rank") is not None and not merged
    front: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if result.audit is not None:
        # A report on somebody else's model: no model lies beside it.
        front, model_name = {}, audited.name_of_model(result)
    elif base:
        front["base_model"] = base
        front["base_model_relation"] = "adapter" if adapter else "finetune"
    front["tags"] = ["letgo", "machine-unlearning", "audit" if result.audit else "unlearning"]
    if result.status != "finished":
        front["tags"].append(f"letgo-{result.status}")
    if index := model_index(result, model_name):
        front["model-index"] = index
    known = {name: text for name, text in settings(result.config) if text != MISSING}
    method = [(name, known[name]) for name in METHOD if name in known]
    method += [(name, text) for name, text in known.items() if name.startswith(("objective_", "optimizer_"))]
    text = template("card.md.j2").render(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        title=f"{model_name}, {'audited' if result.audit else 'unlearned'}",
        model=base or model_name,
        facts=audited.facts(result),
        not_tried=audited.not_tried(result),
        limits=audited.limits(result),
        result=result,
        verdict=verdict(result, names=False),
        caution=wording_caution(result),
        data=[(name, known[name]) for name in ("benchmark", *OWN_ROWS) if name in known],
        method=method,
        results=_results(result),
        attacks=_attacks(result),
        exported=next((attack.did for attack in result.attacks if attack.name == "exported"), None),
        has_config=has_config,
        published=published,
        result_file=RESULT_FILE,
        config_file=CONFIG_FILE,
    )
    return f"{text}\n"


def _results(result: Result) -> list[list[str]]:
    shown, metrics = rows(result), columns([result])
    table = [["model", *(column.title for column in metrics)]]
    for row in shown:
        name = f"{'after ' if row.kind == 'attack' else ''}{row.attack.label if row.attack else row.label}"
        table.append([name, *(_cell(row.metrics.get(column.key)) for column in metrics)])
    return table if shown else []


def _attacks(result: Result) -> list[list[str]]:
    table = [["attack", "seeds", "forgetting kept", "at least", "needed", "outcome"]]
    for row in rows(result):
        if row.attack is not None:
            seeds = ", ".join(map(str, row.attack.seeds)) or MISSING
            least = MISSING if row.attack.bound is None else percent(row.attack.bound)
            needed = percent(row.attack.threshold)
            table.append([row.attack.label, seeds, row.kept or MISSING, least, needed, row.attack.outcome])
    return table if len(table) > 1 else []


def _cell(metric: Metric | None) -> str:
    return MISSING if metric is None else measured(metric, "; n")
