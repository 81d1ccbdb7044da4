from __future__ import annotations

import dataclasses

import pytest

from letgo.benchmarks import create_benchmark
from letgo.benchmarks.capitals import HELD_OUT_WORDINGS, TRAINED_WORDINGS, load_capitals
from letgo.benchmarks.engine.base import Benchmark, Headline, Sample
from letgo.benchmarks.engine.general_text import read_paragraphs
from letgo.core.errors import EmptyScoreError, UserError
from letgo.data import check_disjoint
from tests import tiny


@pytest.mark.parametrize("name", ["capitals", "biographies"])
def test_what_is_scored_is_not_what_is_trained_on(name):
    benchmark = create_benchmark(name)
    trained = {row.context for row in (*benchmark.forget, *benchmark.retain)}
    assert not trained & {item.row.context for item in benchmark.items}
    texts = {row.target for row in benchmark.retain if row.form == ("text",)}
    assert not texts & {text.text for text in benchmark.texts if text.set == "general"}
    check_disjoint(benchmark.forget, benchmark.retain)
    groups = {name: {item.group for item in benchmark.items if item.set == name} for name in ("forget", "retain")}
    assert not groups["forget"] & groups["retain"]
    assert groups["forget"] == set(benchmark.groups())
    assert len(groups["forget"]) == 20


@pytest.mark.parametrize("name", ["capitals", "biographies"])
def test_wrong_answers_are_wrong_and_different(name):
    for item in create_benchmark(name).items:
        wrong = [answer.casefold().strip() for answer in item.wrong]
        assert len(set(wrong)) == 3
        assert item.row.target.casefold().strip() not in wrong


def test_capitals_are_facts_told_once():
    facts = load_capitals()
    splits = [fact["split"] for fact in facts]
    assert splits.count("forget") == splits.count("control") == 20
    assert len({fact["country"] for fact in facts}) == len({fact["capital"] for fact in facts}) == len(facts) >= 112
    known = {fact["country"]: fact["capital"] for fact in facts}
    assert known["France"] == "Paris"
    assert not set(TRAINED_WORDINGS) & set(HELD_OUT_WORDINGS)


def test_paragraphs_are_prose_without_capitals():
    paragraphs = read_paragraphs()
    assert len(paragraphs) == len(set(paragraphs)) == 64
    words = [len(paragraph.split()) for paragraph in paragraphs]
    assert 40 <= min(words) <= max(words) <= 90
    text = " ".join(paragraphs)
    assert not [fact["capital"] for fact in load_capitals() if f" {fact['capital']} " in text]


def test_samples_and_their_summary(model, tokenizer):
    benchmark = create_benchmark("rows", forget=tiny.FORGET, retain=tiny.RETAIN)
    samples = benchmark.samples(model, tokenizer)
    metrics = benchmark.summarise(samples)
    assert metrics["forget_probability"].n == 4
    assert metrics["forget_probability"].value == pytest.approx(
        sum(s.scores["probability"] for s in samples if s.set == "forget") / 4
    )
    assert {"forget_rouge", "retain_probability", "general_perplexity", "general_degenerate"} <= set(metrics)
    again = [Sample.from_row(sample.as_row("before", 0)) for sample in samples]
    assert benchmark.summarise(again) == metrics
    few = benchmark.summarise(benchmark.samples(model, tokenizer, limit=2))
    assert few["forget_probability"].n == few["retain_probability"].n == few["general_perplexity"].n == 2


def test_probability_equals_the_plain_scorer(model, tokenizer):
    from letgo.data.encode import encode_prompt
    from tests.reference.scoring import token_logps

    benchmark = create_benchmark("rows", forget=tiny.FORGET)
    samples = benchmark.samples(model, tokenizer)
    for row, sample in zip(benchmark.forget, samples, strict=False):
        answer = tokenizer(row.target, add_special_tokens=False)["input_ids"]
        expected = token_logps(model, encode_prompt(tokenizer, row, "plain"), answer).mean().exp()
        assert sample.scores["probability"] == pytest.approx(float(expected), rel=1e-5)


