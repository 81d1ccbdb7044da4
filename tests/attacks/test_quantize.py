from __future__ import annotations

import pytest
import torch

from letgo.attacks.engine.base import linear_layers
from letgo.core.errors import UserError
from tests.attacks.conftest import round_to_nearest
from tests.reference.quantization import quantize_matrix


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["group", "channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_equals_the_weight_by_weight_version(bits, granularity, symmetric):
    weight = torch.randn(5, 22, generator=torch.Generator().manual_seed(bits)) * 0.1
    weight[2] = 0.0
    found = round_to_nearest(weight, bits=bits, granularity=granularity, group_size=8, symmetric=symmetric)
    if granularity == "group":
        # The last group of a row is filled up with zeros, which an asymmetric range holds anyway.
        assert found.shape == weight.shape
    expected = torch.tensor(quantize_matrix(weight.tolist(), bits, granularity, 8, symmetric))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", range(2, 9))
def test_error_is_at_most_half_a_step_and_levels_are_few(bits):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    rounded = round_to_nearest(weight, bits=bits, granularity="channel")
    step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((rounded - weight).abs() <= step / 2 * 1.0001).all()
    assert all(len(row.unique()) <= 2**bits for row in rounded)
    again = round_to_nearest(rounded, bits=bits, granularity="channel")
    torch.testing.assert_close(again, rounded)


def test_output_layer_and_embeddings_are_left(model):
    names = set(linear_layers(model))
    assert len(names) == 14
    assert not any("lm_head" in name or "embed" in name for name in names)
    with pytest.raises(UserError, match="no linear layer"):
        linear_layers(torch.nn.LayerNorm(3))
