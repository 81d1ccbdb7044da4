"""Exporting: the file that is read back is what the manifest says; in its own format nothing of the original is lost;
what can't be written is refused before anything is."""

from __future__ import annotations

import errno
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import letgo
from letgo.core.errors import UserError
from letgo.core.fingerprints import file_digest
from letgo.models.format_plans import plan_format
from letgo.models.gguf_file import GgufFile, names_of
from letgo.models.load import ASSETS, load_model, load_tokenizer
from letgo.optim.engine.rounding import make_grid
from tests import tiny

pytest.importorskip("gguf", reason="not installed: pip install 'letgo[gguf]'")
pytest.importorskip("libgguf", reason="not installed: pip install 'letgo[gguf]'")

BIOGRAPHIES = ASSETS / "biographies" / "full"
TEXTS = ["Where was she born?", "in  1984\n\n12 of 345", "naïve Größe 👋"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LETGO_CACHE", str(tmp_path / "cache"))


def rounded_in_memory(model, format, rounding="nearest", seed=0, original=None):
    """The weights by the definition: each matrix rounded as a whole, nothing written."""
    state = load_model(model).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    plan = plan_format(format, load_model(model).config, shapes, original)
    left = {}
    for key in shapes:
        if key == "lm_head.weight" and key not in load_file(BIOGRAPHIES / "model.safetensors"):
            continue  # the embedding once more
        chosen = plan.rounded(key, state[key], rounding, seed=seed)
        left[key] = chosen[0].values(chosen[1]) if chosen else state[key]
    return left


def changed_model(directory, scale, seed=0):
    """The biographies' model with every weight moved by so much, up or down."""
    shutil.copytree(BIOGRAPHIES, directory)
    weights = load_file(directory / "model.safetensors")
    noise = torch.Generator().manual_seed(seed)
    for key, value in weights.items():
        if value.dim() == 2:
            weights[key] = value + scale * (2 * torch.randint(0, 2, value.shape, generator=noise) - 1)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.parametrize(
    ("format", "rounding"),
    [("q4_k_m", "nearest"), ("q8_0", "stochastic"), ("q2_k", "error_feedback"), ("mxfp4", "nearest")],
)
def test_what_is_read_back_is_what_was_rounded(tmp_path, format, rounding):
    manifest = letgo.export("biographies", format, tmp_path / "out", rounding=rounding, seed=3)
    path = tmp_path / "out" / manifest["file"]
    read, wanted = load_model(path).state_dict(), rounded_in_memory("biographies", format, rounding, seed=3)
    for key, value in wanted.items():
        assert torch.equal(read[key], value), key
    assert any(not torch.equal(read[key], value) for key, value in load_model("biographies").state_dict().items())
    assert manifest["files"] == {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}}
    assert manifest["model_sha256"] == {"model.safetensors": file_digest(BIOGRAPHIES / "model.safetensors")}
    assert manifest == json.loads((tmp_path / "out" / "export.json").read_text())
    ours, theirs = load_tokenizer("biographies"), load_tokenizer(path)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == ours(text)["input_ids"]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("format", ["nf4", "fp8", "int4"])
def test_packed_weights_are_read_by_their_libraries_as_they_were_rounded(tmp_path, format, rounding):
    package = "bitsandbytes" if format == "nf4" else "compressed_tensors"
    pytest.importorskip(package, reason=f"not installed: {package}")
    source = changed_model(tmp_path / "model", 0.01)
    manifest = letgo.export(source, format, tmp_path / "out", rounding=rounding, seed=3, original="biographies")
    assert manifest["file"] == "."
    model, wanted = load_model(tmp_path / "out"), rounded_in_memory(source, format, rounding, seed=3)
    if format == "nf4":
        assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
        model = model.dequantize()
    read = model.state_dict()
    for key, value in wanted.items():
        assert torch.equal(read[key].float(), value), key
    kinds = {t["type"] for t in manifest["tensors"]}
    assert kinds == {format.upper(), "float"}
    assert manifest["did"]["layers"] == 28
    assert sorted(manifest["files"]) == ["model-00001.safetensors"]


