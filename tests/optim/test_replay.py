"""A log of scalars rebuilds a zeroth-order run bit for bit."""

from __future__ import annotations

import pytest
import torch
from problems import make_problem, same_bits, snapshot
from torch import nn

from letgo.optim import OPTIMIZERS, ZOSGD, ReplayLog, create_optimizer, replay

# What wraps another is replayed by its base's log (test_random_walk.py, test_auto_rate.py).
ZEROTH = [r.name for r in OPTIMIZERS if r.grade == "zeroth" and r.name not in ("random_walk", "auto_rate")]


@pytest.mark.parametrize("name", ZEROTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noise", ["rademacher", "sphere"])
def test_a_replayed_run_ends_with_the_same_bits_and_goes_on(name, dtype, noise, tmp_path) -> None:
    if name in ("zo_muon", "zo_subspace") and noise == "sphere":
        noise = "gaussian"  # a subspace has no sphere
    model, loss_of = make_problem(dtype)
    others = [p for p in model.parameters() if p is not model.mixing]
    groups = [{"params": [model.mixing], "weight_decay": 0.1}, {"params": others}]
    optimizer = create_optimizer(name, groups, lr=1e-3, num_directions=2, seed=9, noise=noise, nonfinite="skip")
    log = ReplayLog.attach(optimizer)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    for step in range(40):
        optimizer.step(loss_of if step != 5 else lambda: loss_of() * torch.nan)
        schedule.step()
    log.save(tmp_path / "run.json")
    assert (tmp_path / "run.json").stat().st_size < 10_000
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]

    fresh, fresh_loss = make_problem(dtype)
    rest = [p for p in fresh.parameters() if p is not fresh.mixing]
    again = replay([fresh.mixing, *rest], tmp_path / "run.json")
    assert same_bits(snapshot(model), snapshot(fresh))

    for one, evaluate in ((optimizer, loss_of), (again, fresh_loss)):
        one.num_directions = 1 if name != "fzoo" else 3  # it divides by a spread
        one.mu = 1e-3
        for group in one.param_groups:
            group["lr"] = 1e-3
        for _ in range(3):
            one.step(evaluate)
    assert same_bits(snapshot(model), snapshot(fresh))


def test_a_log_refuses_what_it_cannot_replay(tmp_path) -> None:
    weight = nn.Parameter(torch.ones(3))
    log = ReplayLog.attach(ZOSGD([weight]))
    with pytest.raises(ValueError, match=r"shape \[4\], not \[3\]"):
        replay([nn.Parameter(torch.ones(4))], log)
    with pytest.raises(ValueError, match="2 were given"):
        replay([weight, weight], log)
    with pytest.raises(ValueError, match="only a zeroth-order run"):
        ReplayLog.attach(torch.optim.SGD([weight], 0.1))
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="not a replay log"):
        replay([weight], tmp_path / "x.json")
