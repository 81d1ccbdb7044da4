"""GGUF files as models: the weights and tokens of the model they were made of, converted once, clear errors."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import letgo
from letgo.core import extras
from letgo.core.errors import UserError
from letgo.core.progress import quiet_libraries
from letgo.models import gguf
from letgo.models.load import ASSETS, load_model, load_tokenizer, model_config, resolve_model
from letgo.runs.results import read_result
from tests import tiny

ORIGINAL = ASSETS / "biographies" / "full"
TEXTS = ["Where was she born?", "in  1984\n\n12 of 345", " two  spaces", "<s>word</s>"]
# transformers' name of a layer's weight -> GGUF's.
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the package gguf")


def write_gguf(path: Path, split: str = "gpt-2", architecture: str = "llama", scaled: str = "") -> Path:
    """The biographies' model as a GGUF file with unpacked weights, laid out as llama.cpp's converter does."""
    from gguf import GGUFWriter, RopeScalingType

    config = json.loads((ORIGINAL / "config.json").read_text())
    tokenizer = json.loads((ORIGINAL / "tokenizer.json").read_text())
    heads = config["num_attention_heads"]
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    control = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in control else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    for name, weight in load_file(ORIGINAL / "model.safetensors").items():
        values = weight.numpy()
        if name.startswith("model.layers."):
            _, _, number, rest = name.split(".", 3)
            stem = NAMES[rest.removesuffix(".weight")]
            if stem in ("attn_q", "attn_k"):
                halves = values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
            writer.add_tensor(f"blk.{number}.{stem}.weight", values.copy())
        else:
            outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
            writer.add_tensor(outer[name], values)
    if scaled == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)
    elif scaled == "factors":  # as of Llama 3.1 and later
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, 16, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LETGO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_gguf
def test_a_file_is_the_model_it_was_made_of(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    path = write_gguf(tmp_path / "people.gguf")
    (tmp_path / "config.json").write_text("what lies beside the file is not read")
    quiet_libraries()  # as the command does
    capfd.readouterr()
    again = load_model(path, device="cpu")
    assert capfd.readouterr().err == "", "a bar of transformers' own"
    original = load_model(ORIGINAL, device="cpu")
    theirs, ours = dict(original.named_parameters()), dict(again.named_parameters())
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert again.config.rms_norm_eps == 1e-6, "the decimal number, not the 32-bit float next to it"
    tokenizer, expected = load_tokenizer(path), load_tokenizer(ORIGINAL)
    assert [tokenizer(text).input_ids for text in TEXTS] == [expected(text).input_ids for text in TEXTS]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (0, 2, 512)
    assert model_config(str(path)).num_hidden_layers == 4

    monkeypatch.setattr(gguf, "convert", lambda *_: pytest.fail("converted again"))
    [directory] = cache.iterdir()
    assert resolve_model(path) == str(directory)
    twin = tmp_path / "elsewhere" / "people.gguf"
    twin.parent.mkdir()
    twin.write_bytes(path.read_bytes())
    assert resolve_model(twin) == str(directory), "the content counts, not where the file lies"


@needs_gguf
@pytest.mark.parametrize("scaled", ["linear", "factors"])
def test_a_scaled_rotary_embedding_is_not_dropped_in_silence(cache: Path, tmp_path: Path, scaled: str):
    """transformers' reader leaves it out: the model would be another one, from some hundred tokens on."""
    path = write_gguf(tmp_path / "people.gguf", scaled=scaled)
    with pytest.raises(UserError, match="its rotary embedding is scaled"):
        load_model(path)


@needs_gguf
def test_a_file_that_has_changed_is_converted_anew(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gguf, "convert", lambda source, target: (target / "copy").write_bytes(source.read_bytes()))
    path = tmp_path / "model.gguf"
    for content in (b"GGUF first", b"GGUF second"):
        path.write_bytes(content)
        assert (Path(resolve_model(path)) / "copy").read_bytes() == content
    assert len(list(cache.iterdir())) == 2


@needs_gguf
def test_digits_are_split_where_the_file_says_so(cache: Path, tmp_path: Path):
    """transformers' reader does not know these names and would split as GPT-2 does."""
    from tokenizers import pre_tokenizers

    tokenizer = load_tokenizer(write_gguf(tmp_path / "digits.gguf", split="smollm"))
    expected = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in TEXTS:
        split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert split == expected.pre_tokenize_str(text)


@needs_gguf
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04 a zip"), "is not a GGUF file: it does not begin with GGUF"),
        (lambda path: path.write_bytes(b"GGUF"), r"can't be read \((.|\n)*directory or hub id instead"),
        (lambda path: path.write_bytes(write_gguf(path).read_bytes()[:-4000]), r"can't be read"),
        (lambda path: write_gguf(path, split="klingon"), r"splits a text \(tokenizer.ggml.pre: klingon\) is not known"),
        (lambda path: write_gguf(path, architecture="abacus"), r"can't be read \(.*abacus"),
    ],
)
def test_files_that_cant_be_read(cache: Path, tmp_path: Path, write, message: str):
    path = tmp_path / "model.gguf"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        resolve_model(path)
    assert "model.gguf" in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_without_the_package(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"reading .*model.gguf needs gguf: pip install .*letgo\[gguf\]"):
        resolve_model(path)


@pytest.mark.parametrize("name", ["nowhere.gguf", "folder/nowhere.gguf"])
def test_a_file_that_is_not_there(name: str):
    with pytest.raises(UserError, match=r"no such model: .*nowhere\.gguf"):
        resolve_model(name)


@needs_gguf
def test_a_file_is_unlearned_scored_and_attacked_as_any_model(cache: Path, tmp_path: Path):
    path = write_gguf(tmp_path / "people.gguf")
    settings = tiny.own_files(tmp_path, path, max_steps=1, learning_rate=1e-4, objective="graddiff")
    run = letgo.unlearn(**settings)
    assert read_result(run.directory).status == "finished"
    assert read_result(run.directory).config["model"] == str(path)
    benchmark = f"rows:forget={settings['forget']}"
    ours, theirs = (letgo.evaluate(model, [benchmark])[benchmark].after for model in (path, ORIGINAL))
    assert ours == theirs
    where = {"benchmark": benchmark, "original": "biographies", "output": tmp_path / "attacked"}
    assert letgo.attack(str(path), ["quantize:bits=4"], **where).attacks[0].metrics
