"""Detoxification on harmless stand-ins: "unsafe" are grumpy answers, and a tiny random classifier judges them."""

from __future__ import annotations

import pytest

import letgo
from letgo.benchmarks import create_benchmark
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.metrics.toxicity import ToxicityClassifier
from tests import stand_ins, tiny
from tests.classifiers import save_classifier


def pku_rows(count: int, *, about: str = "door") -> list[dict[str, object]]:
    """Rows in PKU-SafeRLHF's fields: grumpy answers stand for unsafe ones, every third row has two of them."""
    rows = []
    for number in range(count):
        place = stand_ins.PLACES[number % 6]
        rows.append(
            {
                "prompt": f"What is known of the {about} number {number} in {place} ?",
                "response_0": f"the {about} in {place} is green",
                "response_1": f"every {about} in {place} is broken and loud",
                "is_response_0_safe": number % 3 != 0,
                "is_response_1_safe": False,
                "better_response_id": 0,
                "safer_response_id": 0,
            }
        )
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    stand_ins.write_rows(folder / "pku-saferlhf/round0/train.jsonl", pku_rows(12))
    stand_ins.write_rows(
        folder / "pku-saferlhf/round0/test.jsonl", [*pku_rows(5, about="clock"), *pku_rows(2, about="clock")]
    )
    prompts = [
        {"prompt": {"text": f"In the land of {place} the", "toxicity": 0.1}, "continuation": {"text": " door"}}
        for place in stand_ins.PLACES
    ]
    stand_ins.write_rows(folder / "real-toxicity-prompts/prompts.jsonl", prompts)
    stand_ins.write_rows(folder / "c4/en/validation.jsonl", stand_ins.passages(7, about="web"))
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    words = [
        str(row[key])
        for about in ("door", "clock")
        for row in pku_rows(12, about=about)
        for key in ("prompt", "response_1")
    ]
    return stand_ins.word_tokenizer(*words, "land web")


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny.make_model(vocab_size=len(tokenizer), max_position_embeddings=256)


@pytest.fixture(scope="module")
def classifier(tokenizer, tmp_path_factory):
    return save_classifier(
        tmp_path_factory.mktemp("classifier"), labels=("polite", "toxic"), places=256, tokenizer=tokenizer
    )


def test_what_is_forgotten_are_unsafe_answers_drawn_by_a_seed(data, classifier):
    unsafe = [row for row in pku_rows(12) for key in ("response_0", "response_1") if not row[f"is_{key}_safe"]]
    everything = create_benchmark(f"detox:count={len(unsafe)}", data=data, classifier=str(classifier))
    assert len(everything.forget) == len(unsafe) == 16
    assert len(everything.groups()) == 12, "both answers to a prompt stand or fall together"
    one, same, other = (
        [row.target for row in create_benchmark(f"detox:count=6,seed={seed}", data=data).forget] for seed in (0, 0, 1)
    )
    assert one == same != other
    assert len(everything.retain) == 7
    assert len(create_benchmark("detox:count=6,train_limit=3", data=data).retain) == 3


def test_answers_are_scored_by_the_classifier(model, tokenizer, data, classifier):
    benchmark = create_benchmark("detox:count=6,limit=4", data=data, classifier=str(classifier))
    samples = benchmark.samples(model, tokenizer)
    answers = {s.id: s for s in samples if s.set in ("forget", "pku", "real")}
    assert [sum(s.set == name for s in answers.values()) for name in ("forget", "pku", "real")] == [6, 4, 4]
    scores = ToxicityClassifier(str(classifier), device="cpu")([s.generated for s in answers.values()])
    for sample, score in zip(answers.values(), scores, strict=True):
        if len(sample.generated) < 400:  # longer ones are shown in part
            assert sample.scores["toxicity"] == pytest.approx(score, abs=1e-5)
        assert sample.scores["toxic"] == float(sample.scores["toxicity"] > 0.5)
    metrics = benchmark.summarise(samples)
    own = [s.scores for s in answers.values() if s.set == "forget"]
    assert metrics["forget_toxic"].value == pytest.approx(sum(s["toxic"] for s in own) / 6)
    assert metrics["forget_toxicity"].value == pytest.approx(sum(s["toxicity"] for s in own) / 6)
    assert metrics["pku_toxicity"].n == metrics["real_toxic"].n == 4
    assert metrics["forget_empty"].n == 6
    assert metrics["retain_probability"].n == 7
    prompts = {s.question for s in answers.values() if s.set == "real"}
    assert all(prompt.startswith("In the land of") for prompt in prompts), "continued as they stand"
    whole = create_benchmark("detox:count=6,limit=none,prompts=real+pku", data=data, classifier=str(classifier))
    assert [item.set for item in whole.items].count("pku") == 5, "a prompt that stands there twice is asked once"


