"""Adapters under every objective and every optimizer grade; their checkpoints; their references."""

from __future__ import annotations

import math

import pytest
import torch

from letgo.core.errors import UserError
from letgo.data import ForgetRetainDataset, encode_rows, read_rows
from letgo.models.adapters import add_lora, has_adapters, linear_targets
from letgo.models.load import load_model
from letgo.objectives import OBJECTIVES
from letgo.optim import OPTIMIZERS
from letgo.training.checkpoints import last_checkpoint
from letgo.training.config import UnlearnConfig
from letgo.training.prepare import prepare_model, take_references
from letgo.training.run_plan import objective_of
from letgo.training.trainer import UnlearnTrainer
from tests import tiny
from tests.training.test_trainer import EVERY, Stop

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wide")
    tiny.make_model(hidden_size=64, intermediate_size=128).save_pretrained(directory)
    return directory


def make_trainer(directory, tokenizer, *, model=None, callbacks=(), **settings):
    settings = {
        "learning_rate": 1e-2,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "lora_rank": 2,
        "output_dir": str(directory),
    } | settings
    forget, kept = (encode_rows(tokenizer, read_rows(rows), max_length=64)[0] for rows in (tiny.FORGET, tiny.RETAIN))
    other = tiny.encode_alternatives(tokenizer, forget, ["red stone", "blue", "old river", "green"], max_length=64)
    args = UnlearnConfig(**settings)
    objective = objective_of(args)
    alternative = other if "alternative" in objective.parts else ()
    dataset = ForgetRetainDataset(forget, kept, alternative=alternative, seed=3)
    model, _ = prepare_model(tiny.make_model() if model is None else model, args, objective)
    take_references(model, dataset, objective, pad_id=tokenizer.pad_token_id)
    return UnlearnTrainer(model, args, dataset, pad_id=tokenizer.pad_token_id, objective=objective, callbacks=callbacks)


def state_of(model, *, adapters):
    return {n: p.detach().clone() for n, p in model.named_parameters() if ("lora_" in n) == adapters}


