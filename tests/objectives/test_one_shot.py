"""Methods that give weights: closed forms, exact inverses, and forgetting that shows."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from letgo.core.errors import UserError
from letgo.data import encode_rows, read_rows
from letgo.objectives import ONE_SHOT
from letgo.objectives.likelihood import label_counts, sequence_logps
from letgo.objectives.one_shot import Data
from letgo.objectives.one_shot.data import batches_of, fine_tune
from letgo.objectives.one_shot.influence import gradients_held, influence, inverse_fisher_product
from letgo.objectives.one_shot.repselect import (
    attached,
    collapsed,
    drawn_out,
    mlp_layers,
    repselect,
    within_budget,
)
from letgo.objectives.one_shot.task_vector import task_vector
from letgo.objectives.one_shot.whos_harry_potter import generic, generic_loss, whos_harry_potter
from letgo.objectives.retain import cross_entropy
from tests.objectives.cases import FORGET, RETAIN, gradient, make
from tests.reference import objectives as reference


@pytest.fixture
def data(tokenizer):
    forget, retain = (encode_rows(tokenizer, read_rows(rows), max_length=64)[0] for rows in (FORGET, RETAIN))
    return Data(batches_of(forget, 0), batches_of(retain, 0))


def loss_on(model, batches):
    with torch.no_grad():
        [part] = batches(100)
        return float(cross_entropy(model, part))


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def learnt(data):
    """A model that knows both sets by heart."""
    model = make("llama", width=24)
    everything = [data.forget, data.retain]
    for _ in range(4):
        for batches in everything:
            fine_tune(model, batches, cross_entropy, lr=3e-3, epochs=8, batch_size=5)
    return model


# -- task vector -------------------------------------------------------------------------------------------------------


def test_task_vector_is_the_change_of_fine_tuning_the_other_way_round(data):
    model = make("llama").double()
    original, tuned = vector(model), copy.deepcopy(model)
    fine_tune(tuned, data.forget, cross_entropy, lr=1e-3, epochs=2, batch_size=2, seed=4)
    task_vector(model, data, alpha=0.7, lr=1e-3, epochs=2, batch_size=2, seed=4)
    torch.testing.assert_close(vector(model), original - 0.7 * (vector(tuned) - original))
    assert not torch.equal(vector(tuned), original)


def test_task_vector_forgets(data):
    model = learnt(data)
    before = loss_on(model, data.forget), loss_on(model, data.retain)
    task_vector(model, data, alpha=5.0, lr=3e-4, epochs=5)
    after = loss_on(model, data.forget), loss_on(model, data.retain)
    assert after[0] > before[0] + 0.5
    assert after[0] - before[0] > after[1] - before[1]


# -- who's Harry Potter ------------------------------------------------------------------------------------------------


def test_generic_logits_by_hand():
    base, reinforced = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 1.0, 3.5])
    assert generic(base, reinforced, 2.0).tolist() == [-3.0, 2.0, 2.0]


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_generic_loss_equals_the_plain_loop(data, targets, monkeypatch):
    from letgo.models.head import reference_head
    from letgo.objectives import chunks
    from letgo.objectives.likelihood import label_hidden

    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 3 * 48)
    base, reinforced, model = (make("llama", seed=seed).double() for seed in range(3))
    [part] = data.forget(100)
    hidden = tuple(label_hidden(m, part).detach() for m in (base, reinforced))
    heads = (reference_head(base), reference_head(reinforced))
    found = generic_loss(model, part, hidden, heads, 3.0, targets)
    values = []
    for row in range(len(part["labels"])):
        three = zip(*(reference.row_logits(m, part, row) for m in (model, base, reinforced)), strict=True)
        for (logits, _), (v_base, _), (v_reinforced, _) in three:
            target = (v_base - 3.0 * (v_reinforced - v_base).clamp(min=0)).detach()
            logps = logits.log_softmax(-1)
            values.append(-logps[target.argmax()] if targets == "hard" else -(target.softmax(-1) * logps).sum())
    expected = sum(values) / len(values)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(gradient(model, found), gradient(model, expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_whos_harry_potter_forgets(data, targets):
    model = learnt(data)
    before = loss_on(model, data.forget)
    whos_harry_potter(
        model, data, alpha=5.0, targets=targets, reinforce_lr=3e-3, reinforce_epochs=10, lr=1e-3, epochs=4, batch_size=2
    )
    assert loss_on(model, data.forget) > before + 1.0


# -- influence unlearning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [1, 3, 100])
@pytest.mark.parametrize("damping", [1.0, 1e-3])
def test_the_recursion_equals_a_dense_solve(held, damping):
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(9, 20, generator=generator, dtype=torch.float64)
    gradients[4] = gradients[2]  # a repeated sample is no trouble
    v = torch.randn(20, generator=generator, dtype=torch.float64)
    asked = []

    def stream(start, stop):
        for number in range(start, stop):
            asked.append(number)
            yield [gradients[number, :6].reshape(2, 3), gradients[number, 6:]]

    found = inverse_fisher_product(stream, [v[:6].reshape(2, 3), v[6:]], 9, damping, held)
    expected = reference.inverse_fisher_product(gradients, v, damping)
    torch.testing.assert_close(torch.cat([t.flatten() for t in found]), expected, rtol=1e-9, atol=1e-10)
    blocks = -(-9 // held)
    assert len(asked) == 9 + 9 + sum(9 - min(9, (b + 1) * held) for b in range(blocks)), "the cost that is documented"


def test_gradients_are_held_as_far_as_there_is_room():
    assert gradients_held([torch.zeros(1000, dtype=torch.bfloat16)]) == 2**30 // 4000
    assert gradients_held([torch.empty(2**28, device="meta")]) == 16


def test_methods_tell_the_length_of_their_step(data):
    for method, settings in ((task_vector, {"alpha": 0.5}), (influence, {"alpha": 0.5})):
        model, said = make("llama"), []
        before = vector(model)
        method(model, Data(data.forget, data.retain, say=said.append), **settings)
        share = float((vector(model) - before).norm() / before.norm())
        assert f"the step is {share:.2g} of the weights' length" in said[0]


def test_influence_is_one_newton_step(data):
    """Against dense matrices, on a model small enough to have them."""
    model = make("gpt2", layers=1, width=4).double()
    rows = list(data.retain(1))
    gradients = torch.stack([gradient(model, cross_entropy(model, part)) for part in rows[:3]])
    [part] = data.forget(100)
    of_forget = gradient(model, -(sequence_logps(model, part) / label_counts(part)).mean())
    of_retain = torch.stack([gradient(model, cross_entropy(model, part)) for part in rows]).mean(0)
    for share in (0.0, 1.0):
        moved = copy.deepcopy(model)
        influence(moved, data, alpha=0.3, damping=0.5, samples=3, held=2, retain_share=share, batch_size=2)
        v = of_forget - share * of_retain
        expected = vector(model) + 0.3 * reference.inverse_fisher_product(gradients, v, 0.5)
        torch.testing.assert_close(vector(moved), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("hessian", ["woodfisher", "gnb"])
def test_influence_forgets_more_than_it_harms(data, hessian):
    model = learnt(data)
    before = loss_on(model, data.forget), loss_on(model, data.retain)
    influence(model, data, hessian=hessian, alpha=1e-4, damping=1e-3, retain_share=1.0)
    after = loss_on(model, data.forget), loss_on(model, data.retain)
    assert after[0] > before[0] + 0.3
    assert after[0] - before[0] > 2 * (after[1] - before[1])


def test_gnb_divides_by_a_damped_diagonal(data):
    """With the damping far above the curvature, the step is v / λ; the labels that are drawn are the seed's."""
    model = make("llama")
    [part] = data.forget(100)
    v = gradient(model, -(sequence_logps(model, part) / label_counts(part)).mean())
    moved = copy.deepcopy(model)
    influence(moved, data, hessian="gnb", alpha=1e6, damping=1e6)
    torch.testing.assert_close(vector(moved) - vector(model), v, rtol=1e-2, atol=1e-4)
    ends = []
    for seed in (0, 0, 1):
        moved = copy.deepcopy(model)
        influence(moved, data, hessian="gnb", damping=1e-3, seed=seed)
        ends.append(vector(moved))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_what_is_frozen_stays(data):
    for name in ONE_SHOT.names():
        model = make("llama")
        model.model.layers[0].requires_grad_(False)
        before = copy.deepcopy(model)
        ONE_SHOT.load(name)(model, data)
        for (key, now), was in zip(model.named_parameters(), before.parameters(), strict=True):
            moves = was.requires_grad and (name != "repselect" or (".mlp." in key and was.ndim == 2))
            assert torch.equal(now, was) != moves, (name, key)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (task_vector, {"alpha": 0}, "alpha must be above 0"),
        (whos_harry_potter, {"alpha": -1}, "alpha must be above 0"),
        (whos_harry_potter, {"targets": "warm"}, "must be hard or soft"),
        (influence, {"hessian": "exact"}, "must be woodfisher or gnb"),
        (influence, {"damping": 0}, "damping must be above 0"),
    ],
)
def test_bad_settings(data, method, settings, message):
    with pytest.raises(UserError, match=message):
        method(make("llama"), data, **settings)


