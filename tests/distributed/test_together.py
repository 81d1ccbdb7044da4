"""What two processes do together is what one does alone: the same weights, the same scores, the same record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import letgo
from letgo.core.files import read_json_lines
from letgo.runs.results import read_result
from tests import tiny
from tests.distributed.conftest import answers, distance, together
from tests.distributed.worker import Stopped, stop_at
from tests.once import made_once

pytestmark = pytest.mark.slow

# Four forget rows: with two a step in each process an epoch is one step, with three there is a short one.
STEPS, RATE, ZO_RATE, MU = 6, 0.1, 1e-3, 1e-2
COMMON = {"objective": "npo_gdr", "max_steps": STEPS, "seed": 5, "save_steps": 2, "eval_limit": 1}
COMMON |= {"check_processes_every": 1}
SGD = {"optimizer": "sgd", "learning_rate": RATE}
# What divides by a gradient's size turns its rounding error into a step of the whole rate where the gradient is near
# zero. With ε the step's slope in the gradient is at most lr/ε: SGD's rate.
EPS = 1e-2
ADAPTIVE = {"learning_rate": RATE * EPS, "optimizer_args": {"eps": EPS}}
ADAMW, SOPHIA = ({"optimizer": name} | ADAPTIVE for name in ("adamw", "sophia"))
SAM = {"optimizer": "sam", "learning_rate": RATE * EPS, "optimizer_args": {"base_options": {"eps": EPS}}}
ZO = {"optimizer": "zo_sgd", "optimizer_args": {"num_directions": 3, "mu": MU}, "learning_rate": ZO_RATE}
FOZO = {
    "optimizer": "fozo",
    "learning_rate": RATE * EPS,
    "optimizer_args": {"fo_steps": 2, "zo_steps": 1, "zo_lr": ZO_RATE, "mu": MU}
    | {"fo_options": {"eps": EPS}, "zo_options": {"eps": 1.0}},
}

# What two processes may differ by from one: rows are summed in another order. A sum of n float32 numbers is off by at
# most n u times the sum of their sizes; 64 covers a gradient's rows and tokens and a layer's width. Each of the steps
# adds that error of a gradient (its entries stay below 1) times the rate, or that of a loss (below LOSS), divided by
# the 2 μ between two of them, times the rate and the direction's ±1; the losses' curvature at most doubles it on the
# way.
SUM, LOSS = 64 * 2**-24, 10.0
ROUNDING = 2 * STEPS * RATE * SUM
ESTIMATED = 2 * STEPS * ZO_RATE * 2 * SUM * LOSS / (2 * MU)

CASES = {
    # name: (settings, batch size of one process that is the same, tolerance)
    "sgd": (SGD, 4, ROUNDING),
    "short batches": (SGD | {"per_device_train_batch_size": 3}, 6, ROUNDING),
    "one row for two": (SGD | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}, None, ROUNDING),
    "accumulated": (SGD | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}, None, ROUNDING),
    "adamw": (ADAMW, 4, ROUNDING),
    "sophia": (SOPHIA, 4, ROUNDING),
    "sophia gnb": (
        {"optimizer": "sophia", "learning_rate": 1e-2, "optimizer_args": {"hessian": "gnb", "hessian_every": 2}},
        4,
        None,
    ),
    "sam": (SAM, 4, ROUNDING),
    "kl": (SGD | {"objective": "npo_klr"}, 4, ROUNDING),
    "rmu": (SGD | {"objective": "rmu", "objective_args": {"layer": 1}}, 4, ROUNDING),
    "rmu_lat": (SGD | {"objective": "rmu_lat", "objective_args": {"layer": 1, "inner_steps": 2}}, 4, ROUNDING),
    "a dual retain weight": (
        SGD | {"objective": "pdu", "retain_weight": 1.0, "retain_weight_schedule": "dual:warmup=0"},
        4,
        ROUNDING,
    ),
    "zeroth order, rows shared": (ZO, 4, ESTIMATED),
    "zeroth order, directions shared": (ZO | {"share": "directions", "per_device_train_batch_size": 4}, 4, 0.0),
    "hybrid, rows shared": (FOZO, 4, ROUNDING + ESTIMATED),
    "hybrid, directions shared": (
        FOZO | {"share": "directions", "per_device_train_batch_size": 4},
        4,
        ROUNDING + ESTIMATED,
    ),
    "other seed": (SGD | {"seed": 6}, 4, ROUNDING),
    "shards, sgd": (SGD | {"strategy": "fsdp2"}, 4, ROUNDING),
    "shards, adamw": (ADAMW | {"strategy": "fsdp2"}, 4, ROUNDING),
    "shards, short batches": (SGD | {"per_device_train_batch_size": 3, "strategy": "fsdp2"}, 6, ROUNDING),
    "shards, accumulated": (
        SGD | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "strategy": "fsdp2"},
        None,
        ROUNDING,
    ),
    "shards, sophia": (SOPHIA | {"strategy": "fsdp2"}, 4, ROUNDING),
    "shards, kl": (SGD | {"objective": "npo_klr", "strategy": "fsdp2"}, 4, ROUNDING),
    "shards, zeroth order": (ZO | {"strategy": "fsdp2"}, 4, ESTIMATED),
    "shards, hybrid": (FOZO | {"strategy": "fsdp2"}, 4, ROUNDING + ESTIMATED),
}
BEST = {"keep": "best", "utility_bound": 1e9, "evaluate_every": 2, "eval_limit": 4}
DIRECTIONS = CASES["zeroth order, directions shared"][0]
LOOKED_AT = {
    # name: the settings of a run with looks; the case that is the same run without
    "looks": (SGD | {"evaluate_every": 2}, "sgd"),
    "looks at directions": (DIRECTIONS | {"evaluate_every": 2}, "zeroth order, directions shared"),
    "looks at shards": (SGD | {"strategy": "fsdp2", "evaluate_every": 2}, "shards, sgd"),
    "looks at shards, zeroth order": (ZO | {"strategy": "fsdp2", "evaluate_every": 2}, "shards, zeroth order"),
    "looks at a hybrid in shards": (FOZO | {"strategy": "fsdp2", "evaluate_every": 1}, "shards, hybrid"),
}
KEPT = {"best": SGD | BEST, "best in shards": SGD | BEST | {"strategy": "fsdp2"}}
RESUMED = {
    "sgd": SGD | {"per_device_train_batch_size": 2},
    "directions": ZO | {"share": "directions", "per_device_train_batch_size": 4},
    "adamw": ADAMW | {"per_device_train_batch_size": 2},
    "shards": ADAMW | {"per_device_train_batch_size": 2, "strategy": "fsdp2"},
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
def told(tmp_path_factory, tiny_directory):
    """All jobs, in one launch; what each process says of them, and the folder of each."""
    folder = made_once(tmp_path_factory, "together", lambda folder: _do_all(folder, tiny_directory))
    first, second = answers(folder)
    return first, second, {name: _folder(folder, name) for name in first}


def _folder(folder: Path, name: str) -> Path:
    return folder / name.replace(" ", "-").replace(",", "")


def _do_all(folder: Path, model: Path) -> None:
    settings_of = {name: settings for name, (settings, _, _) in CASES.items()}
    settings_of |= {name: settings for name, (settings, _) in LOOKED_AT.items()} | KEPT
    settings_of["killed best in shards"] = settings_of["then best in shards"] = KEPT["best in shards"]
    settings_of |= {f"begun {name}": settings | {"max_steps": STEPS} for name, settings in RESUMED.items()}
    settings_of |= {f"going on {name}": settings for name, settings in RESUMED.items()}
    settings_of["nan"] = SGD | {"learning_rate": 1e38}
    settings_of["lora"] = SGD | {"strategy": "fsdp2", "lora_rank": 2}
    settings_of["one shot"] = SGD | {"strategy": "fsdp2", "objective": "task_vector"}
    settings_of["different"] = ZO | {"check_processes_every": 2}
    jobs: dict[str, Any] = {}
    for name, more in settings_of.items():
        settings = _settings(_folder(folder, name), model, more)
        jobs[name] = ("differ" if name == "different" else "unlearn", {"settings": settings})
        if name.startswith("begun"):
            jobs[name][1]["stop"] = 4
        if name == "killed best in shards":
            jobs[name][1]["stop"] = 5
        if name == "then best in shards":
            jobs[name] = ("unlearn", {"settings": jobs["killed best in shards"][1]["settings"], "resume": True})
        if name.startswith("going on"):
            with stop_at(4), pytest.raises(Stopped):
                letgo.unlearn(**_alone(settings, 4))
            jobs[name][1]["resume"] = True
    together(jobs, folder)


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


def _looks(directory: Path) -> list[dict]:
    return [row for row in read_json_lines(directory / "history.jsonl") if "forgotten" in row]


@pytest.mark.parametrize("name", LOOKED_AT)
def test_looks_change_nothing_in_two_processes_either(told, name):
    first, _, folders = told
    settings, without = LOOKED_AT[name]
    assert "error" not in first[name], first[name]
    assert distance(folders[name] / "run", folders[without] / "run") == 0.0
    assert first[name]["after"] == first[without]["after"]
    steps = [row["step"] for row in _looks(folders[name] / "run")]
    assert steps == list(range(0, STEPS + 1, settings["evaluate_every"]))


@pytest.mark.parametrize("name", KEPT)
def test_two_processes_keep_the_best_weights_as_one_does(told, tmp_path, tiny_directory, name):
    first, second, folders = told
    assert "error" not in first[name], first[name]
    assert first[name] == second[name]
    alone = letgo.unlearn(**_alone(_settings(tmp_path, tiny_directory, KEPT[name]), 4))
    ours, theirs = _looks(folders[name] / "run"), _looks(alone.directory)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert list(one.values()) == pytest.approx(list(other.values()), rel=1e-3, abs=2e-3)
    best = max(ours[1:], key=lambda look: look["forgotten"])["step"]
    assert any(f"kept the weights of step {best}," in note for note in first[name]["notes"])
    assert distance(folders[name] / "run", alone.directory) <= ROUNDING
    assert not list((folders[name] / "run").glob("best-*"))


def test_best_weights_of_a_model_in_shards_outlive_a_kill(told):
    first, _, folders = told
    assert first["killed best in shards"] == {"stopped": 5}
    assert "error" not in first["then best in shards"], first["then best in shards"]
    resumed, whole = folders["killed best in shards"] / "run", folders["best in shards"] / "run"
    assert distance(resumed, whole) == 0.0
    assert _looks(resumed) == _looks(whole)


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
    assert distance(resumed.directory, whole.directory) <= (0.0 if name == "directions" else ROUNDING)
    if name != "directions":
        assert any("micro-batches" in note for note in resumed.result.notes)


@pytest.mark.parametrize("name", RESUMED)
def test_begun_on_one_ended_on_two(told, tmp_path, tiny_directory, name):
    first, _, folders = told
    assert "error" not in first[f"going on {name}"], first[f"going on {name}"]
    whole = letgo.unlearn(**_alone(_settings(tmp_path, tiny_directory, RESUMED[name]), 4))
    apart = distance(folders[f"going on {name}"] / "run", whole.directory)
    assert apart <= (0.0 if name == "directions" else ROUNDING)


def test_processes_whose_weights_differ_stop(told):
    for side in told[:2]:
        assert "RanksDifferError" in side["different"]["error"]
        assert "rank 1 differ" in side["different"]["error"]


def test_shards_refuse_adapters(told):
    for side in told[:2]:
        assert "adapters on a base in shards are not supported" in side["lora"]["error"]


def test_shards_refuse_one_shot_methods(told):
    for side in told[:2]:
        assert "task_vector changes whole weights in one shot: take replicas" in side["one shot"]["error"]


def test_a_loss_that_is_not_finite_stops_all(told):
    first, second, folders = told
    for side in (first, second):
        assert "NonFiniteLossError" in side["nan"]["error"]
    assert read_result(folders["nan"] / "run").status == "failed"
