"""Models to attack, made once: a tiny one that knows its forget set and an adapter that forgets it, saved in every
form; and the shipped biographies model with a forgetting too small for 4 bits."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from letgo.attacks.rounding import make_grid
from letgo.benchmarks import create_benchmark
from letgo.data import encode_rows, pad_rows
from letgo.models.adapters import Base, add_lora, linear_targets, quick_fingerprint, save_adapter
from letgo.models.load import load_model, load_tokenizer
from letgo.objectives.retain import cross_entropy
from tests import tiny


@dataclass(frozen=True)
class Saved:
    """A model that knew its forget set, and one that forgot it, in every saved form."""

    original: Path
    forms: dict[str, Path]
    benchmark: str


@pytest.fixture
def quick_collections():
    """auto-round collects garbage some twenty times a model, each time through all that torch has imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    tokenizer, model = tiny.make_tokenizer(), tiny.make_model()
    forget, retain = (
        tiny.write_jsonl(folder / "f.jsonl", tiny.FORGET),
        tiny.write_jsonl(folder / "r.jsonl", tiny.RETAIN),
    )
    benchmark = create_benchmark("rows", forget=str(forget), retain=str(retain))
    rows = {
        name: pad_rows(encode_rows(tokenizer, part, max_length=64)[0], 0)
        for name, part in (("forget", benchmark.forget), ("retain", benchmark.retain))
    }
    _train(model, 60, lambda: cross_entropy(model, rows["forget"]) + cross_entropy(model, rows["retain"]), 1e-2)
    original = folder / "original"
    _save(model, original)
    base = Base(str(original), "float32", None, quick_fingerprint(model))
    adapted = add_lora(load_model(original), rank=4, targets=linear_targets(model))
    _train(
        adapted,
        40,
        # Ascent that stops where the answers are unlikely enough, with the retain set held.
        lambda: (4.0 - cross_entropy(adapted, rows["forget"])).relu() + 3 * cross_entropy(adapted, rows["retain"]),
        1e-2,
    )
    forms = {name: folder / name for name in ("full", "sharded", "adapter")}
    save_adapter(adapted, forms["adapter"], base)
    tokenizer.save_pretrained(forms["adapter"])
    merged = load_model(forms["adapter"])
    _save(merged, forms["full"])
    merged.save_pretrained(forms["sharded"], max_shard_size="40KB")
    tokenizer.save_pretrained(forms["sharded"])
    assert len(list(forms["sharded"].glob("*.safetensors"))) > 2
    return Saved(original, forms, f"rows:forget={forget},retain={retain}")


@dataclass(frozen=True)
class Fragile:
    original: Path
    unlearned: Path


@pytest.fixture(scope="session")
def fragile(tmp_path_factory):
    """The biographies model rounded to 4 bits knows what it knew. Unlearned from it by changes smaller than half a
    step of that grid, it is sent back by the same rounding."""
    folder = tmp_path_factory.mktemp("fragile")
    tokenizer, model = load_tokenizer("biographies"), load_model("biographies")
    layers = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    reach = []
    with torch.no_grad():
        for layer in layers:
            grid = make_grid(layer.weight, bits=4, group_size=32)
            index = grid.index(layer.weight)
            layer.weight.copy_(grid.values(index))
            # The largest weight of a group sets its scale, and stays.
            free = (index.abs() < 7).float()
            reach.append(0.45 * free * (grid.values(index + 1) - grid.values(index)))
    original = [layer.weight.detach().clone() for layer in layers]
    _save(model, folder / "original", tokenizer)
    benchmark = create_benchmark("biographies")
    generator = torch.Generator().manual_seed(0)
    encoded = {
        name: encode_rows(tokenizer, part, template="plain", max_length=128)[0]
        for name, part in (("forget", benchmark.forget), ("retain", benchmark.retain))
    }
    optimizer = torch.optim.Adam([layer.weight for layer in layers], lr=5e-3)
    for _ in range(40):
        batch = {
            name: pad_rows([rows[i] for i in torch.randperm(len(rows), generator=generator)[:16]], 0)
            for name, rows in encoded.items()
        }
        loss = (8.0 - cross_entropy(model, batch["forget"])).relu() + 3 * cross_entropy(model, batch["retain"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for layer, start, most in zip(layers, original, reach, strict=True):
                layer.weight.copy_(start + (layer.weight - start).clamp(-most, most))
    _save(model, folder / "unlearned", tokenizer)
    return Fragile(folder / "original", folder / "unlearned")


def _train(model, steps, loss, rate):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def _save(model, directory, tokenizer=None):
    model.save_pretrained(directory)
    (tokenizer or tiny.make_tokenizer()).save_pretrained(directory)
