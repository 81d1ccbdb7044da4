"""A run's settings as text, those that differ between runs, and the commands that make it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from letgo.core.catalog import links_of, parse_chain
from letgo.core.terminal import visible
from letgo.report import audited
from letgo.report.load import LoadedRun
from letgo.report.numbers import MISSING
from letgo.runs.results import CONFIG_FILE, AttackResult

ALWAYS = ("objective", "optimizer")
"""Settings that the overview shows of every run, alike or not."""
NEVER = ("output", "output_dir", "run_id", "run_name", "logging_dir")
"""Settings that differ between any two runs, and mean nothing."""
MOST_VARYING = 6


def plain(value: Any) -> str:
    """A setting's value as one line: text as it is, none as a dash, mappings as "key=value, …", lists as JSON."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, str)):
        return visible(str(value))
    if isinstance(value, Mapping):
        return visible(", ".join(f"{key}={plain(inner)}" for key, inner in value.items())) or MISSING
    return visible(json.dumps(value, ensure_ascii=False, default=str))


def settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each setting, in the run's own order. Access tokens are never shown, nor is where the run was
    written: it may have been moved since."""
    return [
        (visible(str(key)), "(hidden)" if _secret(key, value) else plain(value))
        for key, value in config.items()
        if key not in NEVER
    ]


def varying(configs: Sequence[Mapping[str, Any]], most: int | None = MOST_VARYING) -> list[str]:
    """Objective and optimizer, then the settings that are not the same in all runs, up to `most` in all."""
    names = dict.fromkeys(key for config in configs for key in config)
    chosen = [name for name in ALWAYS if name in names]
    for name in names:
        if name in chosen or name in NEVER or _secret(name, ""):
            continue
        if len({plain(config.get(name)) for config in configs}) > 1:
            chosen.append(name)
    return chosen[:most]


def commands(run: LoadedRun) -> list[str]:
    """What to type to make the run again, from its own resolved configuration."""
    lines, model, attacks = [], str(run.directory), run.result.attacks
    if run.result.audit is not None:
        return [visible(audited.command(run.result, f"{run.directory.name}-again"))]
    if run.has_config:
        config, model = str(PurePath(run.directory) / CONFIG_FILE), f"{run.directory.name}-again"
        lines.append(f"letgo unlearn {shlex.quote(config)} --output {shlex.quote(model)}")
        # `letgo unlearn` makes those again by itself that the configuration asks for.
        attacks = [attack for attack in attacks if not _configured(attack, run.result.config)]
    if attacks:
        options = " ".join(f"--attack {shlex.quote(attack.label)}" for attack in attacks)
        lines.append(f"letgo attack {shlex.quote(model)} {options}")
    return [visible(line) for line in lines]


def _configured(attack: AttackResult, config: Mapping[str, Any]) -> bool:
    made = links_of(attack.name, attack.settings)
    for asked in (links_of(*parse_chain(str(spec))) for spec in config.get("attacks") or []):
        if len(asked) == len(made) and all(
            name == other and settings.items() <= given.items()
            for (name, settings), (other, given) in zip(made, asked, strict=True)
        ):
            return True
    return False


def _secret(key: str, value: Any) -> bool:
    return isinstance(value, str) and any(str(key).endswith(end) for end in ("token", "password", "secret", "api_key"))
