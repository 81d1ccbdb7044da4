"""A run's step on several devices: what it sends and how long it takes, against its plan on one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from letgo.core.errors import UserError
from letgo.planning import plan
from letgo.planning.shards import bytes_of, trace_sharded, units_of
from letgo.training.config import make_config
from research.scaling.run_step import scaled, step_work
from research.scaling.scaling import MACHINES, StepWork, step_cost, wire_bytes
from tests.planning.conftest import job as job
from tests.planning.conftest import shaped as shaped
from tests.planning.measured import ROOT
from tests.planning.test_ranks_measured import without_values
from tests.warm import HANGS

CPU, RATE = MACHINES["cpu"], 1e9


@pytest.mark.parametrize("optimizer", ["adamw", "zo_sgd", "fozo", "sam", "sophia", "compressed"])
def test_a_step_of_one_device_is_that_of_its_plan(job, optimizer):
    config = make_config(job | {"optimizer": optimizer})
    alone, work = plan(config, flops=RATE), step_work(config)
    assert step_cost(work, 1, "single", CPU, RATE).seconds * alone.steps == pytest.approx(alone.seconds["train"])
    assert wire_bytes(work, 1, "ddp") == {}


def test_what_a_run_sends(job):
    first, zeroth = (step_work(make_config(job | {"optimizer": name})) for name in ("adamw", "zo_sgd"))
    whole = plan(make_config(job), flops=RATE).model["bytes"]
    assert wire_bytes(first, 2, "ddp") == {"gradients reduced": whole}
    assert wire_bytes(first, 4, "ddp") == {"gradients reduced": 1.5 * whole}
    assert wire_bytes(zeroth, 2, "ddp") == {"losses": 16}
    sent = wire_bytes(zeroth, 2, "fsdp2")
    assert sent == {"losses": 16, "weights gathered, evaluations": whole}, "two evaluations, half of it each"


@pytest.mark.parametrize("case", ["fsdp2", "fsdp2, tied"])
def test_what_is_sent_is_what_a_followed_pass_sends(case):
    """(Which is held to what two processes send, see `tests/planning/test_ranks_measured.py`.)"""
    model, loss = without_values(case)
    units, size = units_of(model), bytes_of(list(model.parameters()))
    kept = sum(unit.size for unit in units if unit.stays)
    work = StepWork(0, 0.0, 0, 1, 1.0, 1, size, kept, size, size // 4, 2.0, len(units))
    moved = trace_sharded(model, loss, 2)
    sent = wire_bytes(work, 2, "fsdp2")
    assert sent["weights gathered, forward and backward"] == moved.gathered
    assert sent["gradients scattered"] == moved.reduced
    assert wire_bytes(work, 2, "ddp") == {"gradients reduced": size}


def test_directions_are_split(job):
    work = step_work(make_config(job | {"optimizer": "zo_sgd", "share": "directions"}))
    alone, two = (step_cost(work, count, "ddp", CPU, RATE, share="directions") for count in (1, 2))
    assert two.passes == alone.passes / 2


def test_a_row_for_every_number_of_devices(job):
    rows = scaled(step_work(make_config(job)), 64, "fsdp2", CPU, RATE)
    assert [row["devices"] for row in rows] == [1, 2, 8, 64]
    assert rows[0]["efficiency"] == 1
    assert 0 == rows[0]["bytes"] < rows[1]["bytes"] < rows[2]["bytes"]


def test_one_shot_methods_take_no_steps(job):
    with pytest.raises(UserError, match="task_vector changes the weights in one shot"):
        step_work(make_config(job | {"objective": "task_vector"}))


def test_the_command(job, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(job))
    words = ["--devices", "4", "--strategy", "fsdp2", "--scale-to", "64"]
    done = subprocess.run(
        [sys.executable, "-m", "research.scaling.run_step", str(path), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    for part in ("a step on 4 devices, fsdp2", "gradients scattered", "data sheet", "efficiency", "     64 "):
        assert part in done.stdout
