"""A record's figures in the hub's forms, read back by the hub's own library."""

from __future__ import annotations

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard

from letgo.report.card import card
from letgo.report.hub_results import eval_results, model_index
from tests.report import runs as made

COMMIT = "324592d84ae4f482ac7249b9285c2ecdb53e3a68"
TOFU = {
    "model": "someone/model",
    "benchmark": "tofu:split=forget10,retain=/home/someone/retain",
    "scored": {"benchmark": "tofu", "version": 1, "split": "forget10", "data": "locuslab/TOFU", "revision": COMMIT},
}


def test_the_hubs_library_reads_the_cards_figures():
    result = made.result(config=TOFU, attacks=[made.quantize(kept=0.9), made.relearn()])
    data = ModelCard(card(result)).data
    assert data.model_name == "someone/model"
    read = {(one.metric_type, one.metric_name): one for one in data.eval_results}
    assert all(isinstance(one, EvalResult) for one in read.values())
    after = {kind: one.metric_value for (kind, _), one in read.items() if kind != "kept"}
    assert after == {key: metric.value for key, metric in result.after.items()}
    kept = [one.metric_value for (kind, _), one in read.items() if kind == "kept"]
    assert kept == [attack.kept for attack in result.attacks]
    one = data.eval_results[0]
    assert (one.dataset_type, one.dataset_name, one.dataset_revision) == ("locuslab/TOFU", "tofu", COMMIT)
    assert one.dataset_args == {"split": "forget10"}


def test_entries_of_a_data_set_on_the_hub():
    result = made.result(config=TOFU)
    entries = yaml.safe_load(eval_results(result))
    assert [entry["dataset"]["task_id"] for entry in entries] == list(result.after)
    first = entries[0]
    assert first["dataset"] == {"id": "locuslab/TOFU", "task_id": "forget_accuracy", "revision": COMMIT}
    assert first["value"] == result.after["forget_accuracy"].value
    assert first["notes"].startswith("split=forget10; 95 % interval 0.41 to 0.59 over 80 samples")


@pytest.mark.parametrize(
    "config",
    [
        {"model": "m", "forget": "/home/someone/ada.jsonl"},
        {"model": "m", "benchmark": "biographies"},
        TOFU | {"scored": {"benchmark": "tofu", "data": "home/someone"}},
    ],
)
def test_data_that_is_not_the_hubs_has_no_entries(config):
    result = made.result(config=config)
    assert eval_results(result) is None
    [index] = model_index(result, "m")
    assert "someone" not in str(index)
    assert "ada" not in str(index)
    assert index["results"][0]["dataset"]["type"] in ("own-data", "biographies", "tofu")


def test_no_subject_no_path_and_no_figure_that_is_not_there():
    people = made.judgement(worst=["Ada Person"])
    external = made.quantize(name="external", settings={"path": "/home/someone/x.gguf"}, kept=None)
    result = made.result(config=TOFU, judgement=people, attacks=[external, made.quantize(settings={"path": "/home/x"})])
    shown = f"{model_index(result, 'm')}{eval_results(result)}"
    assert "Ada" not in shown
    assert "/home" not in shown
    kept = [m for m in model_index(result, "m")[0]["results"][0]["metrics"] if m["type"] == "kept"]
    assert [m["name"] for m in kept] == ["share of the forgetting kept under quantize"]
    assert model_index(made.result(after={}, attacks=[]), "m") == []
