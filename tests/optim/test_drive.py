"""The protocol that every optimizer answers, and the one closure that drives them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import letgo
from letgo.optim import OPTIMIZERS, create_optimizer
from letgo.optim.base import adapt, every_optimizer, unwrapped
from letgo.optim.drive import Drive

ASKED = (
    "needs_closure|phase|at_work|combines|children|last_losses|costly_every|fit_total_steps|attach|use_labels|finish|"
    "extra_state|turns?|base|ranks|hessian_closure|hessian_every"
)


def test_no_file_but_the_protocols_own_probes_an_optimizer():
    probe = re.compile(rf"""\b(?:hasattr|getattr)\([^()]*(?:\([^()]*\)[^()]*)*["'](?:{ASKED})["']""")
    assert probe.search('getattr(_bare(optimizer), "phase", "")')
    source = Path(letgo.__file__).parent
    probing = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in sorted(source.rglob("*.py"))
        if path != source / "optim/base.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if probe.search(line)
    ]
    assert probing == []


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS.names() if OPTIMIZERS.record(name).extra is None])
def test_every_optimizer_of_the_catalog_answers_the_protocol(name):
    optimizer = create_optimizer(name, [torch.nn.Parameter(torch.ones(4, 4))], lr=1e-3)
    for inside in every_optimizer(optimizer):
        protocol = adapt(inside)
        assert protocol.phase in ("first_order", "zeroth_order")
        assert isinstance(protocol.needs_closure, bool)
        assert protocol.at_work.phase == protocol.phase
        assert protocol.fit_total_steps(5) >= 5
        assert protocol.last_losses == []


def test_accelerates_wrapper_is_looked_through():
    from accelerate import Accelerator

    for name in ("adamw", "sam"):
        optimizer = create_optimizer(name, [torch.nn.Parameter(torch.ones(2))], lr=1e-3)
        wrapped = Accelerator(cpu=True).prepare_optimizer(optimizer, device_placement=False)
        assert wrapped is not optimizer
        assert unwrapped(wrapped) is unwrapped(optimizer) is optimizer
        assert adapt(wrapped).needs_closure == (name == "sam")


@pytest.mark.parametrize(
    ("name", "settings", "clips"),
    [
        ("adamw", {}, 1),
        ("zo_sgd", {}, 0),
        ("sam", {}, 1),
        ("randomized_smoothing", {"num_draws": 3}, 1),
        ("weight_averaging", {"base": "sam"}, 1),
    ],
)
def test_a_steps_gradient_is_clipped_once_when_it_is_whole(name, settings, clips):
    weight = torch.nn.Parameter(torch.full((4,), 3.0))
    optimizer = create_optimizer(name, [weight], lr=1e-3, **settings)
    clipped: list[bool] = []
    drive = Drive(optimizer, None, lambda parameters: clipped.append(all(p is weight for p in parameters)), _no_labels)

    def evaluate(part):
        loss = weight.square().sum()
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    optimizer.step(drive.closure(evaluate))
    assert clipped == [True] * clips


def test_labels_reach_an_optimizer_inside_another():
    weight = torch.nn.Parameter(torch.full((4,), 3.0))
    options = {"hessian": "gnb", "hessian_every": 1}
    optimizer = create_optimizer("weight_averaging", [weight], lr=1e-3, base="sophia", base_options=options)
    asked: list[torch.Generator] = []

    def labels(generator):
        asked.append(generator)
        return weight.square().mean(), 4

    drive = Drive(optimizer, None, lambda parameters: None, labels)

    def evaluate(part):
        loss = weight.square().sum()
        loss.backward()
        return loss.detach()

    optimizer.step(drive.closure(evaluate))
    assert len(asked) == 1
    assert float(weight.detach().max()) < 3.0


def _no_labels(generator):
    raise AssertionError("no estimate of these optimizers draws labels")
