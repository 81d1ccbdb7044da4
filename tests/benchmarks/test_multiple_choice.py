from __future__ import annotations

import pytest

from letgo.benchmarks.engine.multiple_choice import Question, encode_choice, read_questions
from letgo.core.errors import UserError
from tests import stand_ins

ROW = {"question": " Which way? ", "choices": ["up", "down", "left", "right"], "answer": 2}


def read(records) -> list[Question]:
    return read_questions(records, "forget", "wmdp-bio", "wmdp_bio", "biology")


def test_the_prompt_is_the_benchmarks_to_the_byte():
    [question] = read([("here", ROW)])
    assert question.prompt() == (
        "The following are multiple choice questions (with answers) about biology.\n\n"
        "Which way?\nA. up\nB. down\nC. left\nD. right\nAnswer:"
    )
    assert question.row() == ROW


@pytest.mark.parametrize("make", [stand_ins.word_tokenizer, stand_ins.sentence_tokenizer])
def test_answers_are_tokenised_as_they_follow_the_prompt(make):
    tokenizer = make()
    [question] = read([("here", ROW)])
    prefix, answers, cut = encode_choice(tokenizer, question.prompt(), max_length=10_000)
    assert prefix[0] == tokenizer.bos_token_id
    assert not cut
    assert [len(answer) for answer in answers] == [1] * 4
    for letter, answer in zip("ABCD", answers, strict=True):
        assert prefix + answer == tokenizer(f"{question.prompt()} {letter}")["input_ids"]
    if make is stand_ins.sentence_tokenizer:
        assert len(tokenizer(" A", add_special_tokens=False)["input_ids"]) == 2, "alone it would be other tokens"


def test_a_long_prompt_keeps_its_end():
    tokenizer = stand_ins.word_tokenizer()
    [question] = read([("here", ROW)])
    whole, answers, _ = encode_choice(tokenizer, question.prompt(), max_length=1000)
    short, again, cut = encode_choice(tokenizer, question.prompt(), max_length=5)
    assert cut
    assert short == whole[-5:], "five tokens are seen, the answer's is only predicted"
    assert again == answers


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Which?", "choices": ["a", "b", "c", "d"]}, "this one has no 'answer'"),
        ({**ROW, "question": " "}, "'question' must be text"),
        ({**ROW, "choices": ["a", "b", "c"]}, "list of four texts"),
        ({**ROW, "choices": "abcd"}, "list of four texts"),
        ({**ROW, "choices": ["a", "b", "c", ""]}, "list of four texts"),
        ({**ROW, "answer": 4}, "0 to 3, not 4"),
        ({**ROW, "answer": "B"}, "letters count from A = 0"),
        ({**ROW, "answer": True}, "0 to 3, not True"),
    ],
)
def test_bad_rows_are_named(row, message):
    with pytest.raises(UserError, match=f"rows.jsonl:3: .*{message}"):
        read([("rows.jsonl:3", row)])
