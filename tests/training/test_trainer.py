from __future__ import annotations

import math
import re

import pytest
import torch
from transformers import TrainerCallback

from letgo.benchmarks.user_rows import user_rows
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.data import ForgetRetainDataset, encode_rows, pad_rows, read_rows
from letgo.models.load import weights_fingerprint
from letgo.objectives import OBJECTIVES as OBJECTIVE_CATALOG
from letgo.optim import OPTIMIZERS as OPTIMIZER_CATALOG
from letgo.training.checkpoints import COMPLETE, last_checkpoint
from letgo.training.config import UnlearnConfig
from letgo.training.looks import looks_of
from letgo.training.prepare import prepare_model, take_references
from letgo.training.run_plan import check_parts, objective_of, planned_steps
from letgo.training.trainer import UnlearnTrainer
from tests import tiny

OPTIMIZERS = {
    "first order": ("adamw", {}),
    "compressed": ("sign_adam", {}),
    "zeroth order": ("zo_sgd", {"mu": 1e-3}),
    "adaptive zeroth order": ("ada_zo", {"mu": 1e-3, "num_directions": 2}),
    "hybrid": ("fozo", {"zo_lr": 1e-3, "mu": 1e-3, "fo_steps": 2, "zo_steps": 2}),
}


def make_trainer(directory, tokenizer, *, model=None, retain=tiny.RETAIN, callbacks=(), **settings):
    optimizer, optimizer_args = OPTIMIZERS[settings.pop("grade", "first order")]
    settings = {
        "optimizer": optimizer,
        "optimizer_args": optimizer_args,
        "learning_rate": 1e-3,
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "output_dir": str(directory),
    } | settings
    forget, kept = (encode_rows(tokenizer, read_rows(rows), max_length=64)[0] for rows in (tiny.FORGET, retain))
    other = tiny.encode_alternatives(tokenizer, forget, ["red stone", "blue", "old river", "green"], max_length=64)
    model = tiny.make_model() if model is None else model
    args = UnlearnConfig(**settings)
    objective = objective_of(args)
    alternative = other if "alternative" in objective.parts else ()
    dataset = ForgetRetainDataset(forget, kept, alternative=alternative, seed=3)
    model, _ = prepare_model(model, args, objective)
    take_references(model, dataset, objective, pad_id=tokenizer.pad_token_id)
    looks = looks_of(args, user_rows(forget=tiny.FORGET, retain=retain), tokenizer)
    common = {"objective": objective, "looks": looks, "callbacks": callbacks}
    return UnlearnTrainer(model, args, dataset, pad_id=tokenizer.pad_token_id, **common)


