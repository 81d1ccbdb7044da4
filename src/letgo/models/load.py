"""From what a user calls a model to the model: a built-in name, a directory, a GGUF file, or an id of the hub."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.extras import need
from letgo.core.fingerprints import Fingerprint
from letgo.core.values import compiled
from letgo.models.adapters import (
    BASE_FILE,
    check_base,
    is_adapter,
    merge_adapter,
    quantization_config,
    read_base,
    steady,
)
from letgo.models.files import ADAPTER_CONFIG, check_files, check_loaded, check_task, loading, trusted
from letgo.models.gguf import gguf_directory, is_gguf

ASSETS = Path(__file__).parent / "assets"
"""The models that come with letgo."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _smollm2() -> Path:
    from letgo.models.smollm2 import smollm2_directory

    return smollm2_directory()


def _shipped(name: str) -> Callable[[], Path]:
    return lambda: ASSETS / "biographies" / name


BUILTIN: Mapping[str, Callable[[], Path]] = {
    "smollm2": _smollm2,
    "biographies": _shipped("full"),
    "biographies-retrained": _shipped("retrained"),
}


def resolve_model(model: str | Path) -> str:
    """The directory or hub id behind a model's name; a GGUF file's is made in the cache when it is first named.

    Raises `UserError` for a path that doesn't exist or is no model, for files of a directory that are not whole
    (`check_files`), and for a bare word that is neither built in nor of a hub id's form.
    """
    name = str(model)
    if name in BUILTIN:
        return str(BUILTIN[name]())
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file() and not is_adapter(path):
            raise UserError(f"{name} is not a model directory: it has neither config.json nor {ADAPTER_CONFIG}")
        check_files(path)
        return name
    if is_gguf(path) and path.is_file():
        return str(gguf_directory(path))
    if path.exists():
        raise UserError(f"{name} is a file; name the model's directory, or a .gguf file")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or is_gguf(path)
    if looks_local or "/" not in name:
        raise UserError(
            f"no such model: {name!r}{did_you_mean(name, BUILTIN)}\n"
            f"  give a directory, a .gguf file, a hub id (OWNER/NAME), or a built-in one: {', '.join(BUILTIN)}"
        )
    return name


def model_config(model: str | Path) -> Any:
    """The config of a model's architecture: an adapter's is its base's."""
    from transformers import AutoConfig

    name = resolve_model(model)
    while is_adapter(name):
        name = resolve_model(read_base(name).model)
    with loading(name, "config.json"):
        return AutoConfig.from_pretrained(name, trust_remote_code=trusted())


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer of a model, with a pad token (the end token where it has none of its own).

    Raises:
        UserError: it can't be loaded, has neither token, or has tokens for which the model has no embedding.
    """
    from transformers import AutoTokenizer

    name = resolve_model(model)
    with loading(name, "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trusted())
        vocabulary = tokenizer.get_vocab()
        rows = getattr(model_config(name).get_text_config(decoder=True), "vocab_size", None) or len(vocabulary)
    if set(vocabulary.values()) <= set(tokenizer.all_special_ids):
        # Some classes of transformers begin empty where they find no file.
        raise UserError(f"{name}: the tokenizer knows no word at all: its vocabulary (tokenizer.json, say) is missing")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"{name}: the tokenizer has neither a pad nor an end token; set one and save it")
        tokenizer.pad_token = tokenizer.eos_token
    # A special token that the model has no row for (Gemma's image) may be there, as long as nothing needs it.
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    spared = special - {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    if beyond := sorted((id, token) for token, id in vocabulary.items() if id >= rows and id not in spared):
        raise UserError(
            f"{name}: the tokenizer has {len(beyond)} tokens beyond the {rows:,} that the model has embeddings for, "
            f"such as {beyond[0][1]!r} ({beyond[0][0]})\n  the tokenizer may be another model's; or the model's "
            "embeddings were not resized when tokens were added"
        )
    return tokenizer


def load_model(
    model: str | Path,
    *,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    quantization: str | None = None,
    shards: int = 1,
) -> Any:
    """A causal LM, in eval mode. No pickle is read, and no code of the model's own run (but within `remote_code`).

    Of an adapter's directory: its base (in the values of its quantization, if it has one) with the adapter merged into
    the weights, one plain model.

    Args:
        model: as in `resolve_model`.
        dtype: float32, bfloat16 or float16.
        device: where to put it; by default a GPU where there is one.
        quantization: nf4, fp4 or int8: load the linear layers in 4 or 8 bits, as a frozen base for adapters.
        shards: of several processes, how many hold a part of the weights each (FSDP2); all of them must call this.

    Raises:
        UserError: there is no such model, or it can't be loaded; an adapter's base is missing, or is another one.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}; known: {', '.join(DTYPES)}")
    name = resolve_model(model)
    device = torch.device(device or best_device())
    if shards > 1:
        return _load_shards(name, dtype, quantization, shards)
    if not is_adapter(name):
        return _load_plain(name, dtype, device, quantization)
    if quantization:
        raise UserError(
            f"{name} is an adapter: it can't be the quantized base of another one\n"
            "  name its base, or a merged model (save_merged: true)"
        )
    base = read_base(name)
    try:
        plain = _load_plain(resolve_model(base.model), dtype, device, base.quantization)
    except UserError as error:
        raise UserError(
            f"{name}: this adapter's base model {base.model!r} can't be had: {error}\n"
            f"  put it back, or name where it is now in {Path(name) / BASE_FILE}"
        ) from error
    check_base(plain, base, dtype, name)
    if base.quantization:
        # Before any forward pass: what is merged into is exactly what the adapter was trained on.
        plain = plain.dequantize(DTYPES[dtype])
    return merge_adapter(plain, name).eval()


