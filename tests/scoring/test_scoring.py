from __future__ import annotations

import itertools

import pytest
import torch

from letgo.core.errors import NonFiniteLossError, UserError
from letgo.scoring import head
from letgo.scoring.abilities import abilities
from letgo.scoring.in_memory import InMemory
from letgo.scoring.resume_log import ResumeLog
from letgo.scoring.scoring import Backend, Query, backend_of, continuation_logps, score, text_query
from tests import tiny
from tests.reference import scoring as reference
from tests.scoring import architectures


def random_queries(count, answers, generator, *, shared=()):
    def tokens(low, high):
        n = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, 60, (n,), generator=generator).tolist()

    return [Query([*shared, *tokens(1, 12)], [tokens(1, 7) for _ in range(answers)]) for _ in range(count)]


def assert_equals_reference(model, queries, scored, **tolerance):
    tolerance = tolerance or {"rtol": 1e-5, "atol": 2e-6}
    for query, row in zip(queries, scored, strict=True):
        for continuation, found in zip(query.continuations, row, strict=True):
            expected = reference.token_logps(model, list(query.prefix), list(continuation))
            torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("answers", [1, 4])
@pytest.mark.parametrize("budget", [8, 64, None])
def test_equals_the_one_by_one_scorer(model, answers, budget):
    queries = random_queries(13, answers, torch.Generator().manual_seed(answers))
    assert_equals_reference(model, queries, continuation_logps(model, queries, token_budget=budget))


def test_mixed_numbers_of_answers_and_equal_prefixes(model):
    generator = torch.Generator().manual_seed(1)
    queries = random_queries(3, 1, generator) + random_queries(3, 4, generator)
    for prefix in ([5, 6, 7], [5, 6, 7, 8, 9, 10, 11, 12, 13]):
        same = [Query(prefix, query.continuations) for query in queries]
        assert_equals_reference(model, same, continuation_logps(model, same))


@pytest.mark.parametrize("name", architectures.NAMES)
def test_every_architecture(name):
    model = architectures.make(name)
    generator = torch.Generator().manual_seed(3)
    shared = torch.randint(3, 60, (40,), generator=generator).tolist()
    queries = random_queries(5, 3, generator) + random_queries(4, 2, generator, shared=shared)
    assert_equals_reference(model, queries, continuation_logps(model, queries), rtol=2e-5, atol=2e-5)


def test_abilities_are_found_out():
    found = {name: abilities(architectures.make(name)) for name in architectures.NAMES}
    for name in ("llama", "qwen2", "gemma", "gpt2", "opt", "gpt_neox", "cohere-scale"):
        assert found[name].trees, name
        assert found[name].padding, name
        assert found[name].window is None, name
    for name in ("mistral-window", "gemma2-window-cap", "gemma3-window"):
        assert found[name].window == 6, name
    assert not found["bloom"].trees, "its positions are columns of the mask"
    assert found["mamba"].layers == 0


def test_a_model_that_ignores_positions_is_not_given_trees():
    """Trying it out finds what a config does not tell."""
    model = tiny.make_model()
    forward = type(model).forward

    def deaf(self, *args, position_ids=None, **kwargs):
        return forward(self, *args, **kwargs)

    model.forward = deaf.__get__(model)
    assert not abilities(model).trees
    assert not abilities(model).padding
    queries = random_queries(4, 3, torch.Generator().manual_seed(5))
    assert_equals_reference(model, queries, continuation_logps(model, queries))


def total(shapes):
    return sum(shape.numel() for shape in shapes)


def test_what_begins_alike_is_run_once(model, monkeypatch):
    abilities(model)
    ran = architectures.watch_inputs(model, monkeypatch)
    prefix = list(range(3, 23))
    continuation_logps(model, [Query(prefix, [[30, 31, 40 + n] for n in range(6)])])
    assert total(ran) == 22, "the prefix, and the two first tokens that all answers share"
    ran.clear()
    shared = list(range(10, 50))
    continuation_logps(model, [Query([*shared, n], [[5, 6]]) for n in range(50, 58)])
    assert total(ran) == 40 + 8 * 2, "the stem once"
    ran.clear()
    continuation_logps(model, [Query(prefix, [[n]]) for n in range(4)])
    assert total(ran) == 20, "four queries with one prefix are one"


def test_statistics_and_matches(model):
    queries = random_queries(7, 3, torch.Generator().manual_seed(9))
    for query, row in zip(queries, score(model, queries, statistics=True, matches=True), strict=True):
        for continuation, found in zip(query.continuations, row, strict=True):
            logps, means, deviations, matches = reference.token_statistics(model, query.prefix, continuation)
            torch.testing.assert_close(found.logps, logps, rtol=1e-5, atol=2e-6)
            torch.testing.assert_close(found.means, means, rtol=1e-5, atol=2e-6)
            torch.testing.assert_close(found.deviations, deviations, rtol=1e-4, atol=2e-6)
            assert found.matches.tolist() == matches


