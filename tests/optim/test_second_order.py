"""Sophia: published scalars, plain references, unbiased estimates, steps on time."""

from __future__ import annotations

import math

import pytest
import torch
from problems import closure_of, make_problem
from torch import nn

from letgo.optim import Sophia, gnb_loss
from letgo.optim.second_order import sophia
from reference.optim_second_order import SophiaG, SoulSophia, hessian_diagonal

FIXTURE = {"lr": 0.01, "betas": (0.9, 0.95), "rho": 0.04, "weight_decay": 0.1}


def test_the_scalars_of_souls_code() -> None:
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Sophia([p], **FIXTURE, hessian="empirical_fisher")
    for g, expected in ((0.5, 0.998628906), (-0.2, 0.997493207), (0.1, 0.996315303)):
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        assert p.item() == pytest.approx(expected, abs=6e-10)


def test_the_scalars_of_the_official_code() -> None:
    p, m, h = (torch.tensor([v], dtype=torch.float64) for v in (1.0, 0.0, 0.0))
    estimates = (None, torch.tensor([5120 * 0.3**2], dtype=torch.float64), None)
    for g, estimate, expected in zip((0.5, -0.2, 0.1), estimates, (0.989, 0.987739733, 0.986399345), strict=True):
        clipped = sophia(p, torch.tensor([g], dtype=torch.float64), m, h, estimate, eps=1e-15, **FIXTURE)
        assert p.item() == pytest.approx(expected, abs=6e-10)
        assert int(clipped) == (expected == 0.989)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_sixty_steps_equal_souls(dtype, tolerance) -> None:
    model, loss_of = make_problem(dtype)
    params = [p for p in model.parameters() if p.requires_grad and p.numel()]
    optimizer = Sophia(model.parameters(), **FIXTURE)
    plain = [SoulSophia(0.01, 0.9, 0.95, 0.04, 5120, 0.1) for _ in params]
    xs = [p.detach().clone() for p in params]
    for _ in range(60):
        optimizer.zero_grad()
        loss_of().backward()
        xs = [one.step(x, p.grad.clone()) for one, x, p in zip(plain, xs, params, strict=True)]
        optimizer.step()
    for x, p in zip(xs, params, strict=True):
        torch.testing.assert_close(p.detach(), x, rtol=tolerance, atol=tolerance)


def test_sixty_steps_with_gnb_equal_the_official_code_with_the_hessian_on_time() -> None:
    weight = nn.Parameter(torch.zeros(5, 4, dtype=torch.float64))
    inputs = torch.randn(30, 5, dtype=torch.float64)
    targets = torch.randint(0, 4, (30,))
    optimizer = Sophia([weight], **FIXTURE, hessian="gnb", hessian_every=3, seed=4)
    drawn = []

    def hessian_closure(generator: torch.Generator):
        loss, count = gnb_loss(inputs @ weight, None, generator)
        drawn.append(torch.autograd.grad(loss, weight, retain_graph=True)[0])
        return loss, count

    optimizer.hessian_closure = hessian_closure
    reference = SophiaG(0.01, 0.9, 0.95, 0.04, 30, 0.1)
    x = weight.detach().clone()
    for step in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(inputs @ weight, targets).backward()
        optimizer.step()
        assert len(drawn) == step // 3 + 1
        if step % 3 == 0:
            reference.update_hessian(drawn[-1])
        x = reference.step(x, weight.grad)
        torch.testing.assert_close(weight.detach(), x, rtol=1e-10, atol=1e-12)
    assert 0 < optimizer.clip_fraction < 1


def test_gnb_is_unbiased_for_the_gauss_newton_diagonal() -> None:
    # A linear model under cross-entropy: Gauss-Newton is the Hessian.
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 3, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.zeros(12, dtype=torch.long)
    labels[9:] = -100
    loss = lambda w: nn.functional.cross_entropy(inputs[:9] @ w.view(3, 4), labels[:9])  # noqa: E731
    exact = hessian_diagonal(loss, weight.detach().flatten())
    draws = []
    for _ in range(4000):
        value, count = gnb_loss(inputs @ weight, labels, generator)
        assert count == 9
        draws.append((count * torch.autograd.grad(value, weight)[0].square()).flatten())
    assert_mean(torch.stack(draws), exact)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_draws_both_signs(noise: str) -> None:
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    matrix = root @ root.t() - 2 * torch.eye(6, dtype=torch.float64)  # indefinite
    x = nn.Parameter(torch.randn(6, dtype=torch.float64, generator=generator))
    optimizer = Sophia([x], lr=0.0, betas=(0.0, 0.0), hessian="hutchinson", hessian_every=1, noise=noise)
    closure = closure_of(optimizer, lambda: 0.5 * x @ matrix @ x)
    draws = []
    for _ in range(4000):
        optimizer.step(closure)
        draws.append(optimizer.state[x]["hessian"].clone())
        torch.testing.assert_close(x.grad, matrix @ x.detach())
    assert_mean(torch.stack(draws), matrix.diagonal())


def test_hutchinson_over_micro_batches_is_that_of_their_sum() -> None:
    model, loss_of = make_problem(torch.float64)
    hessians = []
    for parts in (1, 4):
        model, loss_of = make_problem(torch.float64)
        optimizer = Sophia(model.parameters(), lr=0.0, hessian="hutchinson")

        def closure(parts: int = parts, optimizer: Sophia = optimizer, loss_of=loss_of) -> torch.Tensor:
            optimizer.zero_grad()
            for _ in range(parts):
                loss = loss_of() / parts
                loss.backward()
            return loss * parts

        optimizer.step(closure)
        hessians.append([optimizer.state[p]["hessian"] for p in model.parameters() if p in optimizer.state])
    for one, other in zip(*hessians, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_missing_is_said_when_it_is_due() -> None:
    x = nn.Parameter(torch.ones(2))
    x.grad = torch.ones(2)
    for kind, words in (("hutchinson", "needs a closure"), ("gnb", "hessian_closure")):
        optimizer = Sophia([x], hessian=kind)
        assert optimizer.needs_closure == (kind == "hutchinson")
        with pytest.raises(ValueError, match=words):
            optimizer.step()
    with pytest.raises(ValueError, match="ignored"):
        gnb_loss(torch.zeros(2, 3), torch.full((2,), -100))


def assert_mean(draws: torch.Tensor, exact: torch.Tensor) -> None:
    """The mean of the draws lies within 4.5 standard errors of the exact value, in every coordinate."""
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool(((draws.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all())
    assert bool((draws.mean(0) - exact).abs().max() < 0.2 * exact.abs().max())
