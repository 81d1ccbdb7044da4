"""Linear layers by oneDNN: the same numbers as torch's own, and only where it can serve."""

import pytest
import torch
from torch.nn import functional as F

from letgo.optim.engine import low_rank, products
from letgo.optim.engine.noise import Direction
from letgo.optim.engine.perturbation import InPlaceEngine, SharedDraws

needed = pytest.mark.skipif(not products.works(), reason="this build of PyTorch has no oneDNN")
OUT, IN = 300, 512


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)


@needed
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(), (1,), (7,), (3, 5), (2, 3, 4)])
@torch.no_grad()
def test_the_product_is_that_of_the_plain_layer(drawn, rows, bias):
    x, w, b = drawn(*rows, IN), drawn(OUT, IN), drawn(OUT) if bias else None
    assert products.serves(x, w)
    expected = F.linear(x.double(), w.double(), None if b is None else b.double())
    assert torch.allclose(products.linear(x, w, b).double(), expected, rtol=0, atol=2e-4)


@needed
@torch.no_grad()
def test_inputs_may_lie_in_memory_as_they_like(drawn):
    x, w = drawn(IN, 6, 4).transpose(0, 2), drawn(OUT, IN)
    assert torch.allclose(products.linear(x, w), F.linear(x, w), rtol=0, atol=2e-4)


@needed
def test_what_it_cannot_serve_goes_to_torch(drawn):
    x, w = drawn(4, IN), drawn(OUT, IN)
    assert not products.serves(x, w)  # gradients are wanted
    w.requires_grad_()
    assert products.linear(x, w).requires_grad
    w = w.detach()
    with torch.no_grad():
        assert products.serves(x, w)
        assert not products.serves(x, w.t().contiguous().t())
        assert not products.serves(x[:0], w)
        assert not products.serves(x.bfloat16(), w.bfloat16())
        assert not products.serves(x[:, :8], w[:8, :8].contiguous())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not products.serves(x, w)
            assert products.linear(x, w).dtype == torch.bfloat16
        seen = torch.vmap(lambda one: products.linear(one, w))(x[:, None])
        assert torch.allclose(seen[:, 0], F.linear(x, w), rtol=0, atol=2e-4)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not products.serves(x, w)


@needed
@pytest.mark.parametrize("pieces", [False, True])
@torch.no_grad()
def test_evaluations_at_perturbed_weights_are_those_of_weights_perturbed_in_memory(drawn, pieces, monkeypatch):
    from letgo.optim.engine import perturbation

    if pieces:
        monkeypatch.setattr(perturbation, "LARGE_ELEMENTS", 1 << 16)
        monkeypatch.setattr(perturbation, "PIECE_ELEMENTS", 1 << 16)
    x, parameters = drawn(9, IN), [torch.nn.Parameter(drawn(OUT, IN)), torch.nn.Parameter(drawn(OUT))]
    direction = Direction("rademacher", (1, 2, 3), parameters)

    def closure():
        return F.linear(x, *parameters).square().mean()

    got = InPlaceEngine().evaluate(closure, direction, 0.1, [0, 1], SharedDraws(parameters))
    kept = InPlaceEngine(always_save=True).evaluate(closure, direction, 0.1, [0, 1], SharedDraws(parameters))
    assert got != closure()
    assert torch.allclose(got, kept, rtol=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("evaluations", [1, 4])
@torch.no_grad()
def test_branches_are_added_alike_however_many_columns_they_have(drawn, rank, dtype, evaluations):
    result, x = drawn(evaluations, 5, 20, dtype=dtype), drawn(evaluations, 5, 30, dtype=dtype)
    u, v = drawn(evaluations, 20, rank, dtype=dtype), drawn(evaluations, 30, rank, dtype=dtype)
    expected = result.double() + (x.double() @ v.double()).to(dtype).double() @ u.double().transpose(1, 2)
    got = low_rank._added(F.linear, result.clone(), x, u, v)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    assert got.dtype == dtype
    assert torch.allclose(got.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 0, atol=tolerance)