def test_nearest_packing_is_the_libraries_own(tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    letgo.export("biographies", "nf4", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model-00001.safetensors")
    for key, weight in load_model("biographies").state_dict().items():
        if f"{key}.absmax" in written:
            packed, state = bnb.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
            assert torch.equal(written[f"{key}.absmax"], state.absmax), key
            assert torch.equal(written[f"{key}.quant_map"], state.code), key
            assert float((written[key] != packed).double().mean()) < 1e-3, "but for weights in the middle of a bin"


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("4 bits, ±7 for the largest of 64 weights", {"bits": 4, "group_size": 64}),
        ("8 bits, ±127 for the largest of a row", {"bits": 8, "granularity": "channel"}),
        ("4 bits, ±7 for the largest of the tensor", {"bits": 4, "granularity": "tensor"}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_original_on_a_grid_that_no_file_tells_of(tmp_path, name, make, dtype):
    """A model that was quantized and stored in floats again: its grid is found, it is itself in its own format, and an
    update of a fiftieth of a bin is undone whole by nearest rounding."""
    model, tokenizer = load_model("biographies"), load_tokenizer("biographies")
    grids = {}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in key:
                grids[key] = make_grid(parameter, **make)
                parameter.copy_(grids[key].values(grids[key].index(parameter)))
    for folder, sign in (("original", 0.0), ("unlearned", 1.0)):
        with torch.no_grad():
            for key, grid in grids.items():
                inside = grid.index(model.get_parameter(key)).abs() < grid.high
                step = grid.scale.mean() / 50
                model.get_parameter(key).add_(sign * step * inside)
        model.to(dtype if not sign else torch.float32).save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    original = str(tmp_path / "original")
    same = letgo.export(original, "own", tmp_path / "same", original=original)
    assert same["did"]["displacement"] == 0.0
    assert {t["type"] for t in same["tensors"]} == {name, "float"}
    written = load_file(tmp_path / "same" / "model-00001.safetensors")
    assert all(torch.equal(value, written[key]) for key, value in load_file(f"{original}/model.safetensors").items())
    did = {}
    for rounding in ("nearest", "stochastic"):
        how = {"rounding": rounding, "original": original}
        did[rounding] = letgo.export(tmp_path / "unlearned", "own", tmp_path / rounding, **how)["did"]
    assert did["nearest"]["undone"] == pytest.approx(1.0)
    assert did["nearest"]["carried"] == 0.0
    assert did["stochastic"]["carried"] == pytest.approx(1.0, abs=0.1)


def test_the_type_of_each_tensor_is_the_manifests(tmp_path):
    import gguf

    manifest = letgo.export("biographies", "q4_k_m", tmp_path / "out")
    file = gguf.GGUFReader(tmp_path / "out" / manifest["file"])
    names = names_of(load_model("biographies").config).of([t["tensor"] for t in manifest["tensors"]])
    kinds = {names[t["tensor"]]: t["type"] for t in manifest["tensors"]}
    assert {t.name: t.tensor_type.name for t in file.tensors} == kinds
    assert file.fields["general.file_type"].contents() == int(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    assert "rows of 128" in manifest["notes"][0]


def test_in_its_own_format_a_small_update_is_lost_or_kept(tmp_path):
    """The original comes as Q4_1. An update of a fiftieth of a bin: to nearest it is undone whole, and the file is the
    original's, byte for byte; stochastically it is kept on average."""
    first = letgo.export("biographies", "q4_1", tmp_path / "original")
    original = tmp_path / "original" / first["file"]
    base = load_model(original)
    bin_ = next(t["displacement"] for t in first["tensors"] if t["type"] == "Q4_1")  # not zero: it was off the grid
    assert bin_ > 0
    same = letgo.export(original, "own", tmp_path / "same", original=str(original))
    assert same["did"]["displacement"] == 0.0
    directory = tmp_path / "unlearned"
    load_tokenizer(original).save_pretrained(directory)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() == 2:
                parameter += 2e-4 * (2 * torch.randint(0, 2, parameter.shape, generator=noise) - 1)
    base.save_pretrained(directory)
    manifests = {
        rounding: letgo.export(directory, "own", tmp_path / rounding, rounding=rounding, original=str(original))
        for rounding in ("nearest", "stochastic", "error_feedback")
    }
    did = {rounding: manifest["did"] for rounding, manifest in manifests.items()}
    assert did["nearest"]["bins_per_change"] > 10
    assert did["nearest"]["undone"] > 0.99
    assert did["nearest"]["carried"] == pytest.approx(0.0, abs=0.02)
    assert did["stochastic"]["carried"] == pytest.approx(1.0, abs=0.05)
    assert did["stochastic"]["undone"] == pytest.approx(1 - 1 / did["nearest"]["bins_per_change"], abs=0.05)
    assert did["error_feedback"]["undone"] < did["nearest"]["undone"]
    read = load_model(tmp_path / "stochastic" / manifests["stochastic"]["file"]).state_dict()
    wanted = rounded_in_memory(directory, "own", "stochastic", original=str(original))
    assert all(torch.equal(read[key], value) for key, value in wanted.items())


def test_an_original_that_is_not_the_files(tmp_path):
    first = letgo.export("biographies", "q4_1", tmp_path / "original")
    other = changed_model(tmp_path / "other", 0.01)
    import letgo.models.format_plans as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "own_file", lambda original: tmp_path / "original" / first["file"])
        with pytest.raises(UserError, match=r"not on the levels of its file \(off by up to 0\.0"):
            letgo.export("biographies", "own", tmp_path / "out", original=str(other))
    assert not (tmp_path / "out").exists()


def test_by_how_much_the_format_moves_the_model_from_its_original(tmp_path):
    unlearned = changed_model(tmp_path / "unlearned", 0.02)
    manifest = letgo.export(unlearned, "q8_0", tmp_path / "out", original="biographies")
    before, after = load_model("biographies").state_dict(), load_model(unlearned).state_dict()
    moved = sum(float((after[key] - before[key]).double().pow(2).sum()) for key in after if "lm_head" not in key)
    assert manifest["did"]["unlearning_displacement"] == pytest.approx(moved**0.5, rel=1e-6)
    assert manifest["did"]["change"] == pytest.approx(0.02, rel=1e-5)
    assert manifest["did"]["carried"] == pytest.approx(1.0, abs=0.01)
    unknown = letgo.export(unlearned, "q8_0", tmp_path / "again")
    assert unknown["did"]["original"].startswith("the original is not known")


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral", "untied llama"])
def test_other_architectures(tmp_path, kind):
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    sizes = {"vocab_size": 1152, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    classes = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "mistral": MistralConfig, "untied llama": LlamaConfig}
    more = {"head_dim": 128} if kind == "qwen3" else {}
    torch.manual_seed(0)
    config = classes[kind](**sizes, **more, tie_word_embeddings=kind == "qwen2", rms_norm_eps=1e-5)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # norms of one and biases of zero would hide a tensor that is lost
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.1)
    model.save_pretrained(tmp_path / "model")
    load_tokenizer("biographies").save_pretrained(tmp_path / "model")
    manifest = letgo.export(tmp_path / "model", "q8_0", tmp_path / "out")
    read = load_model(tmp_path / "out" / manifest["file"])
    row = torch.arange(5, 45)[None]
    with torch.no_grad():
        wanted, given = model.eval()(row).logits, read(row).logits
    assert float((wanted - given).abs().max()) < 0.02 * float(wanted.abs().max())
    assert float((wanted - given).abs().max()) > 0, "nothing was rounded"


def test_what_can_not_be_written(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    def refused(model, message, format="q8_0", **settings):
        with pytest.raises(UserError, match=message):
            letgo.export(model, format, tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()

    refused("biographies", "unknown format 'q9_9'", "q9_9")
    refused("biographies", "rounding must be one of nearest, stochastic, error_feedback", rounding="up")
    refused("biographies", "the original is not known", "own")
    refused(
        "biographies", r"on no grid that letgo knows: .* is off by up to 0\.\d+ of a bin", "own", original="biographies"
    )
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=1152, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    gpt2.save_pretrained(tmp_path / "gpt2")
    load_tokenizer("biographies").save_pretrained(tmp_path / "gpt2")
    refused(tmp_path / "gpt2", "can't write models of the type 'gpt2'")
    tiny.make_model().save_pretrained(tmp_path / "words")
    tiny.make_tokenizer().save_pretrained(tmp_path / "words")
    refused(tmp_path / "words", "its tokenizer can't be written as GGUF")
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    sizes = {"vocab_size": 1152, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    scaled = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, rope_parameters=rope))
    scaled.save_pretrained(tmp_path / "scaled")
    load_tokenizer("biographies").save_pretrained(tmp_path / "scaled")
    refused(tmp_path / "scaled", "its rotary embedding is scaled")
    biased = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, attention_bias=True))
    biased.save_pretrained(tmp_path / "biased")
    load_tokenizer("biographies").save_pretrained(tmp_path / "biased")
    refused(tmp_path / "biased", "its attention_bias is True, and a reader of the file would take False")


def test_a_tokenizer_that_would_be_read_otherwise(tmp_path):
    """It splits as GPT-2 does, and lower-cases before: nothing in the file says so."""
    shutil.copytree(BIOGRAPHIES, tmp_path / "lower")
    path = tmp_path / "lower" / "tokenizer.json"
    tokenizer = json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="would be read as other tokens"):
        letgo.export(tmp_path / "lower", "q8_0", tmp_path / "out")


