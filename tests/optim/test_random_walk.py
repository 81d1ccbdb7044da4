"""The placebo: the base's steps, as long as they are, in directions that know nothing of the loss."""

from __future__ import annotations

import math

import pytest
import torch
from problems import closure_of, make_problem, same_bits, snapshot
from torch import Tensor, nn

from letgo.core.errors import UserError
from letgo.optim import FOZO, RandomWalk, ReplayLog, create_optimizer, replay
from reference.optim_zeroth_order import Descent, RAdaZO


@pytest.mark.parametrize(("base", "plain"), [("zo_sgd", Descent), ("ada_zo", RAdaZO)])
@pytest.mark.parametrize("q", [1, 3])
def test_sixty_steps_equal_the_reference(base, plain, q) -> None:
    model, loss_of = make_problem(torch.float64)
    optimizer = RandomWalk(model.parameters(), 1e-3, base=base, num_directions=q, seed=5)
    reference = plain(1e-3)
    places = [i for i, p in enumerate(model.parameters()) if p.requires_grad]
    xs = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    for _ in range(60):
        drawn = optimizer.base.directions(list(model.parameters()))
        xs = reference.step(xs, [sum(d.tensor(i) for d in drawn) / q for i in places])
        optimizer.step(closure_of(optimizer, loss_of))
    for x, p in zip(xs, (p for p in model.parameters() if p.requires_grad), strict=True):
        torch.testing.assert_close(p.detach(), x, rtol=1e-9, atol=1e-11)


def test_another_loss_changes_no_bit_and_is_reported() -> None:
    ends = []
    for sign in (1.0, -100.0):
        model, loss_of = make_problem()
        optimizer = RandomWalk(model.parameters(), 1e-2, base="ada_zo")
        for _ in range(10):
            expected = sign * float(loss_of().detach())
            loss = optimizer.step(closure_of(optimizer, lambda loss_of=loss_of, sign=sign: sign * loss_of()))
            assert optimizer.last_losses == [pytest.approx(expected)]
            assert float(loss) == pytest.approx(expected)
        ends.append(snapshot(model))
    assert same_bits(*ends)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian", "sphere"])
def test_a_step_has_the_stated_size(noise: str) -> None:
    x = nn.Parameter(torch.zeros(20000, dtype=torch.float64))
    optimizer = RandomWalk([x], 0.02, base_options={"noise": noise})
    before = x.detach().clone()
    for _ in range(3):
        optimizer.step(lambda: x.sum())
        moved = float((x.detach() - before).square().mean().sqrt())
        assert moved == pytest.approx(0.02, rel=0.02 if noise == "gaussian" else 1e-6)
        before = x.detach().clone()


@pytest.mark.parametrize("base", ["ada_zo", "zo_adam", "zo_sign_sgd"])
def test_it_walks_as_far_as_the_base_goes(base: str) -> None:
    """A loss whose slope is the same everywhere: what the base's steps measure is of one size."""
    slope = torch.randn(4000, generator=torch.Generator().manual_seed(0)).double()

    def sizes(name: str, **settings) -> Tensor:
        x = nn.Parameter(torch.zeros(4000, dtype=torch.float64))
        optimizer = create_optimizer(name, [x], lr=1e-3, seed=1, **settings)
        steps = []
        for _ in range(60):
            before = x.detach().clone()
            optimizer.step(lambda: slope @ x)
            steps.append((x.detach() - before).square().mean().sqrt())
        return torch.stack(steps)

    real, placebo = sizes(base), sizes("random_walk", base=base)
    assert placebo[0] == pytest.approx(float(real[0]), rel=1e-3)
    assert math.log(float(placebo.mean() / real.mean())) == pytest.approx(0, abs=0.15)


def test_it_stands_in_for_the_hybrids_zeroth_order_phase() -> None:
    model, loss_of = make_problem()
    hybrid = FOZO(model.parameters(), 1e-2, zo="random_walk", zo_lr=1e-3, fo_steps=2, zo_steps=2, num_directions=3)
    plain, plain_loss = make_problem()
    fo = torch.optim.AdamW(plain.parameters(), 1e-2, weight_decay=0.0)
    zo = RandomWalk(plain.parameters(), 1e-3, num_directions=3)
    for step in range(8):
        assert hybrid.phase == ("first_order" if step % 4 < 2 else "zeroth_order")
        hybrid.step(closure_of(hybrid, loss_of))
        turn = fo if step % 4 < 2 else zo
        turn.step(closure_of(turn, plain_loss))
        assert same_bits(snapshot(model), snapshot(plain))
    hybrid = FOZO(plain.parameters(), zo="random_walk", zo_options={"base": "ada_zo"})
    assert type(hybrid.zo.children()[0]).__name__ == "AdaZO"


def test_its_bases_log_replays_it() -> None:
    model, loss_of = make_problem()
    optimizer = RandomWalk(model.parameters(), 1e-2, base="ada_zo")
    log = ReplayLog.attach(optimizer.base)
    for _ in range(10):
        optimizer.step(closure_of(optimizer, loss_of))
    fresh, _ = make_problem()
    replay(fresh, log)
    assert same_bits(snapshot(model), snapshot(fresh))


def test_a_wrong_setting_of_the_base_is_said_where_it_was_given() -> None:
    with pytest.raises(UserError, match=r"base, base_options: optimizer 'zo_sgd' has no setting 'nosuch'"):
        create_optimizer("random_walk", [nn.Parameter(torch.ones(2))], base_options={"nosuch": 1})


def test_a_base_that_takes_gradients_is_refused() -> None:
    for options, words in (({}, "no setting 'mu'"), ({"base": "fozo"}, "is not")):
        with pytest.raises(UserError, match=words):
            create_optimizer("random_walk", [nn.Parameter(torch.ones(2))], **{"base": "sgd", **options})