def _load_plain(name: str, dtype: str, device: torch.device, quantization: str | None) -> Any:
    if is_adapter(name):
        return load_model(name, dtype=dtype, device=device)
    quantized: dict[str, Any] = {}
    if quantization:
        settings = quantization_config(quantization, DTYPES[dtype])
        quantized = {"quantization_config": settings, "device_map": {"": str(device)}}
    loaded = _from_pretrained(name, dtype, **quantized)
    return steady(loaded.eval()) if quantization else loaded.to(device).eval()


def _from_pretrained(name: str, dtype: str, **settings: Any) -> Any:
    from transformers import AutoModelForCausalLM

    settings = _unpacked(name) | settings
    model = from_files(AutoModelForCausalLM, name, dtype, **settings)
    check_task(model.config, name)
    return model


def _unpacked(name: str) -> dict[str, Any]:
    """The settings by which packed weights (FP8, INT4 by group) are read as floats; none where they are not packed."""
    config = model_config(name)
    packed = getattr(config, "quantization_config", None) or {}
    if not isinstance(packed, dict) or packed.get("quant_method") != "compressed-tensors":
        return {}
    need("compressed_tensors", "packed", what=f"reading {name}, whose weights are packed,")
    from transformers import CompressedTensorsConfig

    # Newer versions of transformers call it otherwise.
    dequantize = "dequantize" in inspect.signature(CompressedTensorsConfig).parameters
    config.quantization_config = packed | ({"dequantize": True} if dequantize else {"run_compressed": False})
    return {"config": config}


def from_files(kind: Any, name: str, dtype: str = "float32", **settings: Any) -> Any:
    """The model of a directory or a hub id by a loader of transformers (`kind`), its weights those of its files.

    Raises:
        UserError: it can't be read, or transformers would have made up weights (`check_loaded`).
    """
    with loading(name, "the model"):
        model, keys = kind.from_pretrained(
            name,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=trusted(),
            output_loading_info=True,
            # They are refused by name, not by a report on stderr.
            ignore_mismatched_sizes=True,
            **settings,
        )
    check_loaded(model, keys, name)
    return model


def _load_shards(name: str, dtype: str, quantization: str | None, shards: int) -> Any:
    """Each process reads its own part of the weights from the files."""
    if quantization or is_adapter(name):
        what = f"a base in {quantization}" if quantization else f"{name}, an adapter,"
        raise UserError(
            f"strategy: fsdp2 shares out the weights of a plain model; {what} can't be shared out\n  use replicas, or "
            "merge the adapter first (save_merged: true)"
        )
    try:
        from transformers.distributed import DistributedConfig
    except ImportError as error:
        raise UserError("strategy: fsdp2 needs a newer transformers: pip install -U transformers") from error
    return _from_pretrained(name, dtype, distributed_config=DistributedConfig(fsdp_size=shards)).eval()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's values, all of them: of one that is shared out over processes, gathered (all of them must ask)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def in_shards(model: torch.nn.Module) -> torch.nn.Module:
    """The same model, with what its last pass has left gathered shared out again: all its parameters are then shards
    (of one that is not shared out, nothing changes)."""
    modules: Any = model.modules()
    for module in modules:
        if hasattr(module, "reshard"):
            module.reshard()
    return model


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def context_length(model: Any) -> int:
    """The longest sequence that the model takes, from its config; 2,048 where the config does not say. A served model
    says it itself."""
    if (served := getattr(model, "context_length", None)) is not None:
        return int(served)
    return int(getattr(model.config, "max_position_embeddings", None) or 2048)


def weights_fingerprint(model: torch.nn.Module) -> str:
    """A hash of all parameters' names, types and bytes: equal exactly when the weights are."""
    digest = Fingerprint()
    for name, parameter in in_shards(model).named_parameters():
        data = whole(parameter.detach()).cpu().contiguous()
        digest.add(f"{name} {tuple(data.shape)} {data.dtype}\n")
        digest.add(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def arithmetic_of(model: torch.nn.Module) -> list[Any]:
    """What the last bits of its scores depend on, in addition to the weights: torch's version, device, attention."""
    attention = getattr(model.config, "_attn_implementation", None)
    return [torch.__version__, next(model.parameters()).device.type, attention]


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout to zero: two evaluations of one loss must differ by the weights alone."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def freeze_all_but(model: torch.nn.Module, pattern: str) -> int:
    """Leave trainable only the parameters in whose names the regular expression is found; returns their elements.

    Raises a `UserError` for a pattern that is no regular expression, or that finds nothing.
    """
    wanted = compiled("trainable", pattern)
    names = [name for name, _ in model.named_parameters()]
    if not any(wanted.search(name) for name in names):
        raise UserError(
            f"trainable: {pattern!r} is found in no parameter's name\n"
            f"  names are such as {', '.join(names[1:4])} … {names[-1]}"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(wanted.search(name)))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
