"""A run that was cut off goes on to the end that was asked for; one directory has one writer, and what is there is
looked at before it is believed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

import letgo
from letgo.core import locks
from letgo.core.errors import LetgoError, UserError, WorldError, as_world_error
from letgo.core.locks import LOCK_FILE, locked, only_writer
from letgo.core.progress import Quiet
from letgo.models.load import weights_fingerprint
from letgo.runs.results import is_run, read_result
from letgo.scoring.resume_log import PARTIAL
from letgo.training import afterwards, bookkeeping
from letgo.training import unlearn as page
from letgo.training.checkpoints import COMPLETE, last_checkpoint, whole_checkpoint
from letgo.training.run_directory import BEGUN
from letgo.training.trainer import UnlearnTrainer
from tests import tiny


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours handles it."""


@pytest.fixture
def job(tmp_path, model_directory):
    return tiny.own_files(
        tmp_path, model_directory, learning_rate=1e-3, max_steps=5, per_device_train_batch_size=2, save_steps=2
    )


@contextlib.contextmanager
def killed_at(monkeypatch, target, after=0):
    """Within: the process is killed when it calls a function for the time after so many."""
    calls = []

    def kill(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return original(*args, **kwargs)

    owner, name = target
    original = getattr(owner, name)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, kill)
        with pytest.raises(Killed):
            yield


ATTACKS = ["quantize:bits=4", "quantize:bits=3"]


@pytest.mark.parametrize("moment", ["first attack", "second attack", "card", "removal"])
def test_a_run_goes_on_with_what_was_asked_for_after_its_record(job, tmp_path, monkeypatch, moment):
    from letgo.attacks.engine import run as attacks_run

    whole = letgo.unlearn(**job | {"output_dir": str(tmp_path / "whole")}, attacks=ATTACKS)
    target = {
        "first attack": (attacks_run, "run_attack"),
        "second attack": (attacks_run, "run_attack"),
        "card": (page, "publish"),
        "removal": (afterwards, "remove_remains"),
    }[moment]
    with killed_at(monkeypatch, target, after=1 if moment == "second attack" else 0):
        letgo.unlearn(**job, attacks=ATTACKS)
    trained = []
    with monkeypatch.context() as patched:
        patched.setattr(UnlearnTrainer, "train", lambda *_, **__: trained.append(1))
        run = letgo.unlearn(**job, attacks=ATTACKS, resume=True)
    assert not trained
    assert [attack.label for attack in run.result.attacks] == ATTACKS
    assert [attack.metrics for attack in run.result.attacks] == [attack.metrics for attack in whole.result.attacks]
    assert run.result == read_result(run.directory)
    assert weights_fingerprint(run.model) == weights_fingerprint(whole.model)
    assert {path.name for path in run.directory.iterdir()} == {path.name for path in whole.directory.iterdir()}
    assert "quantize:bits=3" in (run.directory / "README.md").read_text()
    with pytest.raises(UserError, match="nothing to resume"):
        letgo.unlearn(**job, attacks=ATTACKS, resume=True)


def test_a_run_goes_on_only_with_the_data_and_the_model_that_it_began_with(job, monkeypatch, tmp_path):
    job |= {"model": str(shutil.copytree(job["model"], tmp_path / "model")), "save_steps": 1}
    forget, config = Path(job["forget"]), tmp_path / "model" / "config.json"
    with killed_at(monkeypatch, (bookkeeping, "mark_complete"), after=1):
        letgo.unlearn(**job)
    for path, edited, message in (
        (forget, (b"amberton", b"elsewhere"), "the set forget, the set scored changed since"),
        (config, (b"{", b'{"letgo_test": 1,'), r"the model's config\.json changed since"),
    ):
        known = path.read_bytes()
        path.write_bytes(known.replace(*edited, 1))
        with pytest.raises(UserError, match=message):
            letgo.unlearn(**job, resume=True)
        path.write_bytes(known)
    directory = letgo.unlearn(**job, resume=True).directory
    assert not (directory / BEGUN).exists()


def test_a_failed_attack_leaves_the_record_of_the_run(job, monkeypatch):
    def fails(*_, **__):
        raise LetgoError("no luck")

    monkeypatch.setattr("letgo.attacks.engine.run.run_attack", fails)
    with pytest.raises(LetgoError, match="no luck"):
        letgo.unlearn(**job, attacks=ATTACKS)
    assert read_result(Path(job["output_dir"])).status == "finished"


DAMAGES = {
    "flip": "model.safetensors is damaged",
    "optimizer.pt": "it lacks optimizer.pt",
    "scheduler.pt": "it lacks scheduler.pt",
    COMPLETE: "it was cut off while it was saved",
    "mark": f"{COMPLETE} is damaged",
    "older": "without the digests of its files",
}


