"""Ways to score a model faster, tested on the model itself before they are used.

Not every causal LM takes positions, a mask of another shape or another cache, and one that does not may ignore them
silently. So a few tokens are run both ways first, once for each model; where the two differ, the plain way is taken.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letgo.models.forward import logits_at
from letgo.models.running import device_of, evaluating
from letgo.scoring.cache import behind, buffers, run_prefix

_PLAIN_ATTENTION = ("DynamicLayer", "DynamicSlidingWindowLayer")


@dataclass(frozen=True)
class Abilities:
    """What a model can do.

    Attributes:
        layers: layers of plain attention, which take letgo's cache; 0 where a layer is of another kind (state spaces).
        trees: a given mask decides what a token sees, and positions are taken as given.
        padding: rows may begin with padding, and may have a gap behind a shared prefix.
        window: the shortest sliding window of attention; None without one. A tree or a gap must fit into it, because
            windows are counted in columns.
        share: attention's cost for a token and a key, as a share of the linear layers' for a token.
    """

    layers: int = 0
    trees: bool = False
    padding: bool = False
    window: int | None = None
    share: float = 1 / 3000

    def fits(self, length: int) -> bool:
        """Whether a row of so many columns is within every window."""
        return self.window is None or length <= self.window


_KNOWN: weakref.WeakKeyDictionary[Any, Abilities] = weakref.WeakKeyDictionary()


def abilities(model: Any) -> Abilities:
    """The model's abilities: from its config, and tested. Costs three passes over nine tokens, once for each model."""
    if model not in _KNOWN:
        _KNOWN[model] = _find(model)
    return _KNOWN[model]


def _find(model: Any) -> Abilities:
    config = model.config.get_text_config(decoder=True)
    window, share, layers = _window(config), _attention_share(model, config), _attention_layers(model)
    if not layers:
        return Abilities(window=window, share=share)
    with evaluating(model):
        trees, padding = _try_out(model, layers)
    return Abilities(layers=layers, trees=trees, padding=padding, window=window, share=share)


def _attention_layers(model: Any) -> int:
    from transformers import DynamicCache

    try:
        kinds = [type(layer).__name__ for layer in DynamicCache(config=model.config).layers]
    except (AttributeError, KeyError, TypeError, ValueError):
        return 0
    return len(kinds) if kinds and all(kind in _PLAIN_ATTENTION for kind in kinds) else 0


def _window(config: Any) -> int | None:
    kinds = getattr(config, "layer_types", None)
    full = kinds is not None and all(kind == "full_attention" for kind in kinds)
    if full or getattr(config, "use_sliding_window", True) is False:
        return None
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def _attention_share(model: Any, config: Any) -> float:
    """4 · layers · width operations of attention a key, against 2 · parameters of the linear layers."""
    linear = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    width, layers = getattr(config, "hidden_size", None), getattr(config, "num_hidden_layers", None)
    return 2.0 * layers * width / linear if linear and width and layers else Abilities.share


def _try_out(model: Any, layers: int) -> tuple[bool, bool]:
    device, vocabulary = device_of(model), model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(7)
    a, b, c, d, e, f = torch.randint(0, vocabulary, (6,), generator=generator).tolist()

    def plain(*tokens: int) -> Tensor:
        return logits_at(model, 1, input_ids=torch.tensor([tokens], device=device), use_cache=False)[0, -1].float()

    expected = torch.stack([plain(a, b, c, e), plain(a, b, d, e), plain(a, b, e), plain(a, b, d, f)])
    exact = model.dtype == torch.float32 and getattr(model.config, "quantization_config", None) is None
    # What counts as equal, relative to the spread of the logits: rounding, not another context.
    allowed = (1e-3 if exact else 5e-2) * float((expected - expected.mean(-1, keepdim=True)).std())
    if not float((expected[0] - expected[1]).abs().max()) > allowed:
        return False, False  # contexts don't matter to this model (or it is broken): the test would show nothing

    def equal(logits: Tensor, wanted: Tensor) -> bool:
        return bool((logits.float() - wanted).abs().max() <= allowed)

    errors = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError)
    try:
        # The tree a b (c e) (d (e) (f)), and behind a prefix of one token.
        logits = _tree(model, [a, b, c, e, d, e, f], [-1, 0, 1, 2, 1, 4, 4], [0, 1, 2, 3, 2, 3, 3], device)
        trees = equal(logits[[3, 5, 6]], expected[[0, 1, 3]])
    except errors:
        trees = False
    try:
        cache = buffers(layers, 5)
        for layer, (keys, values) in zip(cache.layers, run_prefix(model, [a, b], layers, device), strict=True):
            layer.start_from(keys, values, 2)
        inputs = {"past_key_values": cache, "use_cache": True}
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1]], device=device)
        ids, positions = torch.tensor([[c, e], [e, e]], device=device), torch.tensor([[2, 3], [0, 2]], device=device)
        first = logits_at(model, 1, input_ids=ids, attention_mask=mask, position_ids=positions, **inputs)[:, -1]
        mask = torch.cat([mask, mask[:, :1]], dim=1)
        step = {"input_ids": torch.tensor([[f], [f]], device=device), "position_ids": positions[:, -1:] + 1}
        second = logits_at(model, 1, attention_mask=mask, **step, **inputs)[:, -1]
        wanted = torch.stack([plain(a, b, c, e, f), plain(a, b, e, f)])
        padding = equal(first, expected[[0, 2]]) and equal(second, wanted)
    except errors:
        padding = False
    return trees, padding


def _tree(model: Any, tokens: list[int], parents: list[int], depths: list[int], device: torch.device) -> Tensor:
    """Logits of every node but the first, which is given as a prefix."""
    from letgo.scoring.prefix_tree import additive, ancestors

    layers = _attention_layers(model)
    seen = torch.from_numpy(ancestors([max(p - 1, -1) for p in parents[1:]]))[None]
    mask = additive(seen, 1, model.dtype, device)
    logits = logits_at(
        model,
        len(tokens) - 1,
        input_ids=torch.tensor([tokens[1:]], device=device),
        position_ids=torch.tensor([depths[1:]], device=device),
        attention_mask=mask,
        past_key_values=behind(run_prefix(model, tokens[:1], layers, device)),
        use_cache=True,
    )[0]
    return torch.cat([logits[:1], logits])
