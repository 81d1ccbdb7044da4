"""lm-eval on a loaded model: tasks of its own library or of a folder, sample by sample.

Only the folders that hold the wanted tasks are read: to search its whole library takes seconds. No global generator is
seeded, letgo's progress replaces lm-eval's bars, and documents that it cut are marked.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from letgo.core import processes
from letgo.core.catalog import did_you_mean
from letgo.core.errors import EmptyScoreError, NonFiniteLossError, UserError, first_line
from letgo.core.extras import need
from letgo.models.load import context_length
from letgo.models.running import evaluating, is_sharded

FOLDERS: Mapping[str, str] = {
    "arc_challenge": "arc",
    "arc_easy": "arc",
    "boolq": "super_glue/boolq",
    "hellaswag": "hellaswag",
    "mmlu": "mmlu/default",
    "openbookqa": "openbookqa",
    "piqa": "piqa",
    "rte": "glue/rte",
    "truthfulqa_mc1": "truthfulqa",
    "truthfulqa_mc2": "truthfulqa",
    "wikitext": "wikitext",
    "winogrande": "winogrande",
    "wmdp": "wmdp",
}
"""Where lm-eval keeps the tasks that usually measure unlearning; others are searched in its whole library."""
BATCH_SIZE = 8


@dataclass(frozen=True)
class Answered:
    """One document of a task, answered: its prompt, its number values by metric, and its choices' log-probabilities.

    `weights` is set where a metric is no plain mean: {"word_perplexity": (log-likelihood, words)}. `cut`: the prompt
    was longer than the model's context, and lost its beginning.
    """

    task: str
    index: int
    prompt: str
    scores: Mapping[str, float]
    weights: Mapping[str, tuple[float, float]]
    logps: tuple[float, ...]
    cut: bool = False


def load_tasks(tasks: Sequence[str | Mapping[str, Any]], *, folder: str | Path | None = None) -> dict[str, Any]:
    """lm-eval's task objects with their data, by name; a group gives its tasks.

    Args:
        tasks: names of tasks or groups, or mappings with "task" (a name) and the settings to change, such as
            "custom_dataset" for other rows.
        folder: a folder with task files, in place of lm-eval's library.

    Raises:
        UserError: lm-eval is not installed, there is no such task, or its data can't be loaded.
    """
    need("lm_eval", "eval", what="running lm-eval's tasks")
    names = [task if isinstance(task, str) else str(task["task"]) for task in tasks]
    with _quietly():
        manager = _manager(names, folder)
        changed = [dict(task) for task in tasks if not isinstance(task, str)]
        asked: list[Any] = [task for task in tasks if isinstance(task, str)]
        if changed:
            # lm-eval applies changes to a task by name only within a group.
            asked.append({"group": "letgo", "task": changed})
        try:
            return dict(manager.load(asked)["tasks"])
        except (OSError, ValueError) as error:
            # The datasets library raises many kinds of errors where a hub can't be reached.
            raise UserError(
                f"lm-eval: the data of {', '.join(names)} can't be loaded ({first_line(error)})\n  if the hub can't be "
                "reached, run this once where it can, or give task files on local data: folder=DIR"
            ) from error


def run_task(
    model: Any,
    tokenizer: Any,
    task: Any,
    *,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    num_fewshot: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Answered]:
    """Run one task; returns its answered documents in order.

    Args:
        model: a causal LM of transformers; it is in eval mode during the run.
        tokenizer: its tokenizer.
        task: from `load_tasks`.
        limit: at most so many documents, the first ones.
        batch_size: rows of a forward pass.
        num_fewshot: worked examples before each question; by default what the task says.
        advance: called with the number of documents done; they sum up to all.

    Raises:
        EmptyScoreError: the task has no documents.
        NonFiniteLossError: a score is NaN or infinite.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    name, documents = task.config.task, documents_of(task, limit)
    if not documents:
        raise EmptyScoreError(f"lm-eval: task {name!r} has no documents")
    progress = _Progress(documents, advance)
    with evaluating(model), _quietly():
        outcome = simple_evaluate(
            model=_harness(model, tokenizer, batch_size, progress),
            tasks=[task],
            limit=limit,
            num_fewshot=num_fewshot,
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    progress.finish()
    documents = outcome["samples"][name]
    # A task may score one answer in several ways; its name stands for the first way.
    chosen = [document for document in documents if document["filter"] == documents[0]["filter"]]
    return [_answered(name, d, model, tokenizer) for d in sorted(chosen, key=lambda d: d["doc_id"])]


def documents_of(task: Any, limit: int | None = None) -> int:
    """How many documents of a task are scored."""
    count = len(task.eval_docs)
    return count if limit is None else min(limit, count)


def _manager(names: Sequence[str], folder: str | Path | None) -> Any:
    import lm_eval
    from lm_eval.tasks import TaskManager

    library = Path(lm_eval.__file__).parent / "tasks"
    if folder is not None:
        if not Path(folder).is_dir():
            raise UserError(f"lm-eval: no such folder of task files: {folder}")
        manager = TaskManager(include_path=str(folder), include_defaults=False)
    else:
        known = {FOLDERS.get(name) or FOLDERS.get(name.partition("_")[0]) for name in names}
        manager = TaskManager(include_path=[library / path for path in known if path], include_defaults=False)
        if any(name not in manager.task_index for name in names):
            manager = TaskManager()
    for name in names:
        if name not in manager.task_index:
            where = f"in {folder}" if folder is not None else "in lm-eval's library"
            tasks = manager.all_tasks
            listed = f"; there are {', '.join(tasks)}" if 0 < len(tasks) <= 12 else ""
            raise UserError(f"lm-eval: no task {name!r} {where}{did_you_mean(name, tasks) or listed}")
    return manager


class _Progress:
    """Turns finished requests (a document may have several) into finished documents."""

    def __init__(self, documents: int, advance: Callable[[int], None]) -> None:
        self.documents, self.advance = documents, advance
        self.requests = self.answered = self.reported = 0

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """Called by lm-eval where it would store a finished request."""
        self.answered += 1
        self._report(self.documents * min(self.answered, self.requests) // max(self.requests, 1))

    def finish(self) -> None:
        self._report(self.documents)

    def _report(self, done: int) -> None:
        if done > self.reported:
            self.advance(done - self.reported)
            self.reported = done


def _harness(model: Any, tokenizer: Any, batch_size: int, progress: _Progress) -> Any:
    from lm_eval.models.huggingface import HFLM

    class Loaded(HFLM):
        """lm-eval's wrapper around the loaded model; it counts its requests."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._shared(requests, super().loglikelihood, tuple)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._shared(requests, super().loglikelihood_rolling, float)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._shared(requests, super().generate_until, str)

        def _shared(self, requests: Any, answer: Any, unpack: Any) -> list[Any]:
            """Each process of a run answers a part of the requests."""
            progress.requests += len(requests)

            def answered(some: Any, numbers: Any, advance: Any) -> list[Any]:
                return list(answer(list(some), disable_tqdm=True)) if some else []

            return processes.shared(requests, answered, pack=lambda x: x, unpack=unpack, together=is_sharded(model))

    harness = Loaded(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=context_length(model),
        # In half precision, as the weights have it, two answers' scores would often be the same number.
        softmax_dtype="float32",
    )
    harness.cache_hook = progress
    return harness


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """lm-eval without its bars and remarks: a command shows its own progress, and the scores mark what was cut."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _answered(task: str, document: Mapping[str, Any], model: Any, tokenizer: Any) -> Answered:
    scores: dict[str, float] = {}
    weights: dict[str, tuple[float, float]] = {}
    for metric in document["metrics"]:
        value = document[metric]
        if isinstance(value, bool | int | float) or hasattr(value, "item"):
            scores[metric] = float(value)
        elif isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
            weights[metric] = (float(value[0]), float(value[1]))
        # Others (lists of answers for a score over the corpus) have no value for one document.
    responses = [reply[0] if isinstance(reply, tuple | list) else reply for reply in document["filtered_resps"]]
    logps = tuple(float(reply) for reply in responses if isinstance(reply, int | float))
    number = int(document["doc_id"])
    if not all(map(math.isfinite, chain(scores.values(), logps, *weights.values()))):
        raise NonFiniteLossError(f"lm-eval: task {task!r}, document {number}: a score is NaN or infinite")
    prompts = [str(arguments[0]) for arguments in document["arguments"]]
    # A text scored as a whole goes through in windows; every other prompt must fit, or is cut at the left.
    whole = max(prompts, key=len, default="") if logps and not weights else ""
    cut = bool(whole) and len(tokenizer(whole)["input_ids"]) > context_length(model)
    return Answered(task, number, prompts[0] if prompts else "", scores, weights, logps, cut)
