"""A user's own files: scored in the words trained on, in others, and beside control rows."""

from __future__ import annotations

import pytest

from letgo.benchmarks import create_benchmark
from letgo.core.errors import UserError
from letgo.runs.results import ON_TRAINED_ROWS
from tests import tiny

ASKED = "Question : the old capital of {} ?"
REWORDED = [row | {"paraphrases": [ASKED.format(row["group"]), f"{row['group']} ?"]} for row in tiny.FORGET]
EVALUATION = [{**row, "question": ASKED.format(row["group"])} for row in tiny.FORGET]
CONTROL = [
    {"question": f"what is the capital of {place} ?", "answer": city, "group": place}
    for place, city in (("red", "stone"), ("blue", "river"))
]


def rows(forget=tiny.FORGET, **more):
    return create_benchmark("rows", forget=forget, retain=tiny.RETAIN, **more)


def ids(benchmark, name):
    return [item.id for item in benchmark.items if item.set == name]


def test_rows_as_they_stand_are_scored_on_what_was_trained_on(tokenizer):
    benchmark = rows()
    assert benchmark.notes == (ON_TRAINED_ROWS,)
    assert benchmark.identity(tokenizer)["on"] == "trained rows"
    assert ids(benchmark, "trained") == []
    assert [item.row for item in benchmark.items if item.set == "forget"] == list(benchmark.forget)


def test_paraphrases_are_the_forget_set_and_the_rows_stand_beside_it(model, tokenizer):
    benchmark = rows(REWORDED)
    assert benchmark.identity(tokenizer)["on"] == "paraphrases"
    assert benchmark.notes == ()
    assert ids(benchmark, "forget")[:3] == ["forget-0/p1", "forget-0/p2", "forget-1/p1"]
    assert ids(benchmark, "trained") == [f"trained-{index}" for index in range(4)]
    assert [row.context for row in benchmark.forget] == [row["question"] for row in tiny.FORGET]
    assert {item.group for item in benchmark.items if item.set == "forget"} == set(benchmark.groups())
    metrics = benchmark.summarise(benchmark.samples(model, tokenizer))
    assert (metrics["forget_probability"].n, metrics["trained_probability"].n) == (8, 4)
    plain = rows()
    as_before = plain.summarise(plain.samples(model, tokenizer))
    for score in ("probability", "rouge"):
        for ours, theirs in ((f"trained_{score}", f"forget_{score}"), (f"retain_{score}", f"retain_{score}")):
            # Scored among other rows: products of other shapes are summed in another order.
            assert metrics[ours].value == pytest.approx(as_before[theirs].value, rel=1e-5)
            assert metrics[ours].n == as_before[theirs].n


def test_rows_without_paraphrases_are_in_both_sets_and_counted(tokenizer):
    benchmark = rows([*REWORDED[:1], *tiny.FORGET[1:]])
    assert ids(benchmark, "forget") == ["forget-0/p1", "forget-0/p2", "forget-1", "forget-2", "forget-3"]
    assert len(ids(benchmark, "trained")) == 4
    assert benchmark.notes == ("3 of 4 forget rows have no paraphrases: they are scored in their own words",)
    assert benchmark.identity(tokenizer)["on"] == "paraphrases"


def test_retain_rows_are_scored_in_other_words_too(tokenizer):
    kept = [row | {"paraphrases": [ASKED.format(row["group"])]} for row in tiny.RETAIN]
    benchmark = create_benchmark("rows", forget=tiny.FORGET, retain=kept)
    assert ids(benchmark, "retain") == [f"retain-{index}/p1" for index in range(4)]
    assert benchmark.identity(tokenizer)["on"] == "trained rows"


def test_an_evaluation_file_is_the_forget_set(tmp_path, tokenizer):
    path = str(tiny.write_jsonl(tmp_path / "asked.jsonl", [*EVALUATION[:2], EVALUATION[0] | {"question": "aland ?"}]))
    benchmark = rows(evaluate=path)
    assert benchmark.identity(tokenizer)["on"] == benchmark.settings["evaluate"] == path
    assert ids(benchmark, "forget") == ["forget-0", "forget-1", "forget-2"]
    assert len(ids(benchmark, "trained")) == 4
    assert benchmark.notes == ("2 of 4 groups of the forget set have no evaluation row: only the set trained has them",)


def test_control_rows_are_scored_like_forget_rows(model, tokenizer):
    benchmark = rows(control=[CONTROL[0] | {"wrong_answers": ["river", "old"]}, CONTROL[1]])
    assert [row.group for row in benchmark.control] == ["red", "blue"]
    assert ids(benchmark, "control") == ["control-0", "control-1"]
    metrics = benchmark.summarise(benchmark.samples(model, tokenizer))
    assert (metrics["control_probability"].n, metrics["control_accuracy"].n, metrics["control_rouge"].n) == (2, 1, 2)
    reworded = rows(REWORDED, control=[CONTROL[0] | {"paraphrases": ["red ?"]}, CONTROL[1]])
    assert ids(reworded, "control") == ["control-0/p1", "control-1"]
    assert reworded.notes == ("1 of 2 control rows have no paraphrases: they are scored in their own words",)
    assert rows(REWORDED, control=CONTROL).notes == (
        "2 of 2 control rows have no paraphrases: they are scored in their own words",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluate": "nowhere.jsonl"}, "evaluation rows: no such file: nowhere.jsonl"),
        ({"control": "nowhere.jsonl"}, "control rows: no such file: nowhere.jsonl"),
        ({"evaluate": []}, "evaluation rows: evaluation rows has no rows"),
        (
            {"evaluate": [EVALUATION[0], EVALUATION[1] | {"group": "alland"}]},
            r"evaluation rows, row 2: group 'alland' is no group of the forget set; did you mean 'aland'\?\n"
            r"  its groups: aland, borduria, carpania, dornia; name one of them, or take the row out",
        ),
        ({"evaluate": [{"question": "who ?", "answer": "me"}]}, "row 1: the row has no 'group'; name the group"),
        (
            {"evaluate": [EVALUATION[0] | {"paraphrases": ["who ?"]}]},
            "row 1: an evaluation row can't have 'paraphrases'",
        ),
        (
            {"forget": REWORDED, "evaluate": EVALUATION},
            r"forget set, row 1: the row has 'paraphrases', but evaluate names .*\n.*leave evaluate out, or take",
        ),
        (
            {"evaluate": tiny.FORGET},
            r"evaluation rows, row 1: 'what is the capital of aland \?' is no other wording: .* forget set, row 1\n",
        ),
        (
            {"forget": [tiny.FORGET[0] | {"paraphrases": [tiny.RETAIN[0]["question"]]}]},
            r"forget set, row 1, paraphrase 1: .* is no other wording: it stands as it is at retain set, row 1",
        ),
        ({"control": [tiny.FORGET[2]]}, "control rows, row 1: this control row stands in the forget set too .*row 3"),
        (
            {"control": [CONTROL[0], CONTROL[1] | {"group": tiny.RETAIN[1]["group"]}]},
            r"control rows, row 2: group 'florin' of this control row stands in the retain set too .*row 2\)\n.*invent",
        ),
    ],
)
def test_mistakes_say_where_and_what(settings, message):
    with pytest.raises(UserError, match=message):
        rows(**settings)
