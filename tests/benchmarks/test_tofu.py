"""TOFU: its real tables and published logs where they are at hand, everything else on data of its shape."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from scipy.stats import ks_2samp

import letgo
from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.items import Sample
from letgo.benchmarks.engine.tables import FOLDERS
from letgo.benchmarks.tofu.tofu import ROWS, SPLITS, Tofu
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.data.encode import IGNORE
from letgo.metrics.composite import forget_quality_metric
from letgo.metrics.memorization import rouge_l_recall, truth_ratio_prob_mean
from letgo.runs.results import read_result
from tests import shaped, tiny
from tests.reference import tofu as reference

LENGTH = 40
QUICK = f"split=forget01,length={LENGTH},general=false"


def real(name: str) -> Path:
    base = os.environ.get(FOLDERS)
    folder = Path(base) if base else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not (folder / name).is_dir():
        pytest.skip(f"no {name} under LETGO_DATA or beside the checkout")
    return folder / name


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return shaped.write_tofu(tmp_path_factory.mktemp("tofu"))


@pytest.fixture(scope="module")
def with_holdout(tmp_path_factory) -> Path:
    return shaped.write_tofu(tmp_path_factory.mktemp("tofu-holdout"), holdout=True)


@pytest.fixture(scope="module")
def tokenizer():
    return shaped.tokenizer()


def made(tokenizer, seed=0):
    return tiny.make_model(seed, vocab_size=len(tokenizer), max_position_embeddings=256, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def model(tokenizer):
    return made(tokenizer)


@pytest.fixture(scope="module")
def directories(tokenizer, tmp_path_factory):
    """Two models: the one to be judged, and the one that stands for the retain model."""
    return [tiny.save(tmp_path_factory.mktemp("model"), made(tokenizer, seed), tokenizer) for seed in (0, 1)]


@pytest.fixture(scope="module")
def retained(directories, data, tmp_path_factory):
    """The retain model's result, as `letgo eval` writes it."""
    output = tmp_path_factory.mktemp("results") / "retain"
    letgo.evaluate(directories[1], [f"tofu:{QUICK},data={data}"], output=output)
    return output


# -- the data ----------------------------------------------------------------------------------------------------------


def test_the_real_tables_have_their_rows_and_are_cut_from_full():
    folder = real("tofu")
    benchmarks = {split: create_benchmark("tofu", split=split, data=str(folder)) for split in SPLITS}
    full = [json.loads(line) for line in (folder / "full.json").read_text().splitlines()]
    assert len(full) == 4000
    for split, benchmark in benchmarks.items():
        forget, retain = benchmark.forget, benchmark.retain
        assert (len(forget), len(retain)) == (ROWS[split], ROWS[SPLITS[split]])
        assert len(forget) + len(retain) == 4000
        rows = [(row.context, row.target) for row in (*retain, *forget)]
        for place in (0, len(retain) - 1, len(retain), 3999):
            assert rows[place] == (full[place]["question"], full[place]["answer"])
        assert benchmark.groups() == [f"author {n}" for n in range(len(retain) // 20, 200)]
        counts = {s: sum(item.set == s for item in benchmark.items) for s in ("forget", "retain", "authors", "facts")}
        assert counts == {"forget": min(300, ROWS[split]), "retain": 300, "authors": 100, "facts": 117}
        scored = [item for item in benchmark.items if item.set == "forget"]
        assert [(i.row.context, i.row.target, i.group) for i in scored] == [
            (row.context, row.target, row.group) for row in forget[:300]
        ]
        assert all(len(item.wrong) == 5 for item in scored)
        assert benchmark.notes == ("tofu: no forget quality, for no retain model's result was given (retain=RESULT)",)
    assert all(len(item.wrong) == 3 and item.paraphrase == item.row.target for item in benchmark.items[-100:])


def test_limits_and_short_tables_are_said(data):
    benchmark = create_benchmark(f"tofu:{QUICK},data={data},limit=3,train_limit=5")
    assert len(benchmark.forget) == len(benchmark.retain) == 5
    assert len(benchmark.items) == 12
    said = "\n".join(benchmark.notes)
    assert "retain99 has 40 rows here and 3960 on the hub; what is trained on is 5 of them" in said
    assert "retain_perturbed has 40 rows here and 400 on the hub; its scores are over 3 of them" in said
    assert "trained on the first 5 forget and 5 retain rows" in said
    many = create_benchmark(f"tofu:{QUICK},data={data},limit=30")
    assert many.limit_notes(None) == ["tofu: limit 30 was asked, but authors has 6, facts has 6: all are scored"]
    assert sum(item.set == "forget" for item in many.items) == 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "forget20"}, "split is 'forget20'; known: forget01, forget05, forget10; did you mean"),
        ({"split": "retain90"}, "split is 'retain90'; known"),
        ({"split": "forget05"}, "has no table 'forget05_perturbed'"),
        ({"template": "lama2"}, "did you mean 'llama2'"),
        ({"length": 4}, "length must be"),
        ({"limit": 0}, "at least 1"),
        ({"train_limit": 0}, "at least 1"),
        ({"gradnorm": True}, "compares forget01 with holdout01, which this data does not have"),
        ({"holdout": True}, "no table 'holdout01'"),
        ({"learn": "all"}, "learn must be one of full, retain, not 'all'"),
        ({"retain": "nowhere"}, "no such directory; make it with `letgo eval"),
    ],
)
def test_bad_settings(data, settings, message):
    with pytest.raises(UserError, match=message):
        create_benchmark("tofu", **{"split": "forget01", "data": str(data)} | settings)