class Stop(TrainerCallback):
    """Stands for the power cut: nothing after this step happens."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stopped_after", [1, 3, 5, 6])
@pytest.mark.parametrize("grade", OPTIMIZERS)
def test_a_run_cut_off_at_any_step_resumes_to_the_same_bits(tmp_path, tokenizer, grade, stopped_after):
    settings = {"grade": grade, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    whole = make_trainer(tmp_path / "whole", tokenizer, **settings)
    whole.train()
    cut = make_trainer(tmp_path / "cut", tokenizer, callbacks=[Stop(stopped_after + 1)], **settings)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    checkpoint = last_checkpoint(tmp_path / "cut")
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{stopped_after}"
    resumed = make_trainer(tmp_path / "cut", tokenizer, **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert weights_fingerprint(resumed.model) == weights_fingerprint(whole.model)
    assert resumed.history == whole.history


def test_the_weights_do_change_and_differ_by_seed_of_order(tmp_path, tokenizer):
    """What keeps the test above honest: other data order, other bits."""
    start = weights_fingerprint(tiny.make_model())
    ends = set()
    for seed in (0, 1):
        trainer = make_trainer(tmp_path, tokenizer, seed=seed)
        trainer.train()
        ends.add(weights_fingerprint(trainer.model))
    assert len(ends | {start}) == 3


def test_a_checkpoint_cut_off_while_being_saved_is_not_resumed_from(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, save_strategy="steps", save_steps=2, save_total_limit=3)
    trainer.train()
    newest = last_checkpoint(tmp_path)
    assert newest is not None
    (newest / COMPLETE).unlink()
    assert last_checkpoint(tmp_path).name == "checkpoint-6"
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("grade", ["zeroth order", "hybrid", "first order"])
def test_equals_a_plain_loop_over_the_same_batches(tmp_path, tokenizer, grade):
    """The trainer adds nothing of its own: the optimizer in ten plain lines ends with the same weights."""
    from letgo.objectives import create_objective
    from letgo.optim import create_optimizer

    trainer = make_trainer(tmp_path, tokenizer, grade=grade, max_grad_norm=0)
    batches = []
    original = trainer.get_batch_samples

    def recorded(*args):
        samples, count = original(*args)
        batches.extend(samples)
        return samples, count

    trainer.get_batch_samples = recorded
    trainer.train()

    model = tiny.make_model()
    name, settings = OPTIMIZERS[grade]
    more = {} if name == "zo_sgd" else {"weight_decay": 0.0}
    objective = create_objective("npo_gdr")
    optimizer = create_optimizer(name, model.parameters(), lr=1e-3, **(more | settings))
    for batch in batches:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = objective(model, batch)
            if loss.requires_grad:
                loss.backward()
            return loss

        optimizer.step(closure)
    for (key, found), (_, expected) in zip(trainer.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=key)


def test_no_backward_pass_in_a_zeroth_order_step(tmp_path, tokenizer, monkeypatch):
    trainer = make_trainer(tmp_path, tokenizer, grade="zeroth order")
    monkeypatch.setattr(trainer.accelerator, "backward", lambda loss: pytest.fail("backward was called"))
    trainer.train()
    assert all(p.grad is None for p in trainer.model.parameters())
    assert {row["phase"] for row in trainer.history} == {"zeroth_order"}
    assert all(math.isfinite(row["loss"]) and row["forget_loss"] > 0 for row in trainer.history)


@pytest.mark.parametrize("grade", OPTIMIZERS)
def test_one_batch_of_four_equals_four_of_one(tmp_path, tokenizer, grade):
    ends = []
    for size, accumulation in ((4, 1), (1, 4), (2, 2)):
        trainer = make_trainer(
            tmp_path,
            tokenizer,
            grade=grade,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=4,
            retain=[{"text": "red blue"}, *tiny.RETAIN],
        )
        trainer.model.double()
        trainer.train()
        ends.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    start = torch.cat([p.detach().double().flatten() for p in tiny.make_model().parameters()])
    for other in ends[1:]:
        # Signs of entries that are nothing but rounding may differ; they are few.
        off = (other - ends[0]).abs() > 1e-6 * (ends[0] - start).abs().max()
        assert off.double().mean() < (2e-3 if grade == "compressed" else 1e-9)


def test_phases_alternate_and_the_total_is_lengthened_to_end_on_zeroth_order(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, grade="hybrid", max_steps=6)
    trainer.train()
    phases = [row["phase"] for row in trainer.history]
    assert phases == (["first_order"] * 2 + ["zeroth_order"] * 2) * 2
    assert any("6 steps lengthened to 8" in note for note in trainer.notes)


def test_every_grade_lowers_its_loss(tmp_path, tokenizer):
    for grade in ("first order", "compressed", "adaptive zeroth order", "hybrid"):
        trainer = make_trainer(tmp_path, tokenizer, grade=grade, max_steps=40, objective="graddiff")
        trainer.train()
        losses = [row["loss"] for row in trainer.history]
        assert sum(losses[-5:]) < sum(losses[:5]), grade


@pytest.mark.parametrize("grade", ["first order", "adaptive zeroth order", "hybrid"])
def test_how_far_along_the_gradient_a_step_went_is_in_the_history(tmp_path, tokenizer, grade):
    plain = make_trainer(tmp_path / "plain", tokenizer, grade=grade)
    plain.train()
    watched = make_trainer(tmp_path / "watched", tokenizer, grade=grade, moved_every=2)
    watched.train()
    assert weights_fingerprint(plain.model) == weights_fingerprint(watched.model)
    rows = watched.history
    assert ["moved" in row for row in rows] == [False, True] * 4
    measures = ("moved", "step_size")
    assert [{k: v for k, v in row.items() if k not in measures} for row in rows] == plain.history
    count = sum(p.numel() for p in watched.model.parameters())
    for row in rows[1::2]:
        assert 0 < row["step_size"] < 1
        along = abs(row["moved"])
        assert along > 0.1 if row.get("phase") != "zeroth_order" else along < 8 / math.sqrt(count)


def test_looking_for_a_rate_is_noted_and_is_no_step(tmp_path, tokenizer):
    same = {"max_steps": 4, "lr_scheduler_type": "constant"}
    settings = {"base": "ada_zo", "steps": 2, "num_directions": 2}
    looked = make_trainer(tmp_path / "a", tokenizer, optimizer="auto_rate", optimizer_args=settings, **same)
    looked.train()
    (note,) = [note for note in looked.notes if note.startswith("auto_rate")]
    rate = float(re.search(r"AdaZO stepped at (\S+),", note)[1])
    found = looked.drive.optimizer.scale * 1e-3
    assert rate == pytest.approx(found, rel=1e-2)
    settings = {"num_directions": 2}
    same["learning_rate"] = found
    plain = make_trainer(tmp_path / "b", tokenizer, optimizer="ada_zo", optimizer_args=settings, **same)
    plain.train()
    assert [row["loss"] for row in looked.history] == [row["loss"] for row in plain.history]
    assert weights_fingerprint(looked.model) == weights_fingerprint(plain.model)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path, tokenizer):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                with torch.no_grad():
                    model.model.norm.weight.fill_(float("nan"))

    trainer = make_trainer(tmp_path, tokenizer, callbacks=[Poison()], save_strategy="steps", save_steps=2)
    with pytest.raises(NonFiniteLossError, match=r"at step 4 \(forget nan, retain nan.*\n.*checkpoint-2"):
        trainer.train()


@pytest.mark.parametrize("grade", ["zeroth order", "hybrid"])
def test_a_zeroth_order_loss_that_is_not_finite_stops_it_too(tmp_path, tokenizer, grade):
    model = tiny.make_model()
    trainer = make_trainer(tmp_path, tokenizer, model=model, grade=grade)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="at step 1"):
        trainer.train()


def test_evaluations_of_one_step_share_their_dropout_mask(tmp_path, tokenizer):
    """With dropout on, a zeroth-order difference must come from the weights: at μ → 0 both evaluations agree."""
    model = tiny.make_model(attention_dropout=0.5)
    trainer = make_trainer(
        tmp_path, tokenizer, model=model, grade="zeroth order", disable_dropout=False, optimizer_args={"mu": 1e-9}
    )
    trainer.train()
    up, down = trainer.optimizer.optimizer.last_losses
    assert up == down
    model.train()
    with torch.no_grad():
        batch = trainer.data_collator([trainer.train_dataset[0]])
        loose = {float(trainer.compute_loss(model, batch)) for _ in range(4)}
    assert len(loose) > 1, "dropout is really on"


def test_reference_log_probabilities_equal_the_models_own(tmp_path, tokenizer):
    from tests.reference.scoring import token_logps

    trainer = make_trainer(tmp_path, tokenizer)
    for row, logp in zip(trainer.train_dataset.forget, trainer.train_dataset.reference["forget"]["logps"], strict=True):
        border = next(i for i, label in enumerate(row.labels) if label != -100)
        expected = token_logps(trainer.model, row.input_ids[:border], row.input_ids[border:]).sum()
        assert float(logp) == pytest.approx(float(expected), rel=1e-5)


EVERY = {
    "compressed": {"optimizer_args": {"base": "adamw", "bits": 4}},
    "sophia": {"optimizer_args": {"hessian": "gnb", "hessian_every": 2}},
    "sam": {"optimizer_args": {"base": "adamw", "on": "forget"}},
    "randomized_smoothing": {"optimizer_args": {"base": "adamw", "on": "forget"}},
    "weight_averaging": {"optimizer_args": {"base": "adamw"}},
    "adamw_8bit": None,
}


@pytest.mark.parametrize("name", OPTIMIZER_CATALOG.names())
def test_every_optimizer_of_the_catalog_trains(tmp_path, tokenizer, name):
    settings = EVERY.get(name, {})
    if settings is None:
        pytest.importorskip("bitsandbytes")
        settings = {}
    settings = {"optimizer_args": {}, "learning_rate": 1e-3, "max_steps": 6} | settings
    model = tiny.make_model()
    start = weights_fingerprint(model)
    trainer = make_trainer(tmp_path, tokenizer, model=model, optimizer=name, **settings)
    trainer.train()
    assert len(trainer.history) >= 6
    assert all(math.isfinite(row["loss"]) for row in trainer.history)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert weights_fingerprint(model) != start


def test_all_evaluations_of_a_step_in_one_forward_pass(tmp_path, tokenizer):
    """The batched engine takes the same steps as the one-by-one engine, through the trainer too."""
    ends = []
    for engine in ("batched", "in_place"):
        options = {"rank": 2, "num_directions": 3, "mu": 1e-3, "engine": engine}
        trainer = make_trainer(tmp_path, tokenizer, optimizer="zo_sgd", optimizer_args=options, max_steps=3)
        trainer.train()
        assert all(row["loss"] > 1 for row in trainer.history)
        ends.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in tiny.make_model().parameters()])
    torch.testing.assert_close(
        ends[0] - start, ends[1] - start, rtol=1e-2, atol=1e-3 * float((ends[1] - start).abs().max())
    )


def test_unknown_optimizer_settings_are_a_users_mistake(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, optimizer_args={"muu": 1})
    with pytest.raises(UserError, match="no setting 'muu'"):
        trainer.create_optimizer()


CLIPPED = {
    "sam on the loss": ("sam", {"base": "sgd", "rho": 0.01}),
    "sam on the forget term": ("sam", {"base": "sgd", "rho": 0.01, "on": "forget"}),
    "smoothing, three draws": ("randomized_smoothing", {"base": "sgd", "num_draws": 3}),
    "averaged sam": ("weight_averaging", {"base": "sam", "base_options": {"base": "sgd"}}),
    # No momentum and no curvature, and so large a floor that no coordinate is cut: x moves by lr g / 1000.
    "double backward": ("sophia", {"hessian": "hutchinson", "betas": (0.0, 0.0), "rho": 0.0, "eps": 1e3}),
}
"""With these a step's length is the learning rate times the norm of the gradient that it is taken from."""


