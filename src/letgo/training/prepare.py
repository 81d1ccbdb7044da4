"""From a loaded model and its data to what a trainer trains: adapters or frozen weights, rows as tokens with their
alternatives, and the reference quantities that the objective needs, out of the store or into it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from letgo.core import processes
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.progress import Quiet, Reporter
from letgo.data import ForgetRetainDataset, pad_rows, resolve_template
from letgo.data.encode import Encoded
from letgo.models.adapters import add_lora, linear_targets
from letgo.models.load import context_length, disable_dropout, freeze_all_but
from letgo.models.running import is_sharded
from letgo.objectives import Objective
from letgo.objectives.references import reference_quantities
from letgo.objectives.refusals import alternative_answers
from letgo.training.reference_store import (
    ReferenceKey,
    ReferenceStore,
    model_fingerprint,
    rows_fingerprint,
    tokenizer_fingerprint,
)

if TYPE_CHECKING:
    from letgo.benchmarks.engine.base import Benchmark
    from letgo.training.config import UnlearnConfig

TOKENS_AT_ONCE = 2048
"""Tokens of a batch whose reference quantities are taken. Not a run's to set: what is stored must not depend on it."""


def prepare_model(
    model: Any, args: UnlearnConfig, objective: Objective | None, *, check: bool = True
) -> tuple[Any, list[str]]:
    """The model with what the run trains of it: adapters, the parameters that `trainable` names, those that the
    objective names, or all. Returns it, and notes for the record. `objective` (None for a one-shot method) has been
    prepared for it then; with `check` the model has also been run, on two tokens.

    Raises:
        UserError: a pattern finds nothing, or the objective can't be used with such a model.
    """
    if args.disable_dropout:
        disable_dropout(model)
    if (args.optimizer_args or {}).get("hessian") == "hutchinson" and hasattr(model, "set_attn_implementation"):
        # The fused attention of a CPU can't be differentiated twice.
        model.set_attn_implementation("eager")
    total = sum(parameter.numel() for parameter in model.parameters())
    pattern = args.trainable or (objective.trainable_pattern(model) if objective else None)
    notes = []
    if args.trust_remote_code:
        notes.append("trust_remote_code: Python code that came with the model may have run")
    if args.lora_rank:
        targets = linear_targets(model, args.lora_targets, pattern)
        model = add_lora(
            model,
            rank=args.lora_rank,
            alpha=args.lora_alpha,
            dropout=args.lora_dropout,
            targets=targets,
            seed=args.seed,
        )
        count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        base = f", the model in {args.base_quantization}" if args.base_quantization else ""
        notes.append(f"trained: adapters of rank {args.lora_rank} on {len(targets)} layers, {count:,} parameters{base}")
    elif pattern:
        count = freeze_all_but(model, pattern)
        notes.append(f"trained: {count:,} of {total:,} parameters ({pattern})")
    if objective:
        objective.prepare(model, check=check)
    return model, notes


def prepare_data(
    benchmark: Benchmark, tokenizer: Any, args: UnlearnConfig, objective: Objective | None, *, context: int
) -> tuple[ForgetRetainDataset, list[str]]:
    """A benchmark's rows as tokens, with alternatives where the objective needs them, and notes for the record.

    Raises:
        UserError: rows that can't be used, no retain set for an objective that needs one, no alternative in a row.
    """
    how: dict[str, Any] = {
        "template": args.template,
        "max_length": args.max_length or context,
        "long_rows": args.long_rows,
    }
    encoded: dict[str, list[Encoded]] = {}
    notes: list[str] = []
    for name, rows in (("forget", benchmark.forget), ("retain", benchmark.retain)):
        encoded[name], row_notes = benchmark.encode(tokenizer, rows, name=f"{name} set", **how)
        notes += row_notes
    parts = objective.parts if objective else ()
    if not encoded["forget"] and (objective is None or set(parts) != {"retain"}):
        raise UserError(
            f"objective {args.objective!r} forgets, but {args.benchmark or 'the data'} has no forget set: it is there "
            "to be learned\n  learn it with objective ft; or leave the setting 'learn' of the benchmark out"
        )
    if "retain" in parts and not encoded["retain"]:
        raise UserError(
            f"objective {args.objective!r} has a retain term, but there is no retain set\n"
            "  give 'retain', or set retain_loss: none"
        )
    alternative: list[Encoded] = []
    if objective and objective.alternative and "alternative" in parts:
        answers = alternative_answers(objective.alternative, [item.row for item in encoded["forget"]], seed=args.seed)
        alternative = benchmark.encode_alternatives(tokenizer, encoded["forget"], answers, **how)
    dataset = ForgetRetainDataset(encoded["forget"], encoded["retain"], alternative=alternative, seed=args.seed)
    return dataset, notes


# -- the reference -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Circumstances:
    """What reference quantities depend on, in addition to the model and the rows."""

    tokenizer: str = ""
    template: str = ""
    max_length: int = 0

    @staticmethod
    def of(tokenizer: Any, template: Any, max_length: int | None, model: Any) -> Circumstances:
        return Circumstances(
            tokenizer_fingerprint(tokenizer),
            resolve_template(tokenizer, template),
            max_length or context_length(model),
        )


