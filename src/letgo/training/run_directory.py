"""A run's directory before and after the run: may it be written to, is it this run's, is anything left to be done?"""

from __future__ import annotations

import contextlib
from pathlib import Path

from letgo.attacks.engine.spec import missing_attacks
from letgo.core.errors import LetgoError, UserError
from letgo.core.files import read_json, remove_abandoned, write_json
from letgo.core.locks import LOCK_FILE
from letgo.report.card import CARD_FILE, card_of
from letgo.runs.digests import check_begun_with
from letgo.runs.documents import validated
from letgo.runs.results import CONFIG_FILE, LIVE_FILE, Digests, Result, is_run, read_result
from letgo.scoring.resume_log import PARTIAL
from letgo.training.checkpoints import checkpoints, facts_of, last_checkpoint, remove_checkpoint
from letgo.training.config import UnlearnConfig, read_config, resolved_settings
from letgo.training.looks import BEST

BEGUN = "begun.partial.json"
"""What an unfinished run began with: the digests of its model and its data."""
MAY_CHANGE = {
    # Where it lies, and what is done with the finished run.
    *(
        "output_dir",
        "attacks",
        "save_merged",
        "push_to_hub",
        "hub_model_id",
        "hub_private_repo",
        "report_to",
        "run_name",
    ),
    # How it is computed: the same trajectory up to rounding. A step keeps its rows (`TrainingRanks.fit_window`).
    *("processes", "strategy", "share", "per_device_train_batch_size", "gradient_accumulation_steps", "use_cpu"),
    *("dataloader_num_workers", "dataloader_pin_memory", "check_processes_every"),
    # How often checkpoints are written, and steps measured.
    "moved_every",
    *("save_strategy", "save_steps", "save_total_limit"),
}
"""What a run may be resumed with otherwise than it was begun."""


def output_directory(config: UnlearnConfig) -> Path:
    """Where a run goes. A `UserError` where that is not said, or is a file."""
    if not config.output_dir:
        raise UserError("no output directory: give output_dir (--output DIR)")
    directory = Path(config.output_dir)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"output {directory} is a file; name a directory")
    return directory


def check_directory(directory: Path, config: UnlearnConfig, *, resume: bool = False) -> list[str]:
    """Check that a run may begin in its directory, or go on there; returns notes for the record.

    Raises:
        UserError: it holds another run, or one with nothing left to be done; or a run would go on with other settings
            than it was begun with.
    """
    # Whoever wrote here before has ended.
    remove_abandoned(directory, older_than=0)
    if all(path.name == LOCK_FILE for path in directory.iterdir()):
        return []
    if not resume:
        what = "holds another run" if is_run(directory) or (directory / CONFIG_FILE).exists() else "is not empty"
        raise UserError(f"output directory {directory} {what}; name another one, remove it, or resume it with --resume")
    notes = _check_settings(directory, config)
    if (result := finished_result(directory)) is not None and not left_to_do(directory, config, result):
        raise UserError(f"output directory {directory} holds a finished run; there is nothing to resume")
    return notes


def bind_to_beginning(directory: Path, digests: Digests) -> None:
    """Keep in the directory what the run begins with; one that goes on from a checkpoint must have begun with it.

    Raises:
        UserError: the data or the model are others.
    """
    path = directory / BEGUN
    if last_checkpoint(directory) is not None and path.is_file():
        check_begun_with(directory, validated(path, Digests, read_json(path)), digests)
    else:
        write_json(path, digests.model_dump())


def finished_result(directory: Path) -> Result | None:
    """The record of a run that came to its end, with or without its attacks."""
    result = read_result(directory) if is_run(directory) else None
    return None if result is None or result.status == "failed" else result


def code_begun_with(directory: Path) -> dict[str, str]:
    """The SHA-256 of the files of code that is not letgo's own, by its names, with which a run in this directory was
    begun; none where there is nothing to go on from."""
    if (result := finished_result(directory)) is not None:
        return result.code_digests
    for checkpoint in checkpoints(directory):
        # One that is damaged is not gone on from.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            begun: dict[str, str] = facts_of(checkpoint).get("code", {})
            return begun
    return {}


def remove_remains(directory: Path) -> None:
    """Remove what only an unfinished run needs."""
    for path in _remains(directory):
        remove_checkpoint(path) if path.is_dir() else path.unlink(missing_ok=True)


def _remains(directory: Path) -> list[Path]:
    # Several processes have a log of scores each: its name and their number.
    patterns = (PARTIAL.format("*") + "*", BEST.format("*"), BEGUN, LIVE_FILE)
    return [*checkpoints(directory), *(path for pattern in patterns for path in directory.glob(pattern))]


def check_complete(directory: Path) -> None:
    """Raise a `LetgoError` where somebody emptied the directory while the run was at work."""
    if not (directory / CONFIG_FILE).is_file():
        raise LetgoError(f"{directory / CONFIG_FILE} was removed while the run was at work: run the command again")


def left_to_do(directory: Path, config: UnlearnConfig, result: Result) -> bool:
    """Whether a finished run's attacks, card or push are missing, or its remains were not removed."""
    return config.push_to_hub or bool(missing_attacks(config.attacks_made, result)) or unsettled(directory, result)


def unsettled(directory: Path, result: Result) -> bool:
    """Whether what follows the record of a run, or of an attack on it, was cut off: it is `unpublished`, or its card is
    not this record's."""
    if unpublished(directory):
        return True
    return (directory / CARD_FILE).read_text(encoding="utf-8", errors="replace") != card_of(directory, result)


def unpublished(directory: Path) -> bool:
    """Whether a recorded run was cut off before its first card: what only an unfinished run needs may still be there,
    and its export may be missing."""
    return bool(_remains(directory)) or not (directory / CARD_FILE).is_file()


def _check_settings(directory: Path, config: UnlearnConfig) -> list[str]:
    """Refuse to go on with other settings than those that a run was begun with; what may change is noted."""
    if last_checkpoint(directory) is None and finished_result(directory) is None:
        return []
    if not (directory / CONFIG_FILE).is_file():
        raise UserError(
            f"output directory {directory} has no {CONFIG_FILE}, which says with which settings its run was begun: put "
            "it back, or name another directory"
        )
    begun, now = resolved_settings(read_config(directory / CONFIG_FILE)), resolved_settings(config)
    changed = [key for key in {**begun, **now} if begun.get(key) != now.get(key)]
    if refused := [key for key in changed if key not in MAY_CHANGE]:
        shown = ", ".join(f"{key} {_shown(begun, key)} (now {_shown(now, key)})" for key in refused)
        raise UserError(
            f"output directory {directory} holds a run that was begun with other settings: {shown}\n"
            f"  resume it as it was begun: letgo unlearn {directory / CONFIG_FILE} --resume; or name another directory"
        )
    noted = [key for key in changed if key != "output_dir"]
    return [f"resumed with {key} {_shown(now, key)}; begun with {_shown(begun, key)}" for key in noted]


def _shown(settings: dict[str, object], key: str) -> str:
    return repr(settings[key]) if key in settings else "by default"
