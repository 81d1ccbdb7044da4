from __future__ import annotations

import math

import pytest
import torch

from letgo.analysis.losses import RowLosses, gradient
from letgo.analysis.sharpness import average_case, curvature_along_signs, estimate, sharpness, worst_case
from letgo.analysis.weights import Normals, Weights
from letgo.attacks.engine.target import open_targets
from letgo.core.errors import UserError
from tests.analysis.conftest import SAME
from tests.analysis.problems import Quadratic, symmetric

POINT = torch.tensor([0.4, -1.0, 2.0, 0.1], dtype=torch.float64)


def test_of_a_linear_loss_one_step_finds_the_exact_worst_case():
    """SAM's ε = ρ g/‖g‖: ℓ rises by ρ‖g‖."""
    linear = torch.tensor([1.0, 2.0, -2.0, 4.0], dtype=torch.float64)
    model = Quadratic(torch.zeros(4, 4), -linear, POINT)
    weights, base = Weights(model), float(model.loss().detach())
    for sign in (1.0, -1.0):
        found = worst_case(weights, model.terms(), 0.3, steps=1, sign=sign)
        assert found - base == pytest.approx(sign * 0.3 * 5.0, rel=1e-12)
    assert torch.equal(model.point().detach(), POINT)


def test_of_a_quadratic_many_steps_find_the_largest_eigenvalue():
    """At the stationary point, max over the ball is ½ρ²λ_max and min ½ρ²λ_min; the gradient there is zero."""
    hessian = symmetric(7, 4)
    model = Quadratic(hessian, torch.zeros(4), torch.zeros(4))
    smallest, largest = (float(v) for v in torch.linalg.eigvalsh(hessian)[[0, -1]])
    weights = Weights(model)
    assert worst_case(weights, model.terms(), 0.2, steps=60) == pytest.approx(0.02 * largest, rel=1e-3)
    assert worst_case(weights, model.terms(), 0.2, steps=60, sign=-1.0) == pytest.approx(0.02 * smallest, rel=1e-3)


def test_the_average_over_pairs_is_half_the_quadratic_form_of_the_noise():
    hessian = symmetric(5, 4)
    model = Quadratic(hessian, torch.ones(4), POINT)
    weights, radius, draws = Weights(model), 0.5, 800
    base = float(model.loss().detach())
    few = average_case(weights, model.terms(), radius, base, draws=3, seed=9)
    expected = []
    for number in range(3):
        noise = Normals(9, number)
        eps = torch.cat([noise.like(model.first), noise.like(model.rest)]).detach() * radius / 2
        expected.append(0.5 * float(eps @ hessian @ eps))
    assert few.value == pytest.approx(sum(expected) / 3, rel=1e-9)
    many = average_case(weights, model.terms(), radius, base, draws=draws, seed=1)
    # E ½ εᵀHε = ρ²/(2d) tr H
    assert many.value == pytest.approx(radius**2 / 8 * float(hessian.trace()), abs=4 * many.standard_error)
    assert many.n == draws


def test_hutchinson_is_exact_for_a_diagonal_hessian_and_unbiased_for_another():
    diagonal = torch.diag(torch.tensor([1.0, -2.0, 5.0, 0.5], dtype=torch.float64))
    model = Quadratic(diagonal, torch.ones(4), POINT)
    values = [curvature_along_signs(Weights(model), model.terms(), seed=0, number=k) for k in range(5)]
    assert values == pytest.approx([4.5] * 5, rel=1e-12)
    hessian = symmetric(11, 4)
    model = Quadratic(hessian, torch.ones(4), POINT)
    weights = Weights(model)
    found = estimate([curvature_along_signs(weights, model.terms(), seed=2, number=k) for k in range(500)])
    assert found.value == pytest.approx(float(hessian.trace()), abs=4 * found.standard_error)
    # Var uᵀHu = 2 Σ_{i≠j} H_ij²
    variance = 2 * float((hessian - torch.diag(hessian.diagonal())).square().sum())
    assert found.standard_error == pytest.approx(math.sqrt(variance / 500), rel=0.2)


def test_a_linear_loss_has_no_curvature():
    model = Quadratic(torch.zeros(4, 4), torch.ones(4), POINT)
    linear = [lambda: model.point().sum()]
    assert curvature_along_signs(Weights(model), linear, seed=0, number=0) == 0.0


def test_curvature_and_gradient_of_a_language_model_agree_with_differences(run):
    [subject] = open_targets([run])
    model = subject.load("float32").double()
    model.set_attn_implementation("eager")
    losses = RowLosses(
        model, subject.tokenizer(), subject.benchmark, template=subject.template, limit=4, token_budget=24
    )
    weights, terms = Weights(model), losses.terms(model, "forget_loss")
    assert len(terms) > 1
    noise, step = Normals(0, 0), 1e-3
    signs = {n: torch.where(noise.like(p) >= 0, 1.0, -1.0).double() for n, p in weights.originals.items()}

    def loss_at(amount):
        with weights.at(lambda name, own: own + amount * signs[name]), torch.no_grad():
            return math.fsum(float(term()) for term in terms)

    up, here, down = loss_at(step), loss_at(0.0), loss_at(-step)
    found = curvature_along_signs(weights, terms, seed=0, number=0)
    assert found == pytest.approx((up - 2 * here + down) / step**2, rel=1e-2)
    value, slope = gradient(terms, list(weights.parameters.values()))
    along = sum(float((g * signs[n]).sum()) for n, g in zip(weights.parameters, slope, strict=True))
    assert value == pytest.approx(here, rel=1e-5)
    assert along == pytest.approx((up - down) / (2 * step), rel=1e-2)


def test_a_run(run):
    settings = {"steps": 2, "draws": 2, "trace_draws": 2, "limit": 2}
    found = sharpness(run, **settings)
    assert found.model_dump(exclude=SAME) == sharpness(run, **settings).model_dump(exclude=SAME)
    assert [radius.radius for radius in found.radii] == sorted(radius.radius for radius in found.radii)
    for key in ("forget_loss", "retain_loss"):
        assert all(radius.rise[key] > 0 and radius.fall[key] > 0 for radius in found.radii)
        # A larger ball holds the smaller one.
        assert [r.rise[key] for r in found.radii] == sorted(r.rise[key] for r in found.radii)
        assert found.trace[key].n == 2
        assert found.trace[key].standard_error is not None
    given = sharpness(run, radii=[0.02, 0.01], relative=True, steps=1, draws=1, trace_draws=0, limit=2)
    assert [radius.relative for radius in given.radii] == pytest.approx([0.01, 0.02])
    assert given.trace == {}
    assert given.radii[0].average["forget_loss"].standard_error is None


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"draws": 0}, {"trace_draws": -1}, {"radii": [0.0]}, {"radii": [float("nan")]}]
)
def test_refused(run, settings):
    with pytest.raises(UserError, match="must be"):
        sharpness(run, **settings)