class SomeRows(Sequence[Tensor]):
    """Values of some rows of a data set, looked up by their positions in the whole set."""

    def __init__(self, rows: Sequence[int], values: Sequence[Tensor], length: int) -> None:
        self.position_of = {row: position for position, row in enumerate(rows)}
        self.values, self.length = values, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return self.values[self.position_of[index]]


def take_references(
    model: Any,
    dataset: ForgetRetainDataset,
    objective: Objective,
    *,
    pad_id: int,
    epochs: int | None = None,
    store: ReferenceStore | None = None,
    circumstances: Circumstances | None = None,
    reporter: Reporter | None = None,
) -> None:
    """Give the data set what the objective needs of the reference model, which is the model as it is now (adapters
    off); out of the store where it is there.

    Args:
        epochs: how often the forget set will be gone through: only the retain rows that are drawn are looked at. None:
            all of them.
        store: where quantities are kept; None keeps them in memory.
        circumstances: for the store's key.

    Raises:
        NonFiniteLossError: the reference gives a row a quantity that is not finite.
    """
    dataset.reference = {}
    fingerprint = ""
    for part, names in objective.reference.items():
        rows: list[Encoded] = getattr(dataset, part)
        chosen_rows = (
            drawn_retain_rows(dataset, epochs) if part == "retain" and epochs is not None else range(len(rows))
        )
        chosen = [rows[row] for row in chosen_rows]
        keys: dict[str, ReferenceKey] = {}
        if store is not None:
            fingerprint = fingerprint or model_fingerprint(model)
            about = circumstances or Circumstances()
            for name in names:
                keys[name] = ReferenceKey(
                    fingerprint,
                    rows_fingerprint(chosen),
                    about.tokenizer,
                    about.template,
                    about.max_length,
                    str(next(p.dtype for p in model.parameters() if p.is_floating_point())).removeprefix("torch."),
                    name,
                    int(objective.layer or 0) if name == "layer_hidden" else None,
                )
        quantities: dict[str, Sequence[Tensor]] = {
            name: values for name, key in keys.items() if store is not None and (values := store.read(key))
        }
        missing = [name for name in names if name not in quantities]
        if is_sharded(model):
            # Such a model runs in all processes or in none: what one of them lacks is taken anew by all, and kept once.
            anywhere = {name for lacking in processes.exchange(missing) for name in lacking}
            missing = [name for name in names if name in anywhere]
            if not processes.is_first():
                store = None
        if missing:
            task = f"reference {' and '.join(missing).replace('_', ' ')} ({part})"
            with (reporter or Quiet()).task(task, len(chosen)) as progress:
                batches = _quantities(model, chosen, missing, objective.layer, pad_id, progress)
                quantities |= _kept(batches, missing, keys, store)
        complete = len(chosen_rows) == len(rows)
        dataset.reference[part] = {
            name: quantities[name] if complete else SomeRows(chosen_rows, quantities[name], len(rows)) for name in names
        }
    objective.fit(model, dataset.reference)


def drawn_retain_rows(dataset: ForgetRetainDataset, epochs: int) -> list[int]:
    """The places of the retain rows that so many epochs draw, in order."""
    now = dataset.epoch
    drawn: set[int] = set()
    for epoch in range(epochs):
        if len(drawn) == len(dataset.retain):
            break
        dataset.set_epoch(epoch)
        drawn |= {dataset.retain_index(index) for index in range(len(dataset))}
    dataset.set_epoch(now)
    return sorted(drawn)


def _quantities(
    model: Any, rows: Sequence[Encoded], names: Sequence[str], layer: Any, pad_id: int, progress: Any
) -> Iterator[dict[str, list[Tensor]]]:
    """The quantities of the rows in order, a batch at a time."""
    device = next(model.parameters()).device
    for batch in _batches(rows):
        part = {key: value.to(device) for key, value in pad_rows(batch, pad_id).items()}
        quantities = reference_quantities(model, part, names, layer=layer)
        for name, values in quantities.items():
            if not all(bool(torch.isfinite(value).all()) for value in values):
                raise NonFiniteLossError(f"the reference model gives a row {name} that are not finite")
        yield quantities
        progress.advance(len(batch))


def _kept(
    batches: Iterator[dict[str, list[Tensor]]],
    names: Sequence[str],
    keys: dict[str, ReferenceKey],
    store: ReferenceStore | None,
) -> dict[str, Sequence[Tensor]]:
    """All batches' quantities, on disk and mapped from there, or in memory without a store."""
    if store is None:
        memory: dict[str, list[Tensor]] = {name: [] for name in names}
        for batch in batches:
            for name in names:
                memory[name] += batch[name]
        return dict(memory)
    with contextlib.ExitStack() as stack:
        writers = {name: stack.enter_context(store.writer(keys[name])) for name in names}
        for batch in batches:
            for name in names:
                for row in batch[name]:
                    writers[name].append(row)
    return {name: writer.written for name, writer in writers.items() if writer.written is not None}


def _batches(rows: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Consecutive rows, as many as stay within `TOKENS_AT_ONCE` when padded; one at least."""
    batch: list[Encoded] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row))
        if batch and longest * (len(batch) + 1) > TOKENS_AT_ONCE:
            yield batch
            batch, longest = [], len(row)
        batch.append(row)
    if batch:
        yield batch
