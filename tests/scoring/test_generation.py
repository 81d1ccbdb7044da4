from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from letgo.core.errors import NonFiniteLossError, UserError
from letgo.scoring import generation
from letgo.scoring.generation import end_tokens, generate
from letgo.scoring.resume_log import ResumeLog
from letgo.scoring.sampling import Sampling
from tests import tiny
from tests.reference import scoring as reference
from tests.scoring import architectures


def random_prompts(count, low, high, seed, shared=()):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=generator).tolist()
    return [[*shared, *torch.randint(3, 60, (n,), generator=generator).tolist()] for n in lengths]


def of_library(model, prompt, room):
    """What `model.generate` gives for one prompt."""
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", architectures.NAMES)
def test_tokens_are_those_of_generate(name, tokenizer):
    """Every architecture, prompts of all lengths, with and without a prefix that all share."""
    model = architectures.make(name)
    shared = random_prompts(1, 40, 41, 8)[0]
    prompts = random_prompts(6, 1, 12, 1) + random_prompts(4, 1, 5, 2, shared)
    answers = generate(model, tokenizer, prompts, max_new_tokens=9)
    for prompt, [answer] in zip(prompts, answers, strict=True):
        assert list(answer.tokens) == of_library(model, prompt, 9)
        assert answer.end == ("end" if answer.tokens[-1] == 2 else "length")


@pytest.mark.parametrize("budget", [10, 60, None])
def test_greedy_equals_the_one_by_one_loop(model, tokenizer, budget):
    prompts = random_prompts(9, 1, 12, 4)
    answers = generate(model, tokenizer, prompts, max_new_tokens=6, token_budget=budget)
    for prompt, [answer] in zip(prompts, answers, strict=True):
        tokens = reference.greedy_tokens(model, list(prompt), 6, tokenizer.eos_token_id)
        assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True)


def test_rows_that_end_are_taken_out(tokenizer, monkeypatch):
    """Rooms of all sizes: what a row gets does not depend on when its neighbours end, and ended rows cost nothing."""
    model = architectures.make("llama")
    prompts, rooms = random_prompts(16, 3, 6, 5), list(range(1, 17))
    generation.abilities(model)
    shapes = architectures.watch_inputs(model, monkeypatch)
    answers = generate(model, tokenizer, prompts, max_new_tokens=rooms)
    monkeypatch.undo()
    for prompt, room, [answer] in zip(prompts, rooms, answers, strict=True):
        assert list(answer.tokens) == of_library(model, prompt, room)
    widths = [rows for rows, _ in shapes]
    assert max(widths) == 16
    assert sum(widths) < 16 * 16 * 0.75
    assert widths[-1] <= 2


def test_the_shared_prefix_is_run_once(tokenizer, monkeypatch):
    model = architectures.make("llama")
    generation.abilities(model)
    shapes = architectures.watch_inputs(model, monkeypatch)
    shared = random_prompts(1, 40, 41, 8)[0]
    prompts = [[*shared, n, 5] for n in range(20, 30)]
    generate(model, tokenizer, prompts, max_new_tokens=1)
    assert sum(shape.numel() for shape in shapes) == 40 + 10 * 2
    shapes.clear()
    generate(model, tokenizer, prompts[:1], max_new_tokens=1, sampling=Sampling(), samples=8)
    assert sum(shape.numel() for shape in shapes) == 42, "eight samples of one prompt"


