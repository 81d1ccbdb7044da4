"""Putting a run's model on a hub: only when asked to, only the model, and never the data that it forgot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from letgo.core.errors import LetgoError, UserError, first_line
from letgo.core.progress import Reporter, usual
from letgo.models.adapters import MERGED, read_base
from letgo.models.files import ADAPTER_WEIGHTS, MODEL_PATTERNS, TOKENIZER_PATTERNS
from letgo.models.formats import EXPORT
from letgo.report.card import CARD_FILE, card
from letgo.report.hub_results import EVAL_RESULTS_FILE, HUB_ID, eval_results
from letgo.runs.results import read_result

MODEL_FILES = (*MODEL_PATTERNS, *TOKENIZER_PATTERNS)
"""What a model is, and all that leaves this machine beside the card: the samples of a run are questions about what was
to be forgotten, and its settings name files."""


def check_repository(name: str | None) -> str:
    """The name of a repository on a hub, or a `UserError`."""
    if not name or not HUB_ID.fullmatch(name):
        raise UserError(
            f"hub_model_id is {name!r}: pushing needs the name of a repository, OWNER/NAME (hub_model_id, or --repo)"
        )
    return name


def model_files(directory: Path) -> list[Path]:
    """The files of a run that make up its model, with the file that it exported; a `UserError` where there is none, or
    where one leads out of the run.

    Of an adapter whose base is a directory of this machine, those of the merged model are given: the adapter would be
    of no use to others.
    """
    run = directory
    if (directory / ADAPTER_WEIGHTS).is_file() and not HUB_ID.fullmatch(base := read_base(directory).model):
        if not (directory / MERGED).is_dir():
            raise UserError(
                f"{directory} holds an adapter on {base}, which others have not: run it with save_merged: true, and "
                "the merged model is pushed"
            )
        directory = directory / MERGED
    there = {path for pattern in MODEL_FILES for path in directory.glob(pattern)} | {*(run / EXPORT).glob("*.gguf")}
    for path in sorted(there):
        # What a link leads to may be any file of this machine.
        if path.is_symlink() or path.resolve() != run.resolve() / path.relative_to(run):
            raise UserError(f"{path} leads out of the run (a link): it is not pushed; put the file itself there")
    files = sorted(path for path in there if path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{directory} holds no model's weights (*.safetensors): there is nothing to push")
    return files


def push_to_hub(
    directory: str | Path,
    repository: str,
    *,
    private: bool = True,
    token: str | None = None,
    reporter: Reporter | None = None,
    api: Any = None,
) -> str:
    """Put a finished run's model, tokenizer and card in a repository on the hub, in one commit; returns its address.

    The card's head has the run's figures as `model-index`. Where they are of a data set on the hub,
    `.eval_results/letgo.yaml` has them too.

    Args:
        repository: "OWNER/NAME"; made, private or not, if it is not there.
        token: of the hub; by default the one that its own login keeps. It is written nowhere.
        api: in place of `huggingface_hub.HfApi(token=token)`.

    Raises:
        UserError: no such run, one that failed, no model in it, or a name that is none.
        LetgoError: the hub refused, or could not be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, errors

    directory, reporter = Path(directory), usual(reporter)
    check_repository(repository)
    result = read_result(directory)
    if result.evaluation or result.status == "failed":
        what = "an evaluation, which has no model" if result.evaluation else "a run that failed"
        raise UserError(f"{directory} holds {what}: there is nothing to push")
    files = model_files(directory)
    operations = [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=str(path)) for path in files]
    text = card(result, published=True, merged=files[0].parent.name == MERGED)
    operations.append(CommitOperationAdd(path_in_repo=CARD_FILE, path_or_fileobj=text.encode()))
    if scores := eval_results(result):
        operations.append(CommitOperationAdd(path_in_repo=EVAL_RESULTS_FILE, path_or_fileobj=scores.encode()))
    size = sum(path.stat().st_size for path in files)
    reporter.say(f"  pushing {len(files)} files ({size / 1e6:,.1f} MB) and the card to {repository}")
    hub = api or HfApi(token=token)
    try:
        address = hub.create_repo(repository, private=private, repo_type="model", exist_ok=True)
        hub.create_commit(repository, operations, commit_message="A model unlearned with letgo", repo_type="model")
    except errors.LocalTokenNotFoundError as error:
        raise UserError("the hub knows no login here: run `hf auth login`, or set HF_TOKEN") from error
    # HTTPError is the transport's, whichever library that is in this version of the hub's.
    except (errors.HFValidationError, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise LetgoError(
            f"could not push to {repository}: {first_line(error)}\n"
            f"  the run is safe in {directory}; try again with `letgo push {directory} --repo {repository}`"
        ) from error
    return str(address)
