"""Settings of what the catalogs name: each must be what its annotation says."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
import torch

from letgo.attacks.engine.spec import plan_attack
from letgo.benchmarks import create_benchmark
from letgo.core.catalog import check_arguments, check_settings
from letgo.core.errors import UserError
from letgo.core.sizes import read_size
from letgo.core.values import Count, Within, flaw, wanted
from letgo.objectives import create_objective
from letgo.optim import create_optimizer

NAN, INF = float("nan"), float("inf")


def optimizer(name, **settings):
    return create_optimizer(name, [torch.nn.Parameter(torch.zeros(2, 2))], **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: optimizer("fozo", fo_steps=1.5),
            "'fozo': fo_steps must be a whole number of at least 0, not 1.5",
        ),
        (lambda: optimizer("fozo", seed=-1), "seed must be a whole number from 0 to 4294967295, not -1"),
        (lambda: optimizer("adamw", lr=INF), "optimizer 'adamw': lr must be a number of at least 0"),
        (lambda: optimizer("adamw", betas=[0.9]), "betas must be a list of 2 values"),
        (lambda: optimizer("adamw", betas=(0.9, NAN)), "betas must be a list of 2 values"),
        (lambda: optimizer("adamw", amsgrad="maybe"), "amsgrad must be true or false, not 'maybe'"),
        (lambda: optimizer("zo_sgd", mu="1e-3"), "mu must be a number of at least 0, not '1e-3'"),
        (lambda: optimizer("zo_sgd", noise="pink"), "noise must be one of rademacher, gaussian, sphere, not 'pink'"),
        (lambda: optimizer("sam", base_options={"eps": INF}), "base_options: eps: inf is no number to work with"),
        (lambda: optimizer("sam", base_options={"eps": "x"}), "optimizer 'adamw': eps must be a number"),
        (lambda: optimizer("muon", ns_steps=-1), "ns_steps must be a whole number of at least 0, not -1"),
        (lambda: optimizer(None), "optimizer must be a name, not None"),
        (lambda: create_objective("npo", beta="abc"), "objective 'npo': beta must be a number above 0, not 'abc'"),
        (lambda: create_objective("npo", beta=-1), "beta must be a number above 0, not -1"),
        (lambda: create_objective("npo", beta=True), "beta must be a number above 0, not True"),
        (lambda: create_objective("npo", retain_weight=INF), "retain_weight must be a number of at least 0"),
        (lambda: create_objective("npo", forget_weight="x"), "forget_weight must be a number of at least 0, not 'x'"),
        (lambda: create_objective("npo", retain_loss=3), "retain_loss must be text, not 3"),
        (
            lambda: create_objective("npo", retain_weight_schedule="step:at=inf"),
            "at must be a number of at least 0",
        ),
        (lambda: create_objective("rmu", layer=-1), "layer must be a whole number of at least 0 or text, not -1"),
        (lambda: plan_attack("quantize:bits=99"), "attack 'quantize': bits must be a whole number from 2 to 8, not 99"),
        (lambda: plan_attack("quantize:symmetric=maybe"), "symmetric must be true or false, not 'maybe'"),
        (lambda: plan_attack("relearn:holdout=2"), "holdout must be a number of at least 0 and below 1, not 2"),
        (lambda: plan_attack("relearn:epochs=1e30"), "epochs must be a number above 0 and at most 1000000"),
        (lambda: plan_attack("noise:sigma=nan"), "sigma must be a number above 0, not nan"),
        (lambda: plan_attack("noise:seed=-1"), "seed must be a whole number from 0"),
        (lambda: plan_attack("noise:seeds=1000000000000"), "seeds must be a whole number from 1 to 1000"),
        (lambda: plan_attack("noise:bound=inf,search"), "bound must be a number of at least 0, not inf"),
        (lambda: plan_attack("quantize", seeds=0), "seeds must be a whole number from 1 to 1000, not 0"),
        (lambda: plan_attack("external:family=other"), "attack 'external' needs a value for path"),
        (lambda: create_benchmark("biographies:seed=-1"), "benchmark 'biographies': seed must be a whole number"),
        (lambda: create_benchmark("tofu:limit=0"), "limit must be a whole number of at least 1, not 0"),
        (lambda: create_benchmark("tofu:holdout=maybe"), "holdout must be true or false, not 'maybe'"),
        (lambda: read_size("9" * 400 + "GB", "--device-memory"), "--device-memory must be a size"),
    ],
)
def test_settings_that_are_not_what_they_must_be(make, message):
    with pytest.raises(UserError) as refused:
        make()
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (1, int, None),
        (True, int, "a whole number that is finite"),
        (1.0, int, "a whole number that is finite"),
        (2**63, int, "a whole number that is finite"),
        (1, float, None),
        (10**400, float, "a number that is finite"),
        (None, int | None, None),
        ("x", int | str | None, None),
        ([1, 2.0], tuple[float, float], None),
        ([1, 2, 3], tuple[float, float], "a list of 2 values, each a number that is finite"),
        ("a", Literal["a", "b"], None),
        (True, Literal[1, 2], "one of 1, 2"),
        (object(), Any, None),
        (0, Annotated[float, Within(0, above=True)], "a number above 0"),
        (3, Annotated[int, Within(0, 2)] | None, "a whole number from 0 to 2"),
    ],
)
def test_what_a_value_must_be(value, kind, words):
    assert wanted(value, kind) == words


def test_another_librarys_settings_are_of_their_defaults_kinds():
    def unannotated(params, lr=1e-3, betas=(0.9, 0.999), paged=False, args=None):
        """Nothing."""

    check_settings("x", [unannotated], {"lr": 1, "betas": [0.5, 0.5], "paged": True, "args": "y"})
    for wrong in ({"lr": "abc"}, {"lr": -1}, {"betas": [0.5]}, {"paged": 1}, {"args": NAN}):
        with pytest.raises(UserError, match="x: "):
            check_settings("x", [unannotated], wrong)


def test_some_arguments_of_a_function():
    def measure(model, limit: Count | None = None):
        """Nothing."""

    check_arguments(measure, limit=None)
    with pytest.raises(UserError, match=r"measure\(\): limit must be a whole number of at least 1, not 0"):
        check_arguments(measure, limit=0)


def test_flaws_are_found_wherever_they_are():
    deep: Any = []
    for _ in range(3000):
        deep = [deep]
    assert flaw({"a": [1, {"b": "c"}]}) is None
    assert flaw({"a": [1, {"b": NAN}]}) == "a[1].b: nan is no number to work with"
    assert flaw({"a": NAN}, finite=False) is None
    assert "nested" in str(flaw(deep))
    assert "over" in str(flaw([0] * 300_000)) or "more than" in str(flaw([0] * 300_000))
    assert "half a character" in str(flaw({"\ud800": 1}))