class Words:
    """A tokenizer whose text shows a token as a letter or a stop."""

    eos_token_id = 2
    pad_token_id = 0

    def decode(self, tokens, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens
        return "".join("\n" if token % 8 == 0 else chr(97 + token % 26) for token in tokens if token > 2)


def test_stop_strings_end_an_answer_and_are_cut():
    model, words = architectures.make("llama"), Words()
    prompts = random_prompts(12, 2, 9, 7)
    free = [answer for [answer] in generate(model, words, prompts, max_new_tokens=24)]
    stops = ("\n", free[0].text[3:6])
    stopped = [answer for [answer] in generate(model, words, prompts, max_new_tokens=24, stop=stops)]
    assert {answer.end for answer in stopped} >= {"stop"}
    for whole, answer in zip(free, stopped, strict=True):
        cut = whole.text
        for stop in stops:
            cut = cut.split(stop)[0]
        assert answer.text == cut
        assert answer.tokens == whole.tokens[: len(answer.tokens)]
        if answer.end == "stop":
            assert len(answer.tokens) < 24 or any(stop in words.decode(answer.tokens, True, None) for stop in stops)


def test_end_tokens_are_the_models_own(tokenizer):
    model = tiny.make_model()
    assert end_tokens(model, tokenizer) == {2}
    model.generation_config.eos_token_id = [5, 7]
    assert end_tokens(model, tokenizer) == {5, 7}
    model.generation_config.eos_token_id = None
    assert end_tokens(model, tokenizer) == {tokenizer.eos_token_id}


def test_samples_depend_on_nothing_beside_them(tokenizer):
    model, prompts = architectures.make("llama"), random_prompts(6, 2, 9, 3)
    how = Sampling(temperature=0.7, top_p=0.9, seed=4)
    settings = {"max_new_tokens": 8, "sampling": how, "samples": 3}
    together = generate(model, tokenizer, prompts, **settings)
    assert together == generate(model, tokenizer, prompts, token_budget=20, **settings)
    assert together[::-1] == [generate(model, tokenizer, [prompt], **settings)[0] for prompt in prompts[::-1]]
    fewer = generate(model, tokenizer, prompts, **(settings | {"samples": 2}))
    assert [row[:2] for row in together] == fewer
    assert len({answer.tokens for row in together for answer in row}) > 12
    other = generate(model, tokenizer, prompts, **(settings | {"sampling": Sampling(0.7, 0.9, seed=5)}))
    assert other != together


def test_equal_prompts_are_sampled_apart(tokenizer):
    model, prompt = architectures.make("llama"), [5, 6, 7]
    [[first], [second]] = generate(model, tokenizer, [prompt, prompt], max_new_tokens=12, sampling=Sampling())
    assert first.tokens != second.tokens


def test_draws_follow_the_probabilities():
    """Chi-square over the nucleus: 0.4, 0.3, 0.2 reach 0.85 with the third."""
    probabilities = torch.tensor([0.05, 0.4, 0.03, 0.3, 0.02, 0.2])
    how, count = Sampling(top_p=0.85), 6000
    generators = [how.generator([1], 0, number) for number in range(count)]
    drawn = Counter(how.draw(probabilities.log().expand(count, -1), generators))
    assert set(drawn) == {1, 3, 5}
    expected = {1: 4 / 9, 3: 3 / 9, 5: 2 / 9}
    chi = sum((drawn[k] - count * p) ** 2 / (count * p) for k, p in expected.items())
    assert chi < 13.8, "0.1 % of two degrees of freedom"
    everything = Counter(Sampling().draw(probabilities.log().expand(count, -1), generators))
    chi = sum((everything[k] - count * float(p)) ** 2 / (count * float(p)) for k, p in enumerate(probabilities))
    assert chi < 20.5, "0.1 % of five degrees of freedom"
    cold = Counter(Sampling(temperature=0.05).draw(probabilities.log().expand(count, -1), generators))
    assert cold[1] / count > 0.99


def test_a_nucleus_wider_than_the_first_look():
    logits = torch.zeros((4, 3000))
    how = Sampling(top_p=0.5)
    drawn = {t for n in range(100) for t in how.draw(logits, [how.generator([n], 0, k) for k in range(4)])}
    assert len(drawn) > 320, "1,500 of 3,000 equal tokens are in the nucleus"


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_settings_are_checked(settings):
    with pytest.raises(ValueError, match="must be above 0"):
        Sampling(**settings)


def test_a_killed_generation_goes_on(tokenizer, tmp_path):
    model, prompts = architectures.make("llama"), random_prompts(20, 2, 12, 11)
    settings = {"max_new_tokens": 6, "sampling": Sampling(seed=1), "samples": 2, "token_budget": 100}
    whole = generate(model, tokenizer, prompts, **settings)
    stops = itertools.count()

    def killer(done):
        if next(stops) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ResumeLog(tmp_path / "log", {}) as log:
        generate(model, tokenizer, prompts, advance=killer, log=log, **settings)
    done: list[int] = []
    with ResumeLog(tmp_path / "log", {}) as log:
        before = len(log)
        assert 0 < before < 20
        assert generate(model, tokenizer, prompts, advance=done.append, log=log, **settings) == whole
    assert done[0] == before
    assert sum(done) == 20


def test_what_can_not_be_generated_is_refused(tokenizer):
    model = architectures.make("llama")
    for prompts, settings, message in (
        ([[5], []], {"max_new_tokens": 3}, "at least one token"),
        ([[5]], {"max_new_tokens": 0}, "at least 1, not 0"),
        ([[5]], {"max_new_tokens": [3, 4]}, "for 2"),
        ([[5]], {"max_new_tokens": 3, "samples": 2}, "need sampling"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(model, tokenizer, prompts, **settings)
    with pytest.raises(UserError, match="prompt 1 has 90 tokens and may get 20 more, but the model has 96 positions"):
        generate(architectures.make("gpt2"), tokenizer, [[5], [5] * 90], max_new_tokens=20)


def test_a_broken_model_is_said_to_be_broken(model, tokenizer):
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError):
        generate(model, tokenizer, [[4, 5]], max_new_tokens=2)
