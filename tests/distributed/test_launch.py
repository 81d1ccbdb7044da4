"""The command as launchers start it: what it says, what it refuses, and that it never hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

import letgo
from letgo.attacks.engine.run import attack
from letgo.benchmarks.engine.evaluate import evaluate
from letgo.cli import _run, app
from letgo.core import processes
from letgo.core.errors import UserError
from letgo.runs.results import read_result
from letgo.training import distributed
from letgo.training.config import UnlearnConfig
from tests import tiny
from tests.distributed.conftest import ENVIRONMENT, LAUNCH, answers, distance, launch, together
from tests.once import made_once
from tests.warm import HANGS, ROOT

pytestmark = pytest.mark.slow

ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "2"]
RUN = {"objective": "npo_gdr", "max_steps": 4, "seed": 5, "learning_rate": 1e-2, "eval_limit": 1, "optimizer": "sgd"}


def write_run(folder, model):
    settings = tiny.own_files(folder, model, **RUN, per_device_train_batch_size=2)
    settings.pop("use_cpu")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.fixture
def run_file(tmp_path, tiny_directory):
    return write_run(tmp_path, tiny_directory)


@pytest.fixture(scope="module")
def launched(tmp_path_factory, tiny_directory):
    """The folder of a run in two processes, with what it printed."""

    def make(folder):
        done = launch(["-m", "letgo", "unlearn", str(write_run(folder, tiny_directory)), "--json"])
        assert done.returncode == 0, done.stderr[-3000:]
        (folder / "stdout").write_text(done.stdout)
        (folder / "stderr").write_text(done.stderr)

    return made_once(tmp_path_factory, "launched", make)


def test_torchrun_says_everything_once(launched):
    directory = launched / "run"
    assert json.loads((launched / "stdout").read_text())["processes"]["ranks"] == 2
    assert (launched / "stderr").read_text().count("2 processes (replicas over gloo)") == 1
    assert read_result(directory).processes["strategy"] == "replicas"
    assert not list(directory.glob("*.partial*"))
    assert not list(directory.glob("checkpoint-*"))


@pytest.mark.parametrize("recipe", ["ddp", "fsdp2"])
def test_accelerate_launch_with_the_ready_configurations(run_file, tmp_path, recipe):
    config = ["--config_file", str(ROOT / "recipes" / "launch" / f"{recipe}.yaml"), "--main_process_port", "0"]
    done = launch(["-m", "letgo", "unlearn", str(run_file), "--quiet"], by=[*ACCELERATE, *config])
    assert done.returncode == 0, done.stderr[-3000:]
    told = read_result(tmp_path / "run").processes
    assert told["ranks"] == 2
    assert told["strategy"] == {"ddp": "replicas"}.get(recipe, recipe)


def test_shards_need_several_processes(tmp_path, tiny_directory):
    config = UnlearnConfig(output_dir=str(tmp_path), strategy="fsdp2", lora_rank=2, use_cpu=True)
    with pytest.raises(UserError, match="several processes, but one runs"):
        distributed.strategy_of(config)
    with pytest.raises(UserError, match="strategy: fsdp2 shares the weights out over several processes, but one runs"):
        letgo.unlearn(**tiny.own_files(tmp_path, tiny_directory, **RUN, strategy="fsdp2"))


def test_every_request_of_a_sequence_is_shared_out_as_the_launcher_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    distributed._launched_for_shards.cache_clear()
    config = UnlearnConfig(output_dir=str(tmp_path), use_cpu=True)
    try:
        assert [distributed.strategy_of(config) for _ in range(2)] == ["fsdp2", "fsdp2"]
    finally:
        distributed._launched_for_shards.cache_clear()


def test_accelerate_that_starts_one_process_is_told(run_file):
    command = [sys.executable, *ACCELERATE, "--cpu", "-m", "letgo", "unlearn", str(run_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode != 0
    assert "was asked for 2 processes and started 1" in done.stderr
    assert "torchrun --nproc_per_node 2 -m letgo" in done.stderr


def test_another_number_of_processes_than_the_run_asks_for(run_file):
    done = CliRunner().invoke(app, ["unlearn", str(run_file), "--set", "processes=2"])
    assert isinstance(done.exception, UserError)
    assert "processes: 2 were asked for, 1 run" in str(done.exception)


def test_a_mistake_is_told_once_and_ends_all(run_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    done = launch(["-m", "letgo", "unlearn", str(run_file)])
    assert done.returncode != 0
    assert done.stderr.count("is not empty; name another one") == 1


def test_commands_that_do_not_share_their_work(tmp_path):
    done = launch(["-m", "letgo", "report", str(tmp_path)])
    assert done.returncode != 0
    assert done.stderr.count("`letgo report` runs in one process") == 1


def test_a_mistake_is_told_also_where_the_first_process_is_the_slower_one(tmp_path):
    program = tmp_path / "slow.py"
    program.write_text(
        "import os, sys, time\n"
        "if os.environ['RANK'] == '0':\n"
        "    time.sleep(3)\n"
        "from letgo.cli import main\n"
        "sys.argv = ['letgo', 'report', 'nowhere']\n"
        "main()\n"
    )
    done = launch([str(program)])
    assert done.returncode != 0
    assert done.stderr.count("`letgo report` runs in one process") == 1


def test_a_mistake_that_one_process_alone_meets_is_told(monkeypatch, capsys):
    monkeypatch.setattr("letgo.cli.FIRST_TELLS", 0.01)
    monkeypatch.setattr(sys, "argv", ["letgo", "report", "nowhere"])
    monkeypatch.setattr("letgo.core.processes.is_first", lambda: False)
    assert _run(["report", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["replicas", "fsdp2"])
def test_a_killed_process_ends_the_run_within_a_minute(tmp_path, tiny_directory, strategy):
    """And what was saved says how it can be gone on from."""
    settings = tiny.own_files(tmp_path, tiny_directory, **RUN, per_device_train_batch_size=2)
    settings |= {"max_steps": 4000, "save_steps": 5, "strategy": strategy}
    settings.pop("use_cpu")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with (tmp_path / "said").open("w") as said:
        running = subprocess.Popen(
            [sys.executable, *LAUNCH, "-m", "letgo", "unlearn", str(path)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=said,
            stderr=said,
        )
        try:
            deadline = time.monotonic() + HANGS
            while not list((tmp_path / "run").glob("checkpoint-*/letgo_complete")):
                assert running.poll() is None, (tmp_path / "said").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            os.kill(_process_of_rank(running.pid, 1), signal.SIGKILL)
            killed = time.monotonic()
            assert running.wait(timeout=60) != 0
            assert time.monotonic() - killed < 60
        finally:
            running.kill()
    checkpoint = max((tmp_path / "run").glob("checkpoint-*/letgo_complete"), key=lambda p: p.stat().st_mtime).parent
    assert json.loads((checkpoint / "letgo_complete").read_text())["forget_rows_a_step"] == 4


def _process_of_rank(parent: int, rank: int) -> int:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rsplit(")", 1)[1].split()[1]) != parent:
                continue
            if f"RANK={rank}" in (path / "environ").read_text().split("\0"):
                return int(path.name)
        except (OSError, ValueError):
            continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_directory):
    """Evaluation and attacks in two processes, and the same in one: what the two said, the folder, one's metrics and
    what its attacks kept."""
    folder = made_once(tmp_path_factory, "measured", lambda folder: _measure(folder, tiny_directory))
    return answers(folder), folder, *json.loads((folder / "alone.json").read_text())


def _measure(folder, tiny_directory):
    settings = tiny.own_files(folder, tiny_directory, **RUN, per_device_train_batch_size=4)
    run = letgo.unlearn(**(settings | {"eval_limit": None})).directory
    benchmark, limit = "biographies", 24
    attacks = ["quantize:bits=4", "relearn:steps=3,batch_size=3,holdout=0.5,seeds=1,evaluations=1", "noise:sigma=0.01"]
    jobs = {
        "evaluate": (
            "evaluate",
            {"model": benchmark, "benchmark": benchmark, "limit": limit, "output": str(folder / "scores")},
        ),
        "attack": ("attack", {"run": str(run), "attacks": attacks}),
    }
    together(jobs, folder)
    [alone] = evaluate(benchmark, [benchmark], limit=limit, output=folder / "alone").values()
    metrics = {name: [metric.value, metric.n] for name, metric in alone.after.items()}
    kept = {outcome.label: outcome.kept for outcome in attack(run, attacks, output=folder / "attacked").attacks}
    (folder / "alone.json").write_text(json.dumps([metrics, kept]))


def test_each_sample_is_scored_once(measured):
    (first, second), folder, alone, _ = measured
    assert "error" not in first["evaluate"], first
    assert first["evaluate"] == second["evaluate"]
    shared = first["evaluate"]["queries_by_process"]
    assert min(shared) > 0.4 * sum(shared)
    for name, (value, n) in first["evaluate"]["after"].items():
        assert n == alone[name][1]
        assert value == pytest.approx(alone[name][0], rel=1e-4, abs=1e-5), name
    lines = (folder / "scores" / "samples.jsonl").read_text().splitlines()
    theirs = (folder / "alone" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(one)["id"] for one in lines] == [json.loads(one)["id"] for one in theirs]
    assert not list((folder / "scores").glob("*.partial*"))


def test_attacks_in_two_processes_leave_what_they_leave_in_one(measured):
    (first, second), _, _, alone = measured
    assert "error" not in first["attack"], first["attack"]
    assert first["attack"] == second["attack"]
    for label, kept in alone.items():
        assert first["attack"]["kept"][label] == pytest.approx(kept, abs=1e-3), label


def test_a_model_of_several_processes_is_like_that_of_one(launched, tmp_path):
    """The README's way and the launcher's end with the same weights."""
    unlearn = ["unlearn", str(launched / "run.yaml"), "--quiet", "--output", str(tmp_path / "one")]
    done = CliRunner().invoke(app, [*unlearn, "--set", "gradient_accumulation_steps=2", "--set", "use_cpu=true"])
    assert done.exit_code == 0, done.output
    assert distance(tmp_path / "one", launched / "run") < 2e-6


ENDING = """
import atexit, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from letgo.core import processes
from letgo.core.errors import UserError