def damaged(checkpoint, damage):
    if damage == "flip":
        path = checkpoint / "model.safetensors"
        raw = bytearray(path.read_bytes())
        raw[-400:] = bytes(400)
        path.write_bytes(raw)
    elif damage == "mark":
        (checkpoint / COMPLETE).write_text("{")
    elif damage == "older":
        (checkpoint / COMPLETE).write_text("")
    else:
        (checkpoint / damage).unlink()


def test_of_a_damaged_checkpoint_the_one_before_it_is_taken(job, tmp_path, monkeypatch):
    job["save_total_limit"] = 2
    with killed_at(monkeypatch, (page, "save")):
        letgo.unlearn(**job)
    cut_off = Path(job["output_dir"])
    assert last_checkpoint(cut_off).name == "checkpoint-5"
    for damage, said in DAMAGES.items():
        directory = shutil.copytree(cut_off, tmp_path / f"with {damage}")
        damaged(directory / "checkpoint-5", damage)
        heard = []
        assert whole_checkpoint(directory, heard.append).name == "checkpoint-4"
        assert said in heard[0]
        assert str(directory / "checkpoint-5") in heard[0]
        assert not (directory / "checkpoint-5").exists()


@pytest.mark.parametrize("damage", ["flip", "optimizer.pt", "mark"])
def test_a_run_with_a_damaged_checkpoint_ends_with_the_same_bits(job, tmp_path, monkeypatch, damage):
    job["save_total_limit"] = 2
    whole = letgo.unlearn(**job | {"output_dir": str(tmp_path / "whole")})
    with killed_at(monkeypatch, (page, "save")):
        letgo.unlearn(**job)
    newest = last_checkpoint(Path(job["output_dir"]))
    damaged(newest, damage)
    heard = []
    monkeypatch.setattr(Quiet, "say", lambda self, text: heard.append(text))
    resumed = letgo.unlearn(**job, resume=True)
    assert any(str(newest) in text and DAMAGES[damage] in text for text in heard)
    assert weights_fingerprint(resumed.model) == weights_fingerprint(whole.model)
    assert (resumed.directory / "history.jsonl").read_text() == (whole.directory / "history.jsonl").read_text()


def test_without_a_whole_checkpoint_the_run_begins_anew(job, tmp_path, monkeypatch):
    whole = letgo.unlearn(**job | {"output_dir": str(tmp_path / "whole")})
    with killed_at(monkeypatch, (page, "save")):
        letgo.unlearn(**job)
    [checkpoint] = Path(job["output_dir"]).glob("checkpoint-*")
    (checkpoint / "trainer_state.json").unlink()
    resumed = letgo.unlearn(**job, resume=True)
    assert weights_fingerprint(resumed.model) == weights_fingerprint(whole.model)


def test_an_older_checkpoint_goes_when_the_new_one_is_known_to_be_whole(job, monkeypatch):
    with killed_at(monkeypatch, (bookkeeping, "mark_complete"), after=1):
        letgo.unlearn(**job)
    assert last_checkpoint(Path(job["output_dir"])).name == "checkpoint-2"


def test_a_failure_of_the_machine_is_not_recorded_as_the_runs(job, monkeypatch):
    def fails(*_, **__):
        raise WorldError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(page, "measure", fails)
        with pytest.raises(WorldError):
            letgo.unlearn(**job)
    assert not is_run(Path(job["output_dir"]))
    assert letgo.unlearn(**job, resume=True).result.status == "finished"


def test_what_may_change_on_the_way_is_noted(job, monkeypatch):
    with killed_at(monkeypatch, (page, "save")):
        letgo.unlearn(**job)
    run = letgo.unlearn(**job | {"save_steps": 3, "dataloader_num_workers": 0}, resume=True)
    assert "resumed with save_steps 3; begun with 2" in run.result.notes


def test_without_its_settings_a_run_is_not_gone_on_with(job, monkeypatch):
    with killed_at(monkeypatch, (page, "save")):
        letgo.unlearn(**job)
    (Path(job["output_dir"]) / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"has no config\.yaml, which says with which settings"):
        letgo.unlearn(**job, resume=True)


# -- one writer -------------------------------------------------------------------------------------------------------


