"""The zeroth-order engine: exact weights, right estimates, equality with the plain references."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from problems import TrickyModel, closure_of, make_problem, same_bits, snapshot
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from letgo.core.errors import NonFiniteLossError
from letgo.optim import ZOSGD, AdaZO, ZOAdam, ZOSignSGD
from letgo.optim.engine import perturbation
from letgo.optim.engine.noise import Direction, blocks_of, rounded
from letgo.optim.engine.perturbation import SharedDraws, _Substitution
from reference.optim_zeroth_order import Adam, Descent, Momentum, RAdaZO, SignDescent, estimate


def reference_loss(model: nn.Module, loss_model_ids: Tensor, names: list[str]):
    def f(xs: list[Tensor]) -> Tensor:
        logits = functional_call(model, dict(zip(names, xs, strict=True)), (loss_model_ids[:, :-1],))
        return F.cross_entropy(logits.flatten(0, 1), loss_model_ids[:, 1:].flatten())

    return f


@pytest.mark.parametrize("engine", ["in_place", "saved"])
@pytest.mark.parametrize(
    ("cls", "plain", "lr"),
    [
        (ZOSGD, Descent, 0.02),
        (partial(ZOSGD, momentum=0.9), Momentum, 0.002),
        (AdaZO, RAdaZO, 0.002),
        (ZOAdam, Adam, 0.002),
        (ZOSignSGD, SignDescent, 0.002),
    ],
    ids=["zo_sgd", "momentum", "ada_zo", "zo_adam", "zo_sign_sgd"],
)
@pytest.mark.parametrize("noise", ["rademacher", "gaussian", "sphere"])
@pytest.mark.parametrize(("q", "difference"), [(1, "central"), (3, "central"), (2, "forward")])
@torch.no_grad()
def test_twenty_steps_equal_the_reference(cls, plain, lr, noise, q, difference, engine) -> None:
    torch.manual_seed(0)
    model = TrickyModel().double()
    ids = torch.randint(0, 19, (4, 7))
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    xs = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in model.parameters()]
    f = reference_loss(model, ids, names)
    optimizer = cls(
        model.parameters(), lr, num_directions=q, noise=noise, difference=difference, seed=7, mu=1e-3, engine=engine
    )
    reference = plain(lr)
    places = [i for i, p in enumerate(model.parameters()) if p.requires_grad]
    for _ in range(20):
        drawn = optimizer.directions(list(model.parameters()))
        vs = [[d.tensor(i) for i in places] for d in drawn]
        xs = reference.step(xs, estimate(f, xs, vs, 1e-3, difference))
        optimizer.step(lambda: F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()))
    assert max(float((p - s).norm()) for p, s in zip(model.parameters(), start, strict=True)) > 1e-2
    for x, p in zip(xs, (p for p in model.parameters() if p.requires_grad), strict=True):
        torch.testing.assert_close(p.detach(), x, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("cls", "plain", "lr"), [(ZOSGD, Descent, 0.02), (AdaZO, RAdaZO, 0.002), (ZOAdam, Adam, 0.002)]
)
@torch.no_grad()
def test_fifty_steps_in_single_precision_stay_near_the_double_precision_reference(cls, plain, lr) -> None:
    """A loss of about 3 in float32 is known to 2e-7, its slope at mu = 0.05 to 4e-6: of what a step moves, 1e-4."""
    torch.manual_seed(0)
    model = TrickyModel()
    ids = torch.randint(0, 19, (4, 7))
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    places = [i for i, p in enumerate(model.parameters()) if p.requires_grad]
    xs = [p.detach().double() for p in model.parameters() if p.requires_grad]
    start = [x.clone() for x in xs]
    twin = TrickyModel().double()
    twin.frozen.copy_(model.frozen)
    exact = reference_loss(twin, ids, names)
    optimizer, reference = cls(model.parameters(), lr, num_directions=2, noise="gaussian", mu=0.05), plain(lr)

    for _ in range(50):
        drawn = optimizer.directions(list(model.parameters()))
        vs = [[d.tensor(i).double() for i in places] for d in drawn]
        xs = reference.step(xs, estimate(exact, xs, vs, 0.05, "central"))
        optimizer.step(lambda: F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()))
    moved = math.sqrt(sum(float((x - s).square().sum()) for x, s in zip(xs, start, strict=True)))
    trained = [p for p in model.parameters() if p.requires_grad]
    apart = math.sqrt(sum(float((p.double() - x).square().sum()) for p, x in zip(trained, xs, strict=True)))
    assert moved > 0.1
    assert apart < 1e-3 * moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("engine", ["in_place", "saved"])
def test_a_thousand_steps_of_rate_zero_change_no_bit(dtype: torch.dtype, engine: str) -> None:
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 11, bias=False)).to(dtype)
    model[3].weight = model[0].weight
    ids = torch.arange(10).view(2, 5)
    before = snapshot(model)
    optimizer = ZOSGD(model.parameters(), lr=0.0, mu=1e-2, noise="gaussian", engine=engine)
    for _ in range(1000):
        optimizer.step(lambda: F.cross_entropy(model(ids).flatten(0, 1).float(), ids.flatten()))
    assert same_bits(before, snapshot(model))
    assert optimizer.last_losses[0] != optimizer.last_losses[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_weights_after_a_step_are_theta_minus_update_rounded_once(dtype: torch.dtype) -> None:
    model, loss_of = make_problem(dtype)
    before = snapshot(model)
    optimizer = ZOSGD(model.parameters(), lr=0.05, mu=1e-2)
    directions = optimizer.directions(list(model.parameters()))
    optimizer.step(loss_of)
    up, down = optimizer.last_losses
    coefficient = (up - down) / (2 * rounded(1e-2, dtype))
    for i, (name, p) in enumerate(model.named_parameters()):
        if p.requires_grad:
            exact = before[name].float() - 0.05 * coefficient * directions[0].tensor(i)
            assert torch.equal(p.detach(), exact.to(dtype)), name
        else:
            assert torch.equal(p.detach(), before[name])


def test_each_evaluation_is_at_exactly_the_shifted_weights() -> None:
    model, loss_of = make_problem(torch.float64)
    twin, twin_loss = make_problem(torch.float64)
    optimizer = ZOSGD(model.parameters(), lr=0.0, mu=0.05)
    for _ in range(3):
        direction = optimizer.directions(list(model.parameters()))[0]
        optimizer.step(loss_of)
        for sign, seen in zip((1, -1), optimizer.last_losses, strict=True):
            with torch.no_grad():
                for i, (p, q) in enumerate(zip(model.parameters(), twin.parameters(), strict=True)):
                    q.copy_(p + sign * 0.05 * direction.tensor(i) if p.requires_grad else p)
                assert seen == pytest.approx(float(twin_loss()), rel=1e-13)


class Scripted(nn.Module):
    """Keeps its weight where no torch function meets it: a scripted function takes the copy it is bound to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Linear(4, 4)
        self.script = torch.jit.script(nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.script(torch.tanh(self.seen(x)))


@pytest.mark.filterwarnings("ignore")
def test_parameters_that_torch_functions_never_see_are_perturbed_all_the_same() -> None:
    model = Scripted()
    x, y = torch.randn(16, 4), torch.randn(16, 3)
    before = snapshot(model)
    one = ZOSGD(model.parameters(), lr=0.0, mu=0.1, engine="in_place")
    two = ZOSGD(model.parameters(), lr=0.0, mu=0.1, engine="saved")
    for _ in range(3):
        one.step(lambda: F.mse_loss(model(x), y))
        two.step(lambda: F.mse_loss(model(x), y))
        assert one.last_losses == two.last_losses
    assert same_bits(before, snapshot(model))


@pytest.mark.parametrize("engine", ["in_place", "batched"])
def test_parameters_read_by_functions_that_write_elsewhere_are_perturbed(engine: str) -> None:
    bias, scale = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))
    optimizer = ZOSGD([bias, scale], 0.0, mu=0.5, engine=engine, rank=1, num_directions=2)
    expected = []
    for direction in optimizer.directions([bias, scale]):
        for mu in (0.5, -0.5):
            b, s = mu * direction.tensor(0), 1 + mu * direction.tensor(1)
            expected.append(float((((b + 1) * s) ** 2).sum() + s[1] + 3 * s[0]))

    def closure() -> Tensor:
        x = bias * 0 + 1
        x.add_(bias)
        torch.Tensor.mul_(x, scale)
        y = scale * 0
        y[1] = scale[1]
        y.copy_(y + scale * torch.tensor([3.0, 0.0, 0.0, 0.0]))
        return x.square().sum() + y.sum()

    optimizer.step(closure)
    assert optimizer.last_losses == pytest.approx(expected)
    assert bias.tolist() == [0.0] * 4
    assert scale.tolist() == [1.0] * 4