def test_influence_needs_a_retain_set(data):
    with pytest.raises(UserError, match="needs a retain set"):
        influence(make("llama"), Data(data.forget))


# -- RepSelect ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "power"), [("soft", 1.0), ("quadratic", 2.0)])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_the_top_of_a_gradients_spectrum_is_turned_round(kind, power, shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = collapsed(gradient, 3, kind)
    torch.testing.assert_close(found, reference.soft_collapse(gradient, 3, power))
    before, after = torch.linalg.svdvals(gradient), torch.linalg.svdvals(found)
    turned = before[:3] * (before[2] / before[:3]) ** (2 * power)
    torch.testing.assert_close(after.sort().values, torch.cat([turned, before[3:]]).sort().values)
    hard = torch.linalg.svdvals(collapsed(gradient, 3, "hard"))
    torch.testing.assert_close(
        hard, torch.cat([before[3:], torch.zeros(3, dtype=torch.float64)]), rtol=1e-9, atol=1e-12
    )
    assert collapsed(gradient, 0) is gradient
    torch.testing.assert_close(collapsed(gradient, 1), gradient)
    rank_one = torch.outer(gradient[:, 0], gradient[0])
    assert torch.isfinite(collapsed(rank_one, 4)).all(), "components of size 0 divide nothing"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_repselect_without_collapse_and_adapters_is_a_step_of_gradient_ascent(data, architecture):
    model = make(architecture).double()
    changed = copy.deepcopy(model)
    repselect(changed, data, rank=0, draw_out_lr=0.0, step=0.02, batch_size=2)
    parts = list(data.forget(2))
    sum(cross_entropy(model, part) for part in parts).backward()
    after = dict(changed.named_parameters())
    for name, p in model.named_parameters():
        of_mlp = ".mlp." in name and name.endswith("weight")
        torch.testing.assert_close(after[name], p + 0.02 * p.grad if of_mlp else p, rtol=1e-10, atol=1e-12)
    assert loss_on(changed, data.forget) > loss_on(model, data.forget)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_gradient_is_taken_with_what_the_adapters_have_learnt(data, architecture):
    """The adapters by hand: B A added to the weights, plain SGD; then the gradient there, collapsed."""
    model = make(architecture).double()
    layers = mlp_layers(model)
    adapters = drawn_out(model, layers, data, 0.1, 2, 2, 5)
    assert all(float(b.detach().abs().max()) > 0 for _, b in adapters.values())
    merged = copy.deepcopy(model)
    for name, (a, b) in adapters.items():
        weight = merged.get_submodule(name).weight
        with torch.no_grad():
            weight.add_(b @ a if architecture == "llama" else (b @ a).T)
    [part] = data.forget(100)
    with attached(layers, adapters):
        torch.testing.assert_close(cross_entropy(model, part), cross_entropy(merged, part))
    assert float(cross_entropy(merged, part).detach()) < float(cross_entropy(model, part).detach())
    changed = copy.deepcopy(model)
    repselect(changed, data, rank=2, draw_out_lr=0.1, draw_out_rank=2, step=0.01, batch_size=2, seed=5)
    sum(cross_entropy(merged, each) for each in data.forget(2)).backward()
    for name, layer in layers.items():
        expected = layer.weight + 0.01 * reference.soft_collapse(merged.get_submodule(name).weight.grad, 2)
        torch.testing.assert_close(changed.get_submodule(name).weight, expected, rtol=1e-8, atol=1e-10)


