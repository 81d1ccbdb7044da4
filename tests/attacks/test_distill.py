from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import letgo
from letgo.attacks.distill import distill
from letgo.attacks.relearn import attackers_batches, attackers_rows
from letgo.benchmarks import create_benchmark
from letgo.core.errors import UserError
from letgo.data import encode_rows, pad_rows
from letgo.models.load import load_model, load_tokenizer
from letgo.objectives.retain import cross_entropy
from letgo.objectives.undo import damage
from tests import tiny
from tests.reference.attacks import distilled


@pytest.fixture
def small(tmp_path):
    """A model of the same vocabulary with another width and one block."""
    tiny.make_model(seed=4, hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path / "small")
    return str(tmp_path / "small")


@pytest.mark.parametrize("student", ["copy", "small"])
def test_it_equals_a_student_taught_by_hand(victim, small, student):
    how = {"data": "retain", "steps": 50, "learning_rate": 1e-3, "batch_size": 2, "seed": 3}
    given = {"alpha": 0.4, "beta": 0.5} if student == "copy" else {"student": small}
    attacked = distill(victim, **how, **given)
    generator = torch.Generator().manual_seed(3)
    rows, _ = attackers_rows("by hand", victim, "retain", 0.0, None, generator)
    encoded, _ = victim.benchmark.encode(victim.tokenizer(), rows, template="plain", max_length=64, name="by hand")
    batches = attackers_batches(encoded, 2, 0, generator, torch.device("cpu"))
    model = tiny.make_model(seed=4, hidden_size=16, num_hidden_layers=1)
    if student == "copy":
        model = victim.load()
        damage(model, alpha=0.4, beta=0.5, seed=3)
    losses = distilled(model, victim.load(), [next(batches) for _ in range(50)], rate=1e-3)
    for found, expected in zip(attacked.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert [point["loss"] for point in attacked.curve] == pytest.approx(losses, rel=1e-3, abs=1e-6)
    assert losses[-1] < 0.5 * losses[0]
    assert attacked.seen == frozenset()


def test_a_student_that_is_the_teacher_has_nothing_to_learn(victim):
    attacked = distill(victim, alpha=0.0, steps=3, optimizer="sgd")
    assert attacked.did["first_loss"] == pytest.approx(0.0, abs=1e-6)
    saved = victim.load().state_dict()
    for name, value in attacked.model.state_dict().items():
        torch.testing.assert_close(value, saved[name], rtol=0, atol=1e-6)


def test_the_last_blocks_alone_are_damaged_and_everything_is_taught(victim):
    attacked = distill(victim, alpha=0.5, blocks=1, steps=1, learning_rate=1e-9)
    saved = victim.load()
    moved = {
        name
        for name, value in attacked.model.named_parameters()
        if float((value - saved.get_parameter(name)).detach().abs().max()) > 1e-4
    }
    assert moved == {name for name, _ in saved.named_parameters() if name.startswith("model.layers.1.")}
    assert all(parameter.requires_grad for parameter in attacked.model.parameters())


def test_twice_with_one_seed_to_the_same_bits(victim):
    first, again, other = (distill(victim, steps=2, seed=seed) for seed in (1, 1, 2))
    theirs = again.model.state_dict()
    assert all(value.equal(theirs[name]) for name, value in first.model.state_dict().items())
    assert first.did == again.did != other.did


def test_a_forgetting_in_the_last_block_alone_does_not_survive_its_damage(tmp_path):
    tokenizer, model, data = load_tokenizer("biographies"), load_model("biographies"), create_benchmark("biographies")
    encoded = {
        name: encode_rows(tokenizer, rows, template="plain", max_length=128)[0]
        for name, rows in (("forget", data.forget), ("retain", data.retain))
    }
    generator = torch.Generator().manual_seed(0)
    model.requires_grad_(False)
    optimizer = torch.optim.Adam(model.model.layers[-1].requires_grad_(True).parameters(), lr=3e-3)
    for _ in range(60):
        forget, retain = (
            cross_entropy(model, pad_rows([rows[i] for i in torch.randperm(len(rows), generator=generator)[:16]], 0))
            for rows in encoded.values()
        )
        optimizer.zero_grad()
        ((6.0 - forget).relu() + 3 * retain).backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    attack = "distill:steps=20,alpha=0.9,blocks=1,evaluations=0"
    result = letgo.attack(tmp_path, [attack], benchmark="biographies", original="biographies", limit=20)
    assert result.after["forget_probability"].value < 0.4 < 0.9 < result.before["forget_probability"].value
    assert result.attacks[0].kept < 0.2
    assert result.attacks[0].metrics["forget_probability"].value > 0.8


def test_what_does_not_fit_is_refused(victim, tmp_path):
    tiny.make_model(vocab_size=48).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 48 words, the model 64"):
        distill(victim, student=str(tmp_path))
    with pytest.raises(UserError, match="the model has 2 blocks, not 3"):
        distill(victim, blocks=3)
    without = replace(victim, directory="")
    for settings, message in (
        ({"data": "forget"}, "must not be taught on the forget set"),
        ({"student": "nowhere"}, "no such model"),
        ({"optimizer": "dual_optim"}, "distill: optimizer dual_optim takes a forget and a retain term apart"),
    ):
        with pytest.raises(UserError, match=message):
            distill(without, **settings)
