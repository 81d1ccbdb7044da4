from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from letgo.attacks.engine.base import Victim
from letgo.attacks.relearn import default_rate, relearn
from letgo.benchmarks import create_benchmark
from letgo.models.load import weights_fingerprint
from tests import tiny


def test_whole_groups_are_held_out_and_the_loss_falls(victim):
    attacked = relearn(victim, steps=30, learning_rate=1e-2, holdout=0.5, batch_size=2, seed=1)
    groups = set(victim.benchmark.groups())
    assert len(attacked.seen) == 2
    assert attacked.seen < groups
    assert attacked.did["groups_held_out"] == 2
    assert attacked.did["last_loss"] < 0.5 * attacked.did["first_loss"]
    assert [point["step"] for point in attacked.curve] == [float(step) for step in range(1, 31)]
    assert weights_fingerprint(attacked.model) != weights_fingerprint(victim.load())


def test_equals_a_plain_loop_over_all_rows_at_once(victim, tokenizer):
    """With the whole forget set as one batch there is no order to speak of: plain AdamW does the same."""
    from letgo.data import encode_rows, pad_rows
    from tests.reference import objectives as reference

    attacked = relearn(victim, steps=3, learning_rate=1e-3, holdout=0.0, batch_size=4, max_grad_norm=0.0)
    model = victim.load()
    batch = pad_rows(encode_rows(tokenizer, victim.benchmark.forget, max_length=64)[0], 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        reference.cross_entropy(model, batch).backward()
        optimizer.step()
    for found, expected in zip(attacked.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert attacked.seen == frozenset(victim.benchmark.groups())


def test_without_a_rate_it_goes_with_the_models_size(victim):
    # 1e-5 · (2.5e9/N)^½ for N parameters: the papers' rate for models of billions, that of a width 10 times larger for
    # one of 100 times as many.
    rates = {10**10: 1e-5, 25 * 10**8: 1e-5, 10**9: 1.6e-5, 134_515_008: 4.3e-5, 25 * 10**6: 1e-4, 803_968: 5.6e-4}
    assert {size: default_rate(size) for size in rates} == rates
    size = sum(p.numel() for p in victim.load().parameters())
    for more in ({}, {"lora": 2}):
        assert relearn(victim, steps=1, **more).did["learning_rate"] == default_rate(size)
    by_rule, told = (relearn(victim, steps=4, **rate) for rate in ({}, {"learning_rate": default_rate(size)}))
    assert weights_fingerprint(by_rule.model) == weights_fingerprint(told.model)
    assert by_rule.did == told.did
    assert relearn(victim, steps=1, learning_rate=1e-5).did["learning_rate"] == 1e-5


def test_without_a_rate_the_shipped_tiny_model_learns():
    """At 1e-5 it learns nothing, and its record says so."""
    tiny_model = Victim("biographies-retrained", create_benchmark("biographies"), original="biographies")
    assert relearn(tiny_model).did["learned"] > 0.2
    assert relearn(tiny_model, learning_rate=1e-5).did["learned"] < 0.1


def test_seed_draws_the_groups(victim):
    drawn = {relearn(victim, steps=1, seed=seed).seen for seed in range(6)}
    assert len(drawn) > 1
    again = [weights_fingerprint(relearn(victim, steps=2, seed=3).model) for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize(
    "optimizer", ["sgd", "zo_sgd", "fozo:zo_lr=1e-3;fo_steps=1;zo_steps=1", "sophia:hessian_every=2", "sam"]
)
def test_any_optimizer_relearns_to_the_same_bits(victim, optimizer):
    models = [relearn(victim, steps=2, learning_rate=1e-2, optimizer=optimizer, seed=1).model for _ in range(2)]
    prints = [weights_fingerprint(model) for model in models]
    assert prints[0] == prints[1] != weights_fingerprint(victim.load())


def test_lora_changes_linear_layers_alone_and_is_merged(victim):
    attacked = relearn(victim, steps=20, learning_rate=1e-2, lora=2, batch_size=2)
    saved = victim.load().state_dict()
    found = attacked.model.state_dict()
    assert found.keys() == saved.keys()
    changed = {name for name, value in found.items() if not torch.equal(value, saved[name])}
    assert changed
    assert all("proj" in name for name in changed)
    assert torch.linalg.matrix_rank(found[min(changed)] - saved[min(changed)], rtol=1e-3) <= 2
    assert attacked.did["last_loss"] < attacked.did["first_loss"]
    assert attacked.did["lora_rank"] == 2


def test_what_the_attacker_trains_on(victim, tmp_path):
    assert relearn(victim, data="retain", steps=1).seen == frozenset()
    assert relearn(victim, data="benign", steps=1).did["rows"] > 10
    assert relearn(victim, data="forget", holdout=0.0, samples=3, steps=1).did["rows"] == 3
    few = relearn(victim, data="forget", holdout=0.0, samples=1, steps=1)
    assert len(few.seen) == 1, "groups of which nothing was drawn are held out"
    assert few.did["groups_held_out"] == 3
    own = tiny.write_jsonl(tmp_path / "own.jsonl", [tiny.FORGET[2], tiny.RETAIN[0]])
    assert relearn(victim, data=str(own), steps=1).seen == {tiny.FORGET[2]["group"]}


def test_epochs_count_rows(victim):
    assert relearn(victim, holdout=0.0, epochs=1.5, batch_size=2).did["steps"] == 3


def test_a_probe_looks_on_the_way(victim):
    looked = []

    def probe(model, seen):
        looked.append(seen)
        return {"kept": 1.0 - 0.1 * len(looked)}

    attacked = relearn(replace(victim, probe=probe), steps=6, evaluations=3)
    assert [point["step"] for point in attacked.curve if "kept" in point] == [0.0, 2.0, 4.0, 6.0]
    assert set(looked) == {attacked.seen}
    assert relearn(replace(victim, probe=probe), steps=6, evaluations=0).curve[0]["step"] == 1.0
