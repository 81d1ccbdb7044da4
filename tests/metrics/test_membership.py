from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

from letgo.core.errors import EmptyScoreError, NonFiniteLossError
from letgo.metrics.composite import privleak_metric
from letgo.metrics.gradients import gradient_norms
from letgo.metrics.privacy import (
    loss_score,
    membership_auc,
    min_k,
    min_k_plus_plus,
    privacy_leakage,
    reference_score,
    zlib_score,
)
from letgo.scoring import head
from letgo.scoring.scoring import Query, score, text_query
from tests import tiny
from tests.reference import scoring as reference
from tests.scoring import architectures

T = torch.tensor


def test_scores_by_hand():
    logps = T([-1.0, -3.0, -2.0])
    assert loss_score(logps) == -2.0
    assert zlib_score(logps, "aaa é") == -2.0 / len(zlib.compress("aaa é".encode()))
    assert reference_score(logps, T([-1.0, -2.0])) == -0.5
    # Normalised: (−1+2)/1 = 1, (−3+1)/2 = −1, (−2+3)/0.5 = 2; the two smallest of three at k = 0.67.
    assert min_k_plus_plus(logps, T([-2.0, -1.0, -3.0]), T([1.0, 2.0, 0.5]), 0.67) == pytest.approx(0.0)
    assert math.isfinite(min_k_plus_plus(logps, logps, T([0.0, 0.0, 0.0]), 0.67))
    for empty in (
        lambda: loss_score(T([])),
        lambda: zlib_score(T([]), ""),
        lambda: reference_score(logps, T([])),
        lambda: min_k_plus_plus(T([]), T([]), T([])),
        lambda: membership_auc([], [1.0]),
    ):
        with pytest.raises(EmptyScoreError):
            empty()


@pytest.mark.parametrize("k", [0.2, 0.4, 1.0])
def test_min_k_and_plus_plus_against_a_direct_computation(k):
    """From the engine's scores, against the definition on all logits."""
    model, generator = architectures.make("llama"), torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 60, (n,), generator=generator).tolist() for n in (9, 30, 31)]
    for text, [found] in zip(texts, score(model, [text_query(t) for t in texts], statistics=True), strict=True):
        expected = reference.min_k(model, text, k)
        assert min_k(found.logps, k) == pytest.approx(expected[0], rel=1e-5)
        assert min_k_plus_plus(found.logps, found.means, found.deviations, k) == pytest.approx(expected[1], rel=1e-4)


def test_privleak_bounds():
    """No forget text is less familiar than a holdout text: −100. All are: 1/AUC − 1."""
    low, high = [float(n) for n in range(20)], [float(n) for n in range(100, 120)]
    for retrained, upper in ((0.4772, 109.556), (0.5393, 85.426)):
        remembered = privleak_metric(high, low, retrained_auc=retrained)
        assert remembered.value == -100.0
        assert remembered.n == 40
        # Wilson's interval of 0 of 20, as an AUC of forget texts as non-members: 0 to 0.1611.
        assert remembered.ci95 == pytest.approx((-100.0, 100 * (0.1611 / retrained - 1)), abs=0.05)
        assert privleak_metric(low, high, retrained_auc=retrained).value == pytest.approx(upper, abs=5e-4)


def test_privleak_by_hand():
    """AUC with forget as non-members: of 6 pairs, the holdout text is the more familiar in 1 and even in 1: 1.5/6.
    The retrained model: 3/6. So 100 · (0.25 − 0.5)/0.5."""
    forget, holdout = [-1.0, -2.0, -3.0], [-3.0, -2.5]
    wins = sum((h > f) + 0.5 * (h == f) for f in forget for h in holdout)
    assert wins == 1.5
    retrained = ([-1.0, -2.0, -3.0], [-1.5, -2.5])
    metric = privleak_metric(forget, holdout, retrained=retrained)
    assert metric.value == pytest.approx(-50.0)
    assert privacy_leakage(0.25, 0.5) == -50.0
    with pytest.raises(EmptyScoreError, match="same texts"):
        privleak_metric(forget, holdout, retrained=([1.0], [2.0]))
    for both in ({}, {"retrained_auc": 0.5, "retrained": retrained}):
        with pytest.raises(ValueError, match="AUC, or its scores"):
            privleak_metric(forget, holdout, **both)


def test_privleak_interval_is_of_both_models_together():
    """Against itself a model leaks nothing, whichever texts are asked; against a fixed AUC the interval is wide."""
    generator = np.random.default_rng(0)
    forget, holdout = list(generator.normal(0.3, 1, 60)), list(generator.normal(0, 1, 60))
    paired = privleak_metric(forget, holdout, retrained=(forget, holdout))
    assert paired.value == 0.0
    assert paired.ci95 == (0.0, 0.0)
    fixed = privleak_metric(forget, holdout, retrained_auc=0.5)
    assert fixed.ci95[1] - fixed.ci95[0] > 20


def direct_norm(model, query):
    model.zero_grad()
    ids = torch.tensor([[*query.prefix, *query.continuations[0]]])
    labels = ids.clone()
    labels[:, : len(query.prefix)] = -100
    model(input_ids=ids, labels=labels).loss.backward()
    square = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    return math.sqrt(square)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2-window-cap"])
def test_gradient_norms_are_those_of_autograd(name, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", 1)
    model, generator = architectures.make(name), torch.Generator().manual_seed(1)
    queries = [Query([1], [torch.randint(3, 60, (n,), generator=generator).tolist()]) for n in (1, 7, 50)] + [
        Query([5, 6, 7], [[8, 9]])
    ]
    done: list[int] = []
    norms = gradient_norms(model, queries, advance=done.append)
    assert norms == pytest.approx([direct_norm(model, query) for query in queries], rel=1e-4)
    assert done == [1, 1, 1, 1]


def test_gradient_norms_leave_the_model_as_it_was():
    model = tiny.make_model().train()
    frozen, kept = model.model.norm.weight, model.model.layers[0].mlp.up_proj.weight
    frozen.requires_grad_(False)
    kept.grad = torch.ones_like(kept)
    gradient_norms(model, [Query([1], [[5, 6, 7]])])
    assert model.training
    assert not frozen.requires_grad
    assert torch.equal(kept.grad, torch.ones_like(kept))
    assert all(p.grad is None for p in model.parameters() if p is not kept)
    with pytest.raises(ValueError, match="one continuation"):
        gradient_norms(model, [Query([1], [[5], [6]])])
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError):
        gradient_norms(model, [Query([1], [[5, 6, 7]])])
