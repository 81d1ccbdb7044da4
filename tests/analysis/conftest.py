"""A run as `letgo unlearn` leaves it, made without training: a random model, and the same one a little moved."""

from __future__ import annotations

import json

import pytest
import torch

from letgo.models.load import load_model
from letgo.runs.results import write_result
from tests import tiny
from tests.report.runs import quantize, relearn, result

SAME = {"created", "seconds", "git", "versions"}
"""What may differ between two entries of one analysis."""


def moved(model, size: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("analysis") / "original"
    tiny.make_model().save_pretrained(directory)
    tiny.make_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def run(original, tmp_path):
    """A run directory with two recorded attacks, one of which has its displacement in the record."""
    directory = tmp_path / "run"
    moved(load_model(original), 0.02, 1).save_pretrained(directory)
    tiny.make_tokenizer().save_pretrained(directory)
    cities = tiny.WORDS[16:24]
    forget = [row | {"wrong_answers": [c for c in cities if c != row["answer"]][:3]} for row in tiny.FORGET]
    config = {
        "model": str(original),
        "forget": str(tiny.write_jsonl(tmp_path / "forget.jsonl", forget)),
        "retain": str(tiny.write_jsonl(tmp_path / "retain.jsonl", tiny.RETAIN)),
        "template": "plain",
    }
    attacks = [
        quantize(settings={"bits": 8}, did={"displacement": 0.125}),
        relearn(settings={"steps": 2, "learning_rate": 1e-3, "batch_size": 2, "holdout": 0.5}, seeds=[3], did={}),
    ]
    write_result(directory, result(config=config, attacks=attacks))
    return directory


@pytest.fixture
def other(original, tmp_path):
    """Another model of the same architecture, saved in shards."""
    directory = tmp_path / "other"
    moved(load_model(original), 0.05, 2).save_pretrained(directory, max_shard_size="30KB")
    tiny.make_tokenizer().save_pretrained(directory)
    assert json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    return directory


@pytest.fixture(autouse=True)
def global_noise_is_left_alone():
    """No analysis may draw from, or seed, the global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())