def test_an_output_that_exists(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        letgo.export("biographies", "q8_0", tmp_path / "out")


def test_a_full_disk(tmp_path, monkeypatch):
    """Found before anything is written; or, where it fills meanwhile, half way: nothing is left."""
    with monkeypatch.context() as patch:
        patch.setattr("letgo.models.export.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(UserError, match=r"the file takes .* are free there"):
            letgo.export("biographies", "q8_0", tmp_path / "out")
    added = []

    def full(self, tensor):
        added.append(tensor)
        if len(added) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    monkeypatch.setattr(GgufFile, "add", full)
    with pytest.raises(OSError, match="No space left"):
        letgo.export("biographies", "q8_0", tmp_path / "out")
    assert len(added) == 5
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite(tmp_path):
    broken = changed_model(tmp_path / "broken", 0.0)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(letgo.LetgoError, match=r"layers\.2\.mlp\.up_proj\.weight has values that are not finite"):
        letgo.export(broken, "q8_0", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pieces_of_a_tensor_are_written_as_the_whole(tmp_path, monkeypatch):
    whole = letgo.export("biographies", "q4_k_m", tmp_path / "whole", rounding="stochastic")
    monkeypatch.setattr("letgo.models.export._PIECE", 1000)
    pieces = letgo.export("biographies", "q4_k_m", tmp_path / "pieces", rounding="stochastic")
    assert pieces["files"] == whole["files"]
    assert pieces["did"]["displacement"] == pytest.approx(whole["did"]["displacement"])


def test_query_and_key_rows_go_there_and_back():
    names = names_of(load_model("biographies").config)
    rows = np.arange(128 * 3).reshape(128, 3)
    there = names.in_file("blk.0.attn_q.weight", rows)
    assert not np.array_equal(there, rows)
    assert np.array_equal(names.in_model("blk.0.attn_q.weight", there), rows)
    assert np.array_equal(names.in_file("blk.0.attn_v.weight", rows), rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_adapter_is_exported_merged(tmp_path, dtype):
    pytest.importorskip("peft", reason="not installed: pip install 'letgo[lora]'")
    tiny.write_jsonl(tmp_path / "f.jsonl", [{"text": "Where was she born? In a town by the sea."}] * 4)
    settings = {"model": "biographies", "forget": str(tmp_path / "f.jsonl"), "objective": "ga", "dtype": dtype}
    letgo.unlearn(**settings, lora_rank=2, learning_rate=1e-2, max_steps=3, output_dir=str(tmp_path / "run"))
    manifest = letgo.export(tmp_path / "run", "q8_0", tmp_path / "out")
    read = load_model(tmp_path / "out" / manifest["file"]).state_dict()
    wanted = rounded_in_memory(tmp_path / "run", "q8_0")
    assert all(torch.equal(read[key], value) for key, value in wanted.items())
    assert manifest["original"] == "biographies"
    assert manifest["did"]["unlearning_displacement"] > 0


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "libgguf", None)
    with pytest.raises(UserError, match=r"needs libgguf: pip install .*letgo\[gguf\]"):
        letgo.export("biographies", "q8_0", tmp_path / "out")
    assert letgo.export("biographies", "int4", tmp_path / "out")["format"] == "int4"
