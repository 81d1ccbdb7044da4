from __future__ import annotations

import gzip
import json
import lzma
import os
import subprocess
import sys

import pytest

from letgo.core.errors import UserError
from letgo.data import check_disjoint, read_rows
from letgo.data.rows import paraphrases, wrong_answers
from tests.tiny import FORGET, RETAIN, write_jsonl

FORMS = [
    {"text": "a text"},
    {"prompt": "once upon", "completion": " a time"},
    {"question": "who?", "answer": "me"},
    {"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "+".join(form))
def test_every_form_in_every_kind_of_file(tmp_path, form):
    paths = [write_jsonl(tmp_path / "d.jsonl", [form, form]), tmp_path / "d.json"]
    paths[1].write_text(json.dumps([form, form]))
    if "messages" not in form:
        csv = tmp_path / "d.csv"
        line = ",".join(f'"{value}"' for value in form.values())
        csv.write_text(",".join(form) + f"\n{line}\n{line}\n")
        paths.append(csv)
    import datasets

    parquet = tmp_path / "d.parquet"
    datasets.Dataset.from_list([form, form]).to_parquet(str(parquet))
    paths.append(parquet)
    expected = [row.content for row in read_rows([form, form])]
    for path in paths:
        assert [row.content for row in read_rows(path)] == expected, path.name


def test_a_local_folder_in_the_hubs_form(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", FORGET)
    rows = read_rows(f"hub:{folder}::train")
    assert [row.target for row in rows] == [row["answer"] for row in FORGET]


def test_groups_and_places(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"question": "q", "answer": "a", "group": "g"}, {"text": "t"}])
    first, second = read_rows(path)
    assert first.group == "g"
    assert second.where.endswith("d.jsonl:2")
    assert second.group == second.where


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "q", "answer": "a"}\n{"question": "q"\n', r"d\.jsonl:2: not JSON"),
        ('{"question": "q", "answr": "a"}\n', r"d\.jsonl:1: the row has 'question' but no 'answer'; did you mean"),
        ('{"question": "q"}\n', r"no 'answer'"),
        ('{"txt": "a"}\n', r"did you mean 'text'"),
        ('{"question": "q", "answer": ""}\n', r"field 'answer' is empty"),
        ('{"question": "q", "answer": 3}\n', r"field 'answer' must be text, not int"),
        ('["a"]\n', r"must be an object"),
        ('{"messages": []}\n', r"not empty"),
        ('{"messages": [{"role": "robot", "content": "x"}]}\n', r"role 'robot'"),
        ('{"messages": [{"role": "user", "content": "x"}]}\n', r"last message must be the assistant's"),
        ("", r"has no rows"),
        ('{"text": "a", "text": "b"}\n', r"d\.jsonl:1: not JSON \(the key 'text' is given twice in one object\)"),
        ('{"text": "a", "x": {"y": 1, "y": 2}}\n', "the key 'y' is given twice"),
        ('{"text": "a", "x": NaN}\n', r"d\.jsonl:1: not JSON \(NaN is no finite number\)"),
        ('{"text": "a", "x": -Infinity}\n', "-Infinity is no finite number"),
        ('{"text": "a", "x": 1e999}\n', "1e999 is no finite number"),
        ('{"text": "a", "x": ' + "9" * 5000 + "}\n", "a whole number of over 1,000 digits"),
        ('{"text": "a"}\n{"text": "\\ud800"}\n', r"d\.jsonl:2: text: the text has half a character in it \(U\+D800\)"),
        ('{"text": "a", "group": "\\udfff"}\n', r"d\.jsonl:1: group: the text has half a character"),
        ('{"text": "a", "x": [{"y": "\\ud800"}]}\n', r"d\.jsonl:1: x\[0\]\.y: the text has half"),
        ('{"text": "a", "\\ud800": 1}\n', r"d\.jsonl:1: \(a key\): the text has half"),
        ('{"text": "a\\u0000b"}\n', r"d\.jsonl:1: text: the text has a NUL character"),
        ('{"text": "a", "x": ' + "[" * 100_000 + "\n", r"d\.jsonl:1: not JSON \(nested too deeply\)"),
        ('{"text": "a", "x": ' + "[" * 200 + "]" * 200 + "}\n", r"x(\[0\])+.* is nested more than 50 levels deep"),
        ('{"text": "a", "group": 1.0}\n', r"field 'group' must be text or a whole number, not 1\.0"),
        ('{"text": "a", "group": true}\n', r"field 'group' must be text or a whole number, not True"),
        ('{"text": "a", "group": {"a": 1}}\n', "field 'group' must be text"),
        (
            '{"question": "q", "answer": "a", "wrong_answers": "abc"}\n',
            r"field 'wrong_answers' must be a list, not str",
        ),
        ('{"question": "q", "answer": "a", "wrong_answers": {"b": 1}}\n', "must be a list, not dict"),
        (
            '{"question": "q", "answer": "a", "wrong_answers": [1]}\n',
            r"field 'wrong_answers\[0\]' must be text",
        ),
    ],
)
def test_bad_files_say_where_and_what(tmp_path, content, message):
    path = tmp_path / "d.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_rows(path, name="forget set")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jsonl", "forget set: no such file"),
        (".", "is a directory"),
        ("hub:only-an-id", "not of the form hub:"),
    ],
)
def test_bad_sources(source, message):
    with pytest.raises(UserError, match=message):
        read_rows(source, name="forget set")


