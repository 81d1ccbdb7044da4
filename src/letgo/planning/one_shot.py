"""The stages of one-shot methods, which choose their loss and optimizer themselves: what each holds and computes, as
its own docstring says, with its passes followed on the model without values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from letgo.core.catalog import settings_of
from letgo.core.errors import UserError
from letgo.models.head import reference_head
from letgo.objectives import METHODS
from letgo.objectives.likelihood import Part, label_hidden, labels_of
from letgo.objectives.one_shot.influence import gradients_held
from letgo.objectives.one_shot.repselect import mlp_layers
from letgo.objectives.one_shot.whos_harry_potter import generic_loss
from letgo.objectives.retain import cross_entropy
from letgo.planning.estimate import Planned, RunWork
from letgo.planning.optimizers import optimizer_cost
from letgo.planning.report import Phase
from letgo.planning.tracing import Traced, faking, trace_forward, trace_training

_SEARCHED = 12
"""Steps that a search tries: a few to bracket a factor of 8, and about 6 halves of that to come within 5 % of the
budget, to which the step goes by its square root."""


def one_shot_work(run: Planned) -> RunWork:
    """The work of the method that the config names, with its settings."""
    name = run.args.objective
    settings = settings_of(METHODS.load(name), skip=("model", "data")) | (run.args.objective_args or {})
    run.model.eval()
    work = _WORK.get(METHODS.record(name).name)
    if work is None:
        raise UserError(f"objective {name} is a one-shot method of your own: what it takes can't be planned")
    return work(run, settings)


def _fine_tuning(
    run: Planned, part: Part, loss_of: Callable[[Any, Part], Tensor], held: Mapping[str, int], names: tuple[str, str]
) -> tuple[tuple[Phase, Phase], float]:
    """The phases of `letgo.objectives.one_shot.data.fine_tune`, and the operations of one of its steps."""
    cost = optimizer_cost("adamw", {"lr": 1e-5, "weight_decay": 0.0}, run.trained[0].dtype)
    passes = trace_training(run.model, lambda: loss_of(run.model, part))
    return run.step_phases(passes, cost, held, names), passes.flops


def _task_vector(run: Planned, settings: Mapping[str, Any]) -> RunWork:
    part = run.part("forget", int(settings["batch_size"]))
    steps = settings["epochs"] * -(-len(run.dataset.forget) // int(settings["batch_size"]))
    copied = {"the weights as they were": run.trained_bytes}
    phases, flops = _fine_tuning(run, part, cross_entropy, copied, ("train", "step"))
    return RunWork(phases, {"train": steps * flops}, steps, part["input_ids"].shape)


def _whos_harry_potter(run: Planned, settings: Mapping[str, Any]) -> RunWork:
    size = int(settings["batch_size"])
    part = run.part("forget", size)
    batches = -(-len(run.dataset.forget) // size)
    copied = {"copy of the model": run.weights + run.adapters}
    reinforcing, first = _fine_tuning(run, part, cross_entropy, copied, ("reinforce", "reinforce, step"))

    taken = trace_forward(run.model, lambda: label_hidden(run.model, part))
    tokens = sum(sum(label >= 0 for label in row.labels[1:]) for row in run.dataset.forget)
    width = run.config.get_text_config().hidden_size
    heads = reference_head(run.model), reference_head(run.model)
    weight = run.model.get_output_embeddings().weight
    stored = {
        "hidden states of both models": 2 * tokens * width * run.dtype.itemsize,
        # Of a frozen one only the copy's is stored: the model keeps its own.
        "output layers of both models": (2 if weight.requires_grad else 1) * weight.numel() * weight.element_size(),
    }
    targets = Phase("targets", {**run.held, **copied, **stored, "activations": int(run.fragmented() * taken.peak)})
    shape = (len(labels_of(part)), width)
    with faking():
        hidden = torch.empty(shape, dtype=run.dtype), torch.empty(shape, dtype=run.dtype)

    def loss_of(model: Any, part: Part) -> Tensor:
        return generic_loss(model, part, hidden, heads, settings["alpha"], settings["targets"])

    learning, second = _fine_tuning(run, part, loss_of, stored, ("train", "step"))
    steps = batches * (settings["reinforce_epochs"] + settings["epochs"])
    flops = {
        "reinforce": batches * settings["reinforce_epochs"] * first,
        "targets": 2 * batches * taken.flops,
        "train": batches * settings["epochs"] * second,
    }
    return RunWork((*reinforcing, targets, *learning), flops, steps, part["input_ids"].shape)


def _influence(run: Planned, settings: Mapping[str, Any]) -> RunWork:
    size, data = int(settings["batch_size"]), run.dataset
    if not data.retain:
        raise UserError("influence unlearning needs a retain set: the curvature is taken from it")
    vector = sum(p.numel() * max(4, p.element_size()) for p in run.trained)

    def phase(name: str, passes: Traced, vectors: int, products: int | None = None) -> Phase:
        gradients = run.fragmented() * passes.gradients
        items = {
            **run.held,
            "gradients": int(gradients),
            "activations": int(run.fragmented() * passes.peak - gradients),
            "vectors": vectors * vector,
        }
        return Phase(name, items if products is None else {**items, "products of gradients": products})

    of_forget, of_retain = (run.part(name, size) for name in ("forget", "retain"))
    forgetting, retaining = (_cross_entropy(run, part) for part in (of_forget, of_retain))
    mean = max(forgetting, retaining if settings["retain_share"] else forgetting, key=lambda traced: traced.peak)
    flops = {"mean gradient": -(-len(data.forget) // size) * forgetting.flops}
    phases = [phase("mean gradient", mean, 2 if settings["retain_share"] else 1)]
    if settings["retain_share"]:
        flops["mean gradient"] += -(-len(data.retain) // size) * retaining.flops
    count = min(int(settings["samples"]), len(data.retain))
    if settings["hessian"] == "gnb":
        # v, the diagonal, and at the end v divided by it.
        divide = Phase("divide", {**run.held, "vectors": 3 * vector})
        phases += [phase("curvature", _sampled(run, of_retain), 2), divide]
        flops["curvature"] = -(-count // size) * retaining.flops
        return RunWork(tuple(phases), flops, 0, of_retain["input_ids"].shape)
    held = min(int(settings["held"] or gradients_held(run.trained)), count)
    row = run.part("retain", 1)
    single = _cross_entropy(run, row)
    # The gradients held, v, and the last gradient while the next one is made.
    products = 8 * count**2
    phases += [
        phase("curvature", single, held + 2, products),
        phase("step", single, 3, 3 * products),
    ]
    streamed = sum(count - start for start in range(0, count, held)) + count
    parameters = sum(p.numel() for p in run.trained)
    flops["curvature"] = streamed * single.flops + count**2 * parameters
    return RunWork(tuple(phases), flops, 0, row["input_ids"].shape)


def _repselect(run: Planned, settings: Mapping[str, Any]) -> RunWork:
    size, data = int(settings["batch_size"]), run.dataset
    if not data.retain and settings["step"] is None:
        raise UserError("repselect needs a retain set, on which its step is bounded")
    matrices = [layer.weight for layer in mlp_layers(run.model).values()]
    wide = sum(max(4, matrix.element_size()) * matrix.numel() for matrix in matrices)
    own = sum(matrix.nbytes for matrix in matrices)
    largest = max(matrices, key=lambda matrix: matrix.numel())
    part = run.part("forget", size)
    passes = _cross_entropy(run, part)
    batches = -(-len(data.forget) // size)
    activations = {"activations": int(run.fragmented() * passes.peak)}
    gradient = Phase("gradient", {**run.held, **activations, "gradients of the matrices": wide})
    # The two factors of the largest matrix, and what takes its place.
    factors = 4 * (sum(largest.shape) * min(largest.shape) + largest.numel())
    collapse = Phase("collapse", {**run.held, "gradients of the matrices": 2 * wide, "decomposition": factors})
    flops = {"gradient": (1 + bool(settings["draw_out_lr"])) * batches * passes.flops}
    phases = [gradient, collapse]
    if settings["step"] is None:
        kept = run.part("retain", size)
        looked = trace_forward(run.model, lambda: label_hidden(run.model, kept))
        rows = min(int(settings["budget_rows"]), len(data.retain))
        held = {"directions": wide, "the matrices as they were": own}
        phases.append(Phase("search", {**run.held, **held, "activations": int(run.fragmented() * looked.peak)}))
        flops["search"] = _SEARCHED * -(-rows // size) * looked.flops
    return RunWork(tuple(phases), flops, 0, part["input_ids"].shape)


def _cross_entropy(run: Planned, part: Part) -> Traced:
    return trace_training(run.model, lambda: cross_entropy(run.model, part))


def _sampled(run: Planned, part: Part) -> Traced:
    """A pass whose labels are drawn from the model: its logits are whole."""
    head = run.model.get_output_embeddings()

    def loss() -> Tensor:
        logits = head(label_hidden(run.model, part)).float()
        with torch.no_grad():
            drawn = logits.softmax(-1).argmax(-1)
        return torch.nn.functional.cross_entropy(logits, drawn)

    return trace_training(run.model, loss)


_WORK: dict[str, Callable[[Planned, Mapping[str, Any]], RunWork]] = {
    "task_vector": _task_vector,
    "whp": _whos_harry_potter,
    "influence": _influence,
    "repselect": _repselect,
}
