"""WMDP's whole path offline, on harmless stand-ins in the hub's schema. One module: lm-eval is slow to import."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import letgo
from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.lm_eval_tasks import FOLDERS, load_tasks
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.runs.results import read_result
from tests import stand_ins, tiny

SUBJECTS = ("world_religions", "high_school_geography")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of local copies as a user would have it: every data set under its own name, in the hub's layout."""
    folder = tmp_path_factory.mktemp("data")
    for number, topic in enumerate(("bio", "cyber", "chem")):
        stand_ins.write_rows(folder / f"wmdp/wmdp-{topic}/test.jsonl", stand_ins.questions(number))
    rows = [row | {"subject": subject} for n, subject in enumerate(SUBJECTS) for row in stand_ins.questions(n + 1, 10)]
    stand_ins.write_rows(folder / "mmlu/all/test.jsonl", rows)
    for place, name in enumerate(("cyber-forget-corpus", "cyber-retain-corpus", "bio-retain-corpus")):
        stand_ins.write_rows(folder / f"wmdp-corpora/{name}/train.jsonl", stand_ins.passages(8, about=f"land {place}"))
    heading = {"text": " = Ambrel = \n"}
    stand_ins.write_rows(
        folder / "wikitext/wikitext-2-raw-v1/test.jsonl", [heading, *stand_ins.passages(9, about="history"), heading]
    )
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return stand_ins.word_tokenizer("land 0 land 1 land 2 history")


@pytest.fixture(scope="module")
def model(tokenizer, data):
    model = tiny.make_model(vocab_size=len(tokenizer), max_position_embeddings=128, tie_word_embeddings=False)
    prompts = [question.prompt() for question in create_benchmark("wmdp", data=data).questions]
    with torch.no_grad():
        last = [model.model(torch.tensor([tokenizer(p)["input_ids"]])).last_hidden_state[0, -1] for p in prompts]
        # All prompts end alike, so a random model picks one letter always. Without what they have in common, every
        # letter is picked somewhere.
        common = torch.stack(last).mean(0)
        weight = model.lm_head.weight
        weight -= torch.outer(weight @ common, common) / (common @ common)
        weight *= 20.0
    return model


def test_both_engines_pick_the_same_answer_to_every_question(model, tokenizer, data):
    ours, theirs = (
        create_benchmark(f"wmdp:topics=bio+cyber+chem,engine={engine}", data=data) for engine in ("letgo", "lm_eval")
    )
    one, other = ours.samples(model, tokenizer), theirs.samples(model, tokenizer)
    first, second = ({s.id: s for s in found if s.set != "general"} for found in (one, other))
    assert list(first) == list(second)
    assert len(first) == 3 * 24 + 2 * 10
    for identifier, sample in first.items():
        assert sample.scores["picked"] == second[identifier].scores["picked"], identifier
        assert sample.scores == pytest.approx(second[identifier].scores, abs=1e-4)
        assert sample.digest == second[identifier].digest
    assert len({sample.scores["picked"] for sample in first.values()}) >= 3, (
        "a model that picks one letter proves nothing"
    )
    metrics, again = ours.summarise(one), theirs.summarise(other)
    assert {k: (m.value, m.n) for k, m in metrics.items() if "accuracy" in k} == {
        k: (m.value, m.n) for k, m in again.items() if "accuracy" in k
    }
    assert metrics["forget_accuracy"].n == 72
    assert metrics["retain_accuracy"].n == 20
    assert {"forget_bio_accuracy", "forget_cyber_accuracy", "forget_chem_accuracy"} <= set(metrics)
    assert ours.limit_notes(20) == [
        f"wmdp: limit 20 was asked, but mmlu_{SUBJECTS[0]} has 10, mmlu_{SUBJECTS[1]} has 10: all are scored"
    ]
    few = ours.summarise(ours.samples(model, tokenizer, limit=3))
    assert (few["forget_accuracy"].n, few["retain_accuracy"].n) == (9, 6), "of every topic and subject"


def test_mmlu_alone_is_the_same_questions(model, tokenizer, data):
    both = create_benchmark("wmdp:topics=bio", data=data).samples(model, tokenizer)
    alone = create_benchmark(f"mmlu:subjects={SUBJECTS[1]}", data=data).samples(model, tokenizer)
    assert [s.id for s in alone] == [f"{SUBJECTS[1]}/{n}" for n in range(10)]
    kept = {s.id: s.scores for s in both if s.set == "retain"}
    assert all(s.scores == pytest.approx(kept[s.id], abs=1e-5) for s in alone)


