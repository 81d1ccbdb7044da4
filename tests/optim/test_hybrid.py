"""The hybrid: turns, rates, what a plan of steps must be, moments across switches."""

from __future__ import annotations

import pytest
import torch
from problems import closure_of, make_problem, same_bits, snapshot
from torch import nn

from letgo.core.errors import UserError
from letgo.optim import FOZO, AdaZO, Phases, create_optimizer


def test_it_is_its_two_optimizers_in_turn() -> None:
    model, loss_of = make_problem()
    hybrid = FOZO(model.parameters(), 1e-2, zo_lr=1e-3, fo_steps=3, zo_steps=2, num_directions=2, seed=5)
    plain, plain_loss = make_problem()
    fo = torch.optim.AdamW(plain.parameters(), 1e-2, weight_decay=0.0)
    zo = AdaZO(plain.parameters(), 1e-3, num_directions=2, seed=5)
    phases = []
    for step in range(20):
        phases.append(hybrid.phase)
        assert hybrid.needs_closure == (hybrid.phase == "zeroth_order")
        hybrid.step(closure_of(hybrid, loss_of))
        turn = fo if step % 5 < 3 else zo
        turn.zero_grad()
        turn.step(closure_of(turn, plain_loss))
        assert same_bits(snapshot(model), snapshot(plain))
    assert phases == (["first_order"] * 3 + ["zeroth_order"] * 2) * 4


def test_a_first_order_turn_steps_from_grad_and_a_zeroth_order_turn_asks_for_a_closure() -> None:
    model, loss_of = make_problem()
    hybrid = FOZO(model.parameters(), 1e-2, fo_steps=1, zo_steps=1)
    loss_of().backward()
    with pytest.raises(ValueError, match="ask `needs_closure` before each step"):
        hybrid.step()
    assert not hybrid.needs_closure
    hybrid.step()
    assert hybrid.needs_closure
    with pytest.raises(ValueError, match="closure"):
        hybrid.step()


@pytest.mark.parametrize(("wanted", "planned"), [(0, 0), (1, 40), (40, 40), (41, 80), (100, 120)])
def test_plans_end_on_a_whole_zeroth_order_round(wanted: int, planned: int) -> None:
    assert FOZO([nn.Parameter(torch.ones(2))]).fit_total_steps(wanted) == planned


def test_the_schedule_of_lr_drives_both_rates() -> None:
    model, loss_of = make_problem()
    hybrid = FOZO(model.parameters(), 1e-2, zo_lr=1e-3, fo_steps=1, zo_steps=1)
    for factor in (1.0, 0.5, 0.25, 0.0):
        for group in hybrid.param_groups:
            group["lr"] = 1e-2 * factor
        for optimizer, rate in ((hybrid.fo, 1e-2), (hybrid.zo, 1e-3)):
            hybrid.step(closure_of(hybrid, loss_of))
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate * factor)


def test_settings_of_a_group_reach_the_optimizers_that_have_them() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    hybrid = FOZO([{"params": [a], "weight_decay": 0.3}, {"params": [b]}], weight_decay=0.1)
    for inner in (hybrid.fo, hybrid.zo):
        assert [g["weight_decay"] for g in inner.param_groups] == [0.3, 0.1]


def test_moments_are_kept_or_reset_as_asked() -> None:
    for moments, steps_seen in (("keep", 4), ("reset", 2)):
        model, loss_of = make_problem()
        hybrid = FOZO(model.parameters(), 1e-2, fo_steps=2, zo_steps=1, moments=moments)
        for _ in range(5):
            hybrid.step(closure_of(hybrid, loss_of))
        assert int(hybrid.fo.state[model.temperature]["step"]) == steps_seen


def test_any_number_of_phases() -> None:
    model, loss_of = make_problem()
    phases = Phases(
        model.parameters(),
        [("adamw", 2, {"lr": 1e-2}), ("sign_sgd", 1, {"lr": 1e-3}), ("zo_sgd", 2, {"lr": 1e-2})],
    )
    seen = []
    for _ in range(6):
        seen.append(type(phases.turn.optimizer).__name__)
        phases.step(closure_of(phases, loss_of))
    assert seen == ["AdamW", "AdamW", "SignSGD", "ZOSGD", "ZOSGD", "AdamW"]
    assert phases.fit_total_steps(6) == 10


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fo": "zo_sgd"}, "first-order"),
        ({"zo": "adamw"}, "no setting 'mu'"),
        ({"fo": "adamwv"}, "did you mean 'adamw'"),
        ({"zo_options": {"muu": 1}}, "did you mean 'mu'"),
        ({"fo_steps": 0}, "steps of adamw"),
        ({"moments": "halve"}, "moments"),
    ],
)
def test_mistakes_are_named(settings, words) -> None:
    with pytest.raises(UserError, match=words):
        create_optimizer("fozo", [nn.Parameter(torch.ones(2))], **settings)
    with pytest.raises(ValueError, match="fixed"):
        FOZO([nn.Parameter(torch.ones(2))]).add_param_group({"params": [nn.Parameter(torch.ones(2))]})