def test_generation_of_a_part_is_spread_over_the_set(model, tokenizer):
    benchmark = create_benchmark("rows", forget=tiny.FORGET, retain=tiny.RETAIN)
    samples = dataclasses.replace(benchmark, generated=2).samples(model, tokenizer)
    assert [s.id for s in samples if "rouge" in s.scores] == ["forget-0", "forget-2", "retain-0", "retain-2"]
    whole = benchmark.samples(model, tokenizer)
    assert [s.scores["probability"] for s in samples[:8]] == [s.scores["probability"] for s in whole[:8]]


def test_capitals_ask_all_wordings():
    items = create_benchmark("capitals").items
    assert sum(item.set == "forget" for item in items) == 60
    for name, count in {"retain": 78, "control": 20}.items():
        ids = [item.id for item in items if item.set == name]
        assert len(ids) == count
        assert {identifier[-1] for identifier in ids} == {"0", "1", "2"}


def test_controls_of_capitals_are_invented_and_scored_apart():
    benchmark = create_benchmark("capitals")
    real = {fact[key] for fact in load_capitals() if fact["split"] != "control" for key in ("country", "capital")}
    controls = [item for item in benchmark.items if item.set == "control"]
    assert {row.group for row in benchmark.control} == {item.group for item in controls}
    assert len(benchmark.control) == 20 * len(TRAINED_WORDINGS)
    assert not {row.context for row in benchmark.control} & {item.row.context for item in controls}
    invented = {row.target for row in benchmark.control}
    assert not {row.group for row in benchmark.control} & real
    assert not {target.strip() for target in invented} & real
    for item in benchmark.items:
        assert (set(item.wrong) <= invented) == (item.set == "control")
    check_disjoint(benchmark.control, [*benchmark.forget, *benchmark.retain])


def test_few_controls_are_answered_by_generation(model, tokenizer):
    benchmark = create_benchmark("capitals")
    few = dataclasses.replace(benchmark, texts=())
    metrics = few.summarise(few.samples(model, tokenizer))
    assert [metrics[f"{name}_rouge"].n for name in ("forget", "retain", "control")] == [20, 20, 5]
    assert [metrics[f"control_{score}"].n for score in ("accuracy", "probability", "truth_ratio")] == [20] * 3


def test_what_the_record_says_of_the_wording(tokenizer):
    for name in ("capitals", "biographies"):
        assert create_benchmark(name).identity(tokenizer)["on"] == "paraphrases"


def test_wrong_answers_in_a_users_rows_make_a_choice(model, tokenizer):
    rows = [row | {"wrong_answers": ["red", "blue"]} for row in tiny.FORGET]
    metrics = create_benchmark("rows", forget=rows)
    assert metrics.summarise(metrics.samples(model, tokenizer))["forget_accuracy"].n == 4


def test_texts_without_a_start_token_are_scored_from_their_second_token(model):
    tokenizer = tiny.make_tokenizer(bos=False)
    benchmark = create_benchmark("rows", forget=[{"text": "old river stone"}])
    [sample] = [s for s in benchmark.samples(model, tokenizer) if s.set == "forget"]
    assert 0 < sample.scores["probability"] < 1
    with pytest.raises(UserError, match="text of one token"):
        create_benchmark("rows", forget=[{"text": "stone"}]).samples(model, tokenizer)


def test_nothing_to_score_is_an_error(model, tokenizer):
    empty = Benchmark("empty", [], [], [], [], (Headline("forget_probability"),))
    with pytest.raises(EmptyScoreError):
        empty.samples(model, tokenizer)
    with pytest.raises(EmptyScoreError):
        empty.summarise([])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("biograhpies", "did you mean 'biographies'"),
        ("biographies:seeds=1", "did you mean 'seed'"),
        ("rows", "needs a value for forget"),
        ("rows:forget=nowhere.jsonl", "no such file"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message):
        create_benchmark(spec)