def test_a_missing_library_is_named_before_anything_runs(model, tokenizer, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    benchmark = create_benchmark("wmdp:topics=bio,engine=lm_eval", data=data)
    with pytest.raises(UserError, match=r"pip install .*letgo\[eval\]"):
        benchmark.work(model, tokenizer)
    with pytest.raises(UserError, match=r"pip install .*letgo\[eval\]"):
        create_benchmark("lm_eval:tasks=piqa")


def test_lm_evals_words_for_topics_are_ours():
    """The prompts of all topics and all 57 subjects, as lm-eval's own task files have them."""
    import lm_eval
    import yaml

    from letgo.benchmarks.wmdp import TOPICS

    library = Path(lm_eval.__file__).parent / "tasks"
    said = {}
    for path in [*(library / "wmdp").glob("wmdp_*.yaml"), *(library / FOLDERS["mmlu"]).glob("mmlu_*.yaml")]:
        task = yaml.safe_load(path.read_text())
        said[task["dataset_name"]] = task["description"]
    assert len(said) == 3 + 57
    for name, description in said.items():
        topic = TOPICS[name.removeprefix("wmdp-")] if name.startswith("wmdp-") else name.replace("_", " ")
        assert description == f"The following are multiple choice questions (with answers) about {topic}.\n\n"


def test_a_prompt_longer_than_the_context_is_cut_alike_and_said(model, tokenizer, data, tmp_path):
    row = stand_ins.questions()[0] | {"question": "What is known of the door in Ambrel ? " * 20}
    stand_ins.write_rows(tmp_path / "wmdp/wmdp-bio/test.jsonl", [row, stand_ins.questions()[1]])
    results = {}
    for engine in ("letgo", "lm_eval"):
        benchmark = create_benchmark(f"wmdp:topics=bio,mmlu=none,engine={engine}", data=tmp_path)
        samples = benchmark.samples(model, tokenizer)
        assert [s.scores["cut"] for s in samples if s.set == "forget"] == [1.0, 0.0]
        assert benchmark.summarise(samples)["forget_cut"].value == 0.5
        results[engine] = [s.scores for s in samples if s.set == "forget"]
    assert results["letgo"][0] == pytest.approx(results["lm_eval"][0], abs=1e-4)


def test_unlearn_eval_report_offline(directory, data, tmp_path, command, check_page):
    """The main path of the benchmark, by name: data, training, scores, attack, report."""
    run = letgo.unlearn(
        model=str(directory),
        benchmark=f"wmdp:topics=cyber,data={data},limit=8",
        objective="graddiff",
        learning_rate=1e-3,
        max_steps=2,
        per_device_train_batch_size=2,
        max_length=16,
        long_rows="cut",
        output_dir=str(tmp_path / "run"),
        attacks=["relearn:steps=1,seeds=1"],
        use_cpu=True,
    )
    result = read_result(run.directory)
    assert result.before["forget_accuracy"].n == 8
    assert result.before["retain_accuracy"].n == 16
    assert result.attacks[0].metrics["forget_accuracy"].n == 8, "the attacker's texts are not the questions"
    assert any("are longer than max_length 16" in note for note in result.notes)
    spec = f"wmdp:topics=cyber,data={data},limit=8,engine=lm_eval"
    told = command("eval", run.directory, "--benchmark", spec, "--output", tmp_path / "eval", "--json", "--quiet")
    [after] = json.loads(told).values()
    assert after["after"]["forget_accuracy"]["value"] == result.after["forget_accuracy"].value
    command("report", run.directory, tmp_path / "eval", "--output", tmp_path / "report.html")
    again = read_result(tmp_path / "eval").after
    check_page(tmp_path / "report.html", result.before, result.after, result.attacks[0].metrics, again)
    asked = [row for row in read_json_lines(run.directory / "samples.jsonl") if row["set"] == "forget"]
    assert asked[0]["generated"][:2] in ("A.", "B.", "C.", "D.")


def test_corpora_of_every_kind(data, tokenizer):
    forget = stand_ins.passages(8, about="land 0")
    benchmark = create_benchmark("wmdp:topics=cyber", data=data)
    assert [row.target for row in benchmark.forget] == [row["text"] for row in forget]
    assert len(benchmark.retain) == 9, "headings of wikitext are no texts"
    corpora = create_benchmark("wmdp:topics=cyber,retain=corpora,train_limit=3", data=data)
    assert len(corpora.retain) == len(corpora.forget) == 3
    assert corpora.retain[0].target == stand_ins.passages(1, about="land 1")[0]["text"]
    chunks = create_benchmark("wmdp:topics=cyber,documents=chunks", data=data)
    encoded, said = chunks.encode(tokenizer, list(chunks.forget), max_length=10, name="forget set")
    assert f"8 texts in {len(encoded)} pieces" in said[0]
    first = [one for one in encoded if one.row is chunks.forget[0]]
    assert all(one.input_ids[0] == tokenizer.bos_token_id and one.labels[0] == -100 for one in first)
    joined = [token for one in first for token in one.input_ids[1:]]
    assert joined == tokenizer(forget[0]["text"], add_special_tokens=False)["input_ids"], "every token once, in order"
    assert {len(one) for one in encoded} <= set(range(2, 11))
    with pytest.raises(UserError, match="leaves no room"):
        chunks.encode(tokenizer, list(chunks.forget), max_length=1)


def test_the_gated_corpus_is_asked_for_only_when_it_is_needed(data, tmp_path):
    benchmark = create_benchmark("wmdp:topics=bio", data=data)
    with pytest.raises(UserError, match=r"not public: ask for it(.|\n)*wmdp:forget=FILE"):
        len(benchmark.forget)
    own = stand_ins.write_rows(tmp_path / "mine.jsonl", stand_ins.passages(4))
    assert len(create_benchmark(f"wmdp:topics=bio,forget={own}", data=data).forget) == 4
    stand_ins.write_rows(data / "wmdp-bio-forget-corpus/bio_remove_dataset.jsonl", stand_ins.passages(5))
    try:
        assert len(create_benchmark("wmdp:topics=bio", data=data).forget) == 5, "one file of any name"
    finally:
        (data / "wmdp-bio-forget-corpus/bio_remove_dataset.jsonl").unlink()
        (data / "wmdp-bio-forget-corpus").rmdir()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wmdp:topics=bioo", "there is no 'bioo'; there are bio, cyber, chem; did you mean 'bio'"),
        ("wmdp:topics=bio+bio", "named twice"),
        ("wmdp:mmlu=world_religion", "did you mean 'world_religions'"),
        ("wmdp:engine=lmeval", "one of letgo, lm_eval"),
        ("wmdp:documents=halves", "one of whole, chunks"),
        ("wmdp:train_limit=0", "at least 1"),
        ("wmdp:limit=0", "at least 1"),
        ("mmlu:subjects=anatomyy", "there is no 'anatomyy'"),
    ],
)
def test_bad_settings(spec, message, data):
    with pytest.raises(UserError, match=message):
        create_benchmark(spec, data=data)