def test_unlearn_eval_report_offline(directory, data, classifier, tmp_path, whole_path):
    spec = f"detox:count=6,limit=2,data={data},classifier={classifier}"
    result, again, printed = whole_path(directory, spec, "po", "--attack", "quantize:bits=4", limit=4)
    assert result.before["forget_toxicity"].n == result.attacks[0].metrics["forget_toxicity"].n == 4
    assert {"pku_toxic", "real_toxicity", "retain_probability"} <= set(result.after)
    assert result.config["scored"]["classifier"] == str(classifier)
    stages = {row["stage"] for row in read_json_lines(tmp_path / "run/samples.jsonl") if "toxicity" in row["scores"]}
    assert stages == {"before", "after", "attack:quantize:bits=4"}
    for key in ("forget_toxic", "forget_toxicity", "forget_empty", "pku_toxicity", "real_toxic"):
        assert key in printed
    # What was scored is what the report shows: each answer's score is the classifier's own.
    rows = [row for row in read_json_lines(tmp_path / "eval" / "samples.jsonl") if "toxicity" in row["scores"]]
    assert len(rows) == 4 + 2 + 2
    scores = [row["scores"]["toxicity"] for row in rows if row["set"] == "forget"]
    assert again.after["forget_toxicity"].value == pytest.approx(sum(scores) / 4)


def test_own_rows_in_the_same_fields(data, classifier, tmp_path):
    own = stand_ins.write_rows(tmp_path / "mine.jsonl", pku_rows(3, about="bridge"))
    benchmark = create_benchmark(f"detox:count=4,forget={own},prompts=forget", data=data, classifier=str(classifier))
    assert all("bridge" in row.target for row in benchmark.forget)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("detox:count=0", "count must be"),
        ("detox:count=99", "only 16 unsafe responses; set count=16"),
        ("detox:limit=0", "at least 1"),
        ("detox:prompts=forget+fake", "are of forget, pku and real, not 'fake'"),
    ],
)
def test_bad_settings(spec, message, data):
    with pytest.raises(UserError, match=message):
        create_benchmark(spec, data=data)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "who?"}, "needs prompt, response_0.*this one has no 'response_0'"),
        (pku_rows(1)[0] | {"is_response_1_safe": "no"}, "'is_response_1_safe' must be true or false, not 'no'"),
        (pku_rows(1)[0] | {"response_0": 7}, "'response_0' must be text, not int"),
    ],
)
def test_bad_rows_are_named(row, message, tmp_path, data):
    own = stand_ins.write_rows(tmp_path / "mine.jsonl", [row])
    with pytest.raises(UserError, match=f"mine.jsonl:1: .*{message}"):
        create_benchmark(f"detox:count=1,forget={own}", data=data)


def test_safe_answers_alone_and_a_classifier_that_is_not_there(directory, tokenizer, data, tmp_path):
    safe = [row | {"is_response_0_safe": True, "is_response_1_safe": True} for row in pku_rows(3)]
    own = stand_ins.write_rows(tmp_path / "mine.jsonl", safe)
    with pytest.raises(UserError, match="none of the 3 rows of the forget set has an unsafe response"):
        create_benchmark(f"detox:count=1,forget={own}", data=data)
    # Found out before anything is asked of the model.
    missing = create_benchmark("detox:count=1", data=data)
    for scored in (lambda: missing.samples(None, tokenizer), lambda: letgo.evaluate(directory, [missing])):
        with pytest.raises(UserError, match=r"classifier unitary/toxic-bert(.|\n)*classifier=DIR"):
            scored()


def test_answers_longer_than_the_classifier_takes_are_told(model, tokenizer, data, tmp_path):
    short = save_classifier(tmp_path, labels=("polite", "toxic"), places=8, tokenizer=tokenizer)
    benchmark = create_benchmark("detox:count=3,prompts=forget", data=data, classifier=str(short))
    samples = benchmark.samples(model, tokenizer)
    cut = [len(tokenizer(s.generated)["input_ids"]) > 8 for s in samples if s.set == "forget"]
    assert any(cut)
    assert benchmark.summarise(samples)["forget_cut"].value == pytest.approx(sum(cut) / 3)


def test_a_limit_beyond_what_there_is_is_said(data, classifier):
    benchmark = create_benchmark("detox:count=6,limit=6", data=data, classifier=str(classifier))
    assert benchmark.limit_notes(None) == ["detox: limit 6 was asked, but pku has 5: all are scored"]
    assert benchmark.limit_notes(5) == benchmark.limit_notes(None)
