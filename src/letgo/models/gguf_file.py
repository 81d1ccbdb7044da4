"""A model's directory as a GGUF file, which llama.cpp and transformers read: names, numbers and tokenizer.

The names of config entries are those by which transformers reads them; those of tensors are gguf's. A header is read
back before any weight is written: where the file would give another model or other tokens, it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from letgo.core.errors import UserError
from letgo.core.extras import need
from letgo.models.gguf import pre_tokenizer_name, read_header
from letgo.models.gguf_mixes import BLOCK
from letgo.models.gguf_types import block_bytes

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model types, and what GGUF calls them."""
_PERMUTED = ("llama",)
"""Those whose query and key rows llama.cpp orders otherwise, for its way of rotating them."""
_FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "head_dim",
    "vocab_size": "vocab_size",
}
_SPECIAL = {
    "bos_token_id": "add_bos_token_id",
    "eos_token_id": "add_eos_token_id",
    "pad_token_id": "add_pad_token_id",
    "unk_token_id": "add_unk_token_id",
}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_TEXTS = (
    "Hello, world! It's 2026-11-29; she'll pay 1,234.50 or 99 %.",
    "  two spaces, a tab\tand\n\na blank line  \n",
    "def f(x):\n    return x**2 + 10_000  # CamelCase snake_case",
    "Ünïcode: Größe, naïve, 東京, Привет, مرحبا, 👋🏽 — “quotes” … 3½",
    "1 12 123 1234 12345",
)
"""What the two tokenizers must split alike."""