@pytest.mark.parametrize("which", CLIPPED)
def test_optimizers_that_run_the_closure_themselves_are_clipped_too(tmp_path, tokenizer, which):
    lengths = {}
    optimizer, options = CLIPPED[which]
    for most in (0.0, 0.25):
        trainer = make_trainer(
            tmp_path,
            tokenizer,
            model=tiny.make_model().double(),
            optimizer=optimizer,
            optimizer_args=options,
            max_grad_norm=most,
            max_steps=1,
        )
        start = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.train()
        end = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        lengths[most] = float((end - start).norm()) / 1e-3 * options.get("eps", 1.0)
    assert trainer.history[0]["grad_norm"] == pytest.approx(lengths[0.0], rel=0.02)
    assert lengths[0.0] > 0.5
    assert lengths[0.25] == pytest.approx(0.25, rel=0.02)


def test_the_retain_weights_schedule_follows_the_run_and_survives_a_resume(tmp_path, tokenizer):
    settings = {"retain_weight_schedule": "linear:start=0,end=2", "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", tokenizer, **settings)
    whole.train()
    for row in whole.history:
        weight = 2 * (row["step"] - 1) / 8
        assert row["loss"] == pytest.approx(row["forget_loss"] + weight * row["retain_loss"], rel=1e-5)
    cut = make_trainer(tmp_path / "cut", tokenizer, callbacks=[Stop(4)], **settings)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = make_trainer(tmp_path / "cut", tokenizer, **settings)
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "cut")))
    assert resumed.history == whole.history
    assert weights_fingerprint(resumed.model) == weights_fingerprint(whole.model)


