"""Every recipe parses, names what there is, and plans, on stand-ins for its data and its model's config."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from letgo.attacks.engine.spec import plan_attack
from letgo.benchmarks import BENCHMARKS, create_benchmark
from letgo.core.catalog import parse_spec
from letgo.core.files import load_settings
from letgo.objectives import METHODS, ONE_SHOT
from letgo.optim import create_optimizer
from letgo.training.config import read_config
from letgo.training.run_plan import objective_of, optimizer_settings
from tests import shaped, stand_ins
from tests.benchmarks.test_detox import pku_rows
from tests.benchmarks.test_wmdp import SUBJECTS

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_there_are_recipes_of_every_benchmark_and_grade():
    settings = [load_settings(FOLDER / f"{name}.yaml") for name in RECIPES]
    assert len(RECIPES) >= 25
    assert {parse_spec(one["benchmark"])[0] for one in settings} == {"tofu", "muse", "wmdp", "copyright", "detox"}
    optimizers = {one.get("optimizer") for one in settings}
    assert {"adamw", "sophia", "fozo", "sam", "randomized_smoothing", "weight_averaging"} <= optimizers
    objectives = {METHODS.record(one["objective"]).name for one in settings}
    assert {"graddiff", "npo_gdr", "po", "simnpo_gdr", "rmu", "task_vector", "whp"} <= objectives


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_what_there_is(name):
    path = FOLDER / f"{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# letgo unlearn recipes/{name}.yaml"
    assert re.search(r"arXiv \d{4}\.\d{5}", "\n".join(lines)), "where the settings are from"
    assert max(map(len, lines)) <= 120
    assert not [line for line in lines if re.match(r"\S+:\s*\{", line)], "one flat YAML"
    config = read_config(path)
    assert config.output_dir == f"runs/{name}"
    assert config.model.count("/") == 1, "of the hub: nobody's own folder"
    spec, settings = parse_spec(str(config.benchmark))
    BENCHMARKS.check_settings(spec, settings)
    objective, method = objective_of(config), METHODS.record(config.objective).name
    if objective is None:
        assert method in ONE_SHOT
    else:
        assert objective.record.name == method
        create_optimizer(config.optimizer, [torch.nn.Parameter(torch.zeros(4, 4))], **optimizer_settings(config))
    for attack in config.attacks or []:
        plan_attack(attack)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Small stand-ins for all data sets that recipes name, where LETGO_DATA has them."""
    folder = tmp_path_factory.mktemp("data")
    tofu = shaped.write_tofu(folder / "tofu")
    for forget, retain in (("05", "95"), ("10", "90")):
        for table in ("forget01", "retain99", "forget01_perturbed"):
            other = table.replace("forget01", f"forget{forget}").replace("retain99", f"retain{retain}")
            shutil.copy(tofu / f"{table}.json", tofu / f"{other}.json")
    for corpus in ("news", "books"):
        shaped.write_muse(folder / f"muse-{corpus}")
    for topic in ("bio", "cyber"):
        stand_ins.write_rows(folder / f"wmdp/wmdp-{topic}/test.jsonl", stand_ins.questions())
    stand_ins.write_rows(
        folder / "mmlu/all/test.jsonl", [row | {"subject": SUBJECTS[0]} for row in stand_ins.questions(1)]
    )
    stand_ins.write_rows(folder / "wmdp-corpora/cyber-forget-corpus/train.jsonl", stand_ins.passages())
    stand_ins.write_rows(folder / "wmdp-bio-forget-corpus/corpus.jsonl", stand_ins.passages(70))
    stand_ins.write_rows(folder / "wikitext/wikitext-2-raw-v1/test.jsonl", stand_ins.passages(about="history"))
    for split in ("train", "test"):
        stand_ins.write_rows(folder / f"pku-saferlhf/round0/{split}.jsonl", pku_rows(200))
    stand_ins.write_rows(folder / "real-toxicity-prompts/prompts.jsonl", [{"prompt": {"text": "In the land"}}] * 3)
    stand_ins.write_rows(folder / "c4/en/validation.jsonl", stand_ins.passages(about="web"))
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_plans(name, data, monkeypatch, tmp_path):
    from transformers import LlamaConfig

    from letgo.planning import estimate, plan

    tokenizer = stand_ins.word_tokenizer(" ".join(shaped.TOWNS))
    # A few small blocks in place of seven billion parameters; RMU steers the eighth.
    blocks = 9 if name.endswith("-rmu") else 2
    small = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    monkeypatch.setenv("LETGO_DATA", str(data))
    monkeypatch.setattr(estimate, "model_config", lambda model: small)
    monkeypatch.setattr(estimate, "load_tokenizer", lambda model: tokenizer)
    # The one recipe on files of the user's own.
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(" ".join(row["text"] for row in stand_ins.passages(60)))
    stand_ins.write_rows(Path("retain.jsonl"), stand_ins.passages(4, about="garden"))
    made = plan(read_config(FOLDER / f"{name}.yaml"), flops=1e9)
    settings = load_settings(FOLDER / f"{name}.yaml")
    assert made.model["name"] == settings["model"]
    assert made.steps >= 1
    if "max_steps" in settings and METHODS.record(settings["objective"]).name not in ONE_SHOT:
        assert made.steps == settings["max_steps"]
    if name.endswith("-rmu"):
        assert made.model["trained"] == 3 * 32 * 48, "the projections of blocks 5, 6 and 7"
    if "lora" in name:
        assert made.model["trained"] == blocks * 8 * (32 + 32 + 32 + 16), "queries and values, rank 8"


def test_data_that_a_recipe_needs_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("LETGO_DATA", str(tmp_path))
    with pytest.raises(Exception, match="hf download"):
        create_benchmark(load_settings(FOLDER / "wmdp-cyber-rmu.yaml")["benchmark"])
