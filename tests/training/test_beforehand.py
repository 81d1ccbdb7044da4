"""What a run is refused for before its model is loaded: attacks that can't be made, a disk without room, float16."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
import torch
import yaml

import letgo
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.files import read_json_lines
from letgo.optim import OPTIMIZERS
from letgo.planning.estimate import Planned
from letgo.sweep.execute import sweep
from letgo.sweep.grid import read_grid
from letgo.training import beforehand
from letgo.training.beforehand import check_room, export_bytes, needed_bytes
from letgo.training.config import UnlearnConfig, make_config
from tests import tiny
from tests.models.test_load import own_code

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def job(tmp_path, model_directory):
    return tiny.own_files(tmp_path, model_directory, learning_rate=1e-3, max_steps=4, per_device_train_batch_size=2)


@pytest.fixture
def no_loading(monkeypatch):
    def loaded(*args, **kwargs):
        pytest.fail("a model was loaded")

    for place in ("training.unlearn.load_model", "attacks.engine.base.open_model", "attacks.engine.target.open_model"):
        monkeypatch.setattr(f"letgo.{place}", loaded)


# -- attacks ---------------------------------------------------------------------------------------------------------

MISTAKES = {
    "quantize:bits=99": "from 2 to 8, not 99",
    "nosuch": "unknown attack 'nosuch'",
    "relearn:holdout=2": "at least 0 and below 1",
    "relearn:holdout=0.05": "holds out none",
    "membership": "no forget and holdout texts",
}


@pytest.mark.parametrize(("spec", "message"), MISTAKES.items(), ids=MISTAKES)
def test_an_attack_that_cant_be_made_is_found_before_a_model_is_loaded(job, no_loading, spec, message):
    with pytest.raises(UserError, match=message):
        letgo.unlearn(**job, attacks=["quantize", spec])
    with pytest.raises(UserError, match=message):
        letgo.plan(make_config(job | {"attacks": ["quantize", spec]}))
    rows = f"rows:forget={job['forget']},retain={job['retain']}"
    with pytest.raises(UserError, match=message):
        letgo.attack(job["model"], ["quantize", spec], benchmark=rows, original=job["model"])


@pytest.mark.parametrize(("spec", "message"), MISTAKES.items(), ids=MISTAKES)
def test_a_sweep_finds_it_before_its_first_cell(job, tmp_path, no_loading, spec, message):
    output = job.pop("output_dir")
    document = {"output_dir": output, "base": job, "grid": {"seed": [0, 1]}, "attacks": [spec]}
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError, match=message):
        sweep(read_grid(path))
    assert not (tmp_path / "run").exists()


# -- room on the disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd"},
        {"optimizer": "fozo", "save_steps": 2, "max_steps": 8},
        {"save_strategy": "no"},
        {"dtype": "bfloat16", "trainable": "mlp"},
        {"evaluate_every": 2, "keep": "best", "save_total_limit": 3, "save_steps": 1},
        {"lora_rank": 2, "save_merged": True},
        {"objective": "task_vector"},
    ],
    ids=str,
)
def test_what_a_run_needs_is_what_its_plan_says_or_a_little_less(job, changes):
    config = make_config(job | changes)
    needed = needed_bytes(config, len(tiny.FORGET))
    disk = letgo.plan(config).disk
    model = disk["merged model"] if config.lora_rank else disk["model"]
    assert needed["model"] == model
    assert needed["best weights"] == disk.get("best weights, while running", 0)
    most = disk["checkpoints, while running"]
    assert needed["checkpoints"] <= most * 1.001
    if not config.lora_rank:
        assert needed["checkpoints"] >= 0.6 * most


@pytest.mark.parametrize("optimizer", [record.name for record in OPTIMIZERS])
def test_a_first_step_tells_every_optimizers_state(job, optimizer):
    config = make_config(job | {"optimizer": optimizer})
    planned = Planned(config, 0)
    assert beforehand._state_share(config) <= planned.cost.state + 0.05


def test_a_disk_without_room_is_told_before_the_model_is_loaded(job, monkeypatch, no_loading):
    config = make_config(job)
    needed = sum(needed_bytes(config, len(tiny.FORGET)).values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, needed - 1000))
    with pytest.raises(
        UserError, match=r"the run needs .* there at least .model .*, and .* are free(.|\n)*save_strategy: no"
    ):
        letgo.unlearn(**job)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, needed))
    check_room(config, needed_bytes(config, len(tiny.FORGET)))


def test_what_the_folder_holds_is_written_over(job, tmp_path, monkeypatch):
    config = make_config(job)
    needed = sum(needed_bytes(config, len(tiny.FORGET)).values())
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-2" / "model.safetensors").write_bytes(b"0" * 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, needed - 1000))
    check_room(config, needed_bytes(config, len(tiny.FORGET)))


def test_of_a_model_on_the_hub_nothing_is_known(job):
    config = make_config(job | {"model": "nobody/nothing"})
    assert set(needed_bytes(config, 4).values()) == {0}


# -- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("export", "message"),
    {"q8_0": "tokenizer", "own": "on no grid that letgo knows"}.items(),
)
def test_an_export_that_cant_be_made_is_found_before_a_model_is_loaded(job, no_loading, export, message):
    pytest.importorskip("gguf")
    config = job | {"export": {"format": export}}
    for refused in (lambda: letgo.unlearn(**config), lambda: letgo.plan(make_config(config))):
        with pytest.raises(UserError, match=message):
            refused()


def test_an_export_takes_room(job, monkeypatch, no_loading):
    config = make_config(job | {"export": {"format": "fp8"}})
    [written] = export_bytes(config).values()
    assert 0 < written < needed_bytes(config, 4)["model"]
    assert letgo.plan(config).disk["export"] == written
    free = sum(needed_bytes(config, len(tiny.FORGET)).values()) + written - 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, free))
    with pytest.raises(UserError, match=r"the run needs .* export .* and .* are free"):
        letgo.unlearn(**job, export={"format": "fp8"})


# -- float16 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [record.name for record in OPTIMIZERS])
def test_float16_is_refused_or_trained_as_in_float32(job, optimizer, tmp_path):
    if not OPTIMIZERS.record(optimizer).float16:
        with pytest.raises(UserError, match=rf"dtype: float16 with {optimizer}(.|\n)*bfloat16 or float32(.|\n)*zo_sgd"):
            make_config(job | {"dtype": "float16", "optimizer": optimizer})
        return
    ends = {}
    for dtype in ("float32", "float16"):
        run = letgo.unlearn(**job | {"dtype": dtype, "optimizer": optimizer, "output_dir": str(tmp_path / dtype)})
        ends[dtype] = [row["loss"] for row in read_json_lines(run.directory / "history.jsonl")]
    assert ends["float16"] == pytest.approx(ends["float32"], rel=0.02)


def test_float16_is_refused_where_a_method_takes_gradients_itself(job):
    with pytest.raises(UserError, match="dtype: float16 with task_vector"):
        UnlearnConfig(dtype="float16", objective="task_vector", optimizer="zo_sgd")


def test_adapters_of_a_float16_model_are_trained(job):
    pytest.importorskip("peft")
    run = letgo.unlearn(**job | {"dtype": "float16", "lora_rank": 2}, attacks=["relearn:steps=3", "quantize"])
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert run.result.attacks[0].did["last_loss"] < run.result.attacks[0].did["first_loss"]


def test_a_loss_that_is_not_finite_in_float16_is_told_what_helps(job):
    with pytest.raises(NonFiniteLossError, match=r"float16(.|\n)*bfloat16 or float32") as caught:
        letgo.unlearn(**job | {"dtype": "float16", "optimizer": "zo_sgd", "learning_rate": 1e6})
    assert "smaller learning_rate" not in str(caught.value)


# -- code that comes with a model ------------------------------------------------------------------------------------


def test_a_models_own_code_runs_only_where_the_config_says_so(job, tmp_path):
    folder = tiny.save(tmp_path / "own", tiny.make_model(), tiny.make_tokenizer())
    own_code(folder, of_tokenizer=True)
    own = job | {"model": str(folder), "save_strategy": "no", "max_steps": 1}
    with pytest.raises(UserError, match="its own Python code would run"):
        letgo.unlearn(**own)
    assert not (folder / "witness").exists()
    run = letgo.unlearn(**own | {"trust_remote_code": True}, attacks=["quantize"])
    assert (folder / "witness").exists()
    assert any("Python code that came with the model" in note for note in run.result.notes)
    assert letgo.plan(make_config(own | {"trust_remote_code": True})).steps == 1
    (folder / "witness").unlink()
    # A record may come from somebody else: what it says of trust counts for nothing.
    benchmark = f"rows:forget={job['forget']},retain={job['retain']}"
    for again in (
        lambda **trust: letgo.attack(run.directory, ["quantize:bits=8"], **trust),
        lambda **trust: letgo.evaluate(folder, [benchmark], **trust),
    ):
        with pytest.raises(UserError, match="--trust-remote-code"):
            again()
        again(trust_remote_code=True)
