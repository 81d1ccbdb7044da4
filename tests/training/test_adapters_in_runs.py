"""Runs that train adapters: LoRA on a model as it is, or on a quantized one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import letgo
from letgo.core.errors import LetgoError, UserError
from letgo.models.adapters import read_base
from letgo.models.load import load_model, load_tokenizer, weights_fingerprint
from letgo.models.save import save_model
from letgo.runs.results import read_result
from tests import tiny

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def base_directory(tmp_path_factory):
    """Wide enough for a block of 64 weights, which 4-bit formats have."""
    directory = tmp_path_factory.mktemp("base")
    return tiny.save(directory, tiny.make_model(hidden_size=64, intermediate_size=128), tiny.make_tokenizer())


@pytest.fixture
def job(tmp_path, base_directory):
    settings = {"learning_rate": 1e-2, "max_steps": 4, "per_device_train_batch_size": 2, "eval_limit": 2}
    return tiny.own_files(tmp_path, base_directory, lora_rank=4, **settings)


def test_a_lora_run_leaves_an_adapter_that_everything_reads(job):
    run = letgo.unlearn(**job, attacks=["quantize:bits=4", "relearn:steps=2"])
    names = {path.name for path in run.directory.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "base.json", "tokenizer.json", "README.md"} <= names
    assert "model.safetensors" not in names
    assert read_base(run.directory).model == job["model"]
    loaded = load_model(run.directory)
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert weights_fingerprint(loaded) == weights_fingerprint(run.model), "what is scored is what is saved"
    before = load_model(job["model"]).state_dict()
    changed = {name for name, value in loaded.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "proj" in name}
    assert {attack.name for attack in run.result.attacks} == {"quantize", "relearn"}
    assert any("adapters of rank 4 on 14 layers" in note for note in run.result.notes)
    assert "lora_rank: 4" in (run.directory / "README.md").read_text().replace("\\", "")
    again = letgo.evaluate(run.directory, ["rows:forget=" + job["forget"]], limit=2)
    [scores] = again.values()
    assert scores.after["forget_probability"].value == run.result.after["forget_probability"].value
    assert letgo.write_report([run.directory], run.directory / "report.html").is_file()


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_a_qlora_run_is_merged_into_what_its_quantized_base_stands_for(job, quantization):
    pytest.importorskip("bitsandbytes")
    run = letgo.unlearn(**job | {"base_quantization": quantization})
    assert read_base(run.directory).quantization == quantization
    loaded = load_model(run.directory)
    assert weights_fingerprint(loaded) == weights_fingerprint(run.model)
    # By hand: the quantized base dequantized, and (α/r) B A added.
    plain = load_model(job["model"], quantization=quantization).dequantize(torch.float32)
    adapter = load_file(run.directory / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{end}.weight"] for end in "AB")
    assert b.abs().max() > 0
    torch.testing.assert_close(
        loaded.get_submodule(name).weight.data, plain.get_submodule(name).weight.data + 2 * b @ a, rtol=0, atol=1e-6
    )
    original = load_model(job["model"])
    for layer in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"):
        weight, base = original.get_submodule(layer).weight, plain.get_submodule(layer).weight
        error = float((weight - base).norm() / weight.norm())
        assert 0 < error < 0.15, "quantized, and not by a repacked layer's garbage"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_evaluating_a_quantized_base_does_not_change_what_it_stands_for(job, quantization):
    pytest.importorskip("bitsandbytes")
    model = load_model(job["model"], quantization=quantization)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        first = model.eval()(input_ids=ids).logits
        trained = model.train()(input_ids=ids).logits
        again = model.eval()(input_ids=ids).logits
        dequantized = model.dequantize(torch.float32).eval()(input_ids=ids).logits
    assert torch.equal(first, again)
    torch.testing.assert_close(first, trained, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first, dequantized, rtol=1e-4, atol=1e-5)


def test_the_merged_model_is_saved_where_it_is_asked_for(job):
    run = letgo.unlearn(**job | {"save_merged": True})
    merged = load_model(run.directory / "merged")
    assert weights_fingerprint(merged) == weights_fingerprint(load_model(run.directory))
    assert load_tokenizer(run.directory / "merged").pad_token_id == 0


def test_an_adapter_trains_on_top_of_an_adapter_run(job, tmp_path):
    first = letgo.unlearn(**job)
    second = letgo.unlearn(**job | {"model": str(first.directory), "output_dir": str(tmp_path / "second"), "seed": 1})
    assert weights_fingerprint(load_model(second.directory)) == weights_fingerprint(second.model)
    with pytest.raises(UserError, match="can't be the quantized base"):
        letgo.unlearn(
            **job | {"model": str(first.directory), "output_dir": str(tmp_path / "x"), "base_quantization": "nf4"}
        )


def test_a_missing_or_changed_base_is_said(job, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(job["model"], moved)
    run = letgo.unlearn(**job | {"model": str(moved)})
    tiny.make_model(seed=5, hidden_size=64, intermediate_size=128).save_pretrained(moved)
    with pytest.raises(UserError, match="trained on another model than"):
        load_model(run.directory)
    shutil.rmtree(moved)
    with pytest.raises(UserError, match=r"base model .*moved' can't be had: no such model"):
        load_model(run.directory)
    base = json.loads((run.directory / "base.json").read_text())
    (run.directory / "base.json").write_text(json.dumps(base | {"model": job["model"]}))
    assert weights_fingerprint(load_model(run.directory)) == weights_fingerprint(run.model)
    (run.directory / "base.json").write_text("{")
    with pytest.raises(UserError, match=r"base\.json: can't be read"):
        load_model(run.directory)


def test_an_adapter_of_peft_alone_is_read_too(job, tmp_path):
    """A directory that letgo did not write: peft's own two files and a tokenizer."""
    import peft

    model = peft.get_peft_model(
        load_model(job["model"]), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "theirs")
    tiny.make_tokenizer().save_pretrained(tmp_path / "theirs")
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        found = load_model(tmp_path / "theirs")(input_ids=ids).logits
    torch.testing.assert_close(found, expected)