PDU = {"objective": "pdu", "retain_weight": 2.0, "retain_weight_schedule": "dual:bound=3.9,rate=0.5,warmup=0.25"}
"""Around the retain loss that the tiny model has at first, so that λ goes up and down."""


@pytest.mark.parametrize(("size", "accumulation"), [(4, 1), (1, 4), (2, 2)])
def test_a_dual_retain_weight_follows_a_plain_loop(tmp_path, tokenizer, size, accumulation):
    """56 steps, however the windows are cut: the weights and λ of a loop over whole batches, by the reference."""
    from tests.reference import objectives as reference

    steps = 56
    trainer = make_trainer(
        tmp_path,
        tokenizer,
        model=tiny.make_model().double(),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        optimizer="sgd",
        optimizer_args={},
        learning_rate=0.05,
        max_grad_norm=0,
        max_steps=steps,
        retain=[{"text": "red blue"}, *tiny.RETAIN],
        **PDU,
    )
    windows = []
    original = trainer.get_batch_samples
    trainer.get_batch_samples = lambda *args: windows.append(original(*args)) or windows[-1]
    trainer.train()

    model, weight, weights = tiny.make_model().double(), 2.0, []
    for number, (window, _) in enumerate(windows):
        indices = {name: [int(i) for batch in window for i in batch[name]["index"]] for name in ("forget", "retain")}
        rows = {name: [getattr(trainer.train_dataset, name)[i] for i in places] for name, places in indices.items()}
        batch = {name: pad_rows(chosen, 0) for name, chosen in rows.items()}
        retain = reference.cross_entropy(model, None, batch)
        loss = reference.logit_margin(model, None, batch) + weight * retain
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad
                p.grad = None
        if number >= steps / 4:
            weight = reference.dual_weight(weight, float(retain.detach()), 3.9, 0.5)
        weights.append(weight)
    assert len(windows) == steps
    assert len(set(weights)) > 20
    last_zero = max(number for number, weight in enumerate(weights) if weight == 0.0)
    assert weights[-1] > 0.0, f"λ was 0 after step {last_zero}, and came back"
    assert [row["retain_weight"] for row in trainer.history] == pytest.approx(weights, rel=1e-6)
    for (key, found), (_, expected) in zip(trainer.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize("grade", ["first order", "adaptive zeroth order", "hybrid"])
def test_a_dual_retain_weight_survives_a_resume(tmp_path, tokenizer, grade):
    settings = {"grade": grade, "save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2, **PDU}
    whole = make_trainer(tmp_path / "whole", tokenizer, moved_every=3, **settings)
    whole.train()
    cut = make_trainer(tmp_path / "cut", tokenizer, callbacks=[Stop(5)], **settings)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = make_trainer(tmp_path / "cut", tokenizer, **settings)
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "cut")))
    weights = [row["retain_weight"] for row in whole.history]
    assert weights[0] == weights[1] == 2.0
    assert len(set(weights)) == 7
    assert [row["retain_weight"] for row in resumed.history] == weights
    assert weights_fingerprint(resumed.model) == weights_fingerprint(whole.model)