def test_unknown_suffix_and_broken_csv_and_encoding(tmp_path):
    odd = tmp_path / "d.xlsx"
    odd.write_text("x")
    with pytest.raises(UserError, match="unknown kind of file"):
        read_rows(odd)
    ragged = tmp_path / "d.csv"
    ragged.write_text("question,answer\na,b,c\n")
    with pytest.raises(UserError, match=r"d\.csv:2"):
        read_rows(ragged)
    latin = tmp_path / "d.jsonl"
    latin.write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_rows(latin)
    broken = tmp_path / "d.parquet"
    broken.write_bytes(b"not parquet")
    with pytest.raises(UserError, match="Parquet"):
        read_rows(broken)


def test_rows_in_both_sets_are_refused_with_both_places():
    with pytest.raises(UserError, match=r"share 1 row\(s\).*forget set, row 2.*retain set, row 5"):
        check_disjoint(read_rows(FORGET, name="forget set"), read_rows([*RETAIN, FORGET[1]], name="retain set"))
    check_disjoint(read_rows(FORGET), read_rows(RETAIN))


@pytest.mark.parametrize(("name", "opened"), [("rows.jsonl.gz", gzip.open), ("rows.json.xz", lzma.open)])
def test_compressed_files_are_read_as_they_are(tmp_path, name, opened):
    rows = [{"text": "old stone"}, {"text": "pâté"}]
    with opened(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, rows)) if "jsonl" in name else json.dumps(rows))
    assert [row.target for row in read_rows(tmp_path / name)] == ["old stone", "pâté"]
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is not a whole"):
        read_rows(tmp_path / name)


