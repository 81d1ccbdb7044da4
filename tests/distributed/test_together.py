"""What two processes do together is what one does alone: the same weights, the same scores, the same record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import letgo
from letgo.core.files import read_json_lines
from letgo.runs.results import read_result
from tests import tiny
from tests.distributed.conftest import distance, together
from tests.distributed.worker import Stopped, stop_at

pytestmark = pytest.mark.slow

# Four forget rows: with two a step in each process an epoch is one step, with three there is a short one.
COMMON = {"objective": "npo_gdr", "max_steps": 6, "seed": 5, "learning_rate": 1e-2, "save_steps": 2, "eval_limit": 1}
COMMON |= {"check_processes_every": 1}
SGD = {"optimizer": "sgd", "learning_rate": 0.1}
ZO = {"optimizer": "zo_sgd", "optimizer_args": {"num_directions": 3, "mu": 1e-2}, "learning_rate": 1e-2}
FOZO = {"optimizer": "fozo", "optimizer_args": {"fo_steps": 2, "zo_steps": 1, "zo_lr": 1e-2, "mu": 1e-2}}
# The exactness that is meant: rows are summed in another order, and Adam divides small gradients by themselves.
ROUNDING, ADAM = 2e-6, 2e-4
# The difference of two losses, divided by twice μ.
ESTIMATED = 5e-5

CASES = {
    # name: (settings, batch size of one process that is the same, tolerance)
    "sgd": (SGD, 4, ROUNDING),
    "short batches": (SGD | {"per_device_train_batch_size": 3}, 6, ROUNDING),
    "one row for two": (SGD | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}, None, ROUNDING),
    "accumulated": (SGD | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}, None, ROUNDING),
    "adamw": ({"optimizer": "adamw"}, 4, ADAM),
    "sophia": ({"optimizer": "sophia"}, 4, ADAM),
    "sophia gnb": ({"optimizer": "sophia", "optimizer_args": {"hessian": "gnb", "hessian_every": 2}}, 4, None),
    "sam": ({"optimizer": "sam"}, 4, ADAM),
    "kl": (SGD | {"objective": "npo_klr"}, 4, ROUNDING),
    "rmu": (SGD | {"objective": "rmu", "objective_args": {"layer": 1}}, 4, ROUNDING),
    "zeroth order, rows shared": (ZO, 4, ESTIMATED),
    "zeroth order, directions shared": (ZO | {"share": "directions", "per_device_train_batch_size": 4}, 4, 0.0),
    "hybrid, rows shared": (FOZO, 4, ADAM),
    "hybrid, directions shared": (FOZO | {"share": "directions", "per_device_train_batch_size": 4}, 4, ADAM),
    "other seed": (SGD | {"seed": 6}, 4, ROUNDING),
    "shards, sgd": (SGD | {"strategy": "fsdp2"}, 4, ROUNDING),
    "shards, adamw": ({"optimizer": "adamw", "strategy": "fsdp2"}, 4, ADAM),
    "shards, short batches": (SGD | {"per_device_train_batch_size": 3, "strategy": "fsdp2"}, 6, ROUNDING),
    "shards, accumulated": (
        SGD | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "strategy": "fsdp2"},
        None,
        ROUNDING,
    ),
    "shards, sophia": ({"optimizer": "sophia", "strategy": "fsdp2"}, 4, ADAM),
    "shards, kl": (SGD | {"objective": "npo_klr", "strategy": "fsdp2"}, 4, ROUNDING),
    "shards, zeroth order": (ZO | {"strategy": "fsdp2"}, 4, ESTIMATED),
    "shards, hybrid": (FOZO | {"strategy": "fsdp2"}, 4, ADAM),
}
RESUMED = {
    "sgd": SGD | {"per_device_train_batch_size": 2},
    "directions": ZO | {"share": "directions", "per_device_train_batch_size": 4},
    "adamw": {"optimizer": "adamw", "per_device_train_batch_size": 2},
    "shards": {"optimizer": "adamw", "per_device_train_batch_size": 2, "strategy": "fsdp2"},
}


def _settings(folder: Path, model: Path, more: dict) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    return tiny.own_files(folder, model, **({"per_device_train_batch_size": 2} | COMMON | more))


def _alone(settings: dict, batch: int | None) -> dict:
    """The same steps in one process: all rows in one batch, or twice the micro-batches."""
    alone = {key: value for key, value in settings.items() if key not in ("strategy", "share")}
    if batch is None:
        return alone | {"gradient_accumulation_steps": 2 * settings["gradient_accumulation_steps"]}
    return alone | {"per_device_train_batch_size": batch}


@pytest.fixture(scope="module")
def told(package_folder, tiny_directory):
    """All jobs, in one launch; what the first process says of them, and the folder of each."""
    jobs, folders = {}, {}
    for name, (settings, _, _) in CASES.items():
        folders[name] = package_folder / name.replace(" ", "-").replace(",", "")
        jobs[name] = ("unlearn", {"settings": _settings(folders[name], tiny_directory, settings)})
    for name, settings in RESUMED.items():
        begun = folders[f"begun {name}"] = package_folder / f"begun-{name}"
        jobs[f"begun {name}"] = (
            "unlearn",
            {"settings": _settings(begun, tiny_directory, settings | {"max_steps": 6}), "stop": 4},
        )
        alone = folders[f"going on {name}"] = package_folder / f"going-on-{name}"
        settings = _settings(alone, tiny_directory, settings)
        with stop_at(4), pytest.raises(Stopped):
            letgo.unlearn(**_alone(settings, 4))
        jobs[f"going on {name}"] = ("unlearn", {"settings": settings, "resume": True})
    different = package_folder / "different"
    jobs["different"] = (
        "differ",
        {"settings": _settings(different, tiny_directory, ZO | {"check_processes_every": 2})},
    )
    nan = package_folder / "nan"
    folders["nan"] = nan
    jobs["nan"] = ("unlearn", {"settings": _settings(nan, tiny_directory, SGD | {"learning_rate": 1e38})})
    lora = package_folder / "lora"
    adapter = {"strategy": "fsdp2", "lora_rank": 2}
    jobs["lora"] = ("unlearn", {"settings": _settings(lora, tiny_directory, SGD | adapter)})
    first, second = together(jobs, package_folder)
    return first, second, folders


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(told, tmp_path, tiny_directory, name):
    settings, batch, tolerance = CASES[name]
    first, second, folders = told
    assert "error" not in first[name], first[name]
    assert first[name]["after"] == second[name]["after"]
    alone = letgo.unlearn(**_alone(_settings(tmp_path, tiny_directory, settings), batch))
    moved = distance(alone.directory, tiny_directory)
    apart = distance(folders[name] / "run", alone.directory)
    assert moved > 5e-4
    if tolerance is None:
        # Labels are drawn by each process for its own rows, so there is no trajectory of one process to be compared
        # with; that the replicas are the same has been checked after every step.
        assert distance(folders[name] / "run", tiny_directory) > 5e-4
        return
    assert apart <= tolerance, f"{apart} of {moved}"
    record = read_result(folders[name] / "run")
    assert record.processes["ranks"] == 2
    assert alone.result.processes == {}
    for metric, value in first[name]["after"].items():
        assert value == pytest.approx(alone.result.after[metric].value, rel=1e-3, abs=2e-3), metric
    ours, theirs = (read_json_lines(Path(d) / "history.jsonl") for d in (folders[name] / "run", alone.directory))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-3)


def test_what_crosses_the_wire_is_counted(told):
    _, _, folders = told
    rows = read_result(folders["zeroth order, rows shared"] / "run").processes
    # Central differences along three directions: six losses of eight bytes, in each of six steps.
    # The weights are compared by a checksum of eight bytes after each.
    assert (rows["scalars_a_step"], rows["bytes_exchanged"], rows["steps"]) == (6, 6 * (6 * 8 + 8), 6)
    directions = read_result(folders["zeroth order, directions shared"] / "run").processes
    assert directions["bytes_exchanged"] == rows["bytes_exchanged"]
    assert directions["share"] == "directions"
    assert read_result(folders["shards, zeroth order"] / "run").processes["strategy"] == "fsdp2"


def test_a_model_in_shards_moves_as_replicas_do_bit_for_bit(told):
    _, _, folders = told
    assert distance(folders["shards, zeroth order"] / "run", folders["zeroth order, rows shared"] / "run") == 0.0


@pytest.mark.parametrize("name", RESUMED)
def test_begun_on_two_ended_on_one(told, tmp_path, tiny_directory, name):
    first, _, folders = told
    assert first[f"begun {name}"] == {"stopped": 4}
    settings = _settings(folders[f"begun {name}"], tiny_directory, RESUMED[name])
    [checkpoint] = (folders[f"begun {name}"] / "run").glob("checkpoint-*")
    assert json.loads((checkpoint / "letgo_complete").read_text())["forget_rows_a_step"] == 4
    strategy = {key: value for key, value in settings.items() if key != "strategy"}
    resumed = letgo.unlearn(resume=True, **strategy)
    whole = letgo.unlearn(**_alone(_settings(tmp_path, tiny_directory, RESUMED[name]), 4))
    assert distance(resumed.directory, whole.directory) <= (0.0 if name == "directions" else ADAM)
    if name != "directions":
        assert any("micro-batches" in note for note in resumed.result.notes)


@pytest.mark.parametrize("name", RESUMED)
def test_begun_on_one_ended_on_two(told, tmp_path, tiny_directory, name):
    first, _, folders = told
    assert "error" not in first[f"going on {name}"], first[f"going on {name}"]
    whole = letgo.unlearn(**_alone(_settings(tmp_path, tiny_directory, RESUMED[name]), 4))
    apart = distance(folders[f"going on {name}"] / "run", whole.directory)
    assert apart <= (0.0 if name == "directions" else ADAM)


def test_processes_whose_weights_differ_stop(told):
    for side in told[:2]:
        assert "RanksDifferError" in side["different"]["error"]
        assert "rank 1 differ" in side["different"]["error"]


def test_shards_refuse_adapters(told):
    for side in told[:2]:
        assert "adapters beside a base in shards are not had" in side["lora"]["error"]


def test_a_loss_that_is_not_finite_stops_all(told):
    first, second, folders = told
    for side in (first, second):
        assert "NonFiniteLossError" in side["nan"]["error"]
    assert read_result(folders["nan"] / "run").status == "failed"
