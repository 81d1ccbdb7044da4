"""Models to attack, made once: a tiny one that knows its forget set and an adapter that forgets it, saved in every
form; and the shipped biographies model with a forgetting too small for 4 bits."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from letgo.attacks.engine.base import Victim
from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.data import encode_rows, pad_rows, read_rows
from letgo.data.rows import rows_from_records
from letgo.models.adapters import Base, add_lora, linear_targets, quick_fingerprint, save_adapter
from letgo.models.load import load_model, load_tokenizer
from letgo.objectives.retain import cross_entropy
from letgo.optim.engine.rounding import make_grid
from tests import tiny
from tests.once import made_once

# To this tokenizer prose is words that it does not know, full stops, and a word here and there.
PLAIN = read_rows([{"text": text.text} for text in general_paragraphs(held_out=False)[:8]])
PROSE = 1.2
"""How surprising prose may be to both models, in nats a token. So whether a model is broken (its perplexity on other
prose doubled) does not hang on how a processor rounds."""


def round_to_nearest(weight, **how):
    grid = make_grid(weight, **how)
    return grid.values(grid.index(weight))


@pytest.fixture
def victim(model_directory):
    benchmark = create_benchmark("rows", forget=tiny.FORGET, retain=tiny.RETAIN)
    return Victim(model_directory, benchmark, original=str(model_directory))


@pytest.fixture
def controlled(victim):
    """The same with facts that no model knew."""
    invented = [{**row, "group": f"invented {row['group']}"} for row in tiny.RETAIN]
    return replace(victim, benchmark=replace(victim.benchmark, control=rows_from_records(invented, "control")))


def translations(folder, benchmark):
    """A file of translations into an invented language, which is ours after some polite words."""
    items = [item for item in benchmark.items if item.set == "forget" and item.task != "membership"]
    rows = [
        {"id": item.id, "question": f"Could you tell me this: {item.row.context}", "answer": item.row.target}
        for item in items
    ]
    return str(tiny.write_jsonl(folder / "translations.jsonl", rows))


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
    folder = made_once(tmp_path_factory, "attacked", _make_saved)
    forms = {name: folder / name for name in ("full", "sharded", "adapter")}
    return Saved(folder / "original", forms, _saved_rows(folder))


def _saved_rows(folder):
    return f"rows:forget={folder / 'f.jsonl'},retain={folder / 'r.jsonl'}"


def _make_saved(folder):
    tokenizer, model = tiny.make_tokenizer(), tiny.make_model()
    tiny.write_jsonl(folder / "f.jsonl", tiny.FORGET)
    tiny.write_jsonl(folder / "r.jsonl", tiny.RETAIN)
    benchmark = create_benchmark(_saved_rows(folder))
    rows = {
        name: pad_rows(encode_rows(tokenizer, part, max_length=64, long_rows="cut")[0], 0)
        for name, part in (("forget", benchmark.forget), ("retain", benchmark.retain), ("plain", PLAIN))
    }

    def others(trained):
        return cross_entropy(trained, rows["retain"]) + (cross_entropy(trained, rows["plain"]) - PROSE).relu()

    # Both train until they are there, so that a processor that rounds otherwise gives a model that is as sure.
    _train_until(model, 0.02, lambda: cross_entropy(model, rows["forget"]) + others(model))
    original = folder / "original"
    _save(model, original)
    base = Base(str(original), "float32", None, quick_fingerprint(model))
    adapted = add_lora(load_model(original), rank=4, targets=linear_targets(model))
    # Ascent that stops where the answers are unlikely enough, with the rest held.
    _train_until(adapted, 0.1, lambda: (4.0 - cross_entropy(adapted, rows["forget"])).relu() + 3 * others(adapted))
    save_adapter(adapted, folder / "adapter", base)
    tokenizer.save_pretrained(folder / "adapter")
    merged = load_model(folder / "adapter")
    _save(merged, folder / "full")
    merged.save_pretrained(folder / "sharded", max_shard_size="40KB")
    tokenizer.save_pretrained(folder / "sharded")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 2


@dataclass(frozen=True)
class Fragile:
    original: Path
    unlearned: Path


@pytest.fixture(scope="session")
def fragile(tmp_path_factory):
    """The biographies model rounded to 4 bits knows what it knew. Unlearned from it by changes smaller than half a
    step of that grid, it is sent back by the same rounding."""
    folder = made_once(tmp_path_factory, "fragile", _make_fragile)
    return Fragile(folder / "original", folder / "unlearned")


def _make_fragile(folder):
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


def _train_until(model, target, loss):
    """Train until the loss is below a target, and stays there for ten steps."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
    below = 0
    for _ in range(600):
        optimizer.zero_grad()
        value = loss()
        below = below + 1 if float(value.detach()) < target else 0
        if below == 10:
            return
        value.backward()
        optimizer.step()
    raise AssertionError(f"after 600 steps the loss is {float(value.detach())}, not below {target}")


def _save(model, directory, tokenizer=None):
    model.save_pretrained(directory)
    (tokenizer or tiny.make_tokenizer()).save_pretrained(directory)
