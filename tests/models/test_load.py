"""A model and its tokenizer are loaded as their files say, or refused in one message; their code does not run."""

from __future__ import annotations

import ast
import io
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import letgo as package
from letgo.core.errors import UserError
from letgo.metrics.toxicity import ToxicityClassifier
from letgo.models.adapters import Base, add_lora, linear_targets, quick_fingerprint, save_adapter
from letgo.models.files import remote_code, trusted
from letgo.models.load import load_model, load_tokenizer, model_config
from tests import tiny
from tests.classifiers import save_classifier


@pytest.fixture
def directory(tmp_path):
    return tiny.save(tmp_path, tiny.make_model(), tiny.make_tokenizer())


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config(directory, **changes):
    edit(directory / "config.json", **changes)


def weights(directory, change, name="model.safetensors"):
    path = directory / name
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def cut(directory, size, name="model.safetensors"):
    path = directory / name
    path.write_bytes(path.read_bytes()[:size])


def fill(directory, value, name="model.norm.weight"):
    weights(directory, lambda state: state[name].view(-1)[:1].fill_(value))


def write(name, content):
    return lambda d: (d / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def lose_a_shard(directory):
    (directory / "model.safetensors").unlink()
    tiny.make_model().save_pretrained(directory, max_shard_size="20KB")
    min(directory.glob("model-*.safetensors")).unlink()


def more_words(directory):
    """Words of the tokenizer for which the model has no row."""
    path = directory / "tokenizer.json"
    known = json.loads(path.read_text())
    known["model"]["vocab"] |= {f"word{n}": 64 + n for n in range(3)}
    path.write_text(json.dumps(known))


def other_kind(name, **sizes):
    def make(directory):
        import transformers

        config = transformers.BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        getattr(transformers, name)(tiny.make_model().config if "Llama" in name else config).save_pretrained(directory)

    return make


def emptied(directory):
    (directory / "tokenizer.json").unlink()
    edit(directory / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
MODELS = {
    "a tensor missing": (
        lambda d: weights(d, lambda s: s.pop("model.norm.weight")),
        "lack 1 of the weights .* model.norm",
    ),
    "a layer more": (lambda d: config(d, num_hidden_layers=3), "lack 9 of the weights .* such as model.layers.2."),
    "a layer fewer": (lambda d: config(d, num_hidden_layers=1), "hold 9 weights of layers that config.json does not"),
    "minus one layer": (lambda d: config(d, num_hidden_layers=-1), "hold 18 weights of layers that config.json does"),
    "bert": (lambda d: config(d, architectures=["BertModel"], model_type="bert"), "lack .* of the weights"),
    "bert for masks": (other_kind("BertForMaskedLM"), "no causal language model: config.json says BertForMaskedLM"),
    "a classifier": (other_kind("LlamaForSequenceClassification"), "config.json says LlamaForSequenceClassification"),
    "another width": (lambda d: config(d, hidden_size=16), r"embed_tokens.weight: \(64, 32\), not \(64, 16\)"),
    "more words": (lambda d: config(d, vocab_size=100), r"hold 1 weights .*embed_tokens.weight: \(64, 32\), not"),
    "a negative size": (lambda d: config(d, hidden_size=-32), "can't be loaded .*negative dimension"),
    "no heads": (lambda d: config(d, num_attention_heads=0), "can't be loaded .*ZeroDivision"),
    "a size in words": (lambda d: config(d, hidden_size="a"), "can't be loaded .*hidden_size"),
    "empty config": (write("config.json", ""), "config.json: can't be read as JSON"),
    "no JSON": (write("config.json", "{nope"), "config.json: can't be read as JSON .*line 1"),
    "deep": (write("config.json", "[" * 100000), "config.json: can't be read as JSON"),
    "a list": (write("config.json", "[1]"), "config.json: must be a mapping .* not list"),
    "nothing said": (write("config.json", "{}"), "model_type(.|\n)*get them again"),
    "generation": (write("generation_config.json", "[]"), "generation_config.json: must be a mapping"),
    "truncated": (lambda d: cut(d, 5000), "model.safetensors: not a whole safetensors file"),
    "empty": (lambda d: cut(d, 0), "model.safetensors: not a whole safetensors file"),
    "garbage": (write("model.safetensors", struct.pack("<Q", 9) + b"x" * 9), "not a whole .*JSON in header"),
    "beyond its end": (write("model.safetensors", struct.pack("<Q", 1 << 40) + b"{}"), "not a whole .*too large"),
    "pointer": (write("model.safetensors", POINTER), r"pointer of Git LFS(.|\n)*git lfs pull"),
    "a shard missing": (lose_a_shard, "names 6 files, of which 1 are missing: model-00001"),
    "an odd index": (
        lambda d: (cut(d, 0), (d / "model.safetensors").rename(d / "model.safetensors.index.json"), write(
            "model.safetensors.index.json", '{"weight_map": ["a"]}')(d)),
        "index.json: has no 'weight_map'",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no file named model.safetensors"),
    "whole numbers": (
        lambda d: weights(d, lambda s: s.update({"model.norm.weight": torch.ones(32, dtype=torch.int64)})),
        r"weight model.norm.weight is stored as whole numbers \(I64\)",
    ),
    "nan": (lambda d: fill(d, float("nan")), "1 weights hold NaN or infinite numbers, such as model.norm.weight"),
    "infinite": (lambda d: fill(d, -float("inf"), "model.layers.1.mlp.up_proj.weight"), "such as model.layers.1.mlp"),
}  # fmt: skip
TOKENIZERS = {
    "empty": (write("tokenizer.json", ""), "its tokenizer can't be loaded"),
    "a list": (write("tokenizer.json", "[]"), "its tokenizer can't be loaded"),
    "a mapping": (write("tokenizer.json", "{}"), "its tokenizer can't be loaded .KeyError"),
    "garbage": (write("tokenizer.json", bytes(range(256))), "its tokenizer can't be loaded"),
    "pointer": (write("tokenizer.json", POINTER), r"tokenizer.json is a pointer of Git LFS(.|\n)*git lfs pull"),
    "settings": (write("tokenizer_config.json", "[]"), "tokenizer_config.json: must be a mapping"),
    "missing": (lambda d: (d / "tokenizer.json").unlink(), "its tokenizer can't be loaded"),
    "no word": (emptied, "knows no word at all"),
    "words without a row": (more_words, r"3 tokens beyond the 64 .* such as 'word0' \(64\)"),
    "another model's config": (write("config.json", "[]"), "config.json: must be a mapping"),
}


@pytest.mark.parametrize(
    ("load", "damage", "message"),
    [(load_model, *case) for case in MODELS.values()] + [(load_tokenizer, *case) for case in TOKENIZERS.values()],
    ids=[*MODELS, *(f"tokenizer: {name}" for name in TOKENIZERS)],
)
def test_a_model_that_is_not_what_it_says_is_refused(directory, load, damage, message):
    damage(directory)
    with pytest.raises(UserError, match=message) as caught:
        load(directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("damage", ["bert for masks", "nan", "pointer", "no heads"])
def test_the_command_says_it_in_one_message(letgo, directory, tmp_path, damage):
    MODELS[damage][0](directory)
    rows = f"rows:forget={tiny.write_jsonl(tmp_path / 'rows.jsonl', tiny.FORGET)}"
    for words in (
        ["eval", directory, "--benchmark", rows],
        ["attack", directory, "--benchmark", rows, "--original", directory, "--attack", "quantize"],
        ["unlearn", "--model", directory, "--forget", tmp_path / "rows.jsonl", "--output", tmp_path / "run"],
    ):
        code, out, err = letgo(*words, "-q")
        assert (code, out) == (2, ""), err
        assert "Traceback" not in err
        assert str(directory) in err.replace("\n", "")


def test_numbers_beyond_float16_are_told_from_broken_ones(directory):
    fill(directory, 1e5)
    assert load_model(directory, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"in float16 numbers beyond 65,504 are infinite"):
        load_model(directory, dtype="float16")


def test_weights_of_other_parts_do_no_harm(directory):
    """As a vision tower's beside a language model's."""
    weights(directory, lambda state: state.update({"vision_tower.patch.weight": state["model.norm.weight"].clone()}))
    assert load_model(directory).num_parameters() == tiny.make_model().num_parameters()


def test_a_special_token_without_a_row_does_no_harm(tmp_path):
    """As Gemma's image token beside its language model."""
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    directory = tiny.save(tmp_path, tiny.make_model(vocab_size=len(tokenizer) - 1), tokenizer)
    assert len(load_tokenizer(directory)) == load_model(directory).config.vocab_size + 1


@pytest.fixture
def adapter(directory):
    pytest.importorskip("peft")
    model = load_model(directory, device="cpu")
    base = Base(str(directory), "float32", None, quick_fingerprint(model))
    save_adapter(add_lora(model, rank=2, targets=linear_targets(model)), directory / "adapter", base)
    return directory / "adapter"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop(min(s)), "27 tensors are not those that .* is missing"),
        (lambda s: s.update({min(s) + ".lora_A.weight": s[min(s)].clone()}), "is not among them"),
        (lambda s: s[max(s)].fill_(float("nan")), "can't be loaded .*NaN"),
        (lambda s: s.update({min(s): s[min(s)][:1].clone()}), "can't be loaded"),
    ],
    ids=["missing", "another", "nan", "shape"],
)
def test_adapters_that_are_not_whole_are_refused(adapter, damage, message):
    assert load_model(adapter).num_parameters()
    weights(adapter, damage, "adapter_model.safetensors")
    with pytest.raises(UserError, match=message):
        load_model(adapter)


@pytest.mark.parametrize(
    "damage", [lambda d: cut(d, 40, "adapter_model.safetensors"), write("adapter_config.json", "[]")]
)
def test_an_adapters_files_are_looked_at_too(adapter, damage):
    damage(adapter)
    with pytest.raises(UserError, match=r"adapter_(model.safetensors: not a whole|config.json: must be a mapping)"):
        load_model(adapter)


def test_a_classifiers_files_are_looked_at_too(tmp_path):
    save_classifier(tmp_path)
    weights(tmp_path, lambda state: state["classifier.weight"].fill_(float("nan")))
    with pytest.raises(UserError, match=r"NaN or infinite numbers, such as classifier.weight(.|\n)*classifier=DIR"):
        ToxicityClassifier(tmp_path, label="rude", device="cpu")


def own_code(directory, *, of_tokenizer):
    """Python files that leave a witness when they run."""
    (directory / "own.py").write_text(
        f"open({str(directory / 'witness')!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class OwnTokenizer(PreTrainedTokenizerFast): pass\n"
        "class OwnConfig(LlamaConfig): model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM): config_class = OwnConfig\n"
    )
    if of_tokenizer:
        auto = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
        edit(directory / "tokenizer_config.json", auto_map=auto, tokenizer_class="OwnTokenizer")
    else:
        auto = {"AutoModelForCausalLM": "own.OwnModel", "AutoConfig": "own.OwnConfig"}
        config(directory, auto_map=auto, model_type="own", architectures=["OwnModel"])


@pytest.mark.parametrize(("load", "of_tokenizer"), [(load_tokenizer, True), (load_model, False), (model_config, False)])
def test_a_models_own_code_runs_only_where_it_is_trusted(directory, monkeypatch, load, of_tokenizer):
    own_code(directory, of_tokenizer=of_tokenizer)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
    with pytest.raises(UserError, match=r"its own Python code would run.*trust_remote_code: true"):
        load(directory)
    assert not (directory / "witness").exists()
    assert not trusted()
    with remote_code(True), remote_code(None):
        assert type(load(directory)).__name__.startswith("Own")
    assert (directory / "witness").exists()
    assert not trusted()


def test_every_loader_is_told_whether_to_trust():
    """Of transformers' loaders, one that is not told asks on stdin whether the model's code may run."""
    loaders = ("from_pretrained", "from_config")
    for path in Path(package.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in loaders:
                told = {keyword.arg for keyword in call.keywords} & {"trust_remote_code", None}
                assert told or "PeftModel" in ast.unparse(call.func), f"{path}:{call.lineno}"
