"""Score files of open-unlearning and of the older TOFU code as references: their forms, their rows, what is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from scipy.stats import ks_2samp

from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.items import Item, Sample
from letgo.benchmarks.engine.open_unlearning import read_membership_auc, read_truth_ratios
from letgo.benchmarks.engine.tables import FOLDERS
from letgo.core.errors import UserError
from letgo.data.rows import Row
from tests import shaped

RATIOS = [0.3, 2.0, 0.9, 1.4]


def items(count: int = len(RATIOS)) -> list[Item]:
    rows = [Row(("question", "answer"), f"question {n} ?", "answer", f"author {n}", "here") for n in range(count)]
    return [Item("forget", f"rows/{n}", row.group, row) for n, row in enumerate(rows)]


def by_index(scores, key: str = "score") -> dict:
    return {str(number): {key: score} for number, score in enumerate(scores)}


def ratio_file(scores=RATIOS, *, name="forget_truth_ratio", **more) -> dict:
    mean = sum(min(s, 1 / s) for s in scores) / len(scores)
    return {name: {"agg_value": mean, "value_by_index": by_index(scores)}, **more}


def losses(ratio: float) -> dict:
    pert = [1.0 - math.log(ratio) - 0.5, 1.0 - math.log(ratio) + 0.5]
    rows = {"forget_Q_A_PARA_Prob": 1.0, "forget_Q_A_PERT_Prob": pert}
    return {name: {"value_by_index": {"0": {"avg_loss": loss}}} for name, loss in rows.items()}


def share_file(scores=RATIOS) -> dict:
    shares = [1 / (1 + score) for score in scores]
    return {
        "forget_Truth_Ratio": {"agg_value": sum(shares) / len(shares), "value_by_index": by_index(shares)}
    } | losses(scores[0])


def older_log(count: int = len(RATIOS)) -> dict:
    """A log whose rows have the truth ratios of RATIOS."""
    log: dict = {"avg_paraphrased_loss": {}, "average_perturb_loss": {}, "generated_text": {}}
    for number, ratio in enumerate(RATIOS[:count]):
        log["avg_paraphrased_loss"][str(number)] = 3.0 + math.log(ratio)
        log["average_perturb_loss"][str(number)] = [2.5, 3.5]
        log["generated_text"][str(number)] = [f"[INST] question {number} ? [/INST]", "written", "true"]
    return {"eval_log_forget.json": log}


def read(tmp_path: Path, content, count: int = len(RATIOS), rows: int = len(RATIOS)):
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps(content))
    return read_truth_ratios("retain", path, items(count), "forget10", (rows,))


@pytest.mark.parametrize("content", [ratio_file(), share_file(), older_log()])
def test_each_form_comes_to_the_same_truth_ratios(tmp_path, content):
    found = read(tmp_path, content)
    assert [found.samples[f"rows/{n}"].scores["truth_ratio"] for n in range(4)] == pytest.approx(RATIOS)
    assert found.metrics["forget_truth_ratio"].value == pytest.approx((0.3 + 0.5 + 0.9 + 1 / 1.4) / 4)


def test_the_first_rows_are_matched_with_the_first_rows_of_the_file(tmp_path):
    found = read(tmp_path, ratio_file(), count=2)
    mine = [Sample("forget", f"rows/{n}", "", {"truth_ratio": 5.0}, digest="any") for n in range(2)]
    assert found.matched(mine, "truth_ratio") == [(5.0, 0.3), (5.0, 2.0)]


def test_where_no_score_is_above_1_the_losses_tell_the_form_and_without_them_it_is_refused(tmp_path):
    low = [0.3, 0.8]
    with pytest.raises(UserError, match=r"may be wrong/right or right/.* has no forget_Q_A_PARA_Prob to tell"):
        read(tmp_path, ratio_file(low), 2, 2)
    as_ratios = read(tmp_path, ratio_file(low, **losses(0.3)), 2, 2)
    assert as_ratios.samples["rows/0"].scores["truth_ratio"] == 0.3
    as_shares = read(tmp_path, ratio_file(low, **losses(7 / 3)), 2, 2)
    assert as_shares.samples["rows/0"].scores["truth_ratio"] == pytest.approx(7 / 3)
    assert as_shares.samples["rows/1"].scores["truth_ratio"] == pytest.approx(0.25)
    with pytest.raises(UserError, match="it is neither wrong/right nor right"):
        read(tmp_path, ratio_file(low, **losses(1.0)), 2, 2)


def test_what_cant_be_compared_is_refused_in_words(tmp_path):
    def refused(message: str, content, count=4, rows=4):
        with pytest.raises(UserError, match=message):
            read(tmp_path, content, count, rows)

    refused("has 4 rows, and forget10 has 400", ratio_file(), rows=400)
    shifted = ratio_file(RATIOS[:3], forget_Q_A_Prob={"value_by_index": by_index([0.1, None, 0.3, 0.4], "prob")})
    refused("has 3 rows, and forget10 has 4; row 1 of forget_Q_A_Prob has no score", shifted)
    gap = ratio_file()
    gap["forget_truth_ratio"]["value_by_index"]["7"] = gap["forget_truth_ratio"]["value_by_index"].pop("1")
    refused("row 1 of 4 is missing", gap)
    none = ratio_file()
    none["forget_truth_ratio"]["value_by_index"]["2"]["score"] = None
    refused("row 2, score must be a number, not None", none)
    neither = ratio_file()
    neither["forget_truth_ratio"]["agg_value"] = 0.123
    refused("agg_value is 0.123, but neither form", neither)
    asked = {"forget_Q_A_ROUGE": {"value_by_index": by_index(["question 0 ?", "question 9 ?"], "input")}}
    refused("row 1 asks 'question 9 \\?', here it is 'question 1 \\?'", ratio_file(**asked))
    refused("has no forget_truth_ratio, .* it has mia_min_k", {"mia_min_k": {"agg_value": 0.5}})
    refused("not a JSON object", [1, 2])
    older = older_log()
    older["eval_log_forget.json"]["average_perturb_loss"]["3"] = []
    refused("row 3: average_perturb_loss must be a list of losses", older)
    # A part of the rows is that of any split, where no question tells.
    refused("has 2 rows, and forget10 has 400", ratio_file([0.3, 2.0]), 2, 400)
    asked["forget_Q_A_ROUGE"]["value_by_index"]["1"]["input"] = "Q: question  1\n?"
    assert len(read(tmp_path, ratio_file([0.3, 2.0], **asked), 2, 400).samples) == 2


def muse_file(path: Path, auc: float = 0.6, forget: int = 2, **more) -> Path:
    parts = {name: {"value_by_index": by_index([0.1] * n)} for name, n in (("forget", forget), ("holdout", 2))}
    path.write_text(json.dumps({"mia_min_k": {"agg_value": auc, **parts}, **more}))
    return path


def test_the_auc_of_a_muse_file(tmp_path):
    path, counts = tmp_path / "MUSE_EVAL.json", {"forget": 2, "holdout": 2}
    assert read_membership_auc("retrain", muse_file(path), counts, ["who ?"]) == 0.6
    asked = {"forget_knowmem_ROUGE": {"value_by_index": by_index(["Question: when ?\nAnswer:"], "input")}}
    for message, content in [
        ("is of 3 forget texts, here it is 2", {"forget": 3}),
        ("agg_value is 1.0; PrivLeak needs", {"auc": 1.0}),
        ("asks 'Question: when \\? Answer:', here it is 'who \\?'", asked),
    ]:
        with pytest.raises(UserError, match=message):
            read_membership_auc("retrain", muse_file(path, **content), counts, ["who ?"])
    path.write_text('{"forget_truth_ratio": {}}')
    with pytest.raises(UserError, match="has no mia_min_k"):
        read_membership_auc("retrain", path, counts, [])


def test_muse_takes_the_files_auc_in_place_of_the_published_one(tmp_path):
    data, saves = shaped.write_muse(tmp_path / "data"), tmp_path / "saves"
    saves.mkdir()
    muse_file(saves / "MUSE_EVAL.json", 0.7)
    benchmark = create_benchmark(f"muse:data={data},limit=2,general=false,retrain={saves}")
    assert benchmark.retrained_auc == pytest.approx(0.3)
    assert "PrivLeak is against the AUC 0.3000 of MUSE_EVAL.json" in "\n".join(benchmark.notes)
    members = [("forget", 1.0), ("forget", 3.0), ("holdout", 2.0), ("holdout", 4.0)]
    samples = [Sample(name, f"{name}{n}", str(n), {"min_k": score}) for n, (name, score) in enumerate(members)]
    # Of four pairs one has the forget text as the more familiar: AUC 0.25, theirs 0.7.
    assert benchmark.metrics_of(samples)["forget_privleak"].value == pytest.approx(100 * (0.7 - 0.25) / (1 - 0.7))


def published_logs() -> Path:
    base = os.environ.get(FOLDERS)
    folder = Path(base) if base else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    for name in ("tofu", "tofu_eval_logs"):
        if not (folder / name).is_dir():
            pytest.skip(f"no {name} under LETGO_DATA or beside the checkout")
    return folder


def test_the_published_log_of_the_retain_model_is_a_reference_for_its_split_alone():
    folder = published_logs()
    log = folder / "tofu_eval_logs" / "llama2-7b_retain90.json"
    benchmark = create_benchmark("tofu", data=str(folder / "tofu"), retain=str(log), general=False)
    assert benchmark.reference is not None
    theirs = json.loads(log.read_text())["eval_log_forget.json"]
    ratios = [theirs["truth_ratio"][str(n)] for n in range(300)]
    rated = [benchmark.reference.samples[f"forget10_perturbed/{n}"].scores["truth_ratio"] for n in range(300)]
    # The log rounds its own ratios to float32.
    assert rated == pytest.approx(ratios, rel=1e-4)
    full = json.loads((folder / "tofu_eval_logs" / "llama2-7b_full.json").read_text())["eval_log_forget.json"]
    samples = [
        Sample("forget", f"forget10_perturbed/{n}", str(n), {"truth_ratio": full["truth_ratio"][str(n)]}, digest="x")
        for n in range(300)
    ]
    quality = benchmark.metrics_of(samples)["forget_quality"].value
    assert quality == pytest.approx(ks_2samp([full["truth_ratio"][str(n)] for n in range(300)], ratios).pvalue)
    assert quality < 1e-10, "the model that learned all is far from the one that never knew"
    with pytest.raises(UserError, match="has 300 rows, and forget05 has 200"):
        create_benchmark("tofu", split="forget05", data=str(folder / "tofu"), retain=str(log))
