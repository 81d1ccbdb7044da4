from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from letgo.attacks.perturb_latent import perturb_latent
from letgo.attacks.relearn import attackers_batches, attackers_rows
from letgo.core.errors import UserError
from tests.reference.attacks import trained_vector


def test_it_equals_a_vector_trained_by_hand(controlled):
    attacked = perturb_latent(controlled, layer=1, steps=6, bound=0.2, learning_rate=0.5, batch_size=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    rows, seen = attackers_rows("by hand", controlled, "forget", 0.5, None, generator)
    encoded, _ = controlled.benchmark.encode(
        controlled.tokenizer(), rows, template="plain", max_length=64, name="by hand"
    )
    batches = attackers_batches(encoded, 2, 0, generator, torch.device("cpu"))
    six = [next(batches) for _ in range(6)]
    longest = attacked.did["longest"]
    delta, losses = trained_vector(
        controlled.load(), "model.layers.1.mlp", six, rate=0.5 * longest / 32**0.5, longest=longest
    )
    bias = attacked.model.model.layers[1].mlp.down_proj.bias.detach()
    torch.testing.assert_close(bias, delta, rtol=1e-4, atol=1e-6)
    assert [point["loss"] for point in attacked.curve] == pytest.approx(losses, rel=1e-4)
    assert attacked.seen == seen
    assert attacked.did["length"] <= longest * (1 + 1e-5)
    states = controlled.load()(**{k: v for k, v in six[0].items() if k != "labels"}, output_hidden_states=True)
    lengths = states.hidden_states[1][six[0]["attention_mask"].bool()].norm(dim=-1)
    assert longest == pytest.approx(0.2 * float(lengths.mean()), rel=1e-4)


def test_twice_with_one_seed_to_the_same_bits(controlled):
    first, again, other = (perturb_latent(controlled, steps=2, seed=seed) for seed in (1, 1, 2))
    theirs = again.model.state_dict()
    assert all(value.equal(theirs[name]) for name, value in first.model.state_dict().items())
    assert first.did == again.did != other.did
    saved = controlled.load().state_dict()
    moved = [
        name for name, value in first.model.state_dict().items() if name not in saved or not value.equal(saved[name])
    ]
    assert moved == ["model.layers.0.mlp.down_proj.bias"], "nothing else has changed"


def test_half_of_the_groups_and_of_the_controls_are_held_out(controlled):
    attacked = perturb_latent(controlled, steps=1)
    assert (attacked.did["groups_seen"], attacked.did["groups_held_out"]) == (2, 2)
    assert sum(group.startswith("invented") for group in attacked.seen) == 2


def test_without_what_no_model_knew_it_is_refused(controlled):
    plain = replace(controlled, benchmark=replace(controlled.benchmark, control=()))
    with pytest.raises(UserError, match="would pass for what this one still knows"):
        perturb_latent(plain)
    perturb_latent(replace(plain, benchmark=replace(plain.benchmark, references={"retrained": "x"})), steps=1)
