"""What lies in a model's directory, looked at before transformers reads it; and what transformers has made of it.

transformers fills what it does not find with random numbers and goes on. Here every weight is what the files say, or
one error says which is not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from letgo.core import processes
from letgo.core.errors import LetgoError, UserError, first_line
from letgo.models.running import is_sharded

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_PATTERNS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    INDEX,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
)
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "chat_template*",
)
"""Names of the files of a directory that a model, and its tokenizer, are loaded from."""
_SETTINGS = ("config.json", ADAPTER_CONFIG, "generation_config.json", "tokenizer_config.json")
_POINTER = b"version https://git-lfs"
_AGAIN = "  the download may be incomplete: get it again"
_NO_FLOAT = re.compile("[IU]|BOOL")
_OTHER_TASK = re.compile("For(?!CausalLM|.*Generation)")
_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def remote_code(trusted: bool | None) -> Iterator[None]:
    """Within, in this thread: whether Python files that come with a model may run when it is loaded. By default they
    may not. None leaves it as it is."""
    token = _TRUSTED.set(_TRUSTED.get() if trusted is None else trusted)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def trusted() -> bool:
    """What every loader of transformers must be given as `trust_remote_code`: not told, it asks on stdin."""
    return _TRUSTED.get()


@contextmanager
def loading(name: str, what: str) -> Iterator[None]:
    """Within: whatever a library raises about a model's files becomes one `UserError`; too little memory does not."""
    try:
        yield
    except (LetgoError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        hint = ""
        if "trust_remote_code" in str(error):
            hint = "\n  its own Python code would run; if you trust it: trust_remote_code: true (--trust-remote-code)"
        elif isinstance(error, ImportError):
            hint = "\n  install what it is stored for, or save it with its weights dequantized; see docs/attacks.md"
        elif not Path(name).is_dir():
            hint = "\n  if the hub can't be reached, download the model and give its path"
        else:
            hint = "\n  the files may be incomplete, edited, or for another version of transformers: get them again"
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise UserError(f"{name}: {what} can't be loaded ({kind}{first_line(error)}){hint}") from error


def check_files(directory: Path) -> None:
    """Look at a model's or an adapter's settings and at the headers of its weights.

    Raises:
        UserError: a file is a pointer of Git LFS, not JSON or not a mapping, not a whole safetensors file, or missing
            though the index names it; or a weight is stored as whole numbers. It names the file.
    """
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(_POINTER):
            raise UserError(
                f"{path} is a pointer of Git LFS, not the file itself\n  get the files: git lfs pull, in {directory}"
            )
    settings = {name: _mapping(directory / name) for name in _SETTINGS if (directory / name).is_file()}
    for path in weight_files(directory):
        for name, (kind, _) in tensors_of(path).items():
            quantized = "quantization_config" in settings.get("config.json", {})
            if name.endswith(".weight") and _NO_FLOAT.match(kind) and not quantized:
                raise UserError(
                    f"{path}: weight {name} is stored as whole numbers ({kind}), and config.json names no quantization"
                    "\n  save the model again, in floating-point numbers"
                )


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that a model's or an adapter's weights are read from; none where it has none."""
    for name in (ADAPTER_WEIGHTS, WEIGHTS):
        if (directory / name).is_file():
            return [directory / name]
    index = directory / INDEX
    if not index.is_file():
        return []
    shards = _mapping(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise UserError(f"{index}: has no 'weight_map' from the weights' names to files\n{_AGAIN}")
    paths = [directory / shard for shard in sorted(set(shards.values()))]
    if lost := [path.name for path in paths if not path.is_file()]:
        raise UserError(f"{index} names {len(paths)} files, of which {len(lost)} are missing: {lost[0]}\n{_AGAIN}")
    return paths


def tensors_of(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor in a safetensors file, by its header, which is held against the file's size."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            return {name: (str(tensor.get_dtype()), tensor.get_shape()) for name, tensor in slices.items()}
    except Exception as error:
        raise UserError(f"{path}: not a whole safetensors file ({first_line(error)})\n{_AGAIN}") from error


def _mapping(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: can't be read as JSON ({first_line(error)})\n{_AGAIN}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: must be a mapping of names to values, not {type(settings).__name__}\n{_AGAIN}")
    return settings


def check_loaded(model: Any, keys: Mapping[str, Any], name: str) -> None:
    """Raise a `UserError` unless a model's weights are all from its files, of the shapes that config.json says, finite,
    and no others of its layers are there. `keys` is transformers' loading information."""
    problem = ""
    if mismatched := sorted(keys.get("mismatched_keys", ())):
        key, stored, asked = mismatched[0]
        problem = f"{len(mismatched)} weights of other shapes than config.json asks for, such as {key}: "
        problem += f"{tuple(stored)}, not {tuple(asked)}"
    elif missing := sorted(keys["missing_keys"]):
        raise UserError(
            f"{name}: its files lack {len(missing)} of the weights that config.json asks for, such as {missing[0]}\n"
            "  the download may be incomplete, or config.json of another model"
        )
    elif surplus := _of_missing_layers(model, sorted(keys["unexpected_keys"])):
        problem = f"{len(surplus)} weights of layers that config.json does not have, such as {surplus[0]}"
    if problem:
        raise UserError(f"{name}: its files hold {problem}\n  config.json may be of another model")
    bad = [key for key, weight in model.named_parameters() if not _finite(weight)]
    if is_sharded(model):
        bad = [key for part in processes.exchange(bad) for key in part]
    if bad:
        half = "; in float16 numbers beyond 65,504 are infinite: load it in bfloat16 or float32"
        raise UserError(
            f"{name}: {len(bad)} weights hold NaN or infinite numbers, such as {bad[0]}"
            f"{half if model.dtype == torch.float16 else ''}\n  it is broken: get or train it anew"
        )


def check_task(config: Any, name: str) -> None:
    """Raise a `UserError` where a model was made for something else than writing text on: its weights would fit."""
    kinds = getattr(config, "architectures", None) or []
    if kinds and all(_OTHER_TASK.search(kind) for kind in kinds):
        raise UserError(f"{name} is no causal language model: config.json says {', '.join(kinds)}")


def _of_missing_layers(model: Any, keys: list[str]) -> list[str]:
    """The weights, among those that the model has no place for, of layers behind its last one."""
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    numbered = [(key, re.search(r"^(.+?)\.(\d+)\.", key)) for key in keys]
    return [
        key
        for key, match in numbered
        if match and any(f".{name}".endswith(f".{match[1]}") and int(match[2]) >= n for name, n in lists.items())
    ]


def _finite(weight: Any) -> bool:
    values = weight.to_local() if hasattr(weight, "to_local") else weight
    if not values.is_floating_point() or not values.numel():
        return True
    return all(math.isfinite(value) for value in torch.aminmax(values.detach()))
