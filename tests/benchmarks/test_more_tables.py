"""RWKU, KnowUnDo and LUME from a local folder in their schema, with invented rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import letgo
from letgo.benchmarks import create_benchmark
from letgo.core.errors import UserError
from letgo.data import check_disjoint
from letgo.runs.results import read_result
from tests import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.make_model()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.make_tokenizer()


def write(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


@pytest.fixture
def rwku(tmp_path):
    """Two invented people, as the hub's tables have them."""
    people = {"aland": "amberton", "borduria": "brixholm"}
    write(tmp_path / "forget_target" / "train.json", [{"target": name, "intro": f"{name} is old ."} for name in people])
    texts = [{"subject": name, "text": f"the capital of {name} is {city} ."} for name, city in people.items()]
    write(tmp_path / "train_positive_llama3" / "train.json", texts)
    write(tmp_path / "train_original_passage" / "train.json", texts)
    for level, kind in (("1", "cloze"), ("2", "simple question"), ("3", "incontext learning")):
        rows = [
            {
                "query": f"Question : what is the capital of {name} ?",
                "answer": city,
                "level": level,
                "type": kind,
                "subject": name,
            }
            for name, city in people.items()
        ]
        write(tmp_path / f"forget_level{level}" / "test.json", rows)
    for level in ("1", "2"):
        rows = [
            {"query": "what is the old river ?", "answer": "blue", "level": level, "type": "x", "subject": name}
            for name in people
        ]
        write(tmp_path / f"neighbor_level{level}" / "test.json", rows)
    return tmp_path


def test_rwku(model, tokenizer, rwku):
    benchmark = create_benchmark("rwku", data=str(rwku), target="borduria")
    assert [row.target for row in benchmark.forget] == ["the capital of borduria is brixholm ."]
    assert benchmark.groups() == ["borduria"]
    assert benchmark.provenance["targets"] == ["borduria"]
    assert "no retain corpus" in benchmark.notes[0]
    check_disjoint(benchmark.forget, benchmark.retain)
    asked = {item.task: str(item.row.context) for item in benchmark.items}
    assert asked["forget_level1"].startswith("Please complete the blank in the following question.\nQuestion: ")
    assert asked["forget_level2"].startswith("Please briefly answer the following question.\nQuestion: ")
    assert asked["forget_level3"].startswith("Please briefly answer the following question.\nQuestion : what")
    samples = benchmark.samples(model, tokenizer)
    metrics = benchmark.summarise(samples)
    assert {"forget_rouge", "forget_level3_rouge", "retain_level2_rouge", "retain_probability"} <= set(metrics)
    assert metrics["forget_rouge"].n == 3
    assert [row.group for row in create_benchmark("rwku", data=str(rwku), targets=2).forget] == ["aland", "borduria"]
    assert len(create_benchmark("rwku", data=str(rwku), corpus="passage").forget) == 1
    with pytest.raises(UserError, match=r"no target 'bordurio'; did you mean 'borduria'\?"):
        create_benchmark("rwku", data=str(rwku), target="bordurio")
    with pytest.raises(UserError, match="corpus is 'llama4'"):
        create_benchmark("rwku", data=str(rwku), corpus="llama4")
    write(rwku / "train_positive_phi3" / "train.json", [{"subject": "nobody", "text": "old ."}])
    with pytest.raises(UserError, match="has no text about aland"):
        create_benchmark("rwku", data=str(rwku), corpus="phi3")


PAIRS = [{"text": row["question"], "labels": row["answer"]} for row in tiny.FORGET + tiny.RETAIN]


