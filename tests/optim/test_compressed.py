"""The sign methods against their plain references."""

from __future__ import annotations

import pytest
import torch
from problems import make_problem

from letgo.optim import Compressed, SignAdam
from letgo.optim import SignSGD as Fast
from letgo.optim.quantized import quantize
from reference.optim_first_order import OneBitAdam, SignSGD, compressed
from reference.optim_zeroth_order import Adam


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("fast", "plain"), [(Fast, SignSGD), (SignAdam, OneBitAdam)])
def test_sixty_steps_equal_the_reference(fast, plain, dtype) -> None:
    model, loss_of = make_problem(dtype)
    params = [p for p in model.parameters() if p.requires_grad and p.numel()]
    optimizer, reference = fast(model.parameters(), 1e-3), plain(1e-3)
    xs = [p.detach().clone() for p in params]
    for _ in range(60):
        optimizer.zero_grad()
        loss_of().backward()
        xs = reference.step(xs, [p.grad.clone() for p in params])
        optimizer.step()
    for x, p in zip(xs, params, strict=True):
        torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)


def test_weight_decay_is_decoupled() -> None:
    x = torch.nn.Parameter(torch.tensor([2.0]))
    x.grad = torch.tensor([-0.3])
    Fast([x], lr=0.1, weight_decay=0.5).step()
    assert x.item() == pytest.approx(2.0 * (1 - 0.05) + 0.1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_quantizer_rounds_to_the_nearest_of_its_levels(bits: int) -> None:
    m = torch.randn(7, 101, dtype=torch.float64, generator=torch.Generator().manual_seed(bits))
    q = quantize(m, bits, 64)
    for block, out in zip(m.flatten().split(64), q.flatten().split(64), strict=True):
        scale = block.abs().max() / (2 ** (bits - 1) - 1)
        levels = torch.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)) * scale
        nearest = levels[(block[:, None] - levels).abs().argmin(1)]
        torch.testing.assert_close(out, nearest)
    assert len(q.flatten()[:64].unique()) <= 2**bits - 1
    assert torch.equal(quantize(torch.zeros(5), bits), torch.zeros(5))
    assert torch.equal(quantize(m, 1), torch.sign(m))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("error_feedback", [False, True])
@pytest.mark.parametrize("base", ["sgd", "adamw", "sign_adam"])
@pytest.mark.parametrize("bits", [1, 4])
def test_sixty_compressed_steps_equal_the_reference(base, bits, error_feedback, dtype) -> None:
    model, loss_of = make_problem(dtype)
    params = [p for p in model.parameters() if p.requires_grad and p.numel()]
    optimizer = Compressed(model.parameters(), 3e-3, base=base, bits=bits, block=16, error_feedback=error_feedback)
    adam, momentum = Adam(1.0), [torch.zeros_like(p) for p in params]
    xs = [p.detach().clone() for p in params]
    errors = [torch.zeros_like(x) for x in xs]
    for _ in range(60):
        optimizer.zero_grad()
        loss_of().backward()
        gs = [p.grad.clone() for p in params]
        if base == "sgd":
            ds = gs
        elif base == "adamw":
            ds = [-x for x in adam.step([torch.zeros_like(g) for g in gs], gs)]
        else:
            momentum = [0.9 * m + 0.1 * g for m, g in zip(momentum, gs, strict=True)]
            ds = [torch.sign(m) for m in momentum]
        xs, errors = compressed(xs, ds, errors, 3e-3, bits, 16, error_feedback)
        optimizer.step()
        # Quantization is a jump: where the two differ by a rounding at its edge they part, in float32.
        if dtype == torch.float64:
            for x, p in zip(xs, params, strict=True):
                torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-9)
    distance = sum(float((p.detach() - x).abs().sum()) for x, p in zip(xs, params, strict=True))
    assert distance / sum(x.numel() for x in xs) < (1e-9 if dtype == torch.float64 else 1e-4)


def test_error_feedback_loses_nothing_in_the_long_run() -> None:
    gradient = torch.tensor([1.0, 0.01, -0.003, 0.2])
    ends = []
    for error_feedback in (False, True):
        x = torch.nn.Parameter(torch.zeros(4))
        optimizer = Compressed([x], 0.01, base="sgd", bits=2, error_feedback=error_feedback)
        for _ in range(500):
            x.grad = gradient.clone()
            optimizer.step()
        ends.append(x.detach() / -5.0)
    assert ends[0][1] == 0
    torch.testing.assert_close(ends[1], gradient, rtol=0, atol=0.01)


def test_a_base_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="steps from gradients"):
        Compressed([torch.nn.Parameter(torch.ones(2))], base="zo_sgd")
    with pytest.raises(ValueError, match="bits"):
        Compressed([torch.nn.Parameter(torch.ones(2))], bits=9)
