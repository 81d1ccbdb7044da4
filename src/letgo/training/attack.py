"""`letgo attack` as a function: attack a run or a model, and keep the card beside the record true."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from letgo.attacks.engine.run import attack as attack_model
from letgo.attacks.engine.run import run_directory
from letgo.core import processes
from letgo.core.files import remove_abandoned
from letgo.core.locks import only_writer
from letgo.report.card import write_model_card
from letgo.runs.results import Result
from letgo.scoring.server.served import Served


def attack(
    directory: Path | str | Served, attacks: Sequence[str], *, output: Path | None = None, **settings: Any
) -> Result:
    """Attack a saved model, and add what came of it to the run's record and to its card.

    Arguments, result and errors as in `letgo.attacks.engine.run.attack`.
    """
    folder = output or run_directory(directory)
    processes.start()
    with only_writer(folder, make=True):
        if folder is not None:
            # Whoever wrote here before has ended.
            remove_abandoned(folder, older_than=0)
        result = attack_model(directory, attacks, output=output, **settings)
        if folder is not None:
            processes.first_does(lambda: write_model_card(folder, result))
    return result