@dataclass(frozen=True)
class Names:
    """How a model's tensors are called in its directory and in a GGUF file.

    Attributes:
        architecture: GGUF's name of the model's type.
        layers: of the model; `queries` query heads per key head.
        tied: whether the output layer is the embedding.
    """

    architecture: str
    layers: int
    heads: int
    key_heads: int
    tied: bool

    @property
    def queries(self) -> int:
        return self.heads // self.key_heads

    def of(self, tensors: Iterable[str]) -> dict[str, str]:
        """From the names in the directory to those in the file, in the file's order: outside of the layers, then layer
        by layer.

        Raises:
            UserError: a tensor has no name there.
        """
        gguf = need("gguf", "gguf", what="writing a GGUF file")
        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        table = gguf.get_tensor_name_map(kind, self.layers)
        names = {}
        for tensor in tensors:
            if self.tied and tensor == "lm_head.weight":
                continue
            names[tensor] = table.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if unknown := [tensor for tensor, name in names.items() if name is None]:
            raise UserError(f"GGUF has no name for the tensor {unknown[0]} of a model of the type {self.architecture}")

        def place(name: str) -> tuple[int, str]:
            return (int(name.split(".")[1]) if name.startswith("blk.") else -1, name)

        return dict(sorted(names.items(), key=lambda pair: place(pair[1])))

    def in_file(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A tensor's rows, numbers or bytes, in the order of the file."""
        heads = {"attn_q": self.heads, "attn_k": self.key_heads}.get(name.split(".")[-2], 0)
        if self.architecture not in _PERMUTED or not heads:
            return rows
        split = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)

    def in_model(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A tensor's rows as the file has them, in the model's order."""
        order = self.in_file(name, np.arange(len(rows)))
        return rows[np.argsort(order)]


def names_of(config: Any) -> Names:
    """How the tensors of a model with this config are called.

    Raises:
        UserError: GGUF does not know models of this type.
    """
    gguf = need("gguf", "gguf", what="the names of a GGUF file's tensors")
    architecture = _ARCHITECTURES.get(config.model_type, config.model_type)
    if architecture not in gguf.MODEL_ARCH_NAMES.values():
        raise UserError(f"GGUF does not know models of the type {config.model_type!r}")
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return Names(architecture, config.num_hidden_layers, heads, key_heads, bool(config.tie_word_embeddings))


class GgufFile:
    """A file under way: its header is written and read back by `begin`, then comes one tensor after another."""

    def __init__(
        self,
        path: Path,
        config: Any,
        tokenizer: Any,
        names: Names,
        tensors: Mapping[str, tuple[tuple[int, ...], str]],
        *,
        mix: str,
    ) -> None:
        """
        Args:
            tensors: by the names in the file, in its order: shape and type ("F32", "F16" or a block type).
            mix: its name, for the header; of one that llama.cpp does not have, the header says nothing.
        """
        self._gguf = need("gguf", "gguf", what="writing a GGUF file")
        if config.model_type not in _ARCHITECTURES:
            known = ", ".join(_ARCHITECTURES)
            raise UserError(
                f"letgo can't write models of the type {config.model_type!r} as GGUF; those it can: {known}"
            )
        self.path, self.config, self.tokenizer, self.names = path, config, tokenizer, names
        self.tensors = dict(tensors)
        self._writer = self._gguf.GGUFWriter(path, names.architecture)
        self._writer.add_type("model")
        self._add_config(mix)
        self._add_tokenizer()
        for name, (shape, kind) in self.tensors.items():
            raw = self._gguf.GGMLQuantizationType[kind]
            size = stored_bytes(shape, kind)
            self._writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw)

    def begin(self) -> None:
        """Write the header, and read it back.

        Raises:
            UserError: what would be read is another model, or another tokenizer.
        """
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()
        for file in self._writer.fout:
            file.flush()
        header = self.path.stat().st_size
        align = self._writer.data_alignment
        whole = -(-header // align) * align + sum(
            -(-stored_bytes(shape, kind) // align) * align for shape, kind in self.tensors.values()
        )
        # The readers look for the weights too: as long as they are not there, they are a hole in the file.
        with self.path.open("r+b") as file:
            file.truncate(whole)
        config, tokenizer = read_header(self.path)
        _check_config(self.config, config)
        _check_tokenizer(self.tokenizer, tokenizer)

    def add(self, tensor: np.ndarray) -> None:
        """Write the next tensor: floats, or bytes of blocks."""
        self._writer.write_tensor_data(tensor)

    def close(self) -> None:
        self._writer.close()

    def _add_config(self, mix: str) -> None:
        writer, config = self._writer, self.config
        for key, field in _FIELDS.items():
            value: Any = getattr(config, field, None)
            if value is None and field == "head_dim":
                value = config.hidden_size // config.num_attention_heads
            if value is None and field == "num_key_value_heads":
                value = config.num_attention_heads
            key = f"{self.names.architecture}.{key}"
            writer.add_float32(key, value) if isinstance(value, float) else writer.add_uint32(key, int(value))
        rope = dict(getattr(config, "rope_parameters", None) or {})
        writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
        kind = rope.get("rope_type", "default")
        if kind != "default":
            raise UserError(
                f"its rotary embedding is scaled (rope_type: {kind}), which readers of GGUF files take in different "
                "ways\n  export it in another format, or convert the run's directory with llama.cpp's own script"
            )
        kinds = self._gguf.LlamaFileType.__members__
        writer.add_file_type(int(kinds.get(f"MOSTLY_{mix}", kinds["GUESSED"])))
        writer.add_quantization_version(self._gguf.GGML_QUANT_VERSION)

    def _add_tokenizer(self) -> None:
        writer, tokenizer = self._writer, self.tokenizer
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"] if tokenizer.is_fast else {}
        split = pre_tokenizer_name(tokenizer)
        if model.get("type") != "BPE" or split is None:
            raise UserError(
                "its tokenizer can't be written as GGUF: letgo writes byte-level BPE with a way of splitting texts "
                "that llama.cpp knows\n  export it in another format, or convert the run's directory with llama.cpp's "
                "own script"
            )
        added = tokenizer.added_tokens_decoder
        by_id = {number: token for token, number in tokenizer.get_vocab().items()}
        tokens, kinds = [], []
        for number in range(self.config.vocab_size):
            token = by_id.get(number)
            tokens.append(f"[PAD{number}]" if token is None else token)
            special = number in added and added[number].special
            kinds.append(
                _UNUSED if token is None else _CONTROL if special else _USER_DEFINED if number in added else _NORMAL
            )
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
        for name, add in _SPECIAL.items():
            number = getattr(tokenizer, name)
            if number is not None:
                getattr(writer, add)(number)
        sample = tokenizer("a")["input_ids"]
        writer.add_add_bos_token(tokenizer.bos_token_id is not None and sample[0] == tokenizer.bos_token_id)
        writer.add_add_eos_token(tokenizer.eos_token_id is not None and sample[-1] == tokenizer.eos_token_id)
        writer.add_add_space_prefix(False)
        if tokenizer.chat_template is not None:
            writer.add_chat_template(tokenizer.chat_template)


def stored_bytes(shape: tuple[int, ...], kind: str) -> int:
    """How many bytes a tensor of a type takes in a file."""
    count = int(np.prod(shape))
    if kind in ("F32", "F16"):
        return count * (4 if kind == "F32" else 2)
    return count // BLOCK[kind] * block_bytes(kind)


def _check_config(config: Any, read: Any) -> None:
    """Raise a `UserError` unless the config that is read back is the same in all that the model's output depends on."""
    fields = {*_FIELDS.values(), "hidden_act", "attention_bias", "mlp_bias", "tie_word_embeddings", "rope_parameters"}
    for field in sorted(fields):
        ours, theirs = getattr(config, field, None), getattr(read, field, None)
        if field == "rope_parameters":
            ours, theirs = (
                {key: value for key, value in (parameters or {}).items() if key in ("rope_theta", "rope_type")}
                for parameters in (ours, theirs)
            )
        if ours is not None and theirs is not None and not _alike(ours, theirs):
            raise UserError(
                f"it can't be written as GGUF: its {field} is {ours!r}, and a reader of the file would take {theirs!r}"
            )


def _alike(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Mapping):
        return ours.keys() == theirs.keys() and all(_alike(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return bool(np.float32(ours) == np.float32(theirs))
    return bool(ours == theirs)


def _check_tokenizer(tokenizer: Any, read: Any) -> None:
    """Raise a `UserError` unless the tokenizer that is read back splits texts as the model's does."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for text in (*_TEXTS, *(f"a {token} b" for token in special)):
        if tokenizer(text)["input_ids"] != read(text)["input_ids"]:
            raise UserError(
                f"its tokenizer can't be written as GGUF: {text!r} would be read as other tokens\n"
                "  export it in another format, or convert the run's directory with llama.cpp's own script"
            )
    if tokenizer.chat_template is not None:
        said = [{"role": "user", "content": "Hello."}]
        ours, theirs = (each.apply_chat_template(said, tokenize=False) for each in (tokenizer, read))
        if ours != theirs:
            raise UserError("its tokenizer can't be written as GGUF: its chat template would be read otherwise")
