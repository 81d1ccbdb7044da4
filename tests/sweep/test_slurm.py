"""The SLURM recipes, run under stand-ins of `sbatch`, `srun` and `scontrol`: what they ask for, what comes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from letgo.runs import Index
from letgo.sweep.execute import sweep
from tests.sweep.conftest import products
from tests.warm import HANGS

LAUNCH = Path(__file__).resolve().parents[2] / "recipes" / "launch"

# Runs each task of an array at the same time as the others, and a dependent job after them.
SBATCH = """#!/bin/bash
echo "sbatch $*" >> "$CALLS"
array= after= options=()
while [[ $1 == --* ]]; do
  case $1 in
    --array=1-*) array=${1#--array=1-} ;;
    --dependency=*) after=${1#--dependency=afterany:} ;;
  esac
  shift
done
job=$((100 + $(grep -c ^sbatch "$CALLS")))
export SLURM_JOB_ID=$job SLURM_CPUS_PER_TASK=1
for task in $(seq "${array:-1}"); do
  if [ -n "$array" ]; then export SLURM_ARRAY_JOB_ID=$job SLURM_ARRAY_TASK_ID=$task; fi
  (
    while [ -n "$after" ] && ls "$JOBS/$after".* > /dev/null 2>&1; do sleep 0.1; done
    bash "$@" > "$LOGS/$job-$task.log" 2>&1
    echo $? > "$LOGS/$job-$task.code"
    rm "$JOBS/$job.$task"
  ) > /dev/null 2>&1 &
  touch "$JOBS/$job.$task"
done
echo "$job"
"""
SRUN = """#!/bin/bash
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$CALLS"
if [ "$1" = show ]; then echo localhost; fi
"""


@pytest.fixture
def slurm(tmp_path):
    """The environment of a machine that has SLURM, and the folder of its logs."""
    programs = tmp_path / "programs"
    for name in ("programs", "jobs", "logs"):
        (tmp_path / name).mkdir()
    letgo = f'#!/bin/bash\nexec {sys.executable} -m letgo "$@"\n'
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL), ("letgo", letgo)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "calls").touch()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return kept | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "JOBS": str(tmp_path / "jobs"),
        "LOGS": str(tmp_path / "logs"),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }


def calls(slurm):
    return Path(slurm["CALLS"]).read_text().splitlines()


@pytest.mark.parametrize("name", ["slurm-array.sh", "slurm-run.sh"])
def test_the_recipes_are_sound_and_say_how_they_are_used(name, slurm):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)
    shown = subprocess.run([LAUNCH / name], env=slurm, capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert f"recipes/launch/{name}" in shown.stdout
    assert "set -euo" not in shown.stdout
    assert calls(slurm) == []


@pytest.mark.slow
def test_an_array_of_two_tasks_makes_the_table_of_one_sweep(small, tmp_path, slurm):
    sweep(small("one"))
    out = tmp_path / "array"
    command = [LAUNCH / "slurm-array.sh", tmp_path / "one.yaml", "--output", out]
    how = {"env": slurm | {"PARTS": "2"}, "cwd": tmp_path, "text": True, "capture_output": True, "check": True}
    said = subprocess.run(command, **how).stdout
    assert said == "array 101 of 2 tasks, then the table: job 102\n"
    limit = time.monotonic() + 300
    while list((tmp_path / "jobs").iterdir()) and time.monotonic() < limit:
        time.sleep(0.1)
    logs = {path.stem: path.read_text() for path in (tmp_path / "logs").glob("*.log")}
    codes = {path.stem: path.read_text().strip() for path in (tmp_path / "logs").glob("*.code")}
    assert codes == {"101-1": "0", "101-2": "0", "102-1": "0"}, logs
    assert "cells 1/2: 1 finished" in logs["101-1"]
    assert "cells 2/2: 1 finished" in logs["101-2"]
    assert f"table: {out}/table.csv" in logs["102-1"]
    assert products(out) == products(tmp_path / "one")
    assert len(Index(out / "runs").all()) == 2
    first, second = [line for line in calls(slurm) if line.startswith("sbatch")]
    rest = [line for line in calls(slurm) if line.startswith("srun")]
    assert "--array=1-2" in first
    assert "--dependency=afterany:101" in second
    assert sorted(line.partition("--cells")[2] for line in rest) == ["", " 1/2 --resume", " 2/2 --resume"]
    assert all(line.startswith("srun --ntasks=1 letgo sweep ") and line.endswith(" --resume") for line in rest)


@pytest.mark.slow
def test_a_run_out_of_time_ends_is_queued_again_and_goes_on(small, tmp_path, slurm):
    """One process of torchrun; at USR1 it is ended, and what it kept finishes the run."""
    grid = small("grid")
    run = {**grid.cells[0].settings, "output_dir": str(tmp_path / "run"), "max_steps": 24, "save_steps": 4}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    job = slurm | {
        "SLURM_JOB_ID": "4242",
        "SLURM_NNODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_CPUS_PER_TASK": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    command = ["bash", str(LAUNCH / "slurm-run.sh"), "run.yaml", "--quiet"]
    how = {"env": job, "cwd": tmp_path, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    first = subprocess.Popen(command, start_new_session=True, **how)
    limit = time.monotonic() + 200
    while not list(tmp_path.glob("run/checkpoint-*")) and first.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    os.kill(first.pid, 10)
    said, _ = first.communicate(timeout=HANGS)
    assert first.returncode == 143, said
    assert not (tmp_path / "run" / "result.json").exists()
    assert calls(slurm)[-1] == "scontrol requeue 4242"
    launched = calls(slurm)[1]
    assert (
        "--nnodes=1 --nproc-per-node=1 --rdzv-id=4242 --rdzv-backend=c10d --rdzv-endpoint=localhost:24242" in launched
    )
    assert launched.endswith("-m letgo unlearn run.yaml --quiet --resume")
    # What the job that SLURM then starts anew does.
    from letgo.training.unlearn import unlearn

    resumed = unlearn(**run, resume=True)
    assert resumed.result.status == "finished"
    whole = unlearn(**run | {"output_dir": str(tmp_path / "whole")})
    weights = [(folder / "model.safetensors").read_bytes() for folder in (resumed.directory, whole.directory)]
    assert weights[0] == weights[1]