def test_the_holder_is_named_and_its_lock_leaves_nothing_behind(job, tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run" / LOCK_FILE) as free:
        assert free
        with pytest.raises(UserError, match=rf"another process \(\S+ {os.getpid()}\) is at work in .*run"):
            letgo.unlearn(**job)
    # Its process was killed: the file is there, and nobody holds it.
    assert (tmp_path / "run" / LOCK_FILE).is_file()
    run = letgo.unlearn(**job)
    assert not (run.directory / LOCK_FILE).exists()


def test_a_lock_that_was_removed_while_it_was_waited_for_is_taken_anew(tmp_path, monkeypatch):
    """Between opening the file and locking it, whoever held it may have ended and removed it."""
    taken = []
    original = locks.take

    def late(handle, how):
        if not taken:
            (tmp_path / LOCK_FILE).unlink()
        taken.append(how)
        return original(handle, how)

    monkeypatch.setattr(locks, "take", late)
    with only_writer(tmp_path):
        assert len(taken) == 2
        with open(tmp_path / LOCK_FILE) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_without_locks_in_the_file_system_a_run_goes_its_way(job, monkeypatch):
    monkeypatch.setattr(locks, "take", lambda *_: "no locks")
    assert letgo.unlearn(**job).result.status == "finished"


def test_a_refused_command_leaves_no_folder_behind(job, tmp_path):
    output = tmp_path / "deep" / "er" / "run"
    with pytest.raises(UserError, match="did you mean"):
        letgo.unlearn(**job | {"output_dir": str(output), "optimizer": "fozoh"})
    assert not (tmp_path / "deep").exists()
    (tmp_path / "deep").mkdir()
    with pytest.raises(UserError, match="did you mean"):
        letgo.unlearn(**job | {"output_dir": str(output), "attacks": ["quantise"]})
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("removed", ["the folder", "its files"])
def test_a_folder_removed_during_a_run_is_no_finished_run(job, monkeypatch, removed):
    directory = Path(job["output_dir"])
    train = UnlearnTrainer.train

    def remove(self, **how):
        if removed == "the folder":
            shutil.rmtree(directory)
            directory.mkdir()
        else:
            for path in directory.glob("*.*"):
                path.unlink()
        return train(self, **how)

    monkeypatch.setattr(UnlearnTrainer, "train", remove)
    with pytest.raises(LetgoError, match="was removed while"):
        letgo.unlearn(**job)
    assert not is_run(directory) or read_result(directory).status == "failed"


def test_a_run_that_can_not_be_written_to_is_refused_before_it_is_attacked(job, monkeypatch):
    run = letgo.unlearn(**job)
    attacked = []
    monkeypatch.setattr("letgo.attacks.engine.run.run_attack", lambda *_: attacked.append(1))

    def refused(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(UserError, match=r"can't be written to .Permission denied"):
        letgo.attack(run.directory, ["quantize:bits=4"])
    assert not attacked


# -- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: No space left on device; make room"),
        (OSError(errno.EIO, "Input/output error", "/data/x"), "/data/x: Input/output error"),
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            "not enough memory",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:863] . PytorchStreamWriter failed writing"), "disk full"),
    ],
)
def test_a_failure_of_the_machine_is_told_from_one_of_ours(error, message):
    known = as_world_error(error)
    assert isinstance(known, WorldError)
    assert message in str(known)
    assert known.exit_code == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("x"), KeyError("y")])
def test_our_own_failures_are_not_taken_for_the_machines(error):
    assert as_world_error(error) is None


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("words", "way"),
    [
        ("unlearn run.yaml", "letgo unlearn run.yaml --resume"),
        ("unlearn run.yaml --resume", "letgo unlearn run.yaml --resume"),
        ("sweep 'my grid.yaml'", "letgo sweep 'my grid.yaml' --resume"),
        ("eval m --benchmark b -o out", "letgo eval m --benchmark b -o out --resume"),
        ("attack run --attack a", "letgo attack run --attack a"),
        ("attack m --attack a --output out", "letgo attack m --attack a --output out"),
        ("eval m --benchmark b", None),
        ("list", None),
    ],
)
def test_what_was_cut_off_names_the_command_that_goes_on(monkeypatch, capsys, raised, words, way):
    import shlex

    from letgo import cli

    def fails():
        raise raised

    monkeypatch.setattr(cli, "app", fails)
    assert cli._run(shlex.split(words)) == (130 if isinstance(raised, KeyboardInterrupt) else 1)
    error = capsys.readouterr().err
    assert error.count("letgo: ") == 1
    assert (f"go on with: {way}\n" in error) if way else ("go on with" not in error)


def test_ctrl_c_in_a_destructor_stops_the_command_all_the_same(tmp_path):
    from tests import warm

    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys, time\n"
        "from letgo import cli\n"
        "class Slow:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(0.01)\n"
        "def work():\n"
        "    slow = Slow()\n"
        "    del slow\n"
        "    time.sleep(20)\n"
        "    print('went on')\n"
        "cli.app = work\n"
        "sys.argv = ['letgo', 'unlearn', 'run.yaml']\n"
        "cli.main()\n"
    )
    done = warm.run([str(program)])
    assert done.returncode == 130
    assert "went on" not in done.stdout
    assert "go on with: letgo unlearn run.yaml --resume" in done.stderr


def test_scores_of_an_unfinished_run_are_gone_at_its_end(job):
    run = letgo.unlearn(**job)
    assert not list(run.directory.glob(PARTIAL.format("*")))
    assert json.loads((run.directory / "result.json").read_text())["status"] == "finished"
