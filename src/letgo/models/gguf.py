"""GGUF files: read by transformers, kept as plain model directories in letgo's cache.

A directory is made once for each file's content. transformers dequantizes the weights and rebuilds the config and the
tokenizer; two things it leaves undone are done here. Numbers of the config are 32-bit floats in the file
(9.99999975e-06 stands for 1e-5), and some ways of splitting a text before its byte pairs are merged are not known to
it: it would split as GPT-2 does, and a number after two spaces or a blank line would become other tokens.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from letgo.core.errors import UserError, first_line
from letgo.core.extras import need
from letgo.core.files import cache_directory
from letgo.core.fingerprints import remembered_digest

# Part of the cached directories' names: raise it whenever the conversion writes something else than before.
LAYOUT = 1
_MAGIC = b"GGUF"
# Values of `tokenizer.ggml.pre`, by how llama.cpp splits a text for them: as GPT-2 does, or so after each digit has
# become a piece.
_AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion")
_DIGIT_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")


def is_gguf(path: Path) -> bool:
    """Whether the path is that of a GGUF file, by its name."""
    return path.suffix.lower() == ".gguf"


def gguf_directory(path: Path) -> Path:
    """The model directory made of a GGUF file, in 32-bit floats: made on the first call, then taken from the cache.

    Raises:
        UserError: the package `gguf` is missing, the file is not GGUF or can't be read, its architecture or tokenizer
            is not known, or the cache can't be written.
    """
    need("gguf", "gguf", what=f"reading {path}")
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise UserError(f"{path} is not a GGUF file: it does not begin with {_MAGIC.decode()}")
    return cached_directory(
        f"gguf-{path.stem}-{remembered_digest(path)[:16]}-{LAYOUT}", lambda target: convert(path, target)
    )


def cached_directory(name: str, write: Callable[[Path], None]) -> Path:
    """A directory of letgo's cache, filled by `write` where it is not there yet. It appears whole or not at all: it is
    written under another name, then renamed.

    Raises:
        UserError: the cache can't be written.
    """
    cache = cache_directory()
    directory = cache / name
    if directory.is_dir():
        return directory
    try:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{name}.", suffix=".part", dir=cache))
    except OSError as error:
        raise _cache_error(cache, error) from error
    try:
        write(unfinished)
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


def convert(source: Path, target: Path) -> None:
    """Write the model of the GGUF file `source` into the directory `target`, as transformers would save it."""
    model, tokenizer = _read(source)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


@contextlib.contextmanager
def _alone(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The folder and the settings by which transformers reads a GGUF file; what it can't read is a `UserError`."""
    try:
        # Alone in a folder: other files of its directory (a config, an adapter) must not be read.
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "model.gguf").symlink_to(source.resolve())
            yield folder, {"gguf_file": "model.gguf", "local_files_only": True, "trust_remote_code": False}
    except UserError:
        raise
    except Exception as error:  # its reader raises many kinds for a file that is cut off, or that it does not know
        raise UserError(
            f"{source}: the GGUF file can't be read ({type(error).__name__}: {first_line(error)})\n"
            "  give the model's directory or hub id instead"
        ) from error


def read_header(source: Path) -> tuple[Any, Any]:
    """The config and the tokenizer of a GGUF file; its weights need not be there yet."""
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoTokenizer

    with _alone(source) as (folder, settings):
        reader = GGUFReader(source)
        tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
        _apply_pre_tokenizer(source, reader, tokenizer)
        config = AutoConfig.from_pretrained(folder, **settings)
        _check_rotary(source, reader, config)
        return config, tokenizer