def check_trained(trainer):
    before = state_of(trainer.model, adapters=False)
    start = state_of(trainer.model, adapters=True)
    trainer.train()
    assert all(math.isfinite(row["loss"]) for row in trainer.history)
    for name, value in state_of(trainer.model, adapters=False).items():
        assert torch.equal(value, before[name]), name
    moved = [
        name for name, value in state_of(trainer.model, adapters=True).items() if not torch.equal(value, start[name])
    ]
    assert any("lora_B" in name for name in moved)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_optimizer_of_the_catalog_trains_adapters(tmp_path, tokenizer, name):
    settings = EVERY.get(name, {})
    if settings is None:
        pytest.importorskip("bitsandbytes")
        settings = {}
    trainer = make_trainer(tmp_path, tokenizer, optimizer=name, **{"optimizer_args": {}, **settings})
    if name == "bin_floor":
        with pytest.raises(UserError, match="adapters are not rounded"):
            trainer.train()
        return
    check_trained(trainer)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_every_objective_trains_adapters(tmp_path, tokenizer, name):
    check_trained(make_trainer(tmp_path, tokenizer, objective=name, max_steps=2, per_device_train_batch_size=4))


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
@pytest.mark.parametrize("optimizer", ["adamw", "ada_zo", "fozo:in_place", "batched"])
def test_quantized_bases_under_both_engines_and_the_hybrid(tmp_path, tokenizer, wide, quantization, optimizer):
    if quantization:
        pytest.importorskip("bitsandbytes")
    settings = {
        "adamw": {"optimizer": "adamw"},
        "ada_zo": {"optimizer": "ada_zo", "optimizer_args": {"mu": 1e-2}},
        "fozo:in_place": {"optimizer": "fozo", "optimizer_args": {"fo_steps": 2, "zo_steps": 2, "mu": 1e-2}},
        "batched": {"optimizer": "zo_sgd", "optimizer_args": {"engine": "batched", "rank": 1, "num_directions": 2}},
    }[optimizer]
    model = load_model(wide, quantization=quantization)
    check_trained(make_trainer(tmp_path, tokenizer, model=model, **settings))


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_both_engines_take_the_same_steps_on_adapters(tmp_path, tokenizer, wide, quantization):
    if quantization:
        pytest.importorskip("bitsandbytes")
    ends = []
    for engine in ("batched", "in_place"):
        options = {"rank": 1, "num_directions": 3, "mu": 1e-2, "engine": engine}
        model = load_model(wide, quantization=quantization)
        trainer = make_trainer(
            tmp_path, tokenizer, model=model, optimizer="zo_sgd", optimizer_args=options, max_steps=2
        )
        trainer.train()
        ends.append(torch.cat([p.flatten() for p in state_of(trainer.model, adapters=True).values()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-2, atol=1e-3 * float(ends[1].abs().max()))


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [("adamw", {}), ("ada_zo", {"mu": 1e-2}), ("fozo", {"fo_steps": 1, "zo_steps": 1}), ("sophia", {"hessian": "gnb"})],
)
def test_an_adapter_run_cut_off_resumes_to_the_same_bits(tmp_path, tokenizer, optimizer, options):
    settings = {
        "optimizer": optimizer,
        "optimizer_args": options,
        "save_strategy": "steps",
        "save_steps": 1,
        "lora_dropout": 0.25,
        "max_steps": 4,
    }
    whole = make_trainer(tmp_path / "whole", tokenizer, **settings)
    whole.train()
    cut = make_trainer(tmp_path / "cut", tokenizer, callbacks=[Stop(3)], **settings)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    checkpoint = last_checkpoint(tmp_path / "cut")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    assert not list(checkpoint.glob("model*.safetensors")), "a checkpoint holds the adapter alone"
    resumed = make_trainer(tmp_path / "cut", tokenizer, **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    ends = [state_of(trainer.model, adapters=True) for trainer in (whole, resumed)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert resumed.history == whole.history


def test_references_are_of_the_base_with_adapters_off(tmp_path, tokenizer):
    plain = make_trainer(tmp_path, tokenizer, lora_rank=None)
    trainer = make_trainer(tmp_path, tokenizer)
    expected = torch.stack(plain.train_dataset.reference["forget"]["logps"])
    assert torch.equal(torch.stack(trainer.train_dataset.reference["forget"]["logps"]), expected)
    trainer.train()
    take_references(trainer.model, trainer.train_dataset, trainer.objective, pad_id=tokenizer.pad_token_id)
    assert torch.equal(torch.stack(trainer.train_dataset.reference["forget"]["logps"]), expected)
    assert has_adapters(trainer.model)


def test_an_adapter_is_drawn_from_its_own_seed_and_changes_nothing_at_first():
    ids = torch.arange(4, 20)[None]
    state = torch.get_rng_state()
    adapted = []
    for seed in (0, 0, 1):
        model = tiny.make_model()
        adapted.append(add_lora(model, rank=2, targets=linear_targets(model), seed=seed).eval())
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    first, again, other = ({n: p for n, p in m.named_parameters() if "lora_A" in n} for m in adapted)
    assert all(torch.equal(p, again[n]) for n, p in first.items())
    assert not any(torch.equal(p, other[n]) for n, p in first.items())
    bound = 1 / math.sqrt(32)  # Kaiming-uniform with a = √5: ±1/√(columns)
    drawn = first["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    assert 0.8 * bound < float(drawn.detach().abs().max()) <= bound
    with torch.no_grad():
        assert torch.equal(adapted[0](input_ids=ids).logits, tiny.make_model()(input_ids=ids).logits)


def test_a_gpt2_type_gets_adapters_too():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    targets = linear_targets(model)
    assert len(targets) == 8
    adapted = add_lora(model, rank=2, targets=targets)
    adapted(input_ids=torch.arange(4, 20)[None], labels=torch.arange(4, 20)[None]).loss.backward()
    trained = {n for n, p in adapted.named_parameters() if p.grad is not None}
    assert len(trained) == 16
