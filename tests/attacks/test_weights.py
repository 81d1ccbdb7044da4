from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from letgo.attacks.engine.base import Victim, linear_layers
from letgo.attacks.weights import interpolate, merge, noise, prune
from letgo.benchmarks import create_benchmark
from letgo.core.errors import UserError
from letgo.models.displacement import layer_row, summary
from letgo.optim.engine.rounding import make_grid
from tests import tiny
from tests.reference.attacks import dare, ties


@pytest.fixture(scope="module")
def victim(model_directory, tmp_path_factory):
    original = tmp_path_factory.mktemp("original")
    tiny.make_model(seed=1).save_pretrained(original)
    benchmark = create_benchmark("rows", forget=tiny.FORGET, retain=tiny.RETAIN)
    return Victim(model_directory, benchmark, original=str(original))


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_pruning_takes_the_smallest(victim, scope):
    saved = {name: layer.weight for name, layer in linear_layers(victim.load()).items()}
    attacked = prune(victim, sparsity=0.25, scope=scope)
    count = sum(weight.numel() for weight in saved.values())
    assert attacked.did["zeros"] == pytest.approx(0.25 * count, abs=len(saved))
    left, gone = [], []
    for name, layer in linear_layers(attacked.model).items():
        zero = layer.weight == 0
        if scope == "layer":
            assert zero.float().mean() == pytest.approx(0.25, abs=0.01)
            assert saved[name][zero].abs().max() <= saved[name][~zero].abs().min()
        left.append(saved[name][~zero].abs())
        gone.append(saved[name][zero].abs())
        assert torch.equal(layer.weight[~zero], saved[name][~zero])
    if scope == "model":
        assert torch.cat(gone).max() <= torch.cat(left).min()


def test_noise_has_the_size_asked_for_and_is_seeded(victim):
    saved = {n: p.detach() for n, p in victim.load().named_parameters()}
    attacked = noise(victim, sigma=0.01, seed=3)
    moved = torch.cat([(p.detach() - saved[n]).flatten() for n, p in attacked.model.named_parameters()])
    assert moved.std() == pytest.approx(0.01, rel=0.05)
    assert abs(moved.mean()) < 0.001
    assert attacked.did["displacement"] == pytest.approx(float(moved.norm()), rel=1e-4)
    again, other = (noise(victim, sigma=0.01, seed=s).model.state_dict() for s in (3, 4))
    assert all(torch.equal(value, again[name]) for name, value in attacked.model.state_dict().items())
    assert any(not torch.equal(value, other[name]) for name, value in attacked.model.state_dict().items())
    scaled = noise(victim, sigma=0.1, relative=True)
    for name, parameter in scaled.model.named_parameters():
        size = saved[name].square().mean().sqrt()
        assert (parameter.detach() - saved[name]).square().mean().sqrt() == pytest.approx(float(0.1 * size), rel=0.5)


def test_interpolation_is_a_straight_line(victim):
    saved, original = (dict(m.named_parameters()) for m in (victim.load(), victim.load_original()))
    attacked = interpolate(victim, share=0.25)
    for name, parameter in attacked.model.named_parameters():
        torch.testing.assert_close(parameter, 0.75 * saved[name] + 0.25 * original[name])
    assert attacked.did["displacement"] == pytest.approx(0.25 * attacked.did["unlearning_displacement"], rel=1e-4)


def test_displacement_and_bins_by_hand():
    original = torch.tensor([[7.0, 1.0, 2.0, 3.0], [7.0, 0.0, 0.0, 0.0]])
    weight = torch.tensor([[7.0, 1.4, 2.6, 3.0], [7.0, 0.0, 0.3, 1.0]])
    grid = make_grid(weight, bits=4, granularity="channel")
    assert grid.scale.flatten().tolist() == [1.0, 1.0]
    rounded = grid.values(grid.index(weight))
    assert rounded.tolist() == [[7.0, 1.0, 3.0, 3.0], [7.0, 0.0, 0.0, 1.0]]
    row = layer_row("x", weight, rounded, original, grid)
    assert row["unlearning"] == pytest.approx((0.16 + 0.36 + 0.09 + 1.0) ** 0.5)
    assert row["attack"] == pytest.approx((0.16 + 0.16 + 0.09) ** 0.5)
    assert row["changed"] == 0.5
    assert row["same_bin"] == 6 / 8
    assert row["undone"] == 2 / 4
    said = summary([row, layer_row("y", original, original, original, grid)])
    assert said["unlearning_displacement"] == pytest.approx(row["unlearning"])
    assert said["changed"] == 0.25
    assert said["undone"] == 0.5
    assert said["same_bin"] == 14 / 16


