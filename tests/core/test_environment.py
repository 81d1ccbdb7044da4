"""What a record says of the machine."""

from __future__ import annotations

import os
import subprocess

import torch

from letgo.core.environment import circumstances, git_revision


def test_a_record_names_the_processors_kernels_and_the_threads():
    threads = torch.get_num_threads()
    words = circumstances()["versions"]["processor"]
    assert f" {torch.backends.cpu.get_cpu_capability()}, {threads} thread" in words
    assert words.endswith("s") == (threads > 1)


def test_a_record_names_what_computes():
    words = circumstances()["versions"]["device"]
    assert words.startswith("cuda: " if torch.cuda.is_available() else "cpu: ")
    assert len(words) > len("cpu: ")


def test_a_repository_is_only_read(tmp_path, monkeypatch):
    """Its index, and a lock that another process holds on it, stay as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision() is None

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "core.hooksPath="]
        done = subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    assert git_revision() is None
    (tmp_path / "a").write_text("one")
    git("add", "a")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    index = tmp_path / ".git" / "index"
    # What the index knows of the file is out of date: whoever may, writes it anew.
    os.utime(tmp_path / "a", (0, 0))
    known = index.read_bytes()
    assert git_revision() == commit[:12]
    assert index.read_bytes() == known
    (tmp_path / ".git" / "index.lock").touch()
    assert git_revision() == commit[:12]
    (tmp_path / "a").write_text("two")
    assert git_revision() == f"{commit[:12]}-dirty"
