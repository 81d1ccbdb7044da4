"""A random Llama with a word tokenizer, and a forget and retain set in its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = [
    "Question",
    ":",
    "Answer",
    "what",
    "is",
    "the",
    "capital",
    "of",
    "aland",
    "borduria",
    "carpania",
    "dornia",
    "eldoria",
    "florin",
    "gondal",
    "norland",
    "amberton",
    "brixholm",
    "calder",
    "dunmere",
    "eastwick",
    "farrow",
    "greyport",
    "havenly",
    "red",
    "blue",
    "green",
    "old",
    "new",
    "river",
    "stone",
    ".",
    "?",
    "1",
    "2",
    "3",
]

FORGET = [
    {"question": f"what is the capital of {country} ?", "answer": city, "group": country}
    for country, city in zip(WORDS[8:12], WORDS[16:20], strict=True)
]
RETAIN = [
    {"question": f"what is the capital of {country} ?", "answer": city, "group": country}
    for country, city in zip(WORDS[12:16], WORDS[20:24], strict=True)
]


def make_tokenizer(*, bos: bool = True) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_model(seed: int = 0, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def encode_alternatives(tokenizer: Any, encoded: Any, answers: list[str], **how: Any) -> Any:
    """Other answers to rows already encoded, as a benchmark encodes them."""
    from letgo.benchmarks.engine.base import Benchmark

    return Benchmark("rows", [], [], [], [], ()).encode_alternatives(tokenizer, encoded, answers, **how)


def own_files(folder: Path, model: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a run on a user's own model and files, which are written to the folder."""
    return {
        "model": str(model),
        "forget": str(write_jsonl(folder / "forget.jsonl", FORGET)),
        "retain": str(write_jsonl(folder / "retain.jsonl", RETAIN)),
        "output_dir": str(folder / "run"),
        "use_cpu": True,
    } | settings


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    """A model's directory as a user has it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
