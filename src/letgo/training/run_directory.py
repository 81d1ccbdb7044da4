"""A run's directory before the run: may it be written to, and is it this run's?"""

from __future__ import annotations

import uuid
from pathlib import Path

from letgo.core.errors import UserError
from letgo.runs.results import CONFIG_FILE, is_run, read_result
from letgo.training.config import UnlearnConfig, read_config, resolved_settings
from letgo.training.trainer import last_checkpoint

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
    # How often checkpoints are written.
    *("save_strategy", "save_steps", "save_total_limit"),
}
"""What a run may be resumed with otherwise than it was begun."""


def prepare_directory(config: UnlearnConfig, *, resume: bool = False) -> Path:
    """The output directory, made and tried; one that holds another run is refused.

    Raises:
        UserError: there is none, it can't be written to, it holds another run, or one that is finished; or a run would
            go on with other settings than it was begun with.
    """
    output = config.output_dir
    if not output:
        raise UserError("no output directory: give output_dir (--output DIR)")
    directory = Path(output)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"output {directory} is a file; name a directory")
    if directory.is_dir() and any(directory.iterdir()):
        if not resume:
            what = "holds another run" if is_run(directory) or (directory / CONFIG_FILE).exists() else "is not empty"
            raise UserError(
                f"output directory {directory} {what}; name another one, remove it, or resume it with --resume"
            )
        if is_run(directory) and read_result(directory).status == "finished":
            raise UserError(f"output directory {directory} holds a finished run; there is nothing to resume")
        _check_settings(directory, config)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"output directory {directory} can't be written to ({error.strerror})") from error
    return directory


def _check_settings(directory: Path, config: UnlearnConfig) -> None:
    """Refuse to go on from a checkpoint with other settings than those that it was trained with."""
    if not (directory / CONFIG_FILE).is_file() or last_checkpoint(directory) is None:
        return
    begun, now = resolved_settings(read_config(directory / CONFIG_FILE)), resolved_settings(config)
    changed = [key for key in {**begun, **now} if key not in MAY_CHANGE and begun.get(key) != now.get(key)]
    if changed:
        shown = ", ".join(f"{key} {_shown(begun, key)} (now {_shown(now, key)})" for key in changed)
        raise UserError(
            f"output directory {directory} holds a run that was begun with other settings: {shown}\n"
            f"  resume it as it was begun: letgo unlearn {directory / CONFIG_FILE} --resume; or name another directory"
        )


def _shown(settings: dict[str, object], key: str) -> str:
    return repr(settings[key]) if key in settings else "by default"
