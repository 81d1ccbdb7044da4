"""The floor of an update: few weights reach another bin of the original's grid, the others are where they were."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from problems import closure_of, make_problem, same_bits, snapshot
from torch import nn

from letgo.core.errors import UserError
from letgo.models.own_grid import own_levels
from letgo.optim import AdaZO, BinFloor, create_optimizer
from letgo.optim.engine.rounding import NF4, Codebook, flat_blocks, make_grid
from reference.optim_bin_floor import even_code, floored
from tests import tiny


def matrix(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype))


def train(x: nn.Parameter, optimizer: BinFloor, steps: int = 60) -> None:
    """Towards a point nearby: updates of part of a bin."""
    target = x.detach() + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (x - target).square().sum()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


@pytest.mark.parametrize("keep", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("grid", ["even", "row", "nf4"])
def test_sixty_steps_and_the_projection_equal_the_reference(grid: str, keep: float) -> None:
    x = matrix(6, 64)
    before = x.detach().clone()
    options = {"even": {"group_size": 16}, "row": {"group_size": 0, "bits": 3}, "nf4": {"grid": "nf4"}}[grid]
    optimizer = BinFloor([x], 1e-3, keep=keep, **options)
    train(x, optimizer)
    plain = matrix(6, 64)
    adamw = create_optimizer("adamw", [plain], lr=1e-3, weight_decay=0.0)
    train(plain, adamw)
    assert torch.equal(x, plain), "until the end it is the base"
    size = {"even": 16, "row": 64, "nf4": 64}[grid]
    blocks = [list(range(start, start + size)) for start in range(0, x.numel(), size)]
    code = list(NF4) if grid == "nf4" else even_code(options.get("bits", 4))
    expected = floored(before, plain.detach(), blocks, code, keep)
    with optimizer.finished():
        torch.testing.assert_close(x.detach(), expected, rtol=0, atol=1e-6)
    assert torch.equal(x, plain)
    optimizer.finish()
    torch.testing.assert_close(x.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", ["even", "nf4"])
def test_every_chosen_weight_is_rounded_to_another_level_of_the_same_grid(grid: str, dtype: torch.dtype) -> None:
    x = matrix(8, 70, dtype=dtype)  # the last group of a row is shorter, and blocks of 64 cross rows
    before = x.detach().clone()

    def levels(weight: torch.Tensor):
        if grid == "nf4":
            return Codebook(torch.tensor(NF4), flat_blocks(weight, 64).abs().amax(dim=1), 64)
        return make_grid(weight, bits=4, group_size=32)

    optimizer = BinFloor([x], 2e-3, keep=0.1, grid=grid, group_size=32)
    train(x, optimizer, 20)
    assert float((levels(before).index(x) != levels(before).index(before)).float().mean()) < 0.5
    optimizer.finish()
    made, original = levels(x.detach()), levels(before)
    assert torch.equal(made.values(made.index(before)), original.values(original.index(before))), "one grid"
    crossed = original.index(x) != original.index(before)
    assert int(crossed.sum()) == 56 == round(0.1 * x.numel())
    assert optimizer.floored == {"weights": 560, "chosen": 56, "crossed": 56}
    assert torch.equal(x[~crossed], before[~crossed]), "the others are where they were, bit for bit"


def test_a_grid_of_its_own_is_read_and_kept() -> None:
    levels = make_grid(matrix(8, 64), bits=4, group_size=32)
    x = nn.Parameter(levels.values(levels.index(matrix(8, 64))))
    before = x.detach().clone()
    optimizer = BinFloor([x], 2e-3, keep=0.1, grid="own")
    optimizer.levels_of = lambda weight: own_levels(weight)[0]
    train(x, optimizer, 20)
    optimizer.finish()
    own = own_levels(before)[0]
    crossed = own.index(x) != own.index(before)
    assert int(crossed.sum()) == optimizer.floored["chosen"] == round(0.1 * x.numel())
    off = BinFloor([matrix(8, 64)], grid="own")
    off.levels_of = optimizer.levels_of
    with pytest.raises(UserError, match="lies on no grid that is known; take grid: even"):
        off.attach(nn.Module())


def test_vectors_and_embeddings_keep_the_bases_update() -> None:
    model = tiny.make_model()
    optimizer = BinFloor(model.parameters(), 1e-2, keep=0.05)
    optimizer.attach(model)
    before = snapshot(model)
    ids = torch.arange(6)[None]
    for _ in range(3):
        optimizer.step(closure_of(optimizer, lambda: model(input_ids=ids, labels=ids).loss))
    trained = snapshot(model)
    optimizer.finish()
    for name, value in snapshot(model).items():
        if name.endswith("proj.weight"):
            assert int((value != before[name]).sum()) == round(0.05 * value.numel())
        else:
            assert torch.equal(value, trained[name])
            assert not torch.equal(value, before[name])


def test_nothing_stepped_yet_changes_nothing_and_any_base_will_do() -> None:
    model, loss_of = make_problem()
    optimizer = BinFloor(model.parameters(), 0.01, base="ada_zo")
    assert isinstance(optimizer.base, AdaZO)
    assert optimizer.needs_closure
    before = snapshot(model)
    with optimizer.finished():
        assert same_bits(before, snapshot(model))
    optimizer.finish()
    assert same_bits(before, snapshot(model))
    optimizer.step(closure_of(optimizer, loss_of))
    assert not same_bits(before, snapshot(model))


def test_a_resumed_run_ends_with_the_same_projection() -> None:
    ends = []
    for cut in (False, True):
        model, loss_of = make_problem()
        optimizer = BinFloor(model.parameters(), 0.02, keep=0.1)
        for step in range(8):
            if cut and step == 4:
                state = optimizer.state_dict()
                optimizer = BinFloor(model.parameters(), 0.02, keep=0.1)
                optimizer.load_state_dict(state)
            optimizer.step(closure_of(optimizer, loss_of))
        optimizer.finish()
        ends.append(snapshot(model))
    assert same_bits(*ends)


def test_adapters_and_shares_out_of_range_are_refused() -> None:
    model = get_peft_model(tiny.make_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match="Train the weights themselves"):
        BinFloor([p for p in model.parameters() if p.requires_grad]).attach(model)
    for keep in (0.0, 1.5):
        with pytest.raises(UserError, match="keep must be"):
            create_optimizer("bin_floor", [nn.Parameter(torch.ones(2, 2))], keep=keep)
