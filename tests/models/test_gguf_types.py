"""Block types: bytes and indices against gguf's own decoder, bit by bit; mixes against what llama.cpp made of them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from letgo.models.gguf_mixes import BLOCK, MIXES, types_of
from letgo.models.gguf_types import TYPES, BlockLevels, block_bytes, decode, encode, round_to_blocks

gguf = pytest.importorskip("gguf", reason="not installed: pip install 'letgo[gguf]'")
pytest.importorskip("libgguf", reason="not installed: pip install 'letgo[gguf]'")


def weights(rows=3, columns=512):
    made = (np.random.default_rng(11).normal(size=(rows, columns)) * 0.05).astype(np.float32)
    made[0, :64] = 0  # a block without a scale
    return made


def by_gguf(encoded, name):
    return gguf.dequantize(encoded, gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize("name", TYPES)
def test_the_size_of_a_block(name):
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (BLOCK[name], block_bytes(name))


@pytest.mark.parametrize("name", TYPES)
def test_bytes_to_indices_and_back(name):
    levels = BlockLevels(name, encode(weights(), name), 512)
    again = levels.bytes_of(levels.stored())
    decoded = by_gguf(levels.encoded, name)
    assert np.array_equal(by_gguf(again, name), decoded)
    if name not in ("MXFP4", "NVFP4"):  # these have two zeros
        assert np.array_equal(again, levels.encoded)
    assert np.array_equal(decode(levels.encoded, name, 512), decoded), "libgguf and gguf read the same bytes alike"


@pytest.mark.parametrize("name", TYPES)
def test_each_index_is_one_weight_and_its_own(name):
    """One index changed by one changes one weight, to the next level: at every place of a block."""
    columns = BLOCK[name]
    row = weights(2)[1:, :columns]  # the first row begins with zeros
    levels = BlockLevels(name, encode(row, name), columns)
    index = levels.stored()
    before = by_gguf(levels.encoded, name)
    ladder = np.stack([by_gguf(levels.bytes_of(torch.full_like(index, i)), name) for i in range(levels.high + 1)])
    steps = np.diff(ladder, axis=0)
    assert (steps >= 0).all() or (np.sign(steps) == np.sign(steps[:1])).all(), "the levels are in order"
    for place in range(columns):
        moved = index.clone()
        moved[0, place] += 1 if index[0, place] < levels.high else -1
        after = by_gguf(levels.bytes_of(moved), name)
        changed = np.flatnonzero(after != before)
        assert changed.size == 0 or changed.tolist() == [place]
        assert after[0, place] == ladder[moved[0, place], 0, place]
    assert np.ptp(ladder, axis=0).min() > 0, "a block whose levels are all the same would show nothing"


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_the_same_bytes_as_gguf_encodes(name):
    assert np.array_equal(encode(weights(), name), gguf.quantize(weights(), gguf.GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", TYPES)
def test_to_nearest_the_bytes_are_the_quantizers_own(name):
    levels, index = round_to_blocks(torch.from_numpy(weights()), name)
    assert np.array_equal(levels.values(index).numpy(), by_gguf(encode(weights(), name), name))


# A file that llama.cpp's quantizer made and others published (Gemma 3, 270M, as Q4_K_M): the types in its header.
GEMMA = {
    "attn_q": (1024, 640),
    "attn_k": (256, 640),
    "attn_v": (256, 640),
    "attn_output": (640, 1024),
    "ffn_gate": (2048, 640),
    "ffn_up": (2048, 640),
    "ffn_down": (640, 2048),
    "attn_norm": (640,),
    "attn_q_norm": (256,),
}
MORE = {0, 1, 4, 7, 10, 13, 15, 16, 17}


def shapes_of(parts, layers, **others):
    return {f"blk.{i}.{part}.weight": shape for i in range(layers) for part, shape in parts.items()} | others


def test_the_types_of_a_file_that_llama_cpp_made():
    others = {"token_embd.weight": (262144, 640), "output_norm.weight": (640,)}
    shapes = shapes_of(GEMMA, 18) | others
    types, notes = types_of("Q4_K_M", shapes, layers=18, queries=4)
    assert types["token_embd.weight"] == "Q8_0"  # tied: the output layer's Q6_K, into whose blocks 640 does not fit
    for layer in range(18):
        of = {part: types[f"blk.{layer}.{part}.weight"] for part in GEMMA}
        more = layer in MORE
        assert of == {
            "attn_q": "Q5_0",
            "attn_k": "Q5_0",
            "attn_v": "Q8_0" if more else "Q5_0",
            "attn_output": "Q4_K",
            "ffn_gate": "Q5_0",
            "ffn_up": "Q5_0",
            "ffn_down": "Q6_K" if more else "Q4_K",
            "attn_norm": "F32",
            "attn_q_norm": "F32",
        }
    assert sorted(note.partition(",")[0] for note in notes) == [
        "10 of 164 tensors are Q8_0 instead of Q6_K",
        "81 of 164 tensors are Q5_0 instead of Q4_K",
    ]


@pytest.mark.parametrize(
    ("mix", "layer", "part", "queries", "wanted"),
    [
        ("Q2_K", 5, "attn_v", 4, "Q4_K"),
        ("Q2_K", 5, "attn_v", 1, "Q3_K"),
        ("Q2_K", 5, "ffn_down", 1, "Q3_K"),
        ("Q2_K", 5, "attn_output", 1, "Q3_K"),
        ("Q3_K_M", 1, "attn_v", 1, "Q5_K"),
        ("Q3_K_M", 2, "attn_v", 1, "Q4_K"),
        ("Q3_K_M", 1, "ffn_down", 1, "Q5_K"),
        ("Q3_K_M", 2, "ffn_down", 1, "Q4_K"),
        ("Q3_K_L", 9, "attn_output", 1, "Q5_K"),
        ("Q4_K_S", 3, "attn_v", 1, "Q5_K"),
        ("Q4_K_S", 4, "attn_v", 1, "Q4_K"),
        ("Q4_K_S", 3, "ffn_down", 1, "Q5_K"),
        ("Q4_K_S", 4, "ffn_down", 1, "Q4_K"),
        ("Q4_K_M", 3, "attn_v", 1, "Q6_K"),
        ("Q4_K_M", 4, "attn_v", 1, "Q4_K"),
        ("Q4_K_M", 6, "attn_v", 1, "Q6_K"),
        ("Q5_K_M", 28, "ffn_down", 1, "Q6_K"),
        ("Q5_K_M", 27, "ffn_down", 1, "Q6_K"),
        ("Q5_K_M", 26, "ffn_down", 1, "Q5_K"),
        ("IQ4_XS", 3, "ffn_down", 1, "Q5_K"),
        ("IQ4_XS", 9, "attn_v", 8, "Q5_K"),
        ("Q4_0", 0, "attn_v", 8, "Q4_0"),
    ],
)
def test_a_mix_by_llama_cpps_rules(mix, layer, part, queries, wanted):
    """Thirty-two layers, whose rows all blocks fit into."""
    parts = {"attn_v": (1024, 4096), "ffn_down": (4096, 14336), "attn_output": (4096, 4096)}
    shapes = shapes_of(parts, 32) | {"output.weight": (128, 4096), "token_embd.weight": (128, 4096)}
    types, notes = types_of(mix, shapes, layers=32, queries=queries)
    assert types[f"blk.{layer}.{part}.weight"] == wanted
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == MIXES[mix].base
    assert notes == []


def test_rows_that_no_block_fits_into_are_half_floats():
    types, notes = types_of("Q4_K_M", {"blk.0.attn_q.weight": (8, 24)}, layers=1, queries=1)
    assert types == {"blk.0.attn_q.weight": "F16"}
    assert notes == [
        "1 of 1 tensors are F16 instead of Q4_K, whose blocks of 256 weights do not fit into rows of 24: "
        "blk.0.attn_q.weight"
    ]


@pytest.mark.skipif(shutil.which("llama-quantize") is None, reason="llama-quantize is not on the PATH")
@pytest.mark.parametrize("mix", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q8_0", "IQ4_XS"])
def test_the_file_that_llama_quantize_makes(tmp_path, mix):
    import subprocess

    from letgo.models.export import export

    whole = export("biographies", "q8_0", tmp_path / "whole")
    ours = export("biographies", mix.lower(), tmp_path / "ours")
    theirs = tmp_path / "theirs.gguf"
    command = ["llama-quantize", "--allow-requantize", tmp_path / "whole" / whole["file"], theirs, mix]
    subprocess.run(command, check=True, capture_output=True)
    files = (tmp_path / "ours" / ours["file"], theirs)
    mine, others = ({t.name: t.tensor_type for t in gguf.GGUFReader(path).tensors} for path in files)
    assert mine == others