def test_repselect_spends_its_budget_and_forgets(data):
    model = learnt(data)
    before = copy.deepcopy(model)
    notes = []
    repselect(model, replace(data, say=notes.append), budget=0.05, draw_out_lr=1e-3)
    [part] = data.retain(100)
    logps = [torch.cat([l.log_softmax(-1)[None] for r in range(len(part["labels"]))
             for l, _ in reference.row_logits(m, part, r)]) for m in (before, model)]  # noqa: E741  # fmt: skip
    divergence = float((logps[0].exp() * (logps[0] - logps[1])).sum(-1).mean().detach())
    assert 0.95 * 0.05 * (1 - 1e-4) <= divergence <= 0.05 * (1 + 1e-4)
    assert loss_on(model, data.forget) > loss_on(before, data.forget)
    assert "of the weights' length" in notes[0]


@pytest.mark.parametrize("start", [1e-6, 1.0, 1e6])
def test_the_largest_step_within_a_budget(start):
    tried = []

    def after(alpha):
        tried.append(alpha)
        return math.nan if alpha > 50 else alpha**2

    assert 0.95 * 4 <= within_budget(after, 4.0, start) ** 2 <= 4.0
    assert len(tried) < 25
    jump = within_budget(lambda alpha: 0.0 if alpha <= 3 else math.inf, 4.0, start)
    assert jump == pytest.approx(3.0, rel=1e-6)
    assert jump <= 3.0
    with pytest.raises(UserError, match="no step keeps the KL divergence within 4"):
        within_budget(lambda alpha: math.inf, 4.0, start)


def test_repselect_needs_matrices_and_a_bound(data):
    model = make("llama")
    with pytest.raises(UserError, match="needs a retain set, on which its step is bounded"):
        repselect(model, Data(data.forget))
    for parameter in model.model.layers.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="none is trained here"):
        repselect(model, data)