def test_a_row_that_cant_be_used_names_its_place(data, tmp_path):
    for name in data.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    rows = [shaped.tofu_row(2, 0) | {"perturbed_answer": []}]
    (tmp_path / "forget01_perturbed.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"forget01_perturbed.json, row 1: field 'perturbed_answer' must be a list"):
        create_benchmark("tofu", split="forget01", data=str(tmp_path))
    (tmp_path / "forget01_perturbed.json").write_text(json.dumps([shaped.tofu_row(2, 0) | {"answer": " "}]))
    with pytest.raises(UserError, match="row 1: field 'answer' is empty"):
        create_benchmark("tofu", split="forget01", data=str(tmp_path))


# -- the models that it begins with -----------------------------------------------------------------------------------


@pytest.fixture
def run_on(directories, data, tmp_path):
    """Run letgo on the first model, with settings of the benchmark beside those that make it quick."""

    def run(benchmark, **settings):
        spec = f"tofu:{QUICK},data={data},{benchmark}"
        where = {"model": str(directories[0]), "benchmark": spec, "output_dir": str(tmp_path / "run"), "use_cpu": True}
        return letgo.unlearn(**where, **settings)

    return run


@pytest.mark.parametrize(("learn", "rows"), [("full", 80), ("retain", 40)])
def test_the_models_to_begin_with_learn_each_row_once_an_epoch(run_on, learn, rows):
    run = run_on(
        f"learn={learn},limit=6",
        objective="ft",
        learning_rate=3e-2,
        num_train_epochs=4,
        per_device_train_batch_size=8,
    )
    history = read_json_lines(run.directory / "history.jsonl")
    assert [line["step"] for line in history] == list(range(1, 4 * rows // 8 + 1))
    assert f"tofu: {rows} rows to be learned, none to be forgotten (learn={learn})" in run.result.notes
    gained = {
        name: run.result.after[f"{name}_probability"].value - run.result.before[f"{name}_probability"].value
        for name in ("forget", "retain")
    }
    assert gained["retain"] > 0.1
    assert (gained["forget"] > 0.75 * gained["retain"]) is (learn == "full")


@pytest.mark.parametrize("objective", ["npo_gdr", "task_vector"])
def test_what_is_there_to_be_learned_cant_be_forgotten(run_on, objective):
    with pytest.raises(UserError, match=f"objective '{objective}' forgets, but tofu:.*learn=full.* has no forget set"):
        run_on("learn=full,limit=2", objective=objective)


def test_relearning_is_held_against_the_retain_model(run_on, directories, data):
    run = run_on(
        f"retrained={directories[1]},limit=4",
        objective="graddiff",
        learning_rate=1e-2,
        max_steps=2,
        per_device_train_batch_size=4,
        attacks=["relearn:steps=2,learning_rate=1e-3,batch_size=4,holdout=0,seeds=1,evaluations=0"],
    )
    reference_metrics = run.result.references["retrained"]
    [other] = letgo.evaluate(directories[1], [f"tofu:{QUICK},data={data},limit=4"]).values()
    assert reference_metrics["forget_probability"].value == pytest.approx(other.after["forget_probability"].value)
    [attack] = run.result.attacks
    assert {share.floor_of for share in attack.shares} == {"retrained"}
    assert "R_by_kept" not in attack.scores


# -- tokens and scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["plain", "llama2"])
@pytest.mark.parametrize("make", [shaped.tokenizer, None])
def test_tokens_and_labels_are_the_benchmarks_own(data, template, make):
    from tests import stand_ins

    tokenizer = make() if make else stand_ins.sentence_tokenizer()
    benchmark = create_benchmark(f"tofu:{QUICK},data={data},template={template},train_limit=4")
    encoded, said = benchmark.encode(tokenizer, benchmark.forget, max_length=500)
    assert not said
    for item, row in zip(encoded, benchmark.forget, strict=True):
        assert (item.input_ids, item.labels) == reference.labelled(tokenizer, template, row.context, row.target, 500)
        assert item.labels[-1] == tokenizer.eos_token_id
        assert item.labels[0] == IGNORE
    cut, said = benchmark.encode(tokenizer, benchmark.forget, max_length=len(encoded[0]) - 2, long_rows="cut")
    assert cut[0].input_ids == encoded[0].input_ids[:-2]
    assert "longer than max_length" in said[0]
    with pytest.raises(UserError, match="set long_rows"):
        benchmark.encode(tokenizer, benchmark.forget, max_length=len(encoded[0]) - 2)
    other = benchmark.encode_alternatives(tokenizer, encoded, ["a heron"] * 4, max_length=500)
    assert [o.input_ids for o in other] == [
        reference.labelled(tokenizer, template, row.context, "a heron", 500)[0] for row in benchmark.forget
    ]


@pytest.mark.parametrize("template", ["plain", "llama2"])
@pytest.mark.parametrize("length", [LENGTH, 22])
def test_scores_equal_a_plain_loop_over_rows(model, tokenizer, data, template, length):
    spec = f"tofu:split=forget01,length={length},general=false,data={data},limit=3,template={template}"
    benchmark = create_benchmark(spec)
    samples = benchmark.samples(model, tokenizer)
    assert len(samples) == 12
    for sample, item in zip(samples, benchmark.items, strict=True):
        facts = sample.set in ("authors", "facts")
        expected = reference.tofu_row(model, tokenizer, template, item.row.fields, facts=facts, length=length)
        assert {name: sample.scores[name] for name in expected} == pytest.approx(expected, rel=2e-5), sample.id
    metrics = benchmark.summarise(samples)
    forget = [s.scores for s in samples if s.set == "forget"]
    assert metrics["forget_probability"].value == pytest.approx(sum(s["probability"] for s in forget) / 3)
    assert metrics["forget_truth_ratio"].value == pytest.approx(
        sum(min(s["truth_ratio"], 1 / s["truth_ratio"]) for s in forget) / 3
    )
    parts = [
        metrics[f"{name}_{score}"].value
        for name in ("retain", "authors", "facts")
        for score in ("probability", "rouge", "truth_ratio")
    ]
    utility = metrics["model_utility"]
    assert utility.value == pytest.approx(9 / sum(1 / p for p in parts) if all(parts) else 0.0)
    assert utility.n == 9
    assert utility.ci95[0] <= utility.value <= utility.ci95[1]


def test_what_is_foreseen_is_of_the_answer_without_its_end(model, tokenizer, data):
    benchmark = create_benchmark(f"tofu:{QUICK},data={data},limit=2")
    for sample, item in zip(benchmark.samples(model, tokenizer), benchmark.items, strict=False):
        if sample.set not in ("forget", "retain"):
            continue
        ids, labels = reference.labelled(tokenizer, "plain", item.row.context, item.row.target, LENGTH)
        import torch

        best = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        matches = [best[place - 1] == label for place, label in enumerate(labels) if label != IGNORE][:-1]
        assert sample.scores["exact_memorization"] == sum(matches) / len(matches)
        suffix = next(k for k in range(len(matches) + 1) if all(matches[k:]))
        assert sample.scores["extraction_strength"] == 1 - suffix / len(matches)


def test_membership_against_the_holdout_split(model, tokenizer, with_holdout):
    from sklearn.metrics import roc_auc_score

    benchmark = create_benchmark(f"tofu:{QUICK},data={with_holdout},limit=4,gradnorm=true")
    samples = benchmark.samples(model, tokenizer)
    metrics = benchmark.summarise(samples)
    for name in ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm"):
        rated = [s for s in samples if f"mia_{name}" in s.scores]
        assert [s.set for s in rated] == ["forget"] * 4 + ["holdout"] * 4
        labels, scores = [s.set == "forget" for s in rated], [s.scores[f"mia_{name}"] for s in rated]
        assert metrics[f"forget_mia_{name}_auc"].value == pytest.approx(roc_auc_score(labels, scores))
        assert metrics[f"forget_mia_{name}_auc"].n == 8
    ids, labels = reference.labelled(
        tokenizer, "plain", benchmark.forget[0].context, benchmark.forget[0].target, LENGTH
    )
    losses = reference.losses(model, ids, labels)[:-1]
    first = next(s for s in samples if s.id == "forget01/0")
    assert first.scores["mia_loss"] == pytest.approx(-sum(losses) / len(losses), rel=1e-5)
    assert metrics["forget_probability"].n == 4, "rows scored for membership alone are not counted twice"
    plain = create_benchmark(f"tofu:{QUICK},data={with_holdout},limit=4,holdout=false")
    assert not any(item.set == "holdout" for item in plain.items)


def test_membership_against_the_retain_models_loss(directories, with_holdout, tmp_path):
    from sklearn.metrics import roc_auc_score

    spec = f"tofu:{QUICK},limit=4,data={with_holdout}"
    letgo.evaluate(directories[1], [spec], output=tmp_path / "retain")
    [result] = letgo.evaluate(
        directories[0], [f"{spec},retain={tmp_path / 'retain'}"], output=tmp_path / "own"
    ).values()
    rows = {
        place: {
            row["id"]: row["scores"]["mia_loss"]
            for row in read_json_lines(tmp_path / place / "samples.jsonl")
            if "mia_loss" in row["scores"]
        }
        for place in ("own", "retain")
    }
    assert len(rows["own"]) == 8
    apart = {name: loss - rows["retain"][name] for name, loss in rows["own"].items()}
    expected = roc_auc_score([name.startswith("forget01/") for name in apart], list(apart.values()))
    assert result.after["forget_mia_reference_auc"].value == pytest.approx(expected)
    assert not any("no membership attack" in note for note in result.notes)
    letgo.evaluate(directories[1], [f"{spec},holdout=false"], output=tmp_path / "less")
    less = create_benchmark(f"{spec},retain={tmp_path / 'less'}")
    assert "the retain model was not scored on holdout01 (holdout=true)" in "\n".join(less.notes)


# -- forget quality ----------------------------------------------------------------------------------------------------


def test_forget_quality_is_the_test_against_the_retain_models_result(directories, data, retained, tmp_path):
    spec = f"tofu:{QUICK},data={data},retain={retained}"
    [result] = letgo.evaluate(directories[0], [spec], output=tmp_path / "out").values()
    ratios = {
        place: [
            row["scores"]["truth_ratio"] for row in read_json_lines(place / "samples.jsonl") if row["set"] == "forget"
        ]
        for place in (tmp_path / "out", retained)
    }
    found = result.after["forget_quality"]
    assert found.value == ks_2samp(*ratios.values()).pvalue
    assert found.n == 40
    assert found.ci95[0] <= found.value
    assert result.references == {"retain": read_result(retained).after}
    assert result.config["scored"]["template"] == "plain"
    assert "forget_quality" not in read_result(retained).after
    assert any("no forget quality" in note for note in read_result(retained).notes)
    [same] = letgo.evaluate(directories[1], [spec]).values()
    assert same.after["forget_quality"].value == 1.0
    # A part of the rows is held against the same part.
    benchmark = create_benchmark(spec)
    samples = [Sample.from_row(row) for row in read_json_lines(tmp_path / "out" / "samples.jsonl")]
    some = [s for s in samples if s.set != "forget" or s.group == "author 198"]
    assert benchmark.summarise(some)["forget_quality"].value == ks_2samp(*(r[:20] for r in ratios.values())).pvalue
    [few] = letgo.evaluate(directories[0], [spec + ",limit=10"]).values()
    assert few.after["forget_quality"].n == 10


def test_a_retain_result_that_cant_be_compared_is_refused_before_anything_is_scored(
    directories, data, retained, tmp_path, model, tokenizer
):
    def judged(retain, more=""):
        create_benchmark(f"tofu:{QUICK},data={data},retain={retain}{more}").work(model, tokenizer)

    def refused(message, retain=retained, more=""):
        with pytest.raises(UserError, match=message):
            judged(retain, more)

    few = tmp_path / "few"
    letgo.evaluate(directories[1], [f"tofu:{QUICK},data={data},limit=5"], output=few)
    refused("scored on other rows: 35 of the 40 rows to be scored are not in it", few)
    with pytest.raises(UserError, match="its length is 40, here it is 50"):
        create_benchmark("tofu", split="forget01", data=str(data), length=50, retain=str(retained))
    refused("question, answers or template differ", more=",template=llama2")

    def changed(name, change):
        place = tmp_path / name
        place.mkdir()
        for file in retained.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        result = json.loads((place / "result.json").read_text())
        change(result)
        (place / "result.json").write_text(json.dumps(result))
        return place

    refused(
        "its version of the benchmark's scores is 0, here it is 1(.|\\n)*letgo eval",
        changed("old", lambda r: r["config"]["scored"].update(version=0)),
    )
    refused("its split is 'forget05'", changed("split", lambda r: r["config"]["scored"].update(split="forget05")))
    refused("does not say what it was scored on", changed("bare", lambda r: r["config"].pop("scored")))
    refused("record of an unlearning run", changed("run", lambda r: r.update(before=r["after"])))
    lost = changed("lost", lambda r: None)
    (lost / "samples.jsonl").unlink()
    refused("has no samples.jsonl", lost)
    refused("holds no result.json", directories[0])
    other = shaped.write_tofu(tmp_path / "other")
    rows = [json.loads(line) for line in (other / "forget01_perturbed.json").read_text().splitlines()]
    rows[7]["perturbed_answer"][2] += " again"
    (other / "forget01_perturbed.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="its row 'forget01_perturbed/7' is another one"):
        create_benchmark(f"tofu:{QUICK},data={other},retain={retained}").work(model, tokenizer)


def test_the_one_that_fits_is_found_in_a_folder_of_several(directories, data, retained, tmp_path):
    specs = [f"tofu:{QUICK},data={data}", f"tofu:{QUICK},data={data},template=llama2", "rows:forget=x"]
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.FORGET)
    specs[2] = f"rows:forget={rows}"
    letgo.evaluate(directories[1], [specs[0], specs[2]], output=tmp_path / "both")
    benchmark = create_benchmark(f"{specs[0]},retain={tmp_path / 'both'}")
    assert benchmark.reference.path == tmp_path / "both" / "tofu"
    letgo.evaluate(directories[1], specs[:2], output=tmp_path / "two")
    assert {path.parent.name for path in (tmp_path / "two").glob("*/result.json")} == {"tofu", "tofu-template=llama2"}
    with pytest.raises(UserError, match="holds 2 results that fit"):
        create_benchmark(f"{specs[0]},retain={tmp_path / 'two'}")


# -- tokenizers and answers --------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_start_token(data):
    tokenizer = shaped.tokenizer(bos=False)
    model = tiny.make_model(vocab_size=len(tokenizer), max_position_embeddings=256)
    benchmark = create_benchmark(f"tofu:{QUICK},data={data},limit=1")
    sample = benchmark.samples(model, tokenizer)[0]
    row = benchmark.items[0].row
    assert sample.scores["probability"] == pytest.approx(
        reference.probability(model, tokenizer, "plain", row.context, row.target), rel=1e-5
    )


def test_without_an_end_token_there_is_nothing_to_label(model, data):
    tokenizer = shaped.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="labels an end token after every answer, but this tokenizer has none"):
        create_benchmark(f"tofu:{QUICK},data={data}").work(model, tokenizer)


def test_an_answer_of_no_tokens_is_named(model, data, tmp_path):
    from tokenizers import normalizers

    tokenizer = shaped.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("§", "")
    folder = shaped.write_tofu(tmp_path)
    (folder / "forget01_perturbed.json").write_text(json.dumps([shaped.tofu_row(2, 0) | {"answer": "§"}]))
    (folder / "forget01.json").write_text(json.dumps([{"question": "Where ?", "answer": "§"}]))
    benchmark = create_benchmark(f"tofu:{QUICK},data={folder}")
    with pytest.raises(UserError, match=r"forget01_perturbed.json, row 1: the answer '§' has no tokens"):
        benchmark.work(model, tokenizer)
    with pytest.raises(UserError, match=r"forget01.json, row 1: the answer '§' has no tokens"):
        benchmark.encode(tokenizer, benchmark.forget, max_length=50)


def test_a_question_that_fills_the_length_is_named(model, tokenizer, data, tmp_path):
    folder = shaped.write_tofu(tmp_path)
    long = shaped.tofu_row(2, 0) | {"question": "Where was book 1 of Ambra Nolt written ? " * 6}
    (folder / "forget01_perturbed.json").write_text(json.dumps([long]))
    with pytest.raises(UserError, match=r"row 1: the question alone has \d+ tokens; within 40 there is no room"):
        create_benchmark(f"tofu:{QUICK},data={folder}").work(model, tokenizer)


def test_templates_are_told_from_the_tokenizer(tokenizer, data):
    benchmark: Tofu = create_benchmark(f"tofu:{QUICK},data={data}")
    assert benchmark.form_for(tokenizer, None) == "plain"
    assert benchmark.form_for(tokenizer, "auto") == "plain"
    with pytest.raises(UserError, match="has no chat template"):
        benchmark.form_for(tokenizer, "chat")
    llama = shaped.tokenizer()
    llama.chat_template = "{{ '[INST] <<SYS>>' }}"
    assert benchmark.form_for(llama, None) == "llama2"
    assert benchmark.identity(llama)["template"] == "llama2"
    llama.chat_template = "{% for m in messages %}{{ m['content'] }} Answer : {% endfor %}"
    asked = create_benchmark(f"tofu:{QUICK},data={data},template=chat,train_limit=1")
    [row], _ = asked.encode(llama, asked.forget, max_length=100)
    text = asked.forget[0].context + " Answer : "
    assert row.labels.count(IGNORE) == len(llama(text, add_special_tokens=False)["input_ids"])


# -- published numbers -------------------------------------------------------------------------------------------------

PUBLISHED = {
    "full": {
        "model_utility": 0.622677,
        "forget_probability": 0.990939,
        "forget_rouge": 0.985450,
        "forget_truth_ratio": 0.515985,
        "retain_probability": 0.989527,
        "retain_rouge": 0.985655,
        "retain_truth_ratio": 0.474699,
        "authors_probability": 0.455482,
        "authors_rouge": 0.933,
        "authors_truth_ratio": 0.596229,
        "facts_probability": 0.418562,
        "facts_rouge": 0.882479,
        "facts_truth_ratio": 0.539033,
    },
    "retain90": {
        "model_utility": 0.613745,
        "forget_probability": 0.147563,
        "forget_rouge": 0.408244,
        "forget_truth_ratio": 0.674019,
    },
}
_LOGS = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "authors": "eval_real_author_wo_options.json",
    "facts": "eval_real_world_wo_options.json",
}


def logged(name: str) -> list[Sample]:
    """The published per-row losses and texts of a Llama-2-7B, as samples."""
    import torch

    from letgo.metrics.memorization import normalised_probability, probability, truth_ratio

    log = json.loads((real("tofu_eval_logs") / f"llama2-7b_{name}.json").read_text())
    samples = []
    for which, file in _LOGS.items():
        rows = log[file]
        for index, loss in rows["avg_gt_loss"].items():
            right, base = (
                -torch.tensor([value], dtype=torch.float64) for value in (loss, rows["avg_paraphrased_loss"][index])
            )
            wrong = [-torch.tensor([value], dtype=torch.float64) for value in rows["average_perturb_loss"][index]]
            _, generated, truth = rows["generated_text"][index]
            own = normalised_probability(right, wrong) if which in ("authors", "facts") else probability(right)
            scores = {
                "probability": own,
                "truth_ratio": truth_ratio(base, wrong),
                "rouge": rouge_l_recall(truth, generated),
            }
            assert scores["truth_ratio"] == pytest.approx(rows["truth_ratio"][index], rel=2e-6)
            assert scores["rouge"] == rows["rougeL_recall"][index], (which, index)
            group = f"author {int(index) // 20}" if which in ("forget", "retain") else index
            samples.append(Sample(which, f"{which}/{index}", group, scores))
    return samples


def test_the_published_logs_give_the_published_figures(data):
    benchmark = create_benchmark("tofu", split="forget01", data=str(data))
    samples = {name: logged(name) for name in PUBLISHED}
    assert [len(s) for s in samples.values()] == [817, 817]
    for name, expected in PUBLISHED.items():
        metrics = benchmark.summarise(samples[name])
        for metric, value in expected.items():
            assert metrics[metric].value == pytest.approx(value, abs=5e-7), (name, metric)
        assert metrics["model_utility"].n == 517
        low, high = metrics["model_utility"].ci95
        assert low < metrics["model_utility"].value < high
        assert 0.02 < high - low < 0.1
    ratios = [[s.scores["truth_ratio"] for s in samples[name] if s.set == "forget"] for name in PUBLISHED]
    # Shares of the right answer fall as the ratios rise: the test can't tell the two forms apart.
    shares = [[truth_ratio_prob_mean(ratio) for ratio in of_model] for of_model in ratios]
    assert ks_2samp(*shares).pvalue == pytest.approx(ks_2samp(*ratios).pvalue, rel=1e-9)
    test = ks_2samp(*ratios)
    assert test.statistic == pytest.approx(0.396667, abs=5e-7)
    metric = forget_quality_metric(*ratios)
    assert metric.value == pytest.approx(1.834066e-21, rel=5e-7)
    assert metric.n == 300
    assert metric.ci95[0] < metric.value < metric.ci95[1]


# -- the whole path ----------------------------------------------------------------------------------------------------


def test_both_aggregators_of_the_truth_ratio_by_the_published_losses(data):
    benchmark = create_benchmark("tofu", split="forget01", data=str(data))
    for name in PUBLISHED:
        log = json.loads((real("tofu_eval_logs") / f"llama2-7b_{name}.json").read_text())
        metrics = benchmark.summarise(logged(name))
        for which, file in _LOGS.items():
            losses = [
                (log[file]["avg_paraphrased_loss"][n], log[file]["average_perturb_loss"][n])
                for n in log[file]["gt_loss"]
            ]
            right = [math.exp(-loss) for loss, _ in losses]
            wrong = [math.exp(-sum(others) / len(others)) for _, others in losses]
            shares = [c / (c + x) for c, x in zip(right, wrong, strict=True)]
            folded = [
                min(x / c, c / x) if which == "forget" else max(0.0, 1 - x / c)
                for c, x in zip(right, wrong, strict=True)
            ]
            found = [metrics[f"{which}_truth_ratio{form}"].value for form in ("_prob_mean", "")]
            assert found == pytest.approx([sum(shares) / len(shares), sum(folded) / len(folded)], rel=1e-9)


def test_unlearn_eval_report_offline(directories, data, retained, whole_path):
    """On data of its shape: the retain model's result given by its path, both times."""
    result, _, printed = whole_path(directories[0], f"tofu:{QUICK},data={data},retain={retained}", "npo_gdr:beta=0.1")
    assert result.before["forget_quality"].n == result.after["forget_quality"].n == 40
    assert result.before["model_utility"].n == 52
    assert result.references == {"retain": read_result(retained).after}
    assert "forget_quality" in printed


@pytest.mark.slow
def test_forget01_on_smollm2_from_unlearning_to_the_report(tmp_path):
    """The real data and a real model, few rows and steps."""
    spec = f"tofu:split=forget01,data={real('tofu')},limit=1,length=40"
    letgo.evaluate("smollm2", [f"{spec},general=false"], output=tmp_path / "retain")
    run = letgo.unlearn(
        model="smollm2",
        benchmark=f"{spec},train_limit=2,general=false,retain={tmp_path / 'retain'}",
        objective="npo_gdr",
        trainable=r"layers\.(2[5-9])\.mlp",
        learning_rate=1e-4,
        max_steps=2,
        per_device_train_batch_size=2,
        output_dir=str(tmp_path / "run"),
        use_cpu=True,
    )
    result = read_result(run.directory)
    assert result.before["forget_quality"].value == 1.0, "the model is its own retain model before"
    assert result.after["forget_probability"].value < result.before["forget_probability"].value
    assert result.after["model_utility"].n == 3
    assert result.references["retain"] == read_result(tmp_path / "retain").after
    assert result.config["scored"]["template"] == "plain"
    page = letgo.write_report([run.directory], tmp_path / "report.html").read_text()
    for title in ("forget quality", "model utility", "retain reference"):
        assert title in page