def test_what_needs_no_data_set_of_the_hub_does_not_load_the_library(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", FORGET)
    code = (
        "import sys, letgo.cli; from letgo.data import read_rows; read_rows(sys.argv[1]); "
        "print(sum(name.partition('.')[0] == 'datasets' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


ROW = {"question": "who?", "answer": "me", "group": "g", "wrong_answers": ["you", "her"]}


def test_a_paraphrase_takes_over_what_it_does_not_say_otherwise():
    others = ["and who?", {"question": "whose?", "answer": "mine", "wrong_answers": ["yours"]}]
    [row] = read_rows([ROW | {"paraphrases": others}], name="forget set")
    first, second = paraphrases(row)
    assert (first.context, first.target, wrong_answers(first)) == ("and who?", "me", ("you", "her"))
    assert (second.context, second.target, wrong_answers(second)) == ("whose?", "mine", ("yours",))
    assert first.group == second.group == "g"
    assert second.where == "forget set, row 1, paraphrase 2"
    assert paraphrases(first) == []


@pytest.mark.parametrize(
    ("form", "other", "context", "target"),
    [
        (FORMS[0], "in other words", "", "in other words"),
        (FORMS[1], {"prompt": "long ago", "completion": " there"}, "long ago", " there"),
        (FORMS[1], "long ago", "long ago", " a time"),
        (FORMS[2], {"question": "whose?", "answer": None}, "whose?", "me"),
        (FORMS[3], {"messages": [*FORMS[3]["messages"], *FORMS[3]["messages"]]}, None, "me"),
    ],
)
def test_rows_of_every_form_can_be_paraphrased(form, other, context, target):
    [row] = read_rows([form | {"end": False, "paraphrases": [other]}])
    [reworded] = paraphrases(row)
    assert context is None or reworded.context == context
    assert (reworded.form, reworded.target, reworded.ends) == (row.form, target, False)
    assert reworded.group == row.group


def test_paraphrases_are_read_from_parquet(tmp_path):
    import datasets

    path = tmp_path / "d.parquet"
    rows = [ROW | {"paraphrases": [{"question": "whose?", "answer": None}]}, ROW | {"paraphrases": None}]
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    assert [[other.context for other in paraphrases(row)] for row in read_rows(path)] == [["whose?"], []]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"paraphrases": "whose?"},
            r"d\.jsonl:1: field 'paraphrases' must be a list, not str \(whose\?\)\n.*CSV can't",
        ),
        ({"paraphrases": {"question": "whose?"}}, r"d\.jsonl:1: field 'paraphrases' must be a list, not dict"),
        ({"paraphrases": []}, r"d\.jsonl:1: field 'paraphrases' is an empty list; leave the field out"),
        ({"paraphrases": ["q", 3]}, r"d\.jsonl:1, paraphrase 2 must be a question \(text\) or an object .* int \(3\)"),
        ({"paraphrases": [""]}, r"d\.jsonl:1, paraphrase 1: field 'question' is empty"),
        ({"paraphrases": [{"question": 3}]}, r"paraphrase 1: field 'question' must be text, not int \(3\)"),
        ({"paraphrases": [{"answer": "me"}]}, r"d\.jsonl:1, paraphrase 1 has no 'question': give the question"),
        (
            {"paraphrases": [{"question": "q", "answr": "I"}]},
            r"paraphrase 1: unknown field 'answr'; did you mean 'answer'",
        ),
        (
            {"paraphrases": [{"question": "q", "answer": "you"}]},
            r"paraphrase 1: field 'wrong_answers' has the right answer",
        ),
        ({"wrong_answers": "you"}, r"d\.jsonl:1: field 'wrong_answers' must be a list, not str \(you\)"),
        ({"wrong_answers": []}, r"d\.jsonl:1: field 'wrong_answers' is an empty list"),
        ({"wrong_answers": ["you", 3]}, r"d\.jsonl:1: field 'wrong_answers\[1\]' must be text, not int \(3\)"),
        ({"wrong_answers": ["me"]}, r"d\.jsonl:1: field 'wrong_answers' has the right answer 'me'; take it out"),
    ],
)
def test_bad_lists_say_where_and_what(tmp_path, fields, message):
    path = write_jsonl(tmp_path / "d.jsonl", [ROW | fields])
    with pytest.raises(UserError, match=message):
        [wrong_answers(asked) for row in read_rows(path) for asked in (row, *paraphrases(row))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,text\na,b\n", r"d\.csv:1: column 'text' is given twice"),
        ("text,\na,b\n", r"d\.csv:1: column 2 has no name"),
        ('text\n"a\nb\n', r"d\.csv:3: not CSV \(unexpected end of data\)"),
        ('text\n"a"b\n', r"d\.csv:2: not CSV"),
        ("text\na\0b\n", r"d\.csv:2: text: the text has a NUL"),
    ],
)
def test_bad_csv_says_where_and_what(tmp_path, content, message):
    path = tmp_path / "d.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_rows(path)


def test_long_fields_of_csv_are_read_whole(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text\n" + "a" * 200_000 + "\n")
    [row] = read_rows(path)
    assert len(row.target) == 200_000


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"])
def test_pipes_and_devices_are_not_read(tmp_path, ending):
    os.mkfifo(tmp_path / f"d{ending}")
    (tmp_path / f"e{ending}").symlink_to("/dev/zero")
    for name in "de":
        with pytest.raises(UserError, match=r"forget set: .* is a pipe, a socket or a device; name a file"):
            read_rows(tmp_path / f"{name}{ending}", name="forget set")


def test_a_missing_group_of_a_table_is_no_group(tmp_path):
    import datasets

    path = tmp_path / "d.parquet"
    datasets.Dataset.from_list([{"text": "a", "group": 1.0}, {"text": "b", "group": float("nan")}]).to_parquet(
        str(path)
    )
    with pytest.raises(UserError, match=r"d\.parquet, row 1: field 'group' must be text or a whole number, not 1\.0"):
        read_rows(path)
