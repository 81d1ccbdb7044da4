from __future__ import annotations

import pytest
import torch

from letgo.scoring import packed as module
from letgo.scoring.packed import packed
from letgo.scoring.scoring import Query, continuation_logps, generate
from tests.scoring import architectures

needed = pytest.mark.skipif(not module.works(), reason="this build of PyTorch has no oneDNN")


@pytest.fixture
def eager(monkeypatch):
    """Small models and few tokens are packed too."""
    monkeypatch.setattr(module, "LEAST_TOKENS", 1)
    monkeypatch.setattr(module, "_FEWEST_ELEMENTS", 1)


def count_packed(model):
    return sum("forward" in layer.__dict__ for layer in model.modules())


@needed
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_same_scores_and_answers(name, eager, tokenizer, monkeypatch):
    model = architectures.make(name)
    queries = [Query([5, 6, 7, n], [[8, 9], [9, 10, n]]) for n in range(8, 20)]
    fast = continuation_logps(model, queries)
    answers = generate(model, tokenizer, [[5, 6, n] for n in range(8, 20)], max_new_tokens=8)
    assert count_packed(model) == 0, "nothing is left behind"
    monkeypatch.setattr(module, "LEAST_TOKENS", 10**9)
    for first, second in zip(fast, continuation_logps(model, queries), strict=True):
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert answers == generate(model, tokenizer, [[5, 6, n] for n in range(8, 20)], max_new_tokens=8)


@needed
def test_what_is_packed(eager, model, monkeypatch):
    linear = [m for m in model.modules() if type(m) is torch.nn.Linear]
    with packed(model, 1):
        assert count_packed(model) == len(linear) > 10
        with packed(model, 1):
            assert count_packed(model) == len(linear), "what is replaced already is left alone"
        assert count_packed(model) == len(linear)
    assert count_packed(model) == 0
    with pytest.raises(KeyboardInterrupt), packed(model, 1):
        raise KeyboardInterrupt
    assert count_packed(model) == 0
    with packed(model, 0):
        assert count_packed(model) == 0, "too few tokens"
    with packed(model.to(torch.bfloat16), 1):
        assert count_packed(model) == 0
    model.to(torch.float32)
    monkeypatch.setattr(module, "_free_memory", lambda: 1000.0)
    with packed(model, 1):
        assert count_packed(model) == 0, "too little memory"


def test_without_the_operators_nothing_is_packed(eager, model, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with packed(model, 1):
        assert count_packed(model) == 0


@needed
def test_changed_weights_are_packed_anew(eager, model):
    query = [Query([5, 6], [[7, 8]])]
    [[before]] = continuation_logps(model, query)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(30.0)
    [[after]] = continuation_logps(model, query)
    assert not torch.allclose(before, after)
