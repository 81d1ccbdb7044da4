"""A record's scores as open-unlearning's files, and back: the same figures."""

from __future__ import annotations

import json

import pytest

from letgo import evaluate
from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.items import Sample
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines, write_json_lines
from letgo.report.score_files import write_scores
from letgo.runs.results import SAMPLES_FILE, Result, read_result, write_result
from tests import shaped, tiny
from tests.report import runs as made

TOFU = "split=forget01,length=40,general=false"


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Two models: the one to be judged, and the one that never knew."""
    tokenizer = shaped.tokenizer()
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "tie_word_embeddings": False}
    models = [tiny.make_model(seed, **shape) for seed in (0, 1)]
    return [tiny.save(tmp_path_factory.mktemp("model"), model, tokenizer) for model in models]


def test_a_tofu_evaluation_goes_out_and_comes_back_with_the_same_forget_quality(directories, tmp_path, letgo):
    data = shaped.write_tofu(tmp_path / "data", holdout=True)
    spec = f"tofu:{TOFU},data={data}"
    evaluate(directories[1], [spec], output=tmp_path / "retain")
    [mine] = evaluate(directories[0], [f"{spec},retain={tmp_path / 'retain'}"], output=tmp_path / "own").values()
    out = tmp_path / "out"
    code, printed, _ = letgo("runs", "convert", tmp_path / "retain", "--to", "open-unlearning", "--output", out)
    assert code == 0
    assert printed.strip() == str(out / "TOFU_EVAL.json")
    theirs = create_benchmark(f"{spec},retain={out}")
    samples = [Sample.from_row(row) for row in read_json_lines(tmp_path / "own" / SAMPLES_FILE)]
    assert theirs.metrics_of(samples)["forget_quality"] == mine.after["forget_quality"]
    assert "forget quality is against TOFU_EVAL.json" in "\n".join(theirs.notes)

    path = write_scores(tmp_path / "own", "open-unlearning", tmp_path / "mine")
    content = json.loads(path.read_text())
    parts = [f"{p}_{s}" for p in ("forget", "retain", "ra", "wf") for s in ("Q_A_Prob", "Q_A_ROUGE")]
    ratios = ["forget_truth_ratio", "retain_Truth_Ratio", "ra_Truth_Ratio", "wf_Truth_Ratio"]
    attacks = [f"mia_{name}" for name in ("loss", "zlib", "min_k", "min_k_plus_plus", "reference")]
    alone = ["model_utility", "forget_quality", "extraction_strength", "exact_memorization"]
    assert list(content) == sorted(
        [*parts, *ratios, *attacks, *alone, "ra_Q_A_Prob_normalised", "wf_Q_A_Prob_normalised"]
    )
    for name, metric in [
        ("forget_Q_A_Prob", "forget_probability"),
        ("ra_Q_A_Prob_normalised", "authors_probability"),
        ("wf_Q_A_ROUGE", "facts_rouge"),
        ("retain_Truth_Ratio", "retain_truth_ratio"),
        ("mia_min_k", "forget_mia_min_k_auc"),
        ("model_utility", "model_utility"),
        ("extraction_strength", "forget_extraction_strength"),
    ]:
        assert content[name]["agg_value"] == pytest.approx(mine.after[metric].value), name
    # The aggregates are those that open-unlearning would make of the rows.
    for name, of_rows in [
        ("forget_truth_ratio", lambda row: min(row["score"], 1 / row["score"])),
        ("ra_Truth_Ratio", lambda row: max(0.0, 1 - row["score"])),
        ("ra_Q_A_Prob", lambda row: row["prob"]),
        ("ra_Q_A_Prob_normalised", lambda row: row["prob"]),
        ("retain_Q_A_ROUGE", lambda row: row["rougeL_recall"]),
    ]:
        rows = content[name]["value_by_index"]
        assert list(rows) == [str(n) for n in range(len(rows))], name
        assert content[name]["agg_value"] == pytest.approx(sum(map(of_rows, rows.values())) / len(rows)), name
    first = content["forget_Q_A_ROUGE"]["value_by_index"]["0"]
    assert first["input"] == samples[0].question
    assert first["ground_truth"] == samples[0].answer


def test_a_muse_evaluation_goes_out_and_comes_back_with_the_same_privleak(directories, tmp_path):
    from sklearn.metrics import roc_auc_score

    spec = f"muse:data={shaped.write_muse(tmp_path / 'data')},limit=4,general=false"
    evaluate(directories[1], [spec], output=tmp_path / "retrained")
    [mine] = evaluate(directories[0], [f"{spec},retrain={tmp_path / 'retrained'}"], output=tmp_path / "own").values()
    path = write_scores(tmp_path / "retrained", "open-unlearning", tmp_path / "out")
    content = json.loads(path.read_text())
    assert list(content) == sorted(
        ["forget_knowmem_ROUGE", "forget_verbmem_ROUGE", "retain_knowmem_ROUGE", "mia_min_k", "privleak"]
    )
    verbmem = read_result(tmp_path / "retrained").after["forget_verbmem"].value
    assert content["forget_verbmem_ROUGE"]["agg_value"] == pytest.approx(verbmem / 100)
    rows = {name: content["mia_min_k"][name]["value_by_index"] for name in ("forget", "holdout")}
    scores = [(name == "holdout", row["score"]) for name in rows for row in rows[name].values()]
    assert content["mia_min_k"]["agg_value"] == pytest.approx(roc_auc_score(*zip(*scores, strict=True)))
    theirs = create_benchmark(f"{spec},retrain={path}")
    samples = [Sample.from_row(row) for row in read_json_lines(tmp_path / "own" / SAMPLES_FILE)]
    found = theirs.metrics_of(samples)["forget_privleak"]
    assert found.value == pytest.approx(mine.after["forget_privleak"].value)
    with pytest.raises(UserError, match="its mia_min_k is of 4 forget texts, here it is 2"):
        create_benchmark(f"{spec.replace('limit=4', 'limit=2')},retrain={path}")


def run_with(tmp_path, config: dict, stages: tuple[str, ...]) -> Result:
    scores = {"probability": 0.0, "rouge": 0.5, "truth_ratio": 0.25}
    rows = [Sample("forget", "forget01_perturbed/0", "author 1", scores).as_row(stage, 0) for stage in stages]
    metrics = {f"forget_{name}": made.metric(value, n=1) for name, value in scores.items()}
    result = made.result(config=config, before=metrics, after=metrics, references={"retrained": metrics}, attacks=[])
    write_result(tmp_path, result)
    write_json_lines(tmp_path / SAMPLES_FILE, rows)
    return result


def test_only_what_the_record_has_of_the_stage_asked_for(tmp_path):
    config = made.result().config | {"scored": {"benchmark": "tofu"}}
    run_with(tmp_path, config, ("after", "reference:retrained"))
    content = json.loads(write_scores(tmp_path, "open-unlearning", tmp_path / "out", stage="retrained").read_text())
    assert set(content) == {"forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_truth_ratio"}
    assert content["forget_Q_A_Prob"]["value_by_index"] == {"0": {"prob": 0.0}}
    assert "author 1" not in str(content)
    for message, stage in [
        ("no scores of stage 'befor'; did you mean 'before'", "befor"),
        ("no samples of stage", "before"),
    ]:
        with pytest.raises(UserError, match=message):
            write_scores(tmp_path, "open-unlearning", tmp_path / "out", stage=stage)
    with pytest.raises(UserError, match=r"TOFU_EVAL.json is there already"):
        write_scores(tmp_path, "open-unlearning", tmp_path / "out")
    with pytest.raises(UserError, match="unknown tool 'openunlearning'; did you mean 'open-unlearning'"):
        write_scores(tmp_path, "openunlearning", tmp_path / "other")


def test_a_benchmark_that_the_tool_does_not_have_is_refused(tmp_path):
    run_with(tmp_path, made.result().config | {"scored": {"benchmark": "wmdp"}}, ("after",))
    with pytest.raises(UserError, match="was scored on wmdp; open-unlearning has files of tofu and muse"):
        write_scores(tmp_path, "open-unlearning", tmp_path / "out")