@pytest.mark.parametrize("name", ["llama", "gemma2-window-cap"])
def test_long_texts_in_chunks_of_positions(name, monkeypatch):
    monkeypatch.setattr(head, "_FEWEST_POSITIONS", 5)
    monkeypatch.setattr(head, "CHUNK_BYTES", 1)
    model, generator = architectures.make(name), torch.Generator().manual_seed(4)
    texts = [torch.randint(3, 60, (n,), generator=generator).tolist() for n in (2, 17, 40, 41)]
    scored = score(model, [text_query(text) for text in texts], matches=True)
    for text, [found] in zip(texts, scored, strict=True):
        assert found.logps.shape == (len(text) - 1,)
        torch.testing.assert_close(found.logps, reference.token_logps(model, text[:1], text[1:]), rtol=1e-5, atol=1e-5)


def test_logits_of_a_text_are_never_whole(model, monkeypatch):
    """The output layer sees at most a chunk of positions."""
    monkeypatch.setattr(head, "_FEWEST_POSITIONS", 8)
    monkeypatch.setattr(head, "CHUNK_BYTES", 1)
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape[:-1].numel()))
    score(model, [text_query(list(range(3, 60)))])
    assert max(seen) <= 8
    assert sum(seen) >= 56


def test_torch_is_a_backend_as_any_other(model):
    queries = [Query([1, 4, 5], [[7, 8], [9, 10, 11]]), Query([1, 4], [[7]])]
    named, bare = ([[s.logps.tolist() for s in row] for row in score(m, queries)] for m in (InMemory(model), model))
    assert named == bare
    assert isinstance(backend_of(model), Backend)
    assert backend_of(backend_of(model)) == backend_of(model) == InMemory(model)


def test_text_query_wants_a_start_and_a_token():
    assert text_query([1, 5, 6]) == Query([1], [[5, 6]])
    with pytest.raises(ValueError, match="two tokens"):
        text_query([1])


def test_is_deterministic_and_leaves_the_mode_alone(model):
    queries = random_queries(6, 3, torch.Generator().manual_seed(2))
    model.train()
    first, second = continuation_logps(model, queries), continuation_logps(model, queries)
    assert model.training
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("query", [Query([], [[1]]), Query([1], []), Query([1], [[2], []])])
def test_empty_parts_are_refused(model, query):
    with pytest.raises(ValueError, match="at least one token"):
        continuation_logps(model, [query])


def test_texts_beyond_learned_positions_are_refused():
    model = architectures.make("gpt2")
    assert len(score(model, [text_query([5] * 97)])[0][0].logps) == 96
    with pytest.raises(UserError, match="query 1 has 97 tokens, but the model has 96 positions"):
        score(model, [text_query([5, 6]), text_query([5] * 98)])


@pytest.mark.parametrize("answers", [[[5, 6]], [[5, 6], [5, 7, 8]]])
def test_a_broken_model_is_said_to_be_broken(model, answers):
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError):
        continuation_logps(model, [Query([4], answers)])


def test_progress_counts_every_query(model):
    done = []
    continuation_logps(model, random_queries(7, 2, torch.Generator().manual_seed(5)), advance=done.append)
    assert sum(done) == 7


def test_a_killed_scoring_goes_on_to_the_same_bits(model, tmp_path, monkeypatch):
    queries = random_queries(20, 2, torch.Generator().manual_seed(6))
    whole = score(model, queries, token_budget=60, matches=True)
    path, stops = tmp_path / "scores.jsonl", itertools.count()

    def killer(done):
        if next(stops) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ResumeLog(path, {"model": "a"}) as log:
        score(model, queries, token_budget=60, matches=True, advance=killer, log=log)
    done: list[int] = []
    with ResumeLog(path, {"model": "a"}) as log:
        before = len(log)
        assert 0 < before < 20
        ran = architectures.watch_inputs(model, monkeypatch)
        resumed = score(model, queries, token_budget=60, matches=True, advance=done.append, log=log)
        assert len(log) == 20
    assert done[0] == before
    assert sum(done) == 20
    assert total(ran) < sum(len(q.prefix) + sum(map(len, q.continuations)) for q in queries)
    for first, second in zip(itertools.chain(*whole), itertools.chain(*resumed), strict=True):
        assert torch.equal(first.logps, second.logps)
        assert torch.equal(first.matches, second.matches)
        assert second.means is None
    ran.clear()
    with ResumeLog(path, {"model": "a"}) as log:
        score(model, queries, token_budget=60, matches=True, log=log)
        assert not ran, "all is in the log"
        score(model, queries, token_budget=60, log=log)
        assert ran, "other settings are other scores"


def test_tiny_vocabulary_covers_the_tiny_words(tokenizer):
    assert tokenizer.unk_token_id not in tokenizer(" ".join(tiny.WORDS))["input_ids"]
