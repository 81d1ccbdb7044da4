"""`letgo export` as a function: write a run's model, or any model, in the format in which it will be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from letgo.core.catalog import check_arguments
from letgo.core.errors import UserError
from letgo.core.files import remove_abandoned
from letgo.core.locks import check_unused, only_writer
from letgo.core.progress import Reporter
from letgo.core.values import Rounding, Seed
from letgo.models.export import export as export_model
from letgo.models.files import remote_code
from letgo.models.formats import FORMATS, MANIFEST, UNFINISHED
from letgo.runs.results import is_run, read_result


def export(
    run: Path | str,
    format: str,
    output: Path | str,
    *,
    rounding: Rounding = "nearest",
    seed: Seed = 0,
    original: str | None = None,
    trust_remote_code: bool | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write a model in another format into a new directory, with `export.json`, which says what rounding did to it.

    Args:
        run: a run directory; or any model: a directory, a hub id, a built-in name.
        format: see `letgo list formats`.
        output: a directory that is still to be made, or empty; or that of an export that was cut off.
        rounding: nearest, stochastic (unbiased: keeps small updates on average) or error_feedback.
        seed: of stochastic rounding.
        original: the model before unlearning; by default, of a run, the one that its record names. Without it the
            manifest can't say how much of the update is left.
        trust_remote_code: whether the models' own Python code may run.
        reporter: where progress goes.

    Returns:
        The manifest.

    Raises:
        UserError: the format can't hold this model; the run failed; the output exists.
    """
    check_arguments(export, rounding=rounding, seed=seed)
    FORMATS.record(format)
    directory, output = Path(run), Path(output)
    if is_run(directory):
        result = read_result(directory)
        if result.status == "failed":
            raise UserError(f"{run}: the run failed ({'; '.join(result.reasons)}); there is nothing to export")
        original = original or result.config.get("model")
    if output.exists() and not output.is_dir():
        check_unused(output)
    with only_writer(output, make=True), remote_code(trust_remote_code):
        # Whoever wrote here before has ended.
        remove_abandoned(output, older_than=0)
        if not (output / UNFINISHED).is_file():
            if (output / MANIFEST).is_file():
                raise UserError(f"output directory {output} holds an export already; name another one")
            check_unused(output)
        return export_model(run, format, output, rounding=rounding, seed=seed, original=original, reporter=reporter)
