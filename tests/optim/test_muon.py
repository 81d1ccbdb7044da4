"""Muon for whole models: torch's Muon on matrices, torch's AdamW on the rest, and the relation of the two rates."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from problems import closure_of, make_problem, same_bits, snapshot
from torch import Tensor, nn

from letgo.core.errors import UserError
from letgo.optim import FOZO, SAM, Muon, create_optimizer
from letgo.optim.drive import Drive
from letgo.optim.muon import orthogonalised
from reference.optim_muon import Muon as Plain
from reference.optim_muon import newton_schulz, singular_values
from tests import tiny


def numbered(optimizer: Muon, model: nn.Module) -> set[str]:
    """Names of what Muon moves."""
    chosen = {id(p) for p in optimizer.matrices()}
    return {name for name, p in model.named_parameters() if id(p) in chosen}


@pytest.mark.parametrize(
    ("dtype", "nesterov"),
    [
        (torch.float64, True),
        (torch.float64, False),
        (torch.float32, True),
        # Without nesterov torch's own step divides the momentum itself by its norm, where that is in bf16 already.
        (torch.bfloat16, True),
    ],
)
@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
def test_sixty_steps_are_those_of_torchs_two_optimizers(dtype, nesterov, adjust) -> None:
    model, loss_of = make_problem(dtype)
    plain, plain_loss = make_problem(dtype)
    options = {"lr": 0.01, "weight_decay": 0.1, "nesterov": nesterov, "adjust_lr_fn": adjust}
    ours = Muon(model.parameters(), **options, adamw_rate=0.3)
    trained = [p for p in plain.parameters() if p.requires_grad]
    muon = torch.optim.Muon([p for p in trained if p.dim() == 2 and p.numel()], **options)
    adamw = torch.optim.AdamW([p for p in trained if p.dim() != 2 or not p.numel()], lr=0.003, weight_decay=0.1)
    for step in range(60):
        ours.step(closure_of(ours, loss_of))
        plain.zero_grad()
        plain_loss().backward()
        muon.step()
        adamw.step()
        assert same_bits(snapshot(model), snapshot(plain)), step


@pytest.mark.parametrize("match_rms", [False, True])
def test_sixty_steps_are_near_the_reference_without_rounding(match_rms: bool) -> None:
    """The iteration runs in bf16, so that directions are off by some thousandths; they do not add up."""
    target = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = nn.Parameter(torch.zeros(7, 5, dtype=torch.float64))
    optimizer = Muon([x], 0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw" if match_rms else None)
    reference, y = Plain(0.01, 0.95, 0.1, match_rms), x.detach().clone()
    for _ in range(60):
        x.grad = x.detach() - target
        optimizer.step()
        y = reference.step(y, y - target)
    assert (x.detach() - y).norm() / y.norm() < 0.02


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_orthogonalised_is_the_printed_iteration(shape: tuple[int, int]) -> None:
    g = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = orthogonalised(g, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    torch.testing.assert_close(ours.double(), newton_schulz(g), rtol=0, atol=0.06)  # bf16
    assert 0.5 < singular_values(ours).min() <= singular_values(ours).max() < 1.3


def test_embeddings_and_the_head_are_left_to_adamw_once_the_model_is_known() -> None:
    model = tiny.make_model()
    optimizer = Muon(model.parameters())
    assert "model.embed_tokens.weight" in numbered(optimizer, model)
    optimizer.attach(model)
    moved = numbered(optimizer, model)
    assert moved == {n for n, _ in model.named_parameters() if n.endswith("proj.weight")}


@pytest.mark.parametrize("make", [lambda p: FOZO(p, fo="muon"), lambda p: SAM(p, base="muon")])
def test_optimizers_around_it_hand_the_model_on(make) -> None:
    model = tiny.make_model()
    optimizer = make(model.parameters())
    Drive(optimizer, model, lambda parameters: None, lambda generator: (torch.zeros(()), 1))
    inner = next(each for each in optimizer.children() if isinstance(each, Muon))
    assert "model.embed_tokens.weight" not in numbered(inner, model)


def test_adapters_are_matrices_but_those_on_embeddings_are_not() -> None:
    targets = ["q_proj", "embed_tokens", "lm_head"]
    model = get_peft_model(tiny.make_model(), LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    optimizer = Muon([p for p in model.parameters() if p.requires_grad], 0.01)
    optimizer.attach(model)
    moved = numbered(optimizer, model)
    assert moved
    assert all(".q_proj.lora_" in name for name in moved)
    ids = torch.arange(6)[None]
    before = snapshot(model)
    for _ in range(2):  # of the first step's gradients, those of A are 0 because B is
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    after = snapshot(model)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(bool(after[name].isfinite().all()) for name in trained)
    assert all(not torch.equal(before[name], after[name]) for name in trained)


@pytest.mark.parametrize("shape", [(24, 6), (6, 24), (16, 16)])
@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
def test_by_default_both_move_a_weight_equally_far(shape, adjust) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, vector = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(500))
    optimizer = Muon([matrix, vector], 0.01, weight_decay=0.0, adjust_lr_fn=adjust)
    for p in (matrix, vector):
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()
    moved = float(matrix.detach().square().mean().sqrt())
    # Newton-Schulz leaves singular values of 0.7 to 1.2. AdamW's usual step is 0.2 of its rate, its first one all.
    rate = float(vector.detach().square().mean().sqrt()) * (0.2 if adjust else 1.0)
    assert rate == pytest.approx(moved, rel=0.3)
    assert optimizer.adamw_rate(optimizer.param_groups[0]) == pytest.approx(1.0 if adjust else 1 / math.sqrt(shape[1]))


def test_the_default_relation_is_over_all_groups() -> None:
    wide, narrow = nn.Parameter(torch.ones(3, 16)), nn.Parameter(torch.ones(5, 4))
    optimizer = Muon([{"params": [wide]}, {"params": [narrow, nn.Parameter(torch.ones(2))]}])
    weights: list[Tensor] = [torch.full(p.shape, 1 / p.shape[1]) for p in (wide, narrow)]
    mean = torch.cat([w.flatten() for w in weights]).mean()
    for group in optimizer.param_groups:
        assert optimizer.adamw_rate(group) == pytest.approx(math.sqrt(mean))


def test_a_group_can_say_what_moves_it() -> None:
    a, b, c = (nn.Parameter(torch.ones(3, 4)) for _ in range(3))
    row = nn.Parameter(torch.ones(1, 4))
    groups = [{"params": [a], "use_muon": False}, {"params": [b, row]}, {"params": [c], "use_muon": True}]
    optimizer = Muon(groups)
    assert [group["muon"] for group in optimizer.param_groups] == [[False], [True, False], [True]]
    with pytest.raises(UserError, match=r"optimizer 'muon': use_muon: a parameter of shape \(3,\) is no matrix"):
        create_optimizer("muon", [nn.Parameter(torch.ones(3))], use_muon=True)
