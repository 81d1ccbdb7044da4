from __future__ import annotations

import pytest
import torch

from letgo.analysis.losses import evenly
from letgo.analysis.weights import Normals, Weights, check_same_shape, distance, vector_norm
from letgo.core.errors import UserError
from letgo.models.load import weights_fingerprint
from tests import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit_even_after_an_error(dtype):
    model = tiny.make_model().to(dtype)
    before = weights_fingerprint(model)
    weights = Weights(model)
    noise = Normals(0, 0)
    with weights.at(lambda _, own: own + 0.37 * noise.like(own)):
        assert weights_fingerprint(model) != before
    assert weights_fingerprint(model) == before
    with pytest.raises(ZeroDivisionError), weights.at(lambda _, own: own * 1e30):
        raise ZeroDivisionError
    assert weights_fingerprint(model) == before


def test_a_tied_weight_is_one_weight():
    tied, apart = (Weights(tiny.make_model(tie_word_embeddings=tie)) for tie in (True, False))
    assert apart.dimension - tied.dimension == 64 * 32
    assert tied.norm() == pytest.approx(sum(p.double().square().sum() for p in tied.originals.values()).item() ** 0.5)


def test_noise_is_normal_repeatable_and_its_own_in_every_draw():
    empty = torch.empty(200_000)
    one, again, next_one = (Normals(5, number).like(empty) for number in (0, 0, 1))
    assert torch.equal(one, again)
    assert abs(float((one * next_one).mean())) < 0.01
    assert abs(float(one.mean())) < 0.01
    assert float(one.var()) == pytest.approx(1.0, abs=0.02)
    assert float(one.abs().max()) > 4.0
    generator = Normals(5, 0)
    assert not torch.equal(generator.like(empty), generator.like(empty))
    assert Normals(5, 0).like(torch.empty(3, dtype=torch.bfloat16)).dtype == torch.float32


def test_norms_and_distances_by_hand():
    first = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    second = {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([[0.0]])}
    assert vector_norm(first) == 5.0
    assert distance(first, second) == 5.0
    # ‖(3/3, 4/2)‖
    assert distance(first, second, {"a": 3.0, "b": 2.0}) == pytest.approx(5**0.5)


def test_other_shapes_are_refused_by_name():
    first, second = (dict(tiny.make_model(**c).named_parameters()) for c in ({}, {"hidden_size": 16}))
    with pytest.raises(UserError, match=r"not of one architecture: .*embed.*\(64, 32\) in A and \(64, 16\) in B"):
        check_same_shape(first, second, ("A", "B"))
    third = dict(tiny.make_model(num_hidden_layers=1).named_parameters())
    with pytest.raises(UserError, match=r"layers\.1\..* is only in A"):
        check_same_shape(first, third, ("A", "C"))


def test_a_limit_takes_one_of_every_stretch_and_not_one_kind_alone():
    things = list(range(100))
    chosen = evenly(things, 20)
    assert [thing // 5 for thing in chosen] == list(range(20))
    assert len({thing % 5 for thing in chosen}) == 5
    assert chosen == evenly(things, 20)
    assert evenly(things, None) == evenly(things, 100) == things
    with pytest.raises(UserError, match="at least 1"):
        evenly(things, 0)