class Late:
    def __del__(self):
        os.abort()  # what lives until Python is torn down meets what it can't survive

processes.start()
sys.late = Late()
left_open = ThreadPoolExecutor(1)
left_open.submit(int).result()  # its idle thread waits for work until Python tells it to go
atexit.register(Path(sys.argv[1], f"registered-{processes.number()}").touch)
print("printed", end="")
processes.end(int(sys.argv[2]) if processes.number() == 1 else 0)
"""


@pytest.mark.parametrize("code", [0, 3])
def test_processes_end_in_order_and_before_python_is_torn_down(tmp_path, code):
    (tmp_path / "ending.py").write_text(ENDING, encoding="utf-8")
    done = launch([str(tmp_path / "ending.py"), str(tmp_path), str(code)])
    assert (done.returncode == 0) == (code == 0), done.stderr[-3000:]
    assert "SIGABRT" not in done.stderr
    assert (f"exitcode  : {code}" in done.stderr) == (code != 0)
    # Where one fails, the launcher may stop the other before it is through.
    through = [0, 1] if code == 0 else [1]
    assert done.stdout.count("printed") >= len(through)
    assert all((tmp_path / f"registered-{number}").exists() for number in through)


def test_the_group_is_left_at_the_end_whoever_joined_it(monkeypatch):
    """Torn down with the process instead, it can abort one whose work is done."""
    registered = []
    monkeypatch.setattr(processes.atexit, "register", registered.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_joined", lambda: True)
    processes.start()
    [leave] = registered
    left = []
    monkeypatch.setattr(processes, "_group", lambda: SimpleNamespace(destroy_process_group=lambda: left.append(True)))
    leave()
    assert left == [True]
