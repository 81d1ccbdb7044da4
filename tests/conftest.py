"""What every test needs: quiet threads (one, but for scripts/portable.py), no hub, and a model small enough to train in
a blink."""

from __future__ import annotations

import os

# Before torch is imported: two busy test workers with two threads each crawl on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("LETGO_TEST_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = os.environ["LETGO_TEST_THREADS"]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sys

import pytest
import torch

from letgo.core.environment import freeze_imports
from tests import tiny, warm
from tests.once import made_once

torch.set_num_threads(int(os.environ["LETGO_TEST_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def _own_reference_store(tmp_path_factory):
    """What earlier sessions stored must not make a test pass."""
    os.environ["LETGO_REFERENCES"] = str(tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="session", autouse=True)
def _own_data_key(tmp_path_factory):
    """No test makes a key in the home folder of whoever runs it. One for all workers: what they make once, by one of
    them, is bound by it."""
    os.environ["LETGO_DATA_KEY"] = str(made_once(tmp_path_factory, "data-key", lambda folder: None) / "data.key")


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.make_tokenizer()


@pytest.fixture
def model():
    return tiny.make_model()


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """A saved random Llama with its tokenizer, as a user's model directory."""
    directory = tmp_path_factory.mktemp("tiny-model")
    return tiny.save(directory, tiny.make_model(), tiny.make_tokenizer())


@pytest.fixture
def letgo(monkeypatch, capsys):
    """Run the command in this process: letgo(*words) -> (exit code, stdout, stderr)."""
    from letgo.cli import main

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["letgo", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def pytest_sessionfinish():
    warm.stop()


def pytest_collection_finish():
    """Every run of letgo collects garbage several times."""
    freeze_imports()


def pytest_collection_modifyitems(items):
    """The long tests first: begun last, one of them would keep one worker busy while the others wait."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
