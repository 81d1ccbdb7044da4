"""Every objective under every grade of optimizer, on four architectures: ten finite steps that lower the loss."""

from __future__ import annotations

import math

import pytest
import torch

from letgo.models.load import freeze_all_but
from letgo.objectives import OBJECTIVES
from letgo.optim import create_optimizer, gnb_loss
from tests.objectives.cases import ARCHITECTURES, make, prepared

# name -> (optimizer, its settings); rates by grade, the same for every objective.
GRADES = {
    "adamw": ("adamw", {"lr": 2e-3, "weight_decay": 0.0}),
    "sign_adam": ("sign_adam", {"lr": 5e-4}),
    "ada_zo": ("ada_zo", {"lr": 1e-4, "mu": 1e-3, "num_directions": 2}),
    "fozo": (
        "fozo",
        {"lr": 2e-3, "zo_lr": 5e-5, "mu": 1e-3, "num_directions": 2, "fo_steps": 5, "zo_steps": 5},
    ),
    "sophia": ("sophia", {"lr": 1e-3, "hessian": "gnb", "hessian_every": 5, "weight_decay": 0.0}),
}
SETTINGS = {
    "simnpo": {"beta": 0.5},
    "rmu": {"steering": 2.0, "retain_weight": 10.0},
    "rmu_lat": {"steering": 2.0, "retain_weight": 10.0, "inner_steps": 2},
    "mcu": {"steering": 2.0, "retain_weight": 10.0, "removed": 3},
    "satimp": {"beta1": 1.0},
    "ft_l1": {"sparsity": 1e-4},
}
# UNDIAL's loss is nearly flat near the model it began with: smaller steps, and estimates of less noise.
OWN = {("undial", "ada_zo"): {"lr": 2e-5, "num_directions": 16}, ("mcu", "ada_zo"): {"num_directions": 16}}
# The presets' terms are those of the names alone and of the retain terms: each term is met on every architecture.
ALONE = [name for name in OBJECTIVES.names() if not name.endswith(("_gdr", "_klr"))]
CASES = [(name, "llama") for name in OBJECTIVES.names()] + [
    (name, architecture) for architecture in ARCHITECTURES[1:] for name in [*ALONE, "npo_klr"]
]


def ten_steps(name, architecture, grade, tokenizer):
    """The losses of all evaluations of ten steps on one batch, between the loss before them and the one after."""
    base = name.removesuffix("_gdr").removesuffix("_klr")
    model = make(architecture, layers=1, width=8)
    objective, batch, _ = prepared(name, model, tokenizer, **SETTINGS.get(base, {}))
    objective.begin(model)
    if pattern := objective.trainable_pattern(model):
        freeze_all_but(model, pattern)
    kind, settings = GRADES[grade]
    settings = settings | OWN.get((base, grade), {})
    optimizer = create_optimizer(kind, [p for p in model.parameters() if p.requires_grad], **settings)

    def closure(part=None):
        optimizer.zero_grad()
        loss = objective.total(objective.terms(model, batch, part))
        if loss.requires_grad:
            loss.backward()
        losses.append(float(loss.detach()))
        return loss.detach()

    def sampled(generator):
        part = batch[objective.parts[0]]
        logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
        return gnb_loss(logits[:, :-1], part["labels"][:, 1:], generator)

    if hasattr(optimizer, "hessian_closure"):
        optimizer.hessian_closure = sampled
    with torch.no_grad():
        losses = [float(objective(model, batch))]
    for _ in range(10):
        optimizer.step(closure)
    with torch.no_grad():
        losses.append(float(objective(model, batch)))
    assert len(losses) >= 12
    assert all(torch.isfinite(p).all() for p in model.parameters())
    return losses


@pytest.mark.parametrize("grade", GRADES)
@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_ten_steps_lower_the_loss(name, architecture, grade, tokenizer):
    losses = ten_steps(name, architecture, grade, tokenizer)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0], losses