def test_a_student_is_taught_by_the_model_as_it_was_and_resumes(tmp_path, tokenizer):
    settings = {
        "objective": "undo",
        "objective_args": {"alpha": 0.6, "seed": 4},
        "max_steps": 40,
        "learning_rate": 5e-3,
    }
    settings |= {"save_strategy": "steps", "save_steps": 20, "save_total_limit": 2}
    whole = make_trainer(tmp_path / "whole", tokenizer, **settings)
    whole.train()
    losses = [row["loss"] for row in whole.history]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), "it comes nearer to the teacher"
    assert any("0.4 of the teacher's weights" in note and "seed 4" in note for note in whole.notes)
    resumed = make_trainer(tmp_path / "whole", tokenizer, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-20"))
    assert weights_fingerprint(resumed.model) == weights_fingerprint(whole.model)
    assert resumed.history == whole.history


@pytest.mark.parametrize("grade", ["first order", "hybrid"])
def test_a_latent_attack_is_made_before_every_step_and_leaves_no_trace(tmp_path, tokenizer, monkeypatch, grade):
    """A resumed run is the same to the bit, and the adversary meets the weights of its own step."""
    from letgo.objectives.objective import Objective

    attacked = Objective.attacked
    seen = []
    settings = {"grade": grade, "objective": "rmu_lat", "objective_args": {"layer": 1, "inner_steps": 2}}
    settings |= {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 2, "gradient_accumulation_steps": 2}

    def watched(objective, model, batch):
        seen.append(weights_fingerprint(model))
        after = attacked(objective, model, batch)
        assert float(after["forget"]["latent"].abs().max()) > 0
        assert weights_fingerprint(model) == seen[-1]
        return after

    monkeypatch.setattr(Objective, "attacked", watched)
    whole = make_trainer(tmp_path, tokenizer, **settings)
    whole.train()
    assert len(seen) == 2 * 8
    assert len(set(seen)) == 8
    resumed = make_trainer(tmp_path, tokenizer, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert weights_fingerprint(resumed.model) == weights_fingerprint(whole.model)
    assert resumed.history == whole.history


def test_a_student_is_not_made_of_adapters():
    with pytest.raises(UserError, match=r"undo changes the weights before it trains them.*leave lora_rank out"):
        check_parts(UnlearnConfig(objective="undo", lora_rank=2))


def test_a_dual_weight_refuses_an_engine_that_sees_no_terms(tmp_path, tokenizer):
    batched = {"engine": "batched", "rank": 2}
    for optimizer, options in (("zo_sgd", batched), ("fozo", {"zo_lr": 1e-3, "zo_options": batched})):
        with pytest.raises(UserError, match="take engine: in_place"):
            check_parts(UnlearnConfig(optimizer=optimizer, optimizer_args=options, **PDU))
    trainer = make_trainer(tmp_path, tokenizer, optimizer="zo_sgd", optimizer_args=batched, max_steps=1, **PDU)
    with pytest.raises(UserError, match="take engine: in_place"):
        trainer.train()


def test_the_epochs_planned_are_the_epochs_run(tmp_path, tokenizer):
    for settings in ({"max_steps": 5}, {"max_steps": -1, "num_train_epochs": 2.5}, {"grade": "hybrid", "max_steps": 3}):
        trainer = make_trainer(tmp_path, tokenizer, **settings)
        steps, epochs = planned_steps(trainer.args, len(trainer.train_dataset))
        seen = []
        original = trainer.train_dataset.set_epoch
        trainer.train_dataset.set_epoch = lambda epoch, seen=seen, call=original: (seen.append(epoch), call(epoch))
        trainer.train()
        assert trainer.state.global_step == steps
        assert max(seen) == epochs - 1


@pytest.mark.parametrize("objective", OBJECTIVE_CATALOG.names())
def test_every_objective_is_the_same_however_its_window_is_cut(tmp_path, tokenizer, objective):
    """One window of four rows, in one micro-batch or four: the same loss and the same gradient."""
    found = []
    for size, accumulation in ((4, 1), (1, 4)):
        trainer = make_trainer(
            tmp_path,
            tokenizer,
            model=tiny.make_model().double(),
            objective=objective,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            max_grad_norm=0,
            optimizer="sgd",
            retain=[{"text": "red blue"}, *tiny.RETAIN],
        )
        start = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.train()
        end = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        found.append((trainer.history[0]["loss"], (start - end) / 1e-3))
    (loss, gradient), (cut_loss, cut_gradient) = found
    # The gradient is read off the weights: θ − lr g and its difference from θ are each rounded at θ's size.
    largest, rounding = (
        float(gradient.abs().max()),
        2 * torch.finfo(torch.float64).eps * float(start.abs().max()) / 1e-3,
    )
    assert largest > 1e3 * rounding
    assert cut_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(cut_gradient, gradient, rtol=1e-6, atol=1e-6 * largest + rounding)
