"""A broken model answers nothing, which is not forgetting: however it is broken, the word is collapsed."""

from __future__ import annotations

import math

import pytest
import torch

from letgo.benchmarks import create_benchmark
from letgo.metrics.judgement import judge
from letgo.metrics.robustness import collapse_reasons
from letgo.models.load import load_model, load_tokenizer


@pytest.fixture(scope="module")
def known():
    """The benchmark, the tokenizer, and the samples of a model that knows."""
    benchmark, tokenizer = create_benchmark("biographies"), load_tokenizer("biographies")
    return benchmark, tokenizer, benchmark.samples(load_model("biographies"), tokenizer, limit=12)


@torch.no_grad()
def constant(weight):
    """One token ahead of all others, whatever is asked."""
    direction = weight.mean(dim=0)
    weight.mul_(1e-3)
    weight[17] = 1e3 * direction * torch.sign(direction @ direction)
    weight[18] = -weight[17]


@torch.no_grad()
def shuffled(weight):
    weight.copy_(weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))])


@torch.no_grad()
def zero(weight):
    weight.zero_()


@torch.no_grad()
def negated(weight):
    weight.neg_()


@torch.no_grad()
def huge(weight):
    weight.mul_(1e4)


@pytest.mark.parametrize("breaking", [constant, shuffled, zero, negated, huge], ids=lambda f: f.__name__)
def test_a_broken_model_has_collapsed(known, breaking):
    benchmark, tokenizer, before = known
    model = load_model("biographies")
    breaking(model.get_output_embeddings().weight)
    after = benchmark.samples(model, tokenizer, limit=12)
    metrics = benchmark.summarise(after)
    assert all(math.isfinite(end) for metric in metrics.values() for end in metric.ci95)
    reasons = collapse_reasons(benchmark.summarise(before), metrics)
    assert reasons
    judgement = judge(benchmark.headlines, before, after, broken=reasons)
    assert judgement.word == "collapsed"
    assert judgement.why == "; ".join(reasons)


def test_the_same_model_has_not(known):
    benchmark, tokenizer, before = known
    again = benchmark.samples(load_model("biographies"), tokenizer, limit=12)
    assert collapse_reasons(benchmark.summarise(before), benchmark.summarise(again)) == []
    assert judge(benchmark.headlines, before, again).word == "not forgotten"