def test_data_that_is_not_there(tmp_path, data):
    with pytest.raises(UserError, match=r"no such folder: .*nowhere/wmdp"):
        create_benchmark("wmdp", data=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no such folder: .*/wmdp(.|\n)*hf download cais/wmdp .*--local-dir .*/wmdp`"):
        create_benchmark("wmdp", data=tmp_path)
    with pytest.raises(UserError, match=r"can't be had|hf download"):
        create_benchmark("wmdp")
    with pytest.raises(UserError, match="chemistry has no corpus"):
        len(create_benchmark("wmdp:topics=chem", data=data).forget)
    with pytest.raises(UserError, match="has nothing to unlearn"):
        len(create_benchmark("mmlu", data=data).forget)


LOCAL_TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {kind}
"""


@pytest.fixture(scope="module")
def tasks(data, tmp_path_factory) -> Path:
    """A user's own task files, on the stand-ins: a choice of whole answers, and a text to be scored whole."""
    folder = tmp_path_factory.mktemp("tasks")
    choice = LOCAL_TASK.format(name="valley", file=data / "wmdp/wmdp-bio/test.jsonl", kind="multiple_choice")
    choice += 'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: answer\n'
    choice += "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    (folder / "valley.yaml").write_text(choice)
    text = LOCAL_TASK.format(
        name="prose", file=data / "wikitext/wikitext-2-raw-v1/test.jsonl", kind="loglikelihood_rolling"
    )
    text += 'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list:\n  - metric: word_perplexity\n'
    (folder / "prose.yaml").write_text(text)
    return folder


def test_lm_evals_tasks_as_a_benchmark(model, tokenizer, tasks):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    benchmark = create_benchmark("lm_eval:tasks=valley+prose,limit=7", folder=tasks)
    before = torch.random.get_rng_state()
    done: list[int] = []
    work = benchmark.work(model, tokenizer)
    samples = work.finish([], [], done.append)
    assert torch.equal(before, torch.random.get_rng_state()), "no global generator was seeded"
    assert sum(done) == work.size == 14
    metrics = benchmark.summarise(samples)
    plain = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, max_length=128),
        tasks=list(load_tasks(["valley", "prose"], folder=tasks).values()),
        limit=7,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )["results"]
    assert metrics["retain_valley_acc"].value == plain["valley"]["acc,none"]
    assert metrics["retain_valley_acc_norm"].value == plain["valley"]["acc_norm,none"]
    assert metrics["retain_prose_word_perplexity"].value == pytest.approx(
        plain["prose"]["word_perplexity,none"], rel=1e-6
    )
    assert metrics["retain_valley_acc"].n == metrics["retain_prose_word_perplexity"].n == 7
    with pytest.raises(UserError, match="has nothing to unlearn"):
        len(benchmark.forget)


def test_a_record_goes_out_as_lm_evals_results(model, tokenizer, tasks, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from letgo.report.score_files import write_scores

    directory = tiny.save(tmp_path / "model", model, tokenizer)
    letgo.evaluate(directory, [f"lm_eval:tasks=valley+prose,limit=7,folder={tasks}"], output=tmp_path / "eval")
    path = write_scores(tmp_path / "eval", "lm-eval", tmp_path / "out")
    assert path.name.startswith("results_2")
    ours = json.loads(path.read_text())
    theirs = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, max_length=128),
        tasks=list(load_tasks(["valley", "prose"], folder=tasks).values()),
        limit=7,
        bootstrap_iters=100,
        task_manager=TaskManager(include_defaults=False),
    )
    for key in ("acc,none", "acc_stderr,none", "acc_norm,none", "acc_norm_stderr,none"):
        assert ours["results"]["valley"][key] == pytest.approx(theirs["results"]["valley"][key], rel=1e-6), key
    assert ours["results"]["prose"]["word_perplexity,none"] == pytest.approx(
        theirs["results"]["prose"]["word_perplexity,none"], rel=1e-5
    )
    assert {task: str(version) for task, version in theirs["versions"].items()} == ours["versions"]
    assert ours["n-samples"]["valley"]["effective"] == theirs["n-samples"]["valley"]["effective"] == 7
    assert "acc_norm" in make_table(ours), "lm-eval's own table reads it"
    with pytest.raises(UserError, match="was scored on lm_eval; open-unlearning has files"):
        write_scores(tmp_path / "eval", "open-unlearning", tmp_path / "other")


def test_the_mean_of_the_zero_shot_tasks_is_over_all_of_them(tasks):
    from letgo.benchmarks.engine.items import Sample
    from letgo.benchmarks.lm_eval import ZERO_SHOT

    benchmark = create_benchmark("lm_eval:tasks=valley", folder=tasks)
    samples = [
        Sample(task, f"{task}/{n}", f"{task}/{n}", {"acc": float(n < place), "cut": 0.0})
        for place, task in enumerate(ZERO_SHOT)
        for n in range(10)
    ]
    metrics = benchmark.summarise(samples)
    assert metrics["retain_zero_shot_acc"].value == pytest.approx(sum(range(8)) / 80)
    assert metrics["retain_zero_shot_acc"].n == 80
    assert "retain_zero_shot_acc" not in benchmark.summarise([s for s in samples if s.set != "rte"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lm_eval:tasks=vally", r"no task 'vally' in .*; did you mean 'valley'"),
        ("lm_eval:tasks=valley,fewshot=-1", "fewshot must be a whole number of at least 0"),
        ("lm_eval:tasks=valley,batch_size=0", "batch_size must be"),
    ],
)
def test_bad_tasks(spec, message, tasks):
    with pytest.raises(UserError, match=message):
        create_benchmark(spec, folder=tasks)


def test_tasks_whose_data_is_out_of_reach_are_named():
    with pytest.raises(UserError, match=r"the data of arc_easy can't be loaded(.|\n)*folder=DIR"):
        create_benchmark("lm_eval:tasks=arc_easy")
    with pytest.raises(UserError, match="no such folder of task files"):
        create_benchmark("lm_eval:tasks=arc_easy,folder=nowhere")
