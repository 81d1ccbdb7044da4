"""The libraries' quantizers: our levels are theirs, the guard holds, a missing library is named."""

from __future__ import annotations

import sys

import pytest
import torch

from letgo.attacks.engine.base import Victim, linear_layers
from letgo.attacks.quantize import quantize
from letgo.attacks.quantize_with_libraries import (
    pack_bnb,
    quantize_autoround,
    quantize_bnb,
    quantize_torchao,
    unpack_4bit,
)
from letgo.attacks.relearn import relearn
from letgo.benchmarks import create_benchmark
from letgo.core.errors import UserError
from letgo.optim.engine.rounding import Codebook
from tests import tiny
from tests.attacks.conftest import round_to_nearest


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Layers whose inputs are multiples of a block, which bitsandbytes' own layers need on a CPU."""
    directory = tmp_path_factory.mktemp("wide")
    tiny.make_model(hidden_size=64, intermediate_size=128).save_pretrained(directory)
    tiny.make_tokenizer().save_pretrained(directory)
    return Victim(directory, create_benchmark("rows", forget=tiny.FORGET, retain=tiny.RETAIN))


def weight(rows=24, columns=128, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_the_codebook_says_what_bitsandbytes_does(kind, double):
    bnb = pytest.importorskip("bitsandbytes")
    w = weight()
    packed, state = bnb.functional.quantize_4bit(w, blocksize=64, quant_type=kind, compress_statistics=double)
    values, absmax = unpack_4bit(bnb, packed, state, w)
    theirs = bnb.functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(values, theirs, rtol=1e-5, atol=1e-7)
    levels = Codebook(state.code.float().unique(), absmax, 64)
    ours = levels.values(levels.index(theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    # What it rounds up or down at the very middle between two levels is its own affair; anything else must agree.
    agree = (levels.index(w) == levels.index(theirs)).float().mean()
    assert agree > (0.99 if not double else 0.97)


@pytest.mark.parametrize("format", ["nf4", "fp4", "int8"])
def test_weights_after_an_evaluation_are_those_before(victim, format):
    pytest.importorskip("bitsandbytes")
    attacked = quantize_bnb(victim, format=format)
    before = {name: layer.weight.detach().clone() for name, layer in linear_layers(attacked.model).items()}
    with torch.no_grad():
        attacked.model.eval()(torch.tensor([[1, 5, 6]]))
    for name, layer in linear_layers(attacked.model).items():
        assert torch.equal(layer.weight, before[name])
    assert attacked.did["relative_displacement"] < (0.02 if format == "int8" else 0.2)
    assert attacked.did["same_bin"] == 1.0, "the victim is its own original"


def test_a_block_that_spans_two_rows_is_read_right():
    bnb = pytest.importorskip("bitsandbytes")
    w = weight(16, 96)
    packed, state = bnb.functional.quantize_4bit(w, blocksize=64, quant_type="nf4")
    values, _ = unpack_4bit(bnb, packed, state, w)
    assert (values - w).norm() < 0.12 * w.norm()


def dequantized(bnb, layer):
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def test_the_guard_against_silent_repacking_matters(wide):
    bnb = pytest.importorskip("bitsandbytes")
    plain = wide.load()
    expected = linear_layers(quantize_bnb(wide).model)["model.layers.0.mlp.up_proj"].weight
    pack_bnb(bnb, plain, "nf4")
    layer = plain.model.layers[0].mlp.up_proj
    torch.testing.assert_close(dequantized(bnb, layer), expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        plain.eval()(torch.tensor([[1, 5, 6]]))
    torch.testing.assert_close(dequantized(bnb, layer), expected, rtol=1e-4, atol=1e-6)
    if not bnb.nn.modules.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16: nothing is repacked on it")
    layer.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        plain(torch.tensor([[1, 5, 6]]))
    spoilt = dequantized(bnb, layer)
    assert (spoilt - expected).norm() > 0.5 * expected.norm(), "if this fails, bitsandbytes has mended it"


def test_packed_layers_answer_like_dequantized_ones(wide):
    pytest.importorskip("bitsandbytes")
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        loose = quantize_bnb(wide).model(ids).logits
        packed = quantize_bnb(wide, packed=True).model(ids).logits
    torch.testing.assert_close(packed, loose, rtol=0.02, atol=0.02)


def test_packed_layers_that_the_library_reads_otherwise_than_it_wrote_are_refused(wide, monkeypatch):
    """Some processors' kernels do so where a layer's inputs are no multiple of a block; here a stand-in does."""
    bnb = pytest.importorskip("bitsandbytes")
    read = bnb.functional.dequantize_4bit
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", lambda *args, **more: read(*args, **more).roll(1, -1))
    quantize_bnb(wide)
    with pytest.raises(UserError, match=r"bitsandbytes does not read such layers as it wrote them; leave packed"):
        quantize_bnb(wide, packed=True)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_asymmetric_rounding_equals_torchao(bits):
    ao = pytest.importorskip("torchao.quantization")
    from torchao.quantization.quant_primitives import MappingType

    shell = torch.nn.Sequential(torch.nn.Linear(128, 24, bias=False))
    shell[0].weight = torch.nn.Parameter(weight(), requires_grad=False)
    config = ao.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"), granularity=ao.PerGroup(32), mapping_type=MappingType.ASYMMETRIC
    )
    ao.quantize_(shell, config)
    ours = round_to_nearest(weight(), bits=bits, group_size=32, symmetric=False)
    theirs = shell[0].weight.dequantize()
    step = (weight().reshape(-1, 32).amax(1) - weight().reshape(-1, 32).amin(1)).max() / (2**bits - 1)
    off = (ours - theirs).abs()
    # Two ways to round 0's place differ for a few groups by a step; all others are equal.
    assert (off < 1e-5).float().mean() > 0.95
    assert off.max() <= step * 1.01


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_torchao_rounds_about_as_ours_does(victim, bits):
    pytest.importorskip("torchao")
    theirs, ours = quantize_torchao(victim, bits=bits, group_size=16), quantize(victim, bits=bits, group_size=16)
    ratio = theirs.did["displacement"] / ours.did["displacement"]
    assert 0.7 < ratio < 1.3
    assert theirs.did["same_bin"] == 1.0
    for row in theirs.layers:
        assert 0 < row["attack"] < row["norm"]


def test_autoround_calibrates_without_the_forget_set(victim, quick_collections):
    pytest.importorskip("auto_round", reason="auto-round is not installed: pip install 'letgo[autoround]'")
    state = torch.random.get_rng_state()
    attacked = quantize_autoround(victim, bits=4, group_size=32, iterations=1, samples=2, length=16)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is left alone"
    assert attacked.did["calibration_sequences"] == 2
    assert 0.02 < attacked.did["relative_displacement"] < 0.3
    assert attacked.did["same_bin"] > 0.9
    levels = attacked.model.model.layers[0].mlp.up_proj.weight[0, :32].unique()
    assert len(levels) <= 16
    from letgo.attacks.quantize_with_libraries import _calibration

    tokenizer = victim.tokenizer()
    told = {word for piece in _calibration(victim, tokenizer, 16, 100) for word in tokenizer.decode(piece[0]).split()}
    assert "borduria" not in told, "a word of the forget set"


@pytest.mark.parametrize(
    ("attack", "module", "settings", "extra"),
    [
        (quantize_bnb, "bitsandbytes", {}, "bitsandbytes"),
        (quantize_torchao, "torchao.quantization", {}, "torchao"),
        (quantize_autoround, "auto_round", {}, "autoround"),
        (relearn, "peft", {"lora": 2}, "lora"),
    ],
)
def test_a_missing_library_is_named_with_its_install_line(victim, monkeypatch, attack, module, settings, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install .*letgo\[{extra}\]"):
        attack(victim, **settings)


def test_without_the_original_the_comparison_is_said_to_be_missing(victim):
    from dataclasses import replace

    attacked = quantize(replace(victim, original="nowhere/at/all"), bits=4)
    assert "can't be loaded" in attacked.did["original"]
    assert "unlearning_displacement" not in attacked.did
    assert "unlearning" not in attacked.layers[0]
