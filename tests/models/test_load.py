"""A model is loaded as its files say, or refused in one message."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from letgo.core.errors import UserError
from letgo.models.load import load_model
from tests import tiny


@pytest.fixture
def directory(tmp_path):
    return tiny.save(tmp_path, tiny.make_model(), tiny.make_tokenizer())


def config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(directory, change):
    path = directory / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def cut(directory, size):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: weights(d, lambda s: s.pop("model.norm.weight")), "lack 1 of the weights .* model.norm.weight"),
        (lambda d: config(d, num_hidden_layers=3), "lack 9 of the weights .* such as model.layers.2."),
        (lambda d: config(d, num_hidden_layers=1), "hold 9 weights of layers that config.json does not have"),
        (lambda d: config(d, architectures=["BertModel"], model_type="bert"), "lack .* of the weights"),
        (lambda d: config(d, hidden_size=16), "can't be loaded"),
        (lambda d: cut(d, 5000), "can't be loaded"),
        (lambda d: cut(d, 0), "can't be loaded"),
        (lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com"), "can't be loaded"),
    ],
    ids=["a tensor missing", "a layer more", "a layer fewer", "bert", "other shapes", "truncated", "empty", "pointer"],
)
def test_weights_that_are_not_the_configs_are_refused(directory, damage, message):
    damage(directory)
    with pytest.raises(UserError, match=message):
        load_model(directory)


def test_weights_of_other_parts_do_no_harm(directory):
    """As a vision tower's beside a language model's."""
    weights(directory, lambda state: state.update({"vision_tower.patch.weight": state["model.norm.weight"].clone()}))
    assert load_model(directory).num_parameters() == tiny.make_model().num_parameters()
