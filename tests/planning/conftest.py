"""A model just large enough for its parts to be told apart in a plan."""

from __future__ import annotations

import pytest

from tests import tiny

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}


@pytest.fixture(scope="session")
def shaped(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("shaped"), tiny.make_model(**SHAPE), tiny.make_tokenizer())


@pytest.fixture
def job(tmp_path, shaped):
    return tiny.own_files(tmp_path, shaped, max_steps=4, per_device_train_batch_size=2, optimizer="adamw")


def items(made, name):
    """The bytes of a plan's phase."""
    return next(phase for phase in made.phases if phase.name == name).items