def test_without_the_original_there_is_nothing_to_go_back_to(victim):
    with pytest.raises(UserError, match="can't be loaded"):
        interpolate(replace(victim, original="nowhere/at/all"))
    with pytest.raises(UserError, match="--original MODEL"):
        interpolate(replace(victim, original=None))


@pytest.fixture(scope="module")
def sibling(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sibling")
    tiny.make_model(seed=2).save_pretrained(folder)
    return folder


def test_a_sibling_merged_in(victim, sibling):
    saved, original = (dict(m.named_parameters()) for m in (victim.load(), victim.load_original()))
    partner = dict(tiny.make_model(seed=2).named_parameters())
    added, mean = (merge(victim, partner=str(sibling), weight=0.25, method=m).model for m in ("add", "soup"))
    for name, parameter in added.named_parameters():
        torch.testing.assert_close(parameter, saved[name] + 0.25 * (partner[name] - original[name]))
    for name, parameter in mean.named_parameters():
        torch.testing.assert_close(parameter, 0.75 * saved[name] + 0.25 * partner[name])


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_ties_equals_the_plain_way(victim, sibling):
    saved, original = flat(victim.load()), flat(victim.load_original())
    changes = [(each - original).tolist() for each in (saved, flat(tiny.make_model(seed=2)))]
    attacked = merge(victim, partner=str(sibling), weight=0.7, method="ties", density=0.3)
    expected = original + torch.tensor(ties(changes, 0.3, 0.7))
    torch.testing.assert_close(flat(attacked.model), expected, rtol=1e-4, atol=1e-6)
    whole = merge(victim, partner=str(victim.original), weight=1.0, method="ties", density=1.0)
    assert flat(whole.model).equal(saved), "the mean of a whole change and of none is that change"


def test_dare_equals_the_plain_way(victim, sibling):
    saved, original = (dict(m.named_parameters()) for m in (victim.load(), victim.load_original()))
    partner = dict(tiny.make_model(seed=2).named_parameters())
    attacked, again, other = (
        merge(victim, partner=str(sibling), weight=0.7, method="dare", density=0.3, seed=s).model for s in (5, 5, 6)
    )
    generator = torch.Generator().manual_seed(5)
    for name, parameter in attacked.named_parameters():
        start, expected = original[name].detach().flatten(), original[name].detach().flatten()
        for model, weight in ((saved, 1.0), (partner, 0.7)):
            drawn = torch.rand(parameter.shape, generator=generator).flatten().tolist()
            change = (model[name].detach().flatten() - start).tolist()
            expected = expected + weight * torch.tensor(dare(change, drawn, 0.3))
        torch.testing.assert_close(parameter.detach().flatten(), expected, rtol=1e-4, atol=1e-5)
    assert flat(attacked).equal(flat(again))
    assert not flat(attacked).equal(flat(other))
    whole, added = (
        merge(victim, partner=str(sibling), weight=0.7, **how).model for how in ({"method": "dare", "density": 1.0}, {})
    )
    assert flat(whole).equal(flat(added)), "where nothing is dropped it is add"


def test_the_original_as_the_partner(victim):
    """Its own change of itself is nothing; the mean with it is the way back to it."""
    added = merge(victim, partner=str(victim.original), method="add")
    assert added.did["displacement"] == 0.0
    mean, back = (
        merge(victim, partner=str(victim.original), weight=0.25, method="soup"),
        interpolate(victim, share=0.25),
    )
    assert all(value.equal(back.model.state_dict()[name]) for name, value in mean.model.state_dict().items())


def test_a_partner_that_does_not_fit_is_named(victim, tmp_path):
    tiny.make_model(intermediate_size=96).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"merge: the partner .* has no parameter model\.layers\.0\.mlp"):
        merge(victim, partner=str(tmp_path), method="soup")
