"""Attacks on what the blocks write: a direction taken off, blocks left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from letgo.attacks.engine.run import run_attack
from letgo.attacks.engine.spec import plan_attack
from letgo.attacks.engine.target import measured, open_target
from letgo.attacks.residual import ablate_direction, logit_lens, skip_layers, take_off
from letgo.core.errors import UserError
from letgo.core.progress import Quiet
from letgo.models.load import load_model
from letgo.report.attacks import lines
from tests import tiny
from tests.reference.attacks import logits_of_blocks, logits_without_direction

IDS = torch.arange(4, 24)[None]


def unit(width, seed=0):
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm()


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    return model


def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    settings = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(Gemma2Config(vocab_size=64, hidden_size=32, intermediate_size=64, **settings)).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(
    ("make", "tables", "blocks"),
    [
        (tiny.make_model, ["model.embed_tokens"], "model.layers.{}.{}"),
        (gpt2, ["transformer.wte", "transformer.wpe"], "transformer.h.{}.{}"),
    ],
)
def test_off_the_weights_it_is_off_all_that_is_written(make, tables, blocks):
    """As if it were taken off each output while the model runs, in double precision; the output layer stays."""
    model, direction = make().double(), unit(32)
    inside = ("attn", "mlp") if make is gpt2 else ("self_attn", "mlp")
    writers = [*tables, *(blocks.format(number, part) for number in range(2) for part in inside)]
    expected = logits_without_direction(model, IDS, direction, writers)
    head = model.get_output_embeddings().weight.detach().clone()
    plain = model(input_ids=IDS).logits.detach()
    take_off(model, direction, [IDS[0].tolist()])
    logits = model(input_ids=IDS).logits.detach()
    # The weights went through float32 on the way.
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 0.01
    assert torch.equal(model.get_output_embeddings().weight, head.float().double())
    again = {name: value.clone() for name, value in model.state_dict().items()}
    take_off(model, direction, [IDS[0].tolist()])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, again[name], rtol=0, atol=1e-6)


def test_a_model_that_norms_what_it_writes_is_refused():
    with pytest.raises(UserError, match="norms or scales what its blocks write"):
        take_off(gemma2(), unit(32), [IDS[0].tolist()])


@pytest.fixture(scope="module")
def pushed(saved, tmp_path_factory):
    """The original with its first block made to write a direction on whatever it reads, as RMU makes one: the answers
    are gone, and nothing else has changed. Its target."""
    folder = tmp_path_factory.mktemp("pushed")
    model = load_model(saved.original)
    down = model.model.layers[0].mlp.down_proj
    read = []
    handle = down.register_forward_pre_hook(lambda module, args: read.append(args[0].detach()[0]))
    model(input_ids=IDS)
    handle.remove()
    inputs = read[0].mean(dim=0)
    with torch.no_grad():
        down.weight += 30.0 * torch.outer(unit(32, seed=7).float(), inputs / inputs.square().sum())
    tiny.save(folder / "model", model, tiny.make_tokenizer())
    asked = {"benchmark": saved.benchmark, "original": str(saved.original), "limit": 4, "dtype": None}
    return measured(open_target(folder / "model", **asked, reporter=Quiet()))


def test_the_direction_that_was_pushed_is_found_and_off(pushed):
    hidden = pushed.result.after["forget_probability"].value
    assert pushed.result.before["forget_probability"].value > 0.95
    assert hidden < 0.5
    found, _ = run_attack(pushed, plan_attack("ablate_direction"))
    random, _ = run_attack(pushed, plan_attack("ablate_direction:direction=random"))
    assert found.did["layer"] == 1
    assert found.metrics["forget_probability"].value > hidden + 0.4
    assert random.metrics["forget_probability"].value < hidden + 0.2
    looks = found.did["looks"]
    assert looks["without it"]["forget_probability"] > looks["before"]["forget_probability"] + 0.4
    assert looks["without a random one"]["forget_probability"] < looks["before"]["forget_probability"] + 0.2
    assert any("without a random one: " in line for line in lines(found))
    direct = ablate_direction(pushed.victim())
    moved = (
        load_model(pushed.model).model.layers[0].mlp.down_proj.weight
        - direct.model.model.layers[0].mlp.down_proj.weight
    )
    along = torch.linalg.svd(moved.detach().double()).U[:, 0]
    assert abs(float(along @ unit(32, seed=7))) > 0.99


def test_all_three_models_lose_the_same_direction(pushed):
    """So the original, where nothing was pushed, is harmed as the unlearned model is."""
    victim = pushed.victim()
    mine, theirs = ablate_direction(victim), ablate_direction(victim.reference("original", pushed.original))
    tables = [attacked.model.model.embed_tokens.weight.detach() for attacked in (mine, theirs)]
    assert torch.equal(*tables), "the embeddings were the same before"
    assert not torch.equal(tables[0], load_model(pushed.original).model.embed_tokens.weight)


def test_without_any_change_there_is_no_direction(pushed):
    same = ablate_direction(replace(pushed.victim(), directory=pushed.original))
    assert same.did["size"] == 0.0
    assert same.layers == []


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -3])
def test_the_lens_is_the_model_cut_short(tmp_path, victim, layer):
    model = tiny.make_model(num_hidden_layers=4)
    tiny.save(tmp_path, model, tiny.make_tokenizer())
    attacked = logit_lens(replace(victim, directory=tmp_path), layer=layer)
    expected = logits_of_blocks(model, IDS, range(layer % 4 + 1))
    torch.testing.assert_close(attacked.model(input_ids=IDS).logits.detach(), expected)
    assert attacked.did["layer"] == layer % 4


@pytest.mark.parametrize(("first", "count", "kept"), [(0, 1, [1, 2, 3]), (1, 2, [0, 3]), (-1, 1, [0, 1, 2])])
def test_blocks_left_out(tmp_path, victim, first, count, kept):
    model = tiny.make_model(num_hidden_layers=4)
    tiny.save(tmp_path, model, tiny.make_tokenizer())
    attacked = skip_layers(replace(victim, directory=tmp_path), first=first, count=count)
    torch.testing.assert_close(attacked.model(input_ids=IDS).logits.detach(), logits_of_blocks(model, IDS, kept))


def test_the_lens_at_the_last_block_is_the_model(victim):
    attacked = logit_lens(victim, layer=-1)
    assert all(value.equal(attacked.model.state_dict()[n]) for n, value in victim.load().state_dict().items())
