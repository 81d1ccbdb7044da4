"""SIFT against its plain reference; one gradient for both terms, and terms that do not interfere."""

from __future__ import annotations

import pytest
import torch
from problems import same_bits, snapshot
from torch import Tensor, nn

from letgo.core.errors import UserError
from letgo.optim import Sift, create_optimizer
from letgo.optim.sift import between, joined, leading
from reference.optim_sift import Sift as Plain
from reference.optim_sift import polar
from tests import tiny


def matrix(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def closure_with(optimizer: torch.optim.Optimizer, losses, calls: list[str | None] | None = None):
    def closure(part: str | None = None) -> Tensor:
        if calls is not None:
            calls.append(part)
        optimizer.zero_grad()
        loss = losses[part]()
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
@pytest.mark.parametrize("orthogonal", [True, False])
def test_sixty_steps_equal_the_reference(shape: tuple[int, int], orthogonal: bool) -> None:
    x = nn.Parameter(matrix(0, *shape))
    vector = nn.Parameter(matrix(1, 5))
    a, b = matrix(2, *shape), matrix(3, *shape)
    losses = {
        "forget": lambda: -torch.log1p((x * a).sum(1).square().sum()) + vector.sum().square(),
        "retain": lambda: (x - b).pow(4).sum() + vector.pow(4).sum(),
    }
    optimizer = Sift([x, vector], 0.01, rank=3, orthogonal=orthogonal, adamw_rate=0.5)
    reference, y = Plain(0.01, 3, orthogonal, 0.1), x.detach().clone()
    plain = nn.Parameter(vector.detach().clone())
    adamw = torch.optim.AdamW([plain], 0.005, weight_decay=0.1)
    calls: list[str | None] = []
    closure = closure_with(optimizer, losses, calls)
    for _ in range(60):
        gradients = {term: torch.autograd.grad(loss(), x)[0] for term, loss in losses.items()}
        y = reference.step(y, gradients)
        (plain.sum().square() + plain.pow(4).sum()).backward()
        adamw.step()
        plain.grad = None
        expected = [float(loss().detach()) for loss in losses.values()]
        total = optimizer.step(closure)
        assert optimizer.last_losses == pytest.approx(expected)
        assert float(total.detach()) == pytest.approx(sum(expected))
        torch.testing.assert_close(x.detach(), y, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(vector.detach(), plain.detach(), rtol=1e-9, atol=1e-12)
    assert calls == ["forget", "retain"] * 60


def test_with_one_gradient_for_both_terms_it_is_muon_of_rank_k() -> None:
    x, a = nn.Parameter(torch.zeros(8, 8, dtype=torch.float64)), matrix(0, 8, 8)
    optimizer = Sift([x], 1.0, rank=4, weight_decay=0.0)
    optimizer.step(closure_with(optimizer, dict.fromkeys(("forget", "retain"), lambda: (x * a).sum())))
    u, _, v = torch.linalg.svd(a)
    torch.testing.assert_close(-x.detach(), u[:, :4] @ v[:4], rtol=1e-8, atol=1e-8)
    assert optimizer.interference > 0


def test_terms_that_do_not_interfere_are_left_as_they_are_and_weights_do_not_count() -> None:
    a, b = torch.zeros(8, 8, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.float64)
    a[:4, :4], b[4:, 4:] = matrix(0, 4, 4), matrix(1, 4, 4)
    for weight in (1.0, 100.0):
        x = nn.Parameter(torch.zeros(8, 8, dtype=torch.float64))
        optimizer = Sift([x], 1.0, rank=2, weight_decay=0.0)
        losses = {"forget": lambda x=x, w=weight: w * (x * a).sum(), "retain": lambda x=x: (x * b).sum()}
        optimizer.step(closure_with(optimizer, losses))
        expected = torch.zeros(8, 8, dtype=torch.float64)
        for block in (a, b):
            u, _, v = torch.linalg.svd(block)
            expected += u[:, :2] @ v[:2]
        torch.testing.assert_close(-x.detach(), expected, rtol=1e-8, atol=1e-8)
        assert optimizer.interference == pytest.approx(0, abs=1e-9)


def test_the_joint_step_is_orthogonal_where_the_sum_is_not() -> None:
    u, s, v = joined(leading(matrix(0, 10, 14), 5), leading(matrix(1, 10, 14), 5))
    assert float(between(u, s, v)) > 0.1
    step = polar(u) @ polar(v).T
    assert torch.allclose(torch.linalg.svdvals(step), torch.ones(10, dtype=torch.float64))
    assert float(torch.linalg.svdvals(u @ v.T).max()) > 1.2


def test_a_term_without_a_gradient_leaves_the_other_alone() -> None:
    x, a = nn.Parameter(torch.zeros(6, 6, dtype=torch.float64)), matrix(0, 6, 6)
    y = nn.Parameter(torch.zeros(3))
    optimizer = Sift([x, y], 1.0, rank=2, weight_decay=0.0)
    optimizer.step(closure_with(optimizer, {"forget": lambda: (x * a).sum(), "retain": lambda: y.sum()}))
    u, _, v = torch.linalg.svd(a)
    torch.testing.assert_close(-x.detach(), u[:, :2] @ v[:2], rtol=1e-8, atol=1e-8)


def test_gradients_of_zero_move_nothing() -> None:
    """As those of an adapter's A in the first step, because its B is 0."""
    x = nn.Parameter(matrix(0, 6, 6))
    before = x.detach().clone()
    optimizer = Sift([x], 1.0, weight_decay=0.0)
    optimizer.step(closure_with(optimizer, dict.fromkeys(("forget", "retain"), lambda: (x * 0).sum())))
    assert torch.equal(x, before)


def test_a_model_is_stepped_whole_and_goes_on_from_its_state() -> None:
    ends = []
    for cut in (False, True):
        model = tiny.make_model()
        ids = torch.arange(6)[None]
        losses = {
            "forget": lambda model=model, ids=ids: -model(input_ids=ids, labels=ids).loss,
            "retain": lambda model=model, ids=ids: model(input_ids=ids + 9, labels=ids + 9).loss,
        }
        optimizer = Sift(model.parameters(), 1e-3)
        optimizer.attach(model)
        for step in range(4):
            if cut and step == 2:
                state = optimizer.state_dict()
                optimizer = Sift(model.parameters(), 1e-3)
                optimizer.attach(model)
                optimizer.load_state_dict(state)
            optimizer.step(closure_with(optimizer, losses))
        ends.append(snapshot(model))
    assert same_bits(*ends)


def test_mistakes_are_named() -> None:
    x = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match="part='forget'"):
        Sift([x]).step(lambda: x.sum())
    with pytest.raises(ValueError, match="needs a closure"):
        Sift([x]).step()
    with pytest.raises(UserError, match="rank must be"):
        create_optimizer("sift", [x], rank=0)
