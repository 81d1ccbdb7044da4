"""Verbatim continuation, on a text of our own."""

from __future__ import annotations

import pytest
import torch

from letgo.benchmarks import create_benchmark
from letgo.benchmarks.copyright import SEEN, UNSEEN
from letgo.core.errors import UserError
from letgo.metrics.bleu import bleu
from letgo.metrics.memorization import rouge_l_recall
from tests import stand_ins, tiny
from tests.reference.scoring import token_logps

STORY = " ".join(row["text"] for row in stand_ins.passages(12, about="story"))
SETTINGS = "prefixes=4+8,answer_tokens=6"


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(STORY, encoding="utf-8")
    return path


@pytest.fixture
def kept(tmp_path):
    return stand_ins.write_rows(tmp_path / "kept.jsonl", stand_ins.passages(6, about="garden"))


@pytest.fixture(scope="module")
def tokenizer():
    return stand_ins.word_tokenizer(STORY, "garden", *(text.replace("{prefix}", "") for text in (*SEEN, *UNSEEN)))


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny.make_model(vocab_size=len(tokenizer), max_position_embeddings=128)


def test_instructions_are_of_two_kinds_without_overlap():
    assert not set(SEEN) & set(UNSEEN)
    assert all(text.count("{prefix}") == 1 for text in (*SEEN, *UNSEEN))


def test_what_is_asked_and_how_it_is_scored(model, tokenizer, story, kept):
    """Every sample against the plain way: one prompt at a time through transformers' own generate."""
    benchmark = create_benchmark(f"copyright:{SETTINGS},limit=3", text=story, retain=kept)
    samples = benchmark.samples(model, tokenizer)
    own = [s for s in samples if s.set == "forget"]
    words = STORY.split()
    assert [row.target for row in benchmark.forget] == [" ".join(words[n * 14 : n * 14 + 14]) for n in range(3)]
    assert len(own) == 3 * 2 * 2
    for sample in own:
        kind, length, _ = sample.id.split("/", 2)
        place = next(n for n, row in enumerate(benchmark.forget) if row.group == sample.group)
        passage = words[place * 14 : place * 14 + 14]
        prefix, truth = " ".join(passage[: int(length)]), " ".join(passage[int(length) : int(length) + 6])
        question = {"seen": SEEN, "unseen": UNSEEN}[kind][place % 4].format(prefix=prefix)
        ids = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
        with torch.no_grad():
            output = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        said = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()
        assert sample.generated == said
        assert sample.scores["rouge"] == rouge_l_recall(truth, said)
        assert sample.scores["bleu"] == bleu(truth, said)
        answer = tokenizer(" " + truth, add_special_tokens=False)["input_ids"]
        assert sample.scores["probability"] == pytest.approx(
            float(token_logps(model, ids, answer).mean().exp()), rel=1e-4
        )
    metrics = benchmark.summarise(samples)
    assert metrics["forget_rouge"].n == metrics["forget_bleu"].n == 12
    assert metrics["forget_unseen_8_rouge"].n == metrics["forget_seen_4_bleu"].n == 3
    assert metrics["retain_probability"].n == 6
    assert {"general_perplexity", "general_degenerate"} <= set(metrics)


def test_bleu_of_a_perfect_continuation_is_a_hundred():
    text = "the people of Cobbun talk about it every day"
    assert bleu(text, text) == pytest.approx(100.0)
    assert bleu(text, "") == 0.0
    # By hand: 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, 0 of 1 (smoothed to 1/2), equally long.
    assert bleu("a b c d", "a b c x") == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)


