from __future__ import annotations

import pytest
import torch

from letgo.analysis.landscape import _coordinates, filter_normalised, landscape, random_direction, shifted
from letgo.analysis.losses import RowLosses
from letgo.analysis.weights import Weights
from letgo.attacks.engine.target import open_targets
from letgo.core.errors import UserError
from letgo.models.load import load_model
from tests import tiny
from tests.analysis.conftest import SAME
from tests.analysis.problems import Quadratic, symmetric


def test_filter_normalisation_by_hand():
    with torch.random.fork_rng():
        model = torch.nn.Linear(2, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]))
    given = {"weight": torch.tensor([[1.0, 0.0], [3.0, -4.0], [1.0, 1.0]]), "bias": torch.ones(3)}
    found = filter_normalised(given, Weights(model))
    # Rows take on the norms 5, 2 and 0 of the weights' rows; a bias has no filters.
    assert torch.allclose(found["weight"], torch.tensor([[5.0, 0.0], [1.2, -1.6], [0.0, 0.0]]))
    assert torch.equal(found["bias"], torch.zeros(3))


def test_a_filter_of_gpt2s_transposed_layer_is_a_column():
    from transformers.pytorch_utils import Conv1D

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Conv1D(2, 3)

    with torch.random.fork_rng():
        model = Model()
    given = {"layer.weight": torch.ones(3, 2), "layer.bias": torch.ones(2)}
    weights = Weights(model)
    found = filter_normalised(given, weights)["layer.weight"]
    assert torch.allclose(found.norm(dim=0), weights.originals["layer.weight"].norm(dim=0))
    assert torch.allclose(found[0], found[1])


def test_a_random_direction_depends_on_seed_and_number_alone():
    weights = Weights(tiny.make_model())
    one, again, second, seeded = (random_direction(weights, s, n) for s, n in ((0, 0), (0, 0), (0, 1), (1, 0)))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], second[name])
    assert not torch.equal(one[name], seeded[name])
    assert torch.allclose(one[name].norm(dim=1), weights.originals[name].norm(dim=1), rtol=1e-5)


def test_a_quadratic_landscape_is_symmetric_about_its_minimum_and_exact():
    hessian = symmetric(1, 4) @ symmetric(1, 4) + torch.eye(4)
    linear = torch.ones(4, dtype=torch.float64)
    model = Quadratic(hessian, linear, torch.linalg.solve(hessian, linear))
    weights, direction = Weights(model), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    parts = {"first": direction[:2], "rest": direction[2:]}
    base, found = float(model.loss().detach()), {}
    for at in _coordinates((-1.0, 1.0), 9):
        with weights.at(shifted([parts], [at])):
            found[at] = float(model.loss().detach())
    for at, value in found.items():
        assert value == pytest.approx(found[-at + 0.0], rel=1e-12)
        assert value - base == pytest.approx(0.5 * at**2 * float(direction @ hessian @ direction), rel=1e-9, abs=1e-12)


def test_default_coordinates_hold_the_ends_of_directions_exactly():
    for span, count in (((-0.5, 1.5), 25), ((-0.5, 1.5), 13), ((-1.0, 1.0), 13)):
        assert {0.0, 1.0} <= set(_coordinates(span, count))


def losses_of(place, run):
    [subject] = open_targets([run])
    model = load_model(place)
    return RowLosses(model, subject.tokenizer(), subject.benchmark, template=subject.template, limit=32).values(model)


def test_a_line_toward_the_original_ends_at_the_original(run, original):
    found = landscape(run, directions=["original"], points=5)
    at = {point.at[0]: point.losses for point in found.points}
    assert at[0.0] == losses_of(run, run)
    # θ + 1·(θ_o − θ) rounds differently from θ_o itself.
    assert at[1.0] == pytest.approx(losses_of(original, run), rel=1e-4)
    assert [mark.name for mark in found.marks] == ["run", "original"]
    assert found.cosine is None


def test_a_plane_along_an_attack_run_again(run):
    found = landscape(run, directions=["attack:relearn", "random"], points=5, span=(-1.0, 1.0), limit=2)
    again = landscape(run, directions=["attack:relearn", "random"], points=5, span=(-1.0, 1.0), limit=2)
    assert found.model_dump(exclude=SAME) == again.model_dump(exclude=SAME)
    assert found.axes[0].toward == "attack"
    assert found.axes[0].name.startswith("relearn:steps=2")
    assert len(found.points) == 25
    assert abs(found.cosine) < 0.2
    [line] = [landscape(run, directions=["attack"], points=3, limit=2)]
    # With no label, the attack that left least of the forgetting.
    assert line.axes[0].name == found.axes[0].name
    assert line.axes[0].norm == found.axes[0].norm


def test_a_loss_that_is_not_finite_is_a_gap(run):
    found = landscape(run, directions=["random"], points=3, span=(-1e40, 1e40), limit=2)
    assert [point.losses["forget_loss"] is None for point in found.points] == [True, False, True]


@pytest.mark.parametrize(
    ("directions", "settings", "message"),
    [
        ([], {}, "one direction or two"),
        (["original", "original"], {}, "a plane needs two different ones"),
        (["attack:quantize:bits=99"], {}, "bits"),
        (["attack:nothing"], {}, "unknown attack"),
        (["attack:paraphrase"], {}, "leaves the weights as they are"),
        (["nowhere"], {}, "no such model"),
        (["random"], {"points": 2}, "at least 3"),
        (["random"], {"span": (1.0, -1.0)}, "from a lower to a higher"),
        (["random"], {"seed": -1}, "seed"),
        (["random"], {"limit": 0}, "limit"),
    ],
)
def test_refused(run, directions, settings, message):
    with pytest.raises(UserError, match=message):
        landscape(run, directions=directions, **{"points": 3} | settings)


def test_a_direction_must_lead_somewhere(run, original):
    with pytest.raises(UserError, match="gives no direction"):
        landscape(run, directions=[str(run)], points=3)
    with pytest.raises(UserError, match="is not a run directory"):
        landscape(original, points=3)
    with pytest.raises(UserError, match="is not a run directory"):
        landscape(run.parent, points=3)
