"""Writing a model's directory: whole or an adapter, gathered where it lies in shards, read back before it counts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from letgo.core import processes
from letgo.core.errors import LetgoError
from letgo.models.adapters import Base, adapter_state, save_adapter
from letgo.models.files import ADAPTER_WEIGHTS, trusted
from letgo.models.load import in_shards, whole
from letgo.models.running import is_sharded


def save_model(
    model: Any, tokenizer: Any, directory: Path, *, base: Base | None = None, max_shard_size: str = "5GB"
) -> None:
    """Save model and tokenizer, and read the weights back: what lies on disk is what was trained, or an error.

    Args:
        base: what the adapters of a LoRA model were trained on: the adapters alone are saved. None: a whole model.
        max_shard_size: a whole model is cut into files of at most this size.
    """
    if not is_sharded(model):
        processes.first_does(lambda: _write_model(model, tokenizer, directory, base, max_shard_size))
        return
    # A tied weight counts once.
    names = {name for name, _ in in_shards(model).named_parameters(remove_duplicate=False)}
    again = names - {name for name, _ in model.named_parameters()}
    # Gathered tensor by tensor, by all processes together; the first one keeps them.
    state: dict[str, Any] = {}
    for name, value in model.state_dict().items():
        if name not in again:
            gathered = whole(value)
            state |= {name: gathered.cpu()} if processes.is_first() else {}
    processes.first_does(lambda: _write_model(_plain(model, state), tokenizer, directory, base, max_shard_size))


def _write_model(model: Any, tokenizer: Any, directory: Path, base: Base | None, max_shard_size: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if base is None:
        model.save_pretrained(directory, max_shard_size=max_shard_size)
        _check_saved(model.state_dict(), "model*.safetensors", directory)
    else:
        save_adapter(model, directory, base)
        _check_saved(adapter_state(model), ADAPTER_WEIGHTS, directory)
    tokenizer.save_pretrained(directory)
    # safetensors' files are for their owner alone; those written as JSON are as the umask says.
    mode = next(directory.glob("*.json")).stat().st_mode
    for path in directory.glob("*.safetensors"):
        path.chmod(mode)


def _plain(model: Any, state: Mapping[str, Any]) -> Any:
    """A model in shards as a plain one that has these weights."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    config.__dict__.pop("distributed_config", None)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted())
    plain.load_state_dict(dict(state), strict=False, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _check_saved(state: Mapping[str, Any], pattern: str, directory: Path) -> None:
    from safetensors import safe_open

    saved: set[int] = set()
    for path in sorted(directory.glob(pattern)):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                if name not in state:
                    continue
                saved.add(state[name].data_ptr())
                if not torch.equal(file.get_tensor(name), state[name].cpu()):
                    raise LetgoError(f"{path}: tensor {name} was not saved as it was trained")
    # Tied weights are saved under one of their names.
    lost = [name for name, value in state.items() if value.numel() and value.data_ptr() not in saved]
    if lost:
        raise LetgoError(f"{directory}: {len(lost)} tensors were not saved, {lost[0]} among them")
