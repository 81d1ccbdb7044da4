"""Every optimizer of letgo in other people's loops: a plain one, transformers' Trainer, TRL, Lightning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import letgo
from letgo.core.errors import UserError
from letgo.optim import OPTIMIZERS, create_optimizer
from letgo.optim.base import adapt
from tests import tiny

PAGE = Path(__file__).parents[2] / "docs" / "other-loops.md"
NAMES = [record.name for record in OPTIMIZERS if record.extra is None]
SETTINGS = {"fozo": {"fo_steps": 2, "zo_steps": 1}}
TERMS = {"sift", "dual_optim", "dual_optim_plus", "sure", "straight_through"}
"""Those that ask for the terms of a loss, by default."""


def rows(tokenizer, count=8):
    texts = [f"Question : {row['question']} Answer : {row['answer']}" for row in tiny.FORGET + tiny.RETAIN][:count]
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    length = min(map(len, encoded))
    return [{"input_ids": ids[:length], "attention_mask": [1] * length, "labels": ids[:length]} for ids in encoded]


def loss_of(model, batch):
    return model(**{name: torch.tensor([row[name] for row in batch]) for name in batch[0]}).loss


@pytest.fixture
def plain(model, tokenizer):
    torch.manual_seed(0)
    return model, [rows(tokenizer)[:4], rows(tokenizer)[4:]]


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_loop_with_a_closure(plain, name):
    model, batches = plain
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = create_optimizer(name, model.parameters(), lr=1e-3, **SETTINGS.get(name, {}))
    adapt(optimizer).attach(model)
    for step in range(3):

        def closure(part=None, batch=batches[step % 2]):
            optimizer.zero_grad()
            loss = loss_of(model, batch[:2] if part == "forget" else batch[2:] if part == "retain" else batch)
            if loss.requires_grad:
                loss.backward()
            return loss

        assert float(torch.as_tensor(optimizer.step(closure)).detach()) > 0
    adapt(optimizer).finish()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_loop_without_one_goes_to_its_end_or_is_refused_at_its_first_step(plain, name):
    model, batches = plain
    optimizer = create_optimizer(name, model.parameters(), lr=1e-4, **SETTINGS.get(name, {}))
    refused = ""
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, batches[step % 2]).backward()
        try:
            optimizer.step()
        except ValueError as error:
            refused = f"step {step}: {error}"
            break
    if refused:
        assert refused.startswith("step 0:"), refused
        assert "step(closure)" in refused
        assert "letgo.closure_trainer(Trainer)" in refused
    else:
        assert not adapt(optimizer).needs_closure


def test_a_hybrids_loop_may_ask_before_each_step(plain):
    model, batches = plain
    optimizer = create_optimizer("fozo", model.parameters(), lr=1e-4, fo_steps=2, zo_steps=1)

    def closure():
        return loss_of(model, batches[0])

    asked = []
    for _ in range(6):
        asked.append(optimizer.needs_closure)
        if optimizer.needs_closure:
            optimizer.step(closure)
        else:
            optimizer.zero_grad()
            closure().backward()
            optimizer.step()
    assert asked == [False, False, True] * 2


def training_arguments(folder, **more):
    from transformers import TrainingArguments

    settings = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
    quiet = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "seed": 0}
    pinned = {"lr_scheduler_type": "constant", "dataloader_pin_memory": False}
    return TrainingArguments(str(folder), **settings | quiet | pinned | more)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TERMS])
def test_transformers_trainer(model, tokenizer, tmp_path, name):
    from transformers import Trainer

    optimizer = create_optimizer(name, model.parameters(), lr=1e-3, **SETTINGS.get(name, {}))
    before = [p.detach().clone() for p in model.parameters()]
    trainer = letgo.closure_trainer(Trainer)(
        model, training_arguments(tmp_path), train_dataset=rows(tokenizer), optimizers=(optimizer, None)
    )
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert all(0.5 < loss < 20 for loss in losses), losses


def test_a_closures_steps_are_those_of_a_loop_by_hand(tokenizer, tmp_path):
    """The same rows in the same windows: the same weights, and the losses that are logged."""
    from transformers import Trainer

    data = rows(tokenizer)
    by_trainer, by_hand = tiny.make_model(), tiny.make_model()
    optimizer = create_optimizer("zo_sgd", by_trainer.parameters(), lr=1e-3)
    arguments = training_arguments(tmp_path, train_sampling_strategy="sequential", max_steps=2)
    trainer = letgo.closure_trainer(Trainer)(by_trainer, arguments, train_dataset=data, optimizers=(optimizer, None))
    trainer.train()
    optimizer = create_optimizer("zo_sgd", by_hand.parameters(), lr=1e-3)
    losses = []
    for window in (data[:4], data[4:]):

        def closure(window=window):
            return (loss_of(by_hand, window[:2]).double() + loss_of(by_hand, window[2:]).double()) / 2

        losses.append(float(optimizer.step(closure)))
    for a, b in zip(by_trainer.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # Trainer adds losses in float32.
    assert logged == pytest.approx(losses, rel=1e-6)


def test_what_a_trainer_can_not_give_is_refused_when_it_is_made(model, tokenizer, tmp_path):
    from transformers import Trainer

    made = letgo.closure_trainer(Trainer)
    for name in TERMS:
        optimizer = create_optimizer(name, model.parameters(), lr=1e-3)
        with pytest.raises(UserError, match="takes a forget and a retain term apart"):
            made(model, training_arguments(tmp_path), train_dataset=rows(tokenizer), optimizers=(optimizer, None))
    smoothed = create_optimizer("straight_through", model.parameters(), lr=1e-3, on="loss")
    made(model, training_arguments(tmp_path), train_dataset=rows(tokenizer), optimizers=(smoothed, None)).train()
    arguments = training_arguments(tmp_path)
    arguments.fp16 = True
    optimizer = create_optimizer("zo_sgd", model.parameters(), lr=1e-3)
    with pytest.raises(UserError, match="a loss scaler"):
        made(model, arguments, train_dataset=rows(tokenizer), optimizers=(optimizer, None))


def test_the_hybrid_in_an_ordinary_trainer_is_refused_at_its_first_step(model, tokenizer, tmp_path):
    from transformers import Trainer

    optimizer = create_optimizer("fozo", model.parameters(), lr=1e-3)
    trainer = Trainer(model, training_arguments(tmp_path), train_dataset=rows(tokenizer), optimizers=(optimizer, None))
    with pytest.raises(ValueError, match=r"AdaZO from step 21 on[\s\S]*letgo.closure_trainer"):
        trainer.train()
    assert trainer.state.global_step == 0


def examples():
    """The page's examples by the name in their first line."""
    blocks = re.findall(r"```python\n(# (.*?)\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return {name: code for code, name in blocks}


@pytest.mark.parametrize("name", ["a plain loop", "transformers", "trl", "lightning"])
def test_the_examples_of_the_page_run(model, tokenizer, tmp_path, name, monkeypatch):
    if name in ("trl", "lightning"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    data = rows(tokenizer)
    before = [p.detach().clone() for p in model.parameters()]
    space = {
        "model": model,
        "tokenizer": tokenizer,
        "rows": data,
        "texts": [{"text": f"Question : {row['question']} Answer : {row['answer']}"} for row in tiny.FORGET],
        "batches": [data[:4], data[4:]] * 3,
        "loss_of": loss_of,
        "quiet": {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True},
    }
    exec(examples()[name], space)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