def test_training_rows_are_seen_instructions_with_all_that_follows(tokenizer, story):
    benchmark = create_benchmark(f"copyright:{SETTINGS}", text=story)
    encoded, _ = benchmark.encode(tokenizer, benchmark.forget, max_length=128)
    first, row = encoded[0], benchmark.forget[0]
    passage = STORY.split()[:14]
    question = SEEN[0].format(prefix=" ".join(passage[:4]))
    target = tokenizer(" " + " ".join(passage[4:]), add_special_tokens=False)["input_ids"]
    prompt = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
    assert first.input_ids == [*prompt, *target, tokenizer.eos_token_id]
    assert first.labels == [-100] * len(prompt) + first.input_ids[len(prompt) :]
    assert first.row is row
    [other] = benchmark.encode_alternatives(tokenizer, [first], ["every day"], max_length=128)
    refusal = tokenizer(" every day", add_special_tokens=False)["input_ids"]
    assert other.input_ids == [*prompt, *refusal, tokenizer.eos_token_id], "the same prompt with another answer"


def test_rows_of_text_are_passages_as_they_stand(model, tokenizer, tmp_path):
    rows = stand_ins.passages(3)
    path = stand_ins.write_rows(tmp_path / "rows.jsonl", [*rows, {"text": "too short ."}])
    benchmark = create_benchmark(f"copyright:{SETTINGS}", text=path)
    assert [row.target for row in benchmark.forget] == [*(row["text"] for row in rows), "too short ."]
    asked = {s.group for s in benchmark.samples(model, tokenizer) if s.set == "forget"}
    assert len(asked) == 3, "what has not enough tokens is not asked"
    assert benchmark.notes_for(tokenizer) == [
        f"copyright: 1 of 4 passages have fewer than {n} + 6 tokens and are not asked with a prefix of {n}"
        for n in (4, 8)
    ]
    assert benchmark.limit_notes(5) == ["copyright: limit 5 was asked, but forget has 4: all are scored"]


def test_unlearn_eval_report_offline(directory, story, kept, whole_path):
    spec = f"copyright:text={story},retain={kept},{SETTINGS},limit=4"
    result, _, printed = whole_path(directory, spec, "po", "--attack", "relearn:steps=1,seeds=1")
    assert result.config["benchmark"] == spec
    assert result.before["forget_rouge"].n == result.before["forget_bleu"].n == 16
    assert result.before["forget_unseen_8_bleu"].n == 4
    assert result.after["forget_probability"].value != result.before["forget_probability"].value
    assert result.attacks[0].metrics["forget_rouge"].n == 8, "two passages were held out from the attacker"
    for key in ("forget_bleu", "forget_seen_4_rouge", "forget_unseen_8_bleu", "retain_probability"):
        assert key in printed


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("copyright", "needs the text to forget: copyright:text=FILE"),
        ("copyright:text=nowhere.txt", "no such file: nowhere.txt"),
        ("copyright:text=nowhere.jsonl", "no such file"),
        ("copyright:text={story},prefixes=100+x", "joined by '\\+', such as 100\\+300"),
        ("copyright:text={story},prefixes=4+4", "joined by '\\+'"),
        ("copyright:text={story},answer_tokens=0", "answer_tokens must be"),
        ("copyright:text={story}", "words, but a passage needs 500"),
        ("copyright:text={story},retain={story},prefixes=4,answer_tokens=6", "share .* row"),
    ],
)
def test_bad_settings(spec, message, story):
    with pytest.raises(UserError, match=message):
        create_benchmark(spec.format(story=story))


def test_texts_of_too_few_tokens_are_refused(model, tokenizer, tmp_path):
    path = stand_ins.write_rows(tmp_path / "rows.jsonl", [{"text": "too short ."}])
    benchmark = create_benchmark(f"copyright:{SETTINGS}", text=path)
    with pytest.raises(UserError, match=r"no passage has 4 \+ 6 tokens"):
        benchmark.samples(model, tokenizer)
    with pytest.raises(UserError, match="nothing follows a prefix of 4"):
        benchmark.encode(tokenizer, benchmark.forget, max_length=128)
    questions = stand_ins.write_rows(tmp_path / "questions.jsonl", [{"question": "who?", "answer": "me"}])
    with pytest.raises(UserError, match="needs rows of 'text', not of question"):
        create_benchmark("copyright", text=questions)
