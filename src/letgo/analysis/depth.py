"""Depth: in which layers an unlearned model still holds the forget set's answers, by patching its states into the
original."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from letgo.analysis.frame import Analysis, AnalysisOptions
from letgo.analysis.neighbours import check_tokenizers, original_of, other_model
from letgo.analysis.records import Depth, DepthLayer
from letgo.analysis.weights import named_weights
from letgo.benchmarks.engine.base import RETRAINED
from letgo.core.errors import EmptyScoreError, NonFiniteLossError, UserError
from letgo.core.values import Count
from letgo.metrics.summary import mean_metric
from letgo.models.forward import find_blocks
from letgo.models.load import load_tokenizer
from letgo.models.running import evaluating
from letgo.objectives.likelihood import Part, label_counts, label_positions, sum_rows, token_logps

LIMIT = 32


def depth(
    run: str | Path,
    *,
    retrained: str | None = None,
    threshold: float = 0.05,
    limit: Count | None = LIMIT,
    **options: Unpack[AnalysisOptions],
) -> Depth:
    r"""Put a model's states of one layer in the place of the original's, and see how much of an answer the original
    then loses (the unlearning depth score, arXiv 2605.24614).

        ℓ_0    the original's mean log-probability of the answer's tokens
        ℓ_j    the same with block j's output, at the positions that predict them, from another model on the same text
        d_j    ℓ_0 − ℓ_j: R_j of the retrained model, U_j of the unlearned one
        UDS    Σ_{j: R_j > threshold} R_j · clip(U_j / R_j, 0, 1) / Σ_{j: R_j > threshold} R_j,  its mean over rows

    1: the answers are erased in every layer as in the retrained model; 0: the states hold them as the original's do. A
    row for which no layer counts is left out. All tokens of an answer count, where the source has an entity marked
    in each. A model that is broken scores 1 too: the record says whether the run is.

    Args:
        run: a run directory.
        retrained: a model that never saw the forget set; by default the benchmark's own.
        threshold: a layer counts for a row where R_j is above it.
        limit: at most so many forget rows; None for all.
        options: `letgo.analysis.frame.AnalysisOptions`.

    The three models are in memory at once. A row costs 2 × layers + 3 forward passes.

    Raises:
        UserError: no run, no retrained model, or models of other shapes or tokenizers.
        EmptyScoreError: there are no forget rows, or no layer counts for any.
        NonFiniteLossError: a log-probability is not finite.
    """
    if not (math.isfinite(threshold) and threshold >= 0):
        raise UserError(f"threshold must be at least 0, not {threshold}")
    analysis = Analysis(Depth, run, {"threshold": threshold, "retrained": retrained}, limit, **options)
    target = analysis.target
    known = retrained or target.benchmark.references.get(RETRAINED)
    if not isinstance(known, str):
        raise UserError("depth needs the retrained model: name it with --retrained MODEL")
    unlearned = target.load(analysis.dtype)
    weights = named_weights(unlearned)
    original = other_model("the model it began with", original_of(target), weights, target, analysis.dtype)
    never = other_model("the retrained model", known, weights, target, analysis.dtype)
    check_tokenizers({target.name: analysis.tokenizer, known: load_tokenizer(known)})
    losses = analysis.losses(unlearned)
    if "forget_loss" not in losses.sets:
        raise EmptyScoreError(f"benchmark {target.benchmark.name!r} has no forget rows")
    rows = losses.rows["forget_loss"]
    lost: dict[str, list[list[float]]] = {"retrained": [], "unlearned": []}
    groups: list[str] = []
    with analysis.reporter.task("depth", rows) as task:
        for encoded, part in losses.parts(original, "forget_loss"):
            for name, model in (("retrained", never), ("unlearned", unlearned)):
                lost[name] += lost_by_layer(original, model, part)
            groups += [row.row.group for row in encoded]
            task.advance(len(encoded))
    scores = [score(r, u, threshold) for r, u in zip(lost["retrained"], lost["unlearned"], strict=True)]
    counted = [(value, group) for value, group in zip(scores, groups, strict=True) if value is not None]
    if not counted:
        raise EmptyScoreError(
            f"depth: no layer of the retrained model takes more than {threshold:g} from any answer: there is nothing "
            "that the two models hold apart"
        )
    layers = []
    for number, (mine, theirs) in enumerate(
        zip(*(_by_layer(lost[n]) for n in ("retrained", "unlearned")), strict=True)
    ):
        above = sum(value > threshold for value in mine)
        means = [math.fsum(values) / rows for values in (mine, theirs)]
        layers.append(DepthLayer(layer=number, retrained=means[0], unlearned=means[1], counted=above))
    broken = list(target.result.reasons) if target.result.status != "finished" else []
    if target.result.status != "finished" and not broken:
        broken = [f"the run is {target.result.status}"]
    return analysis.finish(
        parameters=sum(weight.numel() for weight in weights.values()),
        rows={"forget_loss": rows},
        score=mean_metric([value for value, _ in counted], [group for _, group in counted]),
        left_out=rows - len(counted),
        layers=layers,
        broken=broken,
    )


def score(retrained: Sequence[float], unlearned: Sequence[float], threshold: float) -> float | None:
    """A row's UDS of what each layer takes from its answer; None where no layer counts."""
    counted = [(r, u) for r, u in zip(retrained, unlearned, strict=True) if r > threshold]
    if not counted:
        return None
    return math.fsum(r * min(1.0, max(0.0, u / r)) for r, u in counted) / math.fsum(r for r, _ in counted)


def lost_by_layer(original: Any, source: Any, part: Part) -> list[list[float]]:
    """d_j of each row, and of each layer in it: what the original's mean log-probability of the row's label tokens
    loses when the output of block j, where these are predicted, is the source's.

    Raises:
        NonFiniteLossError: one is not finite.
    """
    with evaluating(original), evaluating(source):
        states = states_of(source, part)
        whole = _row_means(original, part)
        columns = []
        for number, state in enumerate(states):
            with patched(original, number, part, state):
                columns.append([a - b for a, b in zip(whole, _row_means(original, part), strict=True)])
    if not all(math.isfinite(value) for column in columns for value in column):
        raise NonFiniteLossError("depth: a log-probability is not finite")
    return [list(row) for row in zip(*columns, strict=True)]


def states_of(model: Any, part: Part) -> list[Tensor]:
    """The output of each block at the positions that predict label tokens, of shape (tokens, width)."""
    where = label_positions(part)
    states: list[Tensor] = []
    with ExitStack() as stack:
        for block in find_blocks(model)[1]:
            hook = block.register_forward_hook(lambda module, args, output: states.append(_hidden(output)[where]))
            stack.callback(hook.remove)
        model(input_ids=part["input_ids"], attention_mask=part["attention_mask"], use_cache=False)
    return states


@contextmanager
def patched(model: Any, number: int, part: Part, state: Tensor) -> Iterator[None]:
    """Within: the output of block `number` is `state` at the positions that predict the part's label tokens."""
    rows, columns = label_positions(part)

    def put(module: Any, args: Any, output: Any) -> Any:
        hidden = _hidden(output).clone()
        hidden[rows, columns] = state.to(hidden.device, hidden.dtype)
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    hook = find_blocks(model)[1][number].register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


def _hidden(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _row_means(model: Any, part: Part) -> list[float]:
    means: list[float] = (sum_rows(token_logps(model, part).double(), part) / label_counts(part)).tolist()
    return means


def _by_layer(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]
