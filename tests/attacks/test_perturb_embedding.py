from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from letgo.attacks.engine.prompts import work_of
from letgo.attacks.perturb_embedding import perturb_embedding
from letgo.attacks.relearn import attackers_batches, attackers_rows
from letgo.attacks.suffix import attached
from letgo.core.errors import UserError
from letgo.data.rows import rows_from_records
from tests import tiny
from tests.reference.attacks import trained_prompt

FIRST = len(tiny.make_tokenizer())
"""The first of the new words, which the embedding's 64 rows have room for."""


def read(attacked):
    """What the attacked model reads in the place of the new words."""
    return attacked.model.get_input_embeddings()(torch.arange(FIRST, FIRST + attacked.did["tokens"])).detach()


@pytest.mark.parametrize("rows", [64, FIRST])
def test_it_equals_a_prompt_trained_by_hand(controlled, tmp_path, rows):
    """Whether or not the embedding has rows for the new words."""
    tiny.make_model(vocab_size=rows).save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    victim = replace(controlled, directory=tmp_path)
    attacked = perturb_embedding(victim, tokens=3, steps=50, learning_rate=0.1, batch_size=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    data, seen = attackers_rows("by hand", victim, "forget", 0.5, None, generator)
    asked = [attached(row, "<soft-0><soft-1><soft-2>", "prefix") for row in data]
    encoded, _ = victim.benchmark.encode(attacked.tokenizer, asked, template="plain", max_length=64, name="by hand")
    assert all(row.input_ids[3:6] == [FIRST, FIRST + 1, FIRST + 2] for row in encoded)
    drawn = torch.randint(FIRST, (3,), generator=generator)
    batches = attackers_batches(encoded, 2, 0, generator, torch.device("cpu"))
    model = victim.load()
    start = model.get_input_embeddings().weight.detach()[drawn]
    rate = 0.1 * float(start.square().mean().sqrt())
    vectors, losses = trained_prompt(model, start, [next(batches) for _ in range(50)], FIRST, rate=rate)
    # A number whose gradient is nearly 0 may step the other way now and then.
    assert (read(attacked) - vectors).abs().median() < 1e-6
    assert [point["loss"] for point in attacked.curve] == pytest.approx(losses, rel=1e-3)
    assert sum(losses[-10:]) < sum(losses[:10])
    assert attacked.seen == seen


def test_twice_with_one_seed_to_the_same_bits_and_nothing_else_changes(controlled):
    first, again, other = (perturb_embedding(controlled, steps=2, seed=seed) for seed in (1, 1, 2))
    assert read(first).equal(read(again))
    assert first.did == again.did != other.did
    saved = controlled.load()
    theirs = saved.state_dict()
    assert all(value.equal(theirs[name]) for name, value in first.model.state_dict().items())
    ids = torch.arange(FIRST)[None]
    assert first.model(input_ids=ids).logits.equal(saved(input_ids=ids).logits), "asked as before it answers as before"


def test_what_is_asked_has_the_prompt_and_is_of_groups_held_out(controlled):
    attacked = perturb_embedding(controlled, tokens=2, steps=1)
    assert (attacked.did["groups_seen"], attacked.did["groups_held_out"]) == (2, 2)
    assert sum(group.startswith("invented") for group in attacked.seen) == 2
    [asked] = attacked.asked.values()
    held_out = set(controlled.benchmark.groups()) - attacked.seen
    assert {item.group for item in asked.items if item.set == "forget"} == held_out
    queries = work_of(controlled, asked, attacked.model, attacked.tokenizer).queries
    assert all(list(query.prefix)[3:5] == [FIRST, FIRST + 1] for query in queries), "after <s> Question :"


def test_without_what_no_model_knew_or_anything_to_ask_it_is_refused(controlled):
    benchmark = controlled.benchmark
    with pytest.raises(UserError, match="would pass for what this one still knows"):
        perturb_embedding(replace(controlled, benchmark=replace(benchmark, control=())))
    texts = rows_from_records([{"text": f"old {n}", "group": n} for n in "1234"], "texts")
    items = [replace(item, row=row) for item, row in zip(benchmark.items, texts, strict=False)]
    bare = replace(benchmark, forget=texts, items=items, control=(), references={"retrained": "x"})
    with pytest.raises(UserError, match="no forget item that can be asked"):
        perturb_embedding(replace(controlled, benchmark=bare))
