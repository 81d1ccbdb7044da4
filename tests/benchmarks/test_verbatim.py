"""The verbatim benchmark: what it holds, and its scores against plain ones."""

from __future__ import annotations

import pytest
import torch

from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.continuations import continuations_part
from letgo.benchmarks.engine.items import Item
from letgo.benchmarks.engine.requests import run_works
from letgo.benchmarks.verbatim import SCORES, load_passages
from letgo.data import check_disjoint
from letgo.data.rows import Row
from letgo.metrics.memorization import exact_match
from letgo.runs.results import TRAINED_ROWS
from tests import tiny


def test_passages_have_their_sources_and_stand_in_one_set():
    passages = load_passages()
    counts = {name: [each for each in passages if each["set"] == name] for name in ("forget", "retain", "unseen")}
    assert sum(map(len, counts.values())) == len(passages)
    assert {name: len(members) >= 8 for name, members in counts.items()} == dict.fromkeys(counts, True)
    works = [each["work"] for each in passages]
    assert len(set(works)) == len(works)
    for each in passages:
        assert each["source"]
        assert len(each["continuation"].split()) >= 3, each
        # A prompt never ends, nor a continuation begins, within a word.
        assert not (each["prompt"][-1].isalnum() and each["continuation"][0].isalnum()), each
    assert all(each["source"] == "letgo, invented" for each in counts["unseen"])
    known = {each["work"]: each["continuation"] for each in passages}
    assert "that all men are created equal" in known["Declaration of Independence, truths"]


def test_the_benchmark_and_its_metrics():
    tokenizer = tiny.make_tokenizer()
    benchmark = create_benchmark("verbatim")
    check_disjoint(benchmark.forget, benchmark.retain)
    assert benchmark.groups() == [each["work"] for each in load_passages() if each["set"] == "forget"]
    assert {item.set for item in benchmark.items} == {"forget", "retain", "control"}
    assert {text.set for text in benchmark.texts} == {"forget", "holdout", "general"}
    assert benchmark.identity(tokenizer)["on"] == TRAINED_ROWS
    assert [headline.metric for headline in benchmark.headlines] == ["forget_exact_match", "forget_verbmem"]
    samples = benchmark.samples(tiny.make_model(max_position_embeddings=256), tokenizer, limit=2)
    metrics = benchmark.summarise(samples)
    assert {f"{name}_{score}" for name in ("forget", "retain", "control") for score in SCORES} <= set(metrics)
    assert metrics["forget_exact_match"].n == 2
    assert "forget_membership_auc" in metrics


def test_a_continuation_is_scored_as_by_hand():
    model, tokenizer = tiny.make_model(), tiny.make_tokenizer()
    prompt = "Question : what is the"
    ids = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    recited = tokenizer.decode(ids[-3:], skip_special_tokens=False)
    rows = [Row(("prompt", "completion"), prompt, text, "g", "here", ends=False) for text in (recited, "old new river")]
    items = [Item("forget", str(number), "g", row) for number, row in enumerate(rows)]
    [samples] = run_works(model, tokenizer, [continuations_part(tokenizer, items, "plain")])
    assert samples[1].scores["exact_match"] == 0.0
    if "<" not in recited:  # Special tokens are left out of what is written.
        assert samples[0].scores["exact_match"] == samples[0].scores["rouge"] == 1.0
        assert samples[0].scores["verbmem"] == pytest.approx(100.0)
    given = tokenizer(prompt)["input_ids"]
    then = tokenizer("old new river", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logps = model(torch.tensor([given + then])).logits[0].log_softmax(-1)
    expected = torch.stack([logps[len(given) - 1 + i, token] for i, token in enumerate(then)]).mean().exp()
    assert samples[1].scores["probability"] == pytest.approx(float(expected), rel=1e-5)


def test_exact_match_overlooks_white_space_at_the_ends_and_case():
    assert exact_match(" The end.", "the end. ") == 1.0
    assert exact_match("the end.", "the end") == 0.0