def _read(source: Path) -> tuple[Any, Any]:
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from letgo.models.files import check_loaded

    with _alone(source) as (folder, settings):
        reader = GGUFReader(source)
        tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
        _apply_pre_tokenizer(source, reader, tokenizer)
        # transformers shows a bar of its own here, whatever it is told.
        with contextlib.redirect_stderr(io.StringIO()):
            read, keys = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **settings, **_dequantized()
            )
        check_loaded(read, keys, str(source))
        _check_rotary(source, reader, read.config)
    config = read.config
    config.name_or_path = ""
    for name, value in config.to_dict().items():
        if isinstance(value, float):
            setattr(config, name, _shortest(value))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    # A fresh model: the one just read remembers that it was quantized and does not save.
    model.load_state_dict(read.state_dict(), assign=True)
    tokens = {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**tokens)
    tokenizer.model_max_length = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", 1 << 62))
    return model, tokenizer


def _check_rotary(source: Path, reader: Any, config: Any) -> None:
    """Raise a `UserError` where the file scales its rotary embedding and transformers has not read it."""
    kinds = [field.contents() for name, field in reader.fields.items() if name.endswith(".rope.scaling.type")]
    scaled = any(kind != "none" for kind in kinds) or any(t.name.startswith("rope_freqs") for t in reader.tensors)
    read = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if scaled and read == "default":
        raise UserError(
            f"{source}: its rotary embedding is scaled (Llama 3.1 and later), which transformers does not read from a "
            "GGUF file: it would be another model\n  give the model's directory or hub id instead"
        )


def _dequantized() -> dict[str, Any]:
    """The setting by which newer versions of transformers unpack the weights, as older ones always do."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _shortest(value: float) -> float:
    """Of a 32-bit float, the shortest decimal number that stands for it; any other number as it is."""
    import numpy as np

    narrow = np.float32(value)
    return float(str(narrow)) if float(narrow) == value else value


def _apply_pre_tokenizer(source: Path, reader: Any, tokenizer: Any) -> None:
    """Set how the tokenizer splits a text before it merges byte pairs, where transformers has not done it.

    Raises:
        UserError: the file names a way that is not known: the tokens would silently be others than the model's.
    """
    fields = reader.fields
    kind, split = (
        fields[name].contents() if name in fields else None for name in ("tokenizer.ggml.model", "tokenizer.ggml.pre")
    )
    if kind != "gpt2":
        return  # other kinds of tokenizers don't split first
    if split in _DIGIT_BY_DIGIT:
        tokenizer.backend_tokenizer.pre_tokenizer = _digit_by_digit()
    elif split not in (*_AS_GPT2, *_known_to_transformers()):
        raise UserError(
            f"{source}: how its tokenizer splits a text (tokenizer.ggml.pre: {split}) is not known, so the tokens "
            "could be others than the model's\n  give the model's directory or hub id instead, or update transformers"
        )


def _digit_by_digit() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _known_to_transformers() -> dict[str, str]:
    """The regular expressions by which transformers splits a text, by their names in GGUF files."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return {}
    return dict(GGUF_PRE_TOKENIZER_SPLITS)


def pre_tokenizer_name(tokenizer: Any) -> str | None:
    """How GGUF files call the way in which a tokenizer splits a text before it merges byte pairs; None where no name is
    known to stand for it."""
    if not tokenizer.is_fast:
        return None
    steps = _steps(tokenizer.backend_tokenizer.pre_tokenizer)
    if steps == _steps(_digit_by_digit()):
        return _DIGIT_BY_DIGIT[0]
    if [step["type"] for step in steps] == ["ByteLevel"] and steps[0]["use_regex"]:
        return _AS_GPT2[0]
    if [step["type"] for step in steps] == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        pattern = steps[0]["pattern"].get("Regex")
        return next((name for name, known in _known_to_transformers().items() if known == pattern), None)
    return None


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """What a pre-tokenizer does, one step after another, without what has no effect on how a text is split."""
    if pre_tokenizer is None:
        return []
    state = json.loads(pre_tokenizer.__getstate__())
    steps = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]


def _cache_error(cache: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(
        f"The model can't be kept in {cache}: {reason}. It takes 4 bytes for each parameter; set LETGO_CACHE to a "
        "folder that has the room."
    )