def test_all_evaluations_of_a_step_share_their_dropout_and_the_global_generator_moves_on() -> None:
    dropout = nn.Dropout(0.5)
    masks = []

    def closure() -> Tensor:
        masks.append(dropout(torch.ones(64)))
        return (masks[-1] * weight).sum()

    weight = nn.Parameter(torch.ones(64))
    optimizer = ZOSGD([weight], lr=1e-3, num_directions=2)
    optimizer.step(closure)
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    optimizer.step(closure)
    assert not torch.equal(masks[4], masks[0])


def test_noise_never_touches_the_global_generator_and_depends_on_the_seed_only() -> None:
    model, loss_of = make_problem()
    state = torch.get_rng_state()
    runs = []
    for seed in (1, 1, 2):
        model, loss_of = make_problem()
        torch.rand(3)  # what was drawn before must not matter
        optimizer = ZOSGD(model.parameters(), lr=0.1, seed=seed)
        here = torch.get_rng_state()
        for _ in range(3):
            optimizer.step(loss_of)
        assert torch.equal(here, torch.get_rng_state())
        runs.append(snapshot(model))
    torch.set_rng_state(state)
    assert same_bits(runs[0], runs[1])
    assert not same_bits(runs[0], runs[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(bad: float) -> None:
    model, loss_of = make_problem()
    before = snapshot(model)
    optimizer = AdaZO(model.parameters(), lr=0.1, nonfinite="skip")
    assert math.isnan(float(optimizer.step(lambda: loss_of() * 0 + bad)))
    assert same_bits(before, snapshot(model))
    assert not optimizer.state
    assert math.isfinite(float(optimizer.step(loss_of)))
    assert not same_bits(before, snapshot(model))

    model, loss_of = make_problem()
    optimizer = AdaZO(model.parameters(), lr=0.1)
    with pytest.raises(NonFiniteLossError, match="step 0"):
        optimizer.step(lambda: loss_of() * 0 + bad)
    assert same_bits(before, snapshot(model))


@pytest.mark.parametrize("engine", ["in_place", "saved"])
def test_an_exception_in_the_closure_leaves_the_weights(engine: str) -> None:
    model, loss_of = make_problem()
    before = snapshot(model)

    def closure() -> Tensor:
        loss_of()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ZOSGD(model.parameters(), lr=0.1, engine=engine).step(closure)
    assert same_bits(before, snapshot(model))


@torch.no_grad()
@pytest.mark.parametrize("noise", ["rademacher", "gaussian", "sphere"])
def test_every_noise_has_the_same_size_and_blocks_make_up_the_whole(noise) -> None:
    tensors = [nn.Parameter(torch.zeros(1500, 1003)), nn.Parameter(torch.zeros(33)), nn.Parameter(torch.zeros(()))]
    direction = Direction(noise, (3, 1, 0), tensors)
    for i in range(3):
        whole = direction.tensor(i)
        assert whole.shape == tensors[i].shape
        for block, values in direction.blocks(i):
            assert torch.equal(block.of(whole), values)
        direction.forget()
        assert torch.equal(whole, direction.tensor(i))
    big = direction.tensor(0)
    n = big.numel()
    assert abs(float(big.square().mean()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(big.mean())) < 5 / math.sqrt(n)
    assert len(list(blocks_of(tensors[0]))) == 12
    if noise == "rademacher":
        assert set(big.unique().tolist()) == {-1.0, 1.0}
        assert abs(float((big[:, 1:] * big[:, :-1]).mean())) < 5 / math.sqrt(n)
    if noise == "sphere":
        total = sum(float(direction.tensor(i).double().square().sum()) for i in range(3))
        assert total == pytest.approx(sum(t.numel() for t in tensors), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_weights_are_perturbed_in_pieces_with_the_same_noise(dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(perturbation, "LARGE_ELEMENTS", 1 << 18)
    monkeypatch.setattr(perturbation, "PIECE_ELEMENTS", 1 << 16)
    weight = nn.Parameter((torch.randn(600, 512) / 20).to(dtype))
    bias = nn.Parameter(torch.randn(600).to(dtype))
    ids, x = torch.randint(0, 600, (3, 5)), torch.randn(2, 7, 512).to(dtype)
    direction = Direction("gaussian", (1, 2), [weight, bias])
    mode = _Substitution({id(weight): 0, id(bias): 1}, direction, 0.25)
    assert weight.numel() > perturbation.LARGE_ELEMENTS
    with mode:
        rows, product, whole = F.embedding(ids, weight), F.linear(x, weight, bias), weight * 1
    assert torch.equal(whole, direction.shifted(0, 0.25))
    torch.testing.assert_close(rows, whole[ids])
    # Products of another library sum in another order: a few units in the last place of sums of 512 numbers.
    summed = {"rtol": 1e-5, "atol": 5e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(product, F.linear(x, whole, direction.shifted(1, 0.25)), **summed)
    # Where functions with an `out` cannot serve: autocast, another vmap, a graph.
    with mode, torch.autocast("cpu", torch.bfloat16):
        cast = F.linear(x.float(), weight, bias)
    torch.testing.assert_close(cast, F.linear(x.bfloat16(), whole.bfloat16(), direction.shifted(1, 0.25).bfloat16()))
    with mode:
        mapped = torch.vmap(lambda row: F.linear(row, weight, bias))(x)
    # In bf16 the product may be rounded once before the bias is added: a unit in the last place of numbers up to 4.
    room = {"rtol": 0.016, "atol": 2.0**-6} if dtype == torch.bfloat16 else summed
    torch.testing.assert_close(mapped, product, **room)
    with mode, torch.enable_grad():
        leaf = x.clone().requires_grad_()
        F.linear(F.linear(leaf, weight).tanh(), weight.t()).sum().backward()
    again = x.clone().requires_grad_()
    with torch.enable_grad():
        F.linear(F.linear(again, whole).tanh(), whole.t()).sum().backward()
    torch.testing.assert_close(leaf.grad, again.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_a_shift_is_rounded_once(dtype: torch.dtype, noise: str) -> None:
    for shape in ((128, 64), (7, 3), (5,)):
        tensor = nn.Parameter(torch.randn(shape).to(dtype))
        direction = Direction(noise, (4,), [tensor])
        for alpha in (0.25, -0.1):
            exact = tensor.detach().float() + alpha * direction.tensor(0)
            assert torch.equal(direction.shifted(0, alpha), exact.to(dtype))
            if tensor.dim() == 2:
                pieces = torch.cat([piece.clone() for _, piece in direction.shifted_pieces(0, alpha, 20)])
                assert torch.equal(direction.shifted(0, alpha), pieces)
                which = torch.tensor([3, 0, 3])
                assert torch.equal(direction.shifted_rows(0, alpha, which), pieces[which])
            moved = nn.Parameter(tensor.detach().clone())
            Direction(noise, (4,), [moved]).move(0, alpha)
            assert torch.equal(moved, exact.to(dtype))


def test_a_zeroth_order_step_needs_a_closure() -> None:
    with pytest.raises(ValueError, match="closure"):
        ZOSGD([nn.Parameter(torch.ones(2))]).step()


def test_shared_draws_restore_the_state_they_read() -> None:
    draws = SharedDraws([])
    first = torch.rand(4)
    draws.restore()
    assert torch.equal(first, torch.rand(4))


def test_the_closure_of_the_contract_leaves_no_gradients() -> None:
    model, loss_of = make_problem()
    optimizer = ZOSGD(model.parameters(), lr=0.1)
    optimizer.step(closure_of(optimizer, loss_of))
    assert all(p.grad is None for p in model.parameters())