def test_what_is_saved_of_an_adapter_is_checked_against_what_was_trained(job, tmp_path, tokenizer, monkeypatch):
    from letgo.models import adapters

    model = adapters.add_lora(tiny.make_model(), rank=2, targets=["model.layers.0.mlp.up_proj"])
    base = adapters.Base("somewhere", "float32", None, "")
    save_model(model, tokenizer, tmp_path / "good", base=base)
    original = type(model).save_pretrained

    def careless(self, directory, **more):
        original(self, directory, **more)
        path = directory / adapters.ADAPTER_WEIGHTS
        save_file({name: value + 1 for name, value in load_file(path).items()}, path)

    monkeypatch.setattr(type(model), "save_pretrained", careless)
    with pytest.raises(LetgoError, match="was not saved as it was trained"):
        save_model(model, tokenizer, tmp_path / "bad", base=base)


def test_a_model_in_shards_is_checked_and_read(tmp_path, tokenizer, monkeypatch):
    model = tiny.make_model()
    save_model(model, tokenizer, tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert weights_fingerprint(load_model(tmp_path)) == weights_fingerprint(model)
    original = type(model).save_pretrained

    def forgetful(self, directory, **more):
        original(self, directory, **more)
        state = load_file(shards[0])
        save_file(dict(list(state.items())[1:]), shards[0], metadata={"format": "pt"})

    monkeypatch.setattr(type(model), "save_pretrained", forgetful)
    with pytest.raises(LetgoError, match="were not saved"):
        save_model(model, tokenizer, tmp_path, max_shard_size="20KB")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_targets": "attention"}, "lora_targets: 'attention' is found in the name of no linear layer"),
        ({"lora_targets": "("}, "lora_targets: '[(]' is not a regular expression"),
        ({"trainable": "norm"}, "trainable: 'norm' is found in the name of no linear layer"),
        ({"lora_rank": None, "base_quantization": "nf4"}, "base_quantization is for LoRA adapters"),
        ({"lora_rank": None, "save_merged": True}, "save_merged is for LoRA adapters"),
        ({"lora_rank": 0}, "lora_rank must be a whole number of at least 1"),
        ({"lora_alpha": -1.0}, "lora_alpha must be a number above 0"),
        ({"lora_dropout": 1.0}, "lora_dropout must be a number of at least 0 and below 1"),
        ({"base_quantization": "nf3"}, "did you mean 'nf4'"),
    ],
)
def test_mistakes(job, changes, message):
    with pytest.raises(UserError, match=message):
        letgo.unlearn(**job | changes)


def test_targets_and_trainable_choose_the_layers(job):
    run = letgo.unlearn(**job | {"lora_targets": "q_proj|up_proj", "trainable": r"layers\.1\."})
    names = {name.split(".lora_")[0] for name in load_file(run.directory / "adapter_model.safetensors")}
    assert {name.rpartition("base_model.model.")[2] for name in names} == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }


def test_rmu_with_adapters_trains_those_of_its_own_layers(job):
    run = letgo.unlearn(**job | {"objective": "rmu", "objective_args": {"layer": 1, "trained_layers": 1}})
    names = set(load_file(run.directory / "adapter_model.safetensors"))
    assert {name.split(".lora_")[0] for name in names} == {"base_model.model.model.layers.1.mlp.down_proj"}


def test_a_one_shot_method_on_adapters(job):
    run = letgo.unlearn(**job | {"objective": "task_vector", "objective_args": {"epochs": 1, "lr": 1e-3}})
    assert read_result(run.directory).status in ("finished", "collapsed")
    assert weights_fingerprint(load_model(run.directory)) != weights_fingerprint(load_model(job["model"]))
