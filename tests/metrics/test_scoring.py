from __future__ import annotations

import pytest
import torch

from letgo.errors import NonFiniteLossError
from letgo.metrics.scoring import Query, continuation_logps, greedy
from tests import tiny
from tests.reference import scoring as reference


def random_queries(count, answers, generator):
    def tokens(low, high):
        n = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, 60, (n,), generator=generator).tolist()

    return [Query(tokens(1, 12), [tokens(1, 7) for _ in range(answers)]) for _ in range(count)]


@pytest.mark.parametrize("answers", [1, 4])
@pytest.mark.parametrize("budget", [8, 64, 4096])
def test_equals_the_one_by_one_scorer(model, answers, budget):
    queries = random_queries(13, answers, torch.Generator().manual_seed(answers))
    scored = continuation_logps(model, queries, token_budget=budget)
    for query, logps in zip(queries, scored, strict=True):
        for continuation, found in zip(query.continuations, logps, strict=True):
            expected = reference.token_logps(model, list(query.prefix), list(continuation))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


def test_mixed_numbers_of_answers(model):
    generator = torch.Generator().manual_seed(1)
    queries = random_queries(3, 1, generator) + random_queries(3, 4, generator)
    queries = [Query([5, 6, 7], query.continuations) for query in queries]
    for query, logps in zip(queries, continuation_logps(model, queries), strict=True):
        for continuation, found in zip(query.continuations, logps, strict=True):
            expected = reference.token_logps(model, [5, 6, 7], list(continuation))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


def test_is_deterministic_and_leaves_the_mode_alone(model):
    queries = random_queries(6, 3, torch.Generator().manual_seed(2))
    model.train()
    first, second = continuation_logps(model, queries), continuation_logps(model, queries)
    assert model.training
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("make", ["gpt2", "qwen2", "gemma"])
def test_other_architectures(make):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    settings = {
        "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "qwen2": sizes | {k: heads[k] for k in ("num_attention_heads", "num_key_value_heads")},
        "gemma": sizes | heads,
    }[make]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = AutoModelForCausalLM.from_config(AutoConfig.for_model(make, **settings)).eval()
    queries = random_queries(5, 3, torch.Generator().manual_seed(3))
    for query, logps in zip(queries, continuation_logps(other, queries), strict=True):
        for continuation, found in zip(query.continuations, logps, strict=True):
            expected = reference.token_logps(other, list(query.prefix), list(continuation))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("query", [Query([], [[1]]), Query([1], []), Query([1], [[2], []])])
def test_empty_parts_are_refused(model, query):
    with pytest.raises(ValueError, match="at least one token"):
        continuation_logps(model, [query])


def test_a_broken_model_is_said_to_be_broken(model):
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError):
        continuation_logps(model, [Query([4], [[5, 6]])])


@pytest.mark.parametrize("budget", [10, 4096])
def test_greedy_equals_the_one_by_one_loop(model, tokenizer, budget):
    prompts = [query.prefix for query in random_queries(9, 1, torch.Generator().manual_seed(4))]
    texts = greedy(model, tokenizer, prompts, max_new_tokens=6, token_budget=budget)
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = reference.greedy_tokens(model, list(prompt), 6, tokenizer.eos_token_id)
        assert text == tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_progress_counts_every_query(model):
    done = []
    continuation_logps(model, random_queries(7, 2, torch.Generator().manual_seed(5)), advance=done.append)
    assert sum(done) == 7


def test_tiny_vocabulary_covers_the_tiny_words(tokenizer):
    assert tokenizer.unk_token_id not in tokenizer(" ".join(tiny.WORDS))["input_ids"]
