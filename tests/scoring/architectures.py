"""Tiny random models of several architectures: all kinds of positions, sliding windows, caps, no attention at all."""

from __future__ import annotations

import functools
from typing import Any

import torch

_SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _SIZES | _GROUPED),
    "qwen2": ("qwen2", _SIZES | _GROUPED),
    "gemma": ("gemma", _SIZES | _GROUPED | {"head_dim": 8}),
    "gpt2": ("gpt2", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}),
    "opt": (
        "opt",
        {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"max_position_embeddings": 96, "word_embed_proj_dim": 32},
    ),
    "gpt_neox": ("gpt_neox", _SIZES | {"num_attention_heads": 4}),
    "bloom": ("bloom", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mistral-window": ("mistral", _SIZES | _GROUPED | {"sliding_window": 6}),
    "gemma2-window-cap": (
        "gemma2",
        _SIZES | _GROUPED | {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 2.0},
    ),
    "gemma3-window": ("gemma3_text", _SIZES | _GROUPED | {"head_dim": 8, "sliding_window": 6}),
    "cohere-scale": ("cohere", _SIZES | _GROUPED | {"logit_scale": 0.5}),
    "mamba": ("mamba", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
}
NAMES = list(_SETTINGS)


@functools.cache
def watch_inputs(model: Any, monkeypatch: Any) -> list[torch.Size]:
    """The shapes of the input ids of all forward passes from now on."""
    shapes: list[torch.Size] = []
    forward = type(model).forward

    def watched(self: Any, *args: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        shapes.append(input_ids.shape)
        return forward(self, *args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", watched)
    return shapes


def make(name: str) -> Any:
    """A random model whose logits depend on its context, with weights ten times as large as usual."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = _SETTINGS[name]
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **(settings | tokens))
        config.initializer_range = 0.2
        return AutoModelForCausalLM.from_config(config).eval()