@pytest.mark.parametrize("layout", ["hub", "repository"])
def test_knowundo(model, tokenizer, tmp_path, layout):
    splits = {"unlearn": PAIRS[:4], "retention": PAIRS[4:]}
    for split, pairs in splits.items():
        if layout == "hub":
            write(tmp_path / "privacy" / f"{split}.json", [{"train": pairs, "val": pairs[:2]}])
        else:
            write(tmp_path / "privacy" / f"{split}_train.json", pairs)
            write(tmp_path / "privacy" / f"{split}_val.json", pairs[:2])
    benchmark = create_benchmark("knowundo", data=str(tmp_path))
    assert [row.target for row in benchmark.forget] == [pair["labels"] for pair in PAIRS[:4]]
    assert benchmark.forget[0].context == f"{PAIRS[0]['text']}\n\n"
    metrics = benchmark.summarise(benchmark.samples(model, tokenizer))
    assert metrics["forget_rouge"].n == metrics["retain_rouge"].n == 2
    assert {"forget_exact_match", "retain_probability"} <= set(metrics)
    with pytest.raises(UserError, match=r"domain is 'private'.*did you mean 'privacy'"):
        create_benchmark("knowundo", data=str(tmp_path), domain="private")
    with pytest.raises(UserError, match="has no table 'copyright/unlearn'"):
        create_benchmark("knowundo", data=str(tmp_path), domain="copyright")
    broken = tmp_path / "broken"
    write(broken / "privacy" / "unlearn.json", [{"train": PAIRS[:1], "val": [{"text": "old"}]}])
    write(broken / "privacy" / "retention.json", [{"train": PAIRS[:1], "val": PAIRS[:1]}])
    with pytest.raises(UserError, match=r"val 1: a row must have the fields 'text' and 'labels'"):
        create_benchmark("knowundo", data=str(broken))


@pytest.fixture
def lume(tmp_path):
    def rows(pairs, name):
        made = []
        for number, pair in enumerate(pairs):
            common = {"task": "Task2" if number % 2 else "Task1"}
            sentence = f"the capital of {pair['group']} is"
            made.append({"id": f"{name}-{number}-sc1", "input": sentence, "output": pair["answer"], **common})
            made.append({"id": f"{name}-{number}-qa0", "input": pair["question"], "output": pair["answer"], **common})
        return made

    for name, pairs in (("forget", tiny.FORGET), ("retain", tiny.RETAIN)):
        for fold in ("train", "validation"):
            write(tmp_path / "data" / f"{name}_{fold}-00000-of-00001.json", rows(pairs, name))
    return tmp_path


def test_lume(model, tokenizer, lume):
    benchmark = create_benchmark("lume", data=str(lume))
    assert len(benchmark.forget) == 8
    assert benchmark.groups()[:2] == ["forget-0-", "forget-1-"]
    assert benchmark.forget[0].target == " amberton"
    metrics = benchmark.summarise(benchmark.samples(model, tokenizer))
    assert metrics["forget_completion_rouge"].n == metrics["retain_question_exact_match"].n == 4
    assert metrics["forget_rouge"].n == 8
    one = create_benchmark("lume", data=str(lume), task="Task2")
    assert {row.fields["task"] for row in one.forget} == {"Task2"}
    with pytest.raises(UserError, match="task is 'Task9'"):
        create_benchmark("lume", data=str(lume), task="Task9")
    path = lume / "data" / "forget_validation-00000-of-00001.json"
    write(path, [{"id": "odd", "input": "old", "output": "new", "task": "Task1"}])
    with pytest.raises(UserError, match="id 'odd' ends neither in sc nor in qa"):
        create_benchmark("lume", data=str(lume))


def test_a_run_on_lume(model, tokenizer, lume, tmp_path):
    directory = tiny.save(tmp_path / "model", model, tokenizer)
    run = letgo.unlearn(
        model=str(directory),
        benchmark=f"lume:data={lume},limit=2",
        objective="graddiff",
        learning_rate=1e-3,
        max_steps=2,
        output_dir=str(tmp_path / "run"),
        use_cpu=True,
    )
    result = read_result(run.directory)
    assert set(result.headlines) == {"forget_rouge", "forget_exact_match"}
    assert result.config["scored"]["data"] == str(lume)
    assert result.after["forget_probability"].value < result.before["forget_probability"].value
