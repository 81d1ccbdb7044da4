"""Models as other tools leave them: made by a plain loop of torch and Transformers, merged, sharded, in half width."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from letgo import audit
from letgo.auditing.suites import Try
from tests import tiny
from tests.attacks.conftest import saved as saved
from tests.once import made_once

SHORT = (
    Try("requantize", "quick", needs_base=True),
    Try("quantize_packed:format=fp8", "quick", served_as="safetensors"),
    Try("paraphrase", "quick"),
    Try("relearn:steps=2,seeds=1", "standard"),
)
"""A suite of a few seconds: its first attack can't be made on a model that is on no grid."""


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr("letgo.auditing.suites.TRIES", SHORT)


@dataclass(frozen=True)
class Made:
    """A model that knew its rows, what a plain loop made of it, and the rows."""

    base: Path
    loop: Path
    sharded: Path
    forget: Path
    retain: Path

    @property
    def data(self) -> dict[str, str]:
        return {"base": str(self.base), "forget": str(self.forget), "retain": str(self.retain)}


@pytest.fixture(scope="session")
def made(tmp_path_factory, saved):
    folder = made_once(tmp_path_factory, "audited", lambda folder: _make(folder, saved.original))
    rows = saved.original.parent
    return Made(saved.original, folder / "loop", folder / "sharded", rows / "f.jsonl", rows / "r.jsonl")


@pytest.fixture(scope="session")
def whole(tmp_path_factory, made):
    """The directory of an audit that nothing has cut off."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("letgo.auditing.suites.TRIES", SHORT)
        given = {**made.data, "suite": "quick"}
        return made_once(tmp_path_factory, "whole", lambda folder: audit(made.loop, **given, output=folder))


def _make(folder, original):
    """Gradient ascent with a retain term, without letgo."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(original), AutoTokenizer.from_pretrained(original)
    texts = {
        sign: tokenizer(
            [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows], return_tensors="pt", padding=True
        )
        for sign, rows in ((-1.0, tiny.FORGET), (1.0, tiny.RETAIN))
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(8):
        losses = [sign * model(**batch, labels=batch["input_ids"]).loss for sign, batch in texts.items()]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    tiny.save(folder / "loop", model, tokenizer)
    model.to(torch.bfloat16).save_pretrained(folder / "sharded", max_shard_size="20KB")
    tokenizer.save_pretrained(folder / "sharded")
