"""What is stored of the reference model, the batches that carry it, other answers, schedules of the retain weight."""

from __future__ import annotations

import math

import pytest
import torch

from letgo.core.errors import UserError
from letgo.data import ForgetRetainDataset, collate_pairs, encode_rows, pad_rows, read_rows
from letgo.data.pairs import generator_of
from letgo.objectives import create_objective
from letgo.objectives.likelihood import label_hidden, layer_hidden, sequence_logps
from letgo.objectives.references import reference_quantities
from letgo.objectives.refusals import REFUSALS, alternative_answers
from letgo.objectives.schedules import parse_schedule
from tests import tiny
from tests.objectives.cases import FORGET, RETAIN, make, prepared
from tests.reference import objectives as reference


@pytest.fixture
def part(tokenizer):
    return pad_rows(encode_rows(tokenizer, read_rows(FORGET), max_length=64)[0], 0)


def test_quantities_are_the_models_own_row_by_row(part):
    model = make("llama").train()
    found = reference_quantities(model, part, ("logps", "hidden", "layer_hidden"), layer=1)
    assert model.training, "the mode is put back"
    assert set(found) == {"logps", "hidden", "layer_hidden"}
    for row, expected in enumerate(reference.rows(model.eval(), part)):
        torch.testing.assert_close(found["logps"][row], expected.detach(), rtol=1e-5, atol=1e-5)
        assert found["hidden"][row].shape == (int((part["labels"][row, 1:] != -100).sum()), 16)
        own = reference.after_block(model, part, row, 1).detach()
        torch.testing.assert_close(found["layer_hidden"][row], own, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.cat(found["hidden"]), label_hidden(model, part))
    assert torch.equal(torch.cat(found["layer_hidden"]), layer_hidden(model, part, 1))
    assert not any(value.requires_grad for values in found.values() for value in values)
    with pytest.raises(UserError, match="no such reference quantity"):
        reference_quantities(model, part, ("logits",))


def test_adapters_are_off_for_the_reference(part):
    peft = pytest.importorskip("peft")
    model = make("llama")
    expected = sequence_logps(model, part).detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert not torch.allclose(sequence_logps(adapted, part), expected)
    torch.testing.assert_close(torch.stack(reference_quantities(adapted, part, ("logps",))["logps"]), expected)


def test_a_trained_output_layer_is_kept_as_it_was(tokenizer):
    """Tied embeddings are trained: KL is to the layer as it was, and without `prepare` it is refused."""
    model = make("gpt2").double()
    objective, batch, original = prepared("npo_klr", model, tokenizer, moved=0.05)
    found = objective.terms(model, batch)["retain"]
    torch.testing.assert_close(found, reference.kl_to_reference(model, original, batch), rtol=1e-9, atol=1e-9)
    fresh = create_objective("npo_klr")
    with pytest.raises(ValueError, match=r"call objective.prepare\(model\) before training"):
        fresh.terms(model, batch)
    frozen = make("gpt2").double()
    frozen.lm_head.requires_grad_(False)
    objective, batch, _ = prepared("npo_klr", frozen, tokenizer)
    assert objective.reference_head.layer is frozen.lm_head


def test_batches_carry_what_is_known(tokenizer):
    forget, retain = (encode_rows(tokenizer, read_rows(rows), max_length=64)[0] for rows in (FORGET, RETAIN))
    other = tiny.encode_alternatives(tokenizer, forget, ["red", "blue", "green", "new"], max_length=64)
    data = ForgetRetainDataset(forget, retain, alternative=other, seed=2)
    hidden = [torch.full((n + 1, 2), float(n)) for n in range(len(retain))]
    data.reference = {
        "retain": {"hidden": hidden},
        "alternative": {"logps": [torch.tensor(float(n)) for n in range(4)]},
    }
    batch = collate_pairs(0)([data[3], data[1]])
    assert batch["forget"]["index"].tolist() == batch["alternative"]["index"].tolist() == [3, 1]
    places = [data.retain_index(3), data.retain_index(1)]
    assert batch["retain"]["index"].tolist() == places
    assert torch.equal(batch["retain"]["reference_hidden"], torch.cat([hidden[place] for place in places]))
    assert batch["alternative"]["reference_logps"].tolist() == [3.0, 1.0]
    assert "reference_logps" not in batch["forget"]
    data.reference["forget"] = {"logps": list(torch.arange(4.0))}
    assert collate_pairs(0)([data[2]])["forget"]["reference_logps"].tolist() == [2.0]
    with pytest.raises(ValueError, match="3 alternatives for 4 forget rows"):
        ForgetRetainDataset(forget, retain, alternative=other[:3])


