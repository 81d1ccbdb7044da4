"""SURE: the base's steps on the salient units alone, against a plain reference; all units salient is the base."""

from __future__ import annotations

import pytest
import torch
from problems import closure_of, make_problem, same_bits, snapshot
from torch import nn

from letgo.core.errors import UserError
from letgo.optim import Sure, create_optimizer
from reference.optim_sure import masked, masks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(5, 7).double(), nn.Linear(7, 3).double()
            self.x, self.y = torch.randn(8, 5).double(), torch.randn(8, 3).double()

    def loss(self, part: str | None) -> torch.Tensor:
        out = self.second(torch.tanh(self.first(self.x)))
        forget, retain = -(out[:2] - self.y[:2]).square().mean().log(), (out[2:] - self.y[2:]).square().mean()
        return {"forget": forget, "retain": retain, None: forget + retain}[part]


def closure_with_parts(net: Net, optimizer: torch.optim.Optimizer, calls: list[str | None] | None = None):
    def closure(part: str | None = None) -> torch.Tensor:
        if calls is not None:
            calls.append(part)
        optimizer.zero_grad()
        loss = net.loss(part)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("unit", ["row", "tensor", "weight"])
@pytest.mark.parametrize("every", [0, 7])
def test_sixty_steps_equal_the_reference(unit: str, every: int) -> None:
    net, plain = Net(), Net()
    optimizer = Sure(net.parameters(), 0.01, keep=0.3, unit=unit, every=every, weight_decay=0.1)
    base = torch.optim.AdamW(plain.parameters(), 0.01, weight_decay=0.1)
    calls: list[str | None] = []
    ones: list[torch.Tensor] = []
    for step in range(60):
        if step == 0 or (every and step % every == 0):
            plain.zero_grad()
            plain.loss("forget").backward()
            ones = masks([p.grad for p in plain.parameters()], 0.3, unit)
            assert optimizer.needs_closure
        before = [p.detach().clone() for p in plain.parameters()]
        base.step(closure_with_parts(plain, base))
        with torch.no_grad():
            for p, b, mask in zip(plain.parameters(), before, ones, strict=True):
                p.copy_(masked(b, p, mask))
        optimizer.step(closure_with_parts(net, optimizer, calls))
        for p, q in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert calls.count("forget") == (9 if every else 1)
    assert calls.count(None) == 60


def test_what_is_not_salient_keeps_its_bits_and_the_share_is_told() -> None:
    net = Net()
    optimizer = Sure(net.parameters(), 0.1, keep=0.25, weight_decay=0.5)
    before = snapshot(net)
    for _ in range(5):
        optimizer.step(closure_with_parts(net, optimizer))
    moved = {name: p != before[name] for name, p in snapshot(net).items()}
    # Rows: 7 of the first weight, 7 biases, 3 of the second weight, 3 biases.
    rows = [m.view(len(m), -1).any(1) for m in moved.values()]
    assert int(torch.cat(rows).sum()) == 5
    count = sum(int(m.sum()) for m in moved.values())
    assert optimizer.salient == pytest.approx(count / sum(m.numel() for m in moved.values()))


@pytest.mark.parametrize("base", ["adamw", "muon"])
def test_with_every_unit_salient_it_is_the_base(base: str) -> None:
    net, plain = Net(), Net()
    optimizer = Sure(net.parameters(), 0.01, base=base, keep=1.0)
    other = create_optimizer(base, plain.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(50):
        optimizer.step(closure_with_parts(net, optimizer))
        other.step(closure_with_parts(plain, other))
    assert same_bits(snapshot(net), snapshot(plain))


def test_after_its_mask_it_steps_from_grad_and_a_loaded_one_keeps_the_mask() -> None:
    model, loss_of = make_problem()
    optimizer = Sure(model.parameters(), 0.01)
    loss_of().backward()
    with pytest.raises(ValueError, match="needs a closure"):
        optimizer.step()
    optimizer.step(closure_of(optimizer, loss_of))
    assert not optimizer.needs_closure
    optimizer.step()
    loaded = Sure(model.parameters(), 0.01)
    loaded.load_state_dict(optimizer.state_dict())
    assert not loaded.needs_closure
    assert all(torch.equal(a, b) for a, b in zip(optimizer.masks, loaded.masks, strict=True))


def test_mistakes_are_named() -> None:
    x = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(UserError, match="an optimizer that computes gradients, 'zo_sgd' does not"):
        create_optimizer("sure", [x], base="zo_sgd")
    with pytest.raises(UserError, match="keep must be"):
        create_optimizer("sure", [x], keep=0.0)
    with pytest.raises(ValueError, match="part='forget'"):
        Sure([x]).step(lambda: x.sum())
