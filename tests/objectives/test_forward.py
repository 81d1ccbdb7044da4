"""Forward passes that run no further than is needed: the model's own numbers, and nothing run for naught."""

from __future__ import annotations

import pytest
import torch

from letgo.core.errors import UserError
from letgo.models.forward import block_number, find_blocks, hidden_after, hidden_before_head, output_layer
from letgo.models.head import check_head, output_head, reference_head
from letgo.objectives import create_objective
from tests.objectives.cases import ARCHITECTURES, make, prepared

INPUTS = {
    "input_ids": torch.tensor([[1, 5, 9, 13, 7], [1, 6, 11, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "qwen2": "model.layers", "gemma2": "model.layers"}
DOWN = {"gpt2": "mlp.c_proj.weight"}


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_after_a_block_are_the_models_own(architecture, layer):
    model = make(architecture, layers=4)
    own = model(**INPUTS, output_hidden_states=True).hidden_states[layer + 1]
    assert torch.equal(hidden_after(model, layer, **INPUTS), own)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_block_above_the_layer_runs_and_the_model_is_as_before(architecture):
    model = make(architecture, layers=4)
    before = model(**INPUTS).logits
    name, blocks = find_blocks(model)
    assert name == BLOCKS[architecture]
    ran = []
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    head_ran = []
    hook = output_layer(model).register_forward_hook(lambda m, args, out: head_ran.append(out.shape[1]))
    hidden_after(model, 1, **INPUTS)
    assert ran == [0, 1]
    assert sum(head_ran) == 0
    hook.remove()
    assert find_blocks(model)[1] is blocks
    assert torch.equal(model(**INPUTS).logits, before)
    with pytest.raises((RuntimeError, IndexError)), torch.no_grad():
        hidden_after(model, 1, input_ids=INPUTS["input_ids"][..., None], attention_mask=INPUTS["attention_mask"][:1])
    assert torch.equal(model(**INPUTS).logits, before), "put back after an error, too"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_output_layer_of_the_hidden_states_gives_the_models_logits(architecture):
    model = make(architecture)
    hidden = hidden_before_head(model, **INPUTS)
    torch.testing.assert_close(output_head(model)(hidden), model(**INPUTS).logits, rtol=1e-6, atol=1e-6)
    check_head(model)
    kept = reference_head(model)
    before = kept(hidden)
    with torch.no_grad():
        output_layer(model).weight.mul_(2.0)
    assert torch.equal(kept(hidden), before), "the copy does not follow the weights"
    assert output_head(model).trained
    frozen = make(architecture).requires_grad_(False)
    assert reference_head(frozen).layer is output_layer(frozen), "nothing is copied where nothing is trained"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("Cohere", {"logit_scale": 0.25}), ("Granite", {"logits_scaling": 3.0}), ("Gemma2", {"head_dim": 8})],
)
def test_what_architectures_do_after_the_output_layer_is_known(kind, settings):
    import transformers

    common = {
        "vocab_size": 48,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{kind}Config")(**common, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    check_head(model)
    torch.testing.assert_close(
        output_head(model)(hidden_before_head(model, **INPUTS)), model(**INPUTS).logits, rtol=1e-6, atol=1e-6
    )


def test_what_is_not_known_is_said():
    model = make("llama")
    forward = type(model).forward

    class Odd(type(model)):
        def forward(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            output.logits = output.logits.flip(-1) if output.logits is not None else None
            return output

    model.__class__ = Odd
    with pytest.raises(UserError, match="does something to its logits after the output layer"):
        create_objective("npo").prepare(model)


def test_layers_by_number_name_and_default():
    model = make("gpt2", layers=4)
    assert block_number(model, 3) == block_number(model, -1) == block_number(model, "transformer.h.3") == 3
    assert block_number(model, None) == 1
    for layer, message in ((4, "blocks are 0 to 3"), ("transformer.h.33", "did you mean 'transformer.h.3'")):
        with pytest.raises(UserError, match=message):
            block_number(model, layer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rmu_trains_the_projections_of_three_blocks_and_no_gradient_reaches_below(architecture, tokenizer):
    from letgo.models.load import freeze_all_but

    model = make(architecture, layers=6)
    objective = create_objective("rmu", layer=4)
    pattern = objective.trainable_pattern(model)
    freeze_all_but(model, pattern)
    name, blocks = find_blocks(model)
    expected = [f"{name}.{n}.{DOWN.get(architecture, 'mlp.down_proj.weight')}" for n in (2, 3, 4)]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == expected

    reached = {}
    for number, block in enumerate(blocks):
        block.register_forward_hook(
            lambda m, args, out, number=number: reached.update(
                {number: (args[0].requires_grad, (out if isinstance(out, torch.Tensor) else out[0]).requires_grad)}
            )
        )
    _, batch, _ = prepared("rmu", model, tokenizer, layer=4, steering=3.0)
    reached.clear()
    objective.prepare(model)
    objective(model, batch).backward()
    assert reached == {0: (False, False), 1: (False, False), 2: (False, True), 3: (True, True), 4: (True, True)}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


def test_rmus_parameters_by_pattern():
    model = make("llama", layers=4)
    pattern = create_objective("rmu", layer="model.layers.2", parameters="up_proj", trained_layers=1).trainable_pattern
    assert pattern(model) == r"(?:^|\.)(?:model\.layers\.2\.mlp\.up_proj\.weight)$"
    for settings, message in (
        ({"parameters": "upp"}, "found in no parameter's name within model.layers.1"),
        ({"parameters": "("}, "not a regular expression"),
        ({"layer": 9}, "blocks are 0 to 3"),
    ):
        with pytest.raises(UserError, match=message):
            create_objective("rmu", **settings).trainable_pattern(model)
    assert create_objective("npo", retain_loss="embedding", layer=1).trainable_pattern(model) is None


def test_through_peft_and_ddp(tokenizer):
    """Wrappers change no number: their forward is what runs."""
    peft = pytest.importorskip("peft")
    model = make("llama")
    objective, batch, _ = prepared("npo_klr", model, tokenizer)
    plain = objective(model, batch)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    assert torch.equal(objective(wrapped, batch), plain)

    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module
            self.calls = 0

        def forward(self, *args, **kwargs):
            self.calls += 1
            return self.module(*args, **kwargs)

    outer = Wrapper(wrapped)
    assert torch.equal(objective(outer, batch), plain)
    assert outer.calls > 0
    # The base's output layer is the reference, whatever the adapter on it does.
    assert not reference_head(wrapped).trained
    assert output_head(wrapped).trained