def test_alternatives_are_the_same_prompts_with_other_answers(tokenizer):
    rows, _ = encode_rows(tokenizer, read_rows(FORGET), max_length=64)
    other = tiny.encode_alternatives(tokenizer, rows, ["red", "blue", "green", "new"], max_length=64)
    for row, alternative, word in zip(rows, other, ("red", "blue", "green", "new"), strict=True):
        border = sum(label == -100 for label in row.labels)
        assert alternative.input_ids[:border] == row.input_ids[:border]
        labels = tokenizer.convert_ids_to_tokens([i for i in alternative.labels if i != -100])
        assert labels == [word, "</s>"]
    with pytest.raises(UserError, match="alternatives: 4 of 4 rows are longer"):
        tiny.encode_alternatives(tokenizer, rows, ["red " * 70] * 4, max_length=64)
    cut = tiny.encode_alternatives(tokenizer, rows, ["red " * 70] * 4, max_length=64, long_rows="drop")
    assert [len(row) for row in cut] == [64] * 4


def test_refusals_are_a_function_of_seed_and_place(tokenizer):
    rows = read_rows(tiny.FORGET)
    first = alternative_answers("refusal", rows, seed=1)
    assert first == alternative_answers("refusal", rows, seed=1)
    assert first != alternative_answers("refusal", rows, seed=2)
    assert first[:2] == alternative_answers("refusal", rows[:2], seed=1)
    many = alternative_answers("refusal", rows * 100)
    assert len(set(many)) > 80
    assert len(REFUSALS) == len(set(REFUSALS)) == 100
    assert all(refusal.endswith(".") and len(refusal) < 80 for refusal in REFUSALS)


def test_answers_that_cannot_be_had_are_a_users_mistake():
    with pytest.raises(UserError, match="row 1: a row of 'text' has no prompt"):
        alternative_answers("refusal", read_rows([{"text": "red"}]))
    with pytest.raises(UserError, match=r"need a field 'alternative'.*\n.*idk_dpo"):
        alternative_answers("own", read_rows(tiny.FORGET))
    assert alternative_answers("own", read_rows(FORGET))[0] == "old amberton"


def test_random_labels_are_the_rows_own(tokenizer):
    from letgo.objectives.random_label import random_labels

    model = make("llama")
    _, batch, _ = prepared("random_label", model, tokenizer)
    part = batch["forget"]
    whole = random_labels(part, 48, 0)
    assert len(whole) == int((part["labels"][:, 1:] != -100).sum())
    second = {key: value[1:2] for key, value in part.items()}
    start = int((part["labels"][0, 1:] != -100).sum())
    assert torch.equal(random_labels(second, 48, 0), whole[start : start + len(random_labels(second, 48, 0))])
    assert not torch.equal(random_labels(part, 48, 1), whole)
    draws = torch.stack([torch.rand((), generator=generator_of(0, index)) for index in range(2000)])
    assert abs(float(draws.mean()) - 0.5) < 0.03


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("constant", (1.0, 1.0, 1.0)),
        ("linear", (0.0, 0.5, 1.0)),
        ("linear:start=2,end=1", (2.0, 1.5, 1.0)),
        ("cosine:start=1,end=0", (1.0, 0.5, 0.0)),
        ("step:at=0.5,start=0,end=3", (0.0, 3.0, 3.0)),
    ],
)
def test_schedules(spec, values):
    schedule = parse_schedule(spec)
    assert [schedule(p) for p in (0.0, 0.5, 1.0)] == pytest.approx(values)
    objective = create_objective("graddiff", retain_weight=4.0, retain_weight_schedule=spec)
    terms = {"forget": torch.tensor(1.0), "retain": torch.tensor(1.0)}
    for progress, value in zip((0.0, 0.5, 1.0, 1.5), (*values, values[-1]), strict=True):
        assert float(objective.total(terms, progress)) == pytest.approx(1 + 4 * value)


def test_a_dual_weight_moves_by_the_retain_loss_and_comes_back_from_zero():
    objective = create_objective(
        "npo_gdr", retain_weight=1.0, retain_weight_schedule="dual:bound=0.5,rate=2,warmup=0.5"
    )
    weights = []
    for loss, progress in ((9.0, 0.0), (9.0, 0.4), (0.75, 0.5), (0.0, 0.6), (0.1, 0.7), (1.5, 0.8)):
        objective.after_step(loss, progress)
        weights.append(objective.retain_weight_at(progress))
        assert objective.needs_retain
    assert weights == pytest.approx([1.0, 1.0, 1.5, 0.5, 0.0, 2.0])
    plain = create_objective("npo_gdr", retain_weight=3.0)
    plain.after_step(9.0, 1.0)
    assert plain.retain_weight_at(1.0) == 3.0
    assert not create_objective("pdu", retain_loss="kl").dual, "the bound is on the record's own retain loss"


def test_cosine_is_flat_at_both_ends():
    schedule = parse_schedule("cosine")
    assert schedule(0.25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("liner", "did you mean 'linear'"),
        ("linear:begin=0", "no setting 'begin'"),
        ("dual:rate=0", "above 0"),
        ("dual:warmup=1", "below 1"),
        ("linear:start=-1", "at least 0"),
        ("linear:start=high", "at least 0"),
        ("constant:start=1", "its settings: none"),
    ],
)
def test_bad_schedules(spec, message):
    with pytest.raises(UserError, match=message):
        create_objective("graddiff", retain_weight_schedule=spec)
    with pytest.raises(UserError, match="follows the retain loss, and objective 'ga' has no retain term"):
        create_objective("ga", retain_weight_schedule="dual")
