"""Every objective against its plain version, by hand, under padding and masks, and against finite differences."""

from __future__ import annotations

import math
from pkgutil import resolve_name

import pytest
import torch

from letgo.core.catalog import settings_of
from letgo.core.errors import UserError
from letgo.models.forward import stack_rows
from letgo.objectives import OBJECTIVES, RETAIN_TERMS, create_objective
from letgo.objectives.ga import gradient_ascent
from letgo.objectives.likelihood import sequence_logps, share_window
from letgo.objectives.npo import npo, simnpo
from letgo.objectives.random_label import random_labels
from letgo.objectives.rmu import control_vector
from tests.objectives.cases import ARCHITECTURES, gradient, make, prepared, rows_of
from tests.reference import objectives as reference

SETTINGS = {
    "simnpo": {"beta": 0.5, "gamma": 0.3},
    "npo": {"beta": 0.3},
    "dpo": {"beta": 0.4},
    "idk_dpo": {"beta": 0.4},
    "altpo": {"beta": 0.4},
    "wga": {"beta": 0.7},
    "satimp": {"beta1": 2.0, "beta2": 0.5},
    "undial": {"strength": 3.0},
    "ce_u": {"ignore_first": 1},
    "rmu": {"layer": 1, "steering": 2.0, "seed": 3},
    "rmu_lat": {"layer": 1, "steering": 2.0, "seed": 3, "inner_steps": 3, "radius": 0.1},
    "mcu": {"layer": 1, "steering": 2.0, "seed": 3, "removed": 4},
    "ft_l1": {"sparsity": 1e-3},
}
# Gemma's norms are in float32 whatever its weights are, so a batch of other rows differs in their last bits.
CLOSE = {"gpt2": {"rtol": 1e-9, "atol": 1e-10}, "gemma2": {"rtol": 1e-4, "atol": 1e-5}}
GRADIENT_ALONE = ("wga", "satimp", "ce_u")
"""Their sources hold a part of the loss fixed: the gradient is to be the same, the value is another function's."""
ALONE = [name for name in OBJECTIVES.names() if not name.endswith(("_gdr", "_klr")) and name != "graddiff"]


def expected_forget(name, model, original, batch, settings):
    function = getattr(reference, OBJECTIVES.record(name).target.rpartition(":")[2])
    more = {key: value for key, value in settings.items() if key != "seed"}
    if name in ("rmu", "rmu_lat", "mcu"):
        more["direction"] = control_vector(model.config.hidden_size, settings["seed"]).to(torch.float64)
    if name == "random_label":
        more["labels"] = random_labels(batch["forget"], model.config.vocab_size, 0)
    return function(model, original, batch, **more)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_forget_terms_equal_their_references(name, architecture, tokenizer):
    model = make(architecture).double()
    settings = SETTINGS.get(name, {})
    objective, batch, original = prepared(name, model, tokenizer, moved=0.05, retain_loss="none", **settings)
    found = objective.terms(model, batch)["forget"]
    expected = expected_forget(name, model, original, batch, settings)
    if name not in GRADIENT_ALONE:
        torch.testing.assert_close(found, expected.to(found.dtype), **CLOSE[architecture])
    if found.requires_grad:
        torch.testing.assert_close(gradient(model, found), gradient(model, expected), **CLOSE[architecture])


@pytest.mark.parametrize("retain", [name for name in RETAIN_TERMS.names() if name != "none"])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_retain_terms_equal_their_references(retain, architecture, tokenizer):
    model = make(architecture).double()
    settings = {"layer": 1} if retain == "embedding" else {}
    objective, batch, original = prepared("ga", model, tokenizer, moved=0.05, retain_loss=retain, **settings)
    found = objective.terms(model, batch)["retain"]
    expected = getattr(reference, RETAIN_TERMS.record(retain).target.rpartition(":")[2])(model, original, batch)
    assert float(found.detach()) > 1e-3
    torch.testing.assert_close(found, expected, **CLOSE[architecture])
    torch.testing.assert_close(gradient(model, found), gradient(model, expected), **CLOSE[architecture])


# -- by hand -----------------------------------------------------------------------------------------------------------

LOGITS = {0: [0.0, 0.0, 0.0], 1: [math.log(2.0), 0.0, 0.0], 2: [0.0, math.log(3.0), 0.0]}
"""A model of three words whose next word depends on the last one alone: π(·|0) = (1/3, 1/3, 1/3), π(·|1) = (1/2, 1/4,
1/4), π(·|2) = (1/5, 3/5, 1/5)."""


class Bigram(torch.nn.Module):
    """Just enough of a causal LM: an embedding of rows of logits, and an output layer that passes them on."""

    def __init__(self) -> None:
        super().__init__()
        from types import SimpleNamespace

        self.config = SimpleNamespace(vocab_size=3, get_text_config=lambda: self.config)
        self.table = torch.nn.Embedding(3, 3, dtype=torch.float64)
        self.head = torch.nn.Linear(3, 3, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.table.weight.copy_(torch.tensor([LOGITS[i] for i in range(3)], dtype=torch.float64))
            self.head.weight.copy_(torch.eye(3))

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return self.head(self.table(input_ids))


def part_of(ids, labels):
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.ones(len(ids), len(ids[0]), dtype=torch.long),
        "labels": torch.tensor(labels),
    }


HAND = part_of([[0, 1, 2], [2, 1, 0]], [[-100, 1, 2], [-100, -100, 0]])
"""Row 1: π(1|0) π(2|1) = 1/3 · 1/4; row 2: π(0|1) = 1/2. Three label tokens."""


@pytest.mark.parametrize(
    ("name", "settings", "extra", "expected"),
    [
        ("ga", {}, {}, (math.log(1 / 3) + math.log(1 / 4) + math.log(1 / 2)) / 3),
        # β = 1: 2 log(1 + π_θ/π_ref), with π_ref = 1/12 and 1/4.
        (
            "npo",
            {"beta": 1.0},
            {"reference_logps": [math.log(1 / 12), math.log(1 / 4)]},
            (2 * math.log(1 + 1) + 2 * math.log(1 + 2)) / 2,
        ),
        # β = 2: log(1 + π^(2/|y|) e^γ), of 1/12 over two tokens and of 1/2 over one; γ = log 3.
        (
            "simnpo",
            {"beta": 2.0, "gamma": math.log(3.0)},
            {},
            (math.log(1 + 3 / 12) + math.log(1 + 3 / 4)) / 2,
        ),
        # p − 1, and p²/2 − p³/3.
        ("wga", {"beta": 1.0}, {}, (1 / 3 + 1 / 4 + 1 / 2) / 3 - 1),
        ("satimp", {"beta1": 2.0, "beta2": 1.0}, {}, sum(p**2 / 2 - p**3 / 3 for p in (1 / 3, 1 / 4, 1 / 2)) / 3),
        # The highest logit above the mean of the three, of the rows (0, 0, 0), (log 2, 0, 0) and again the second.
        ("pdu", {"retain_loss": "none"}, {}, 2 * (2 / 3 * math.log(2.0)) ** 2 / 3),
        # −log(1 − p) of 1/3, 1/4 and 1/2.
        ("ce_u", {}, {}, -(math.log(2 / 3) + math.log(3 / 4) + math.log(1 / 2)) / 3),
        # γ = log 2 at the reference itself: (2/5, 1/5, 2/5); (4/7, 2/7, 1/7); (1/3, 1/3, 1/3).
        (
            "undial",
            {"strength": math.log(2.0)},
            {"reference_hidden": [LOGITS[0], LOGITS[1], LOGITS[1]]},
            -(
                math.log(1 / 3)
                + (4 / 7 * math.log(1 / 2) + 3 / 7 * math.log(1 / 4))
                + (math.log(1 / 2) + 2 * math.log(1 / 4)) / 3
            )
            / 3,
        ),
    ],
)
def test_by_hand(name, settings, extra, expected):
    model = Bigram()
    objective = create_objective(name, **settings)
    if "reference_hidden" in extra:
        from letgo.models.head import reference_head

        objective.reference_head = reference_head(model)
    part = HAND | {key: torch.tensor(value, dtype=torch.float64) for key, value in extra.items()}
    assert float(objective(model, {"forget": part}).detach()) == pytest.approx(expected, rel=1e-12)


def test_dpo_kl_and_po_by_hand():
    model = Bigram()
    alternative = part_of([[0, 1, 0], [2, 1, 1]], [[-100, -100, 0], [-100, -100, 1]])  # π(0|1) = 1/2, π(1|1) = 1/4
    po = create_objective("po", retain_loss="none")(model, {"alternative": alternative})
    assert float(po) == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-12)
    forget = HAND | {"reference_logps": torch.tensor([math.log(1 / 24), math.log(1 / 2)])}
    other = alternative | {"reference_logps": torch.tensor([math.log(1 / 2), math.log(1 / 8)])}
    # β = 1: ratios 2 and 1 of the forget rows, 1 and 2 of the others: σ = 1/(1+2/1), 1/(1+1/2).
    dpo = create_objective("dpo", beta=1.0)(model, {"forget": forget, "alternative": other})
    assert float(dpo) == pytest.approx((math.log(3) + math.log(3 / 2)) / 2, rel=1e-6)
    # Reference (1/2, 1/4, 1/4) at the row's one position, the model (1/3, 1/3, 1/3) there.
    from letgo.models.head import reference_head

    kl = create_objective("ft", retain_loss="kl")
    kl.reference_head = reference_head(model)
    part = part_of([[0, 1]], [[-100, 1]]) | {"reference_hidden": torch.tensor([LOGITS[1]], dtype=torch.float64)}
    expected = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    assert float(kl.terms(model, {"retain": part})["retain"]) == pytest.approx(expected, rel=1e-12)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_npo_becomes_gradient_ascent_as_beta_goes_to_zero(tokenizer):
    """∇ NPO → ∇ mean over rows of Σ log π as β → 0 (NPO, section 3)."""
    model = make("llama")
    _, batch, _ = prepared("npo", model, tokenizer)
    part = batch["forget"] | {"reference_logps": batch["forget"]["reference_logps"] - 3.0}
    limit = gradient(model, sequence_logps(model, part).mean())
    far, near = (gradient(model, npo(model, part, beta=beta)) for beta in (0.3, 1e-3))
    assert torch.nn.functional.cosine_similarity(near, limit, dim=0) > 0.999999
    assert (near - limit).norm() / limit.norm() < 0.01 < (far - limit).norm() / limit.norm()


def test_npo_at_the_reference_is_two_log_two_over_beta(tokenizer):
    model = make("llama")
    objective, batch, _ = prepared("npo", model, tokenizer, beta=0.1)
    assert float(objective(model, batch)) == pytest.approx(2 / 0.1 * math.log(2), rel=1e-6)


def test_simnpo_is_npo_with_lengths_in_the_references_place(tokenizer):
    """With one token a row and a reference of probability 1, NPO and SimNPO are the same; no reference is asked for."""
    model = make("llama")
    assert create_objective("simnpo_gdr").reference == {}
    _, batch, _ = prepared("simnpo", model, tokenizer)
    part = batch["forget"]
    last = part["attention_mask"].sum(dim=1) - 1
    labels = torch.full_like(part["labels"], -100)
    labels[torch.arange(len(last)), last] = part["input_ids"][torch.arange(len(last)), last]
    part = part | {"labels": labels, "reference_logps": torch.zeros(len(last))}
    torch.testing.assert_close(simnpo(model, part, beta=0.5), npo(model, part, beta=0.5))


def test_wga_becomes_gradient_ascent_and_satimp_wga(tokenizer):
    model = make("llama").double()
    _, batch, _ = prepared("ga", model, tokenizer)
    ga = gradient_ascent(model, batch["forget"])
    torch.testing.assert_close(create_objective("wga", beta=0)(model, batch), ga, rtol=1e-12, atol=0)
    torch.testing.assert_close(create_objective("wga", beta=1e-6)(model, batch), ga, rtol=1e-5, atol=0)
    wga = create_objective("wga", beta=0.7)(model, batch)
    satimp = create_objective("satimp", beta1=0.7, beta2=0)(model, batch)
    torch.testing.assert_close(satimp, wga + 1 / 0.7)


@pytest.mark.parametrize("betas", [(5.0, 1.0), (0.5, 2.5), (1.0, 0.5), (3.0, 0.0)])
def test_satimps_integral_is_the_incomplete_beta_function(betas):
    from scipy.special import beta, betainc

    from letgo.objectives.reweighted import satimp

    model = Bigram()
    chances = [1 / 3, 1 / 4, 1 / 2]
    expected = sum(betainc(betas[0], betas[1] + 1, p) * beta(betas[0], betas[1] + 1) for p in chances) / 3
    assert float(satimp(model, HAND, beta1=betas[0], beta2=betas[1]).detach()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kl_of_a_model_to_itself_is_zero(architecture, tokenizer):
    model = make(architecture)
    objective, batch, _ = prepared("ft", model, tokenizer, retain_loss="kl")
    term = objective.terms(model, batch)["retain"]
    assert abs(float(term)) < 1e-7
    assert float(gradient(model, term).norm()) < 1e-5
    objective, batch, _ = prepared("ft", model, tokenizer, retain_loss="kl", moved=0.02)
    assert float(objective.terms(model, batch)["retain"]) > 1e-4


def test_dpo_equals_trl(tokenizer, tmp_path):
    """TRL's own trainer on the same rows: its forward passes through both models, its masks, its loss and gradient."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    model = make("llama")
    objective, batch, original = prepared("dpo", model, tokenizer, moved=0.05, beta=0.3)
    # It wants a data set to be made; the batch that it is given here is ours, preferred answers first.
    rows = datasets.Dataset.from_list([{"prompt": "the", "chosen": " capital", "rejected": " of"}])
    plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": []}
    settings = trl.DPOConfig(str(tmp_path), beta=0.3, **plain)
    trainer = trl.DPOTrainer(model, original, args=settings, train_dataset=rows, processing_class=tokenizer)
    parts = [batch[name] for name in ("alternative", "forget")]
    inputs = {key: stack_rows([part[key] for part in parts], 0) for key in ("input_ids", "attention_mask")}
    inputs["completion_mask"] = (stack_rows([part["labels"] for part in parts], -100) != -100).long()
    expected = trainer.compute_loss(model, inputs)
    found = objective(model, batch)
    torch.testing.assert_close(found, expected)
    assert abs(float(found.detach()) - math.log(2)) > 1e-3, "the model has moved from the reference"
    torch.testing.assert_close(gradient(model, found), gradient(model, expected), rtol=1e-4, atol=1e-6)


def test_a_student_begins_as_the_teacher_where_nothing_is_damaged(tokenizer):
    model = make("llama").double()
    objective, batch, original = prepared("undo", model, tokenizer, alpha=0.0)
    note = objective.begin(model)
    assert "1 of the teacher's weights and 0 of noise (seed 0)" in note
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))
    assert abs(float(objective(model, batch).detach())) < 1e-12
    assert create_objective("npo").begin(model) is None


@pytest.mark.parametrize(("alpha", "beta"), [(0.25, 0.0), (0.5, 0.1), (0.8, 2.0)])
def test_a_damaged_students_weights(tokenizer, alpha, beta):
    """Trained matrices get Xavier's noise, vectors shrink, the frozen ones stay; another seed is other noise."""
    students = {}
    for seed in (0, 0, 1):
        model = make("gpt2").double()
        model.transformer.wpe.weight.requires_grad_(False)
        objective, batch, original = prepared("undo", model, tokenizer, alpha=alpha, beta=beta, seed=seed)
        objective.begin(model)
        assert float(objective(model, batch).detach()) > 1e-6
        weights = {name: p.detach() for name, p in model.named_parameters()}
        if seed in students:
            assert all(torch.equal(weights[name], students[seed][name]) for name in weights)
        students[seed] = weights
    before = dict(original.named_parameters())
    for name, weight in students[0].items():
        noise = (weight - (1 - alpha) * before[name].detach()) / alpha
        if name.endswith("wpe.weight"):
            assert torch.equal(weight, before[name])
        elif weight.dim() == 1 or not beta:
            assert noise.abs().max() < 1e-15, name
        else:
            most = beta * math.sqrt(6 / sum(weight.shape))
            # The largest of n even draws is below 0.9 of the end with a chance of 0.9^n.
            assert 0.9 * most < noise.abs().max() <= most, name
            assert not torch.equal(weight, students[1][name])
            expected = reference.damaged(before[name].detach(), (noise / beta).flatten(), alpha, beta)
            torch.testing.assert_close(weight.flatten(), expected.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rmu_without_inner_steps_is_rmu_to_the_bit(architecture, tokenizer):
    values = []
    for name, settings in (("rmu_lat", {"inner_steps": 0}), ("rmu", {})):
        model = make(architecture)
        objective, batch, _ = prepared(name, model, tokenizer, moved=0.02, layer=1, **settings)
        assert "latent" not in batch["forget"]
        loss = objective(model, batch)
        values.append((loss, gradient(model, loss)))
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def test_mcu_that_removes_nothing_is_rmu_to_the_bit_and_one_that_removes_all_is_constant(tokenizer):
    found = {}
    for name, settings in (("mcu", {"removed": 0}), ("rmu", {}), ("mcu", {"removed": 16}), ("mcu", {"removed": 99})):
        model = make("llama")
        objective, batch, _ = prepared(name, model, tokenizer, moved=0.05, layer=1, retain_loss="none", **settings)
        loss = objective.terms(model, batch)["forget"]
        found[name, settings.get("removed")] = loss, gradient(model, loss)
    assert all(map(torch.equal, found["mcu", 0], found["rmu", None]))
    for removed in (16, 99):
        loss, slope = found["mcu", removed]
        assert float(loss.detach()) == pytest.approx(6.5**2 / 16, rel=1e-4)
        assert float(slope.norm()) < 1e-4 * float(found["rmu", None][1].norm())


@pytest.mark.parametrize(("attacked", "radius"), [(0, 0.15), (1, 10.0)])
def test_the_latent_attack_equals_a_plain_loop(tokenizer, attacked, radius):
    model = make("gpt2").double()
    settings = {"layer": 1, "attacked_layer": attacked, "inner_steps": 5, "inner_lr": 0.03, "radius": radius}
    _, batch, _ = prepared("rmu_lat", model, tokenizer, **settings)
    part = batch["forget"]
    found = part["latent"].split(part["attention_mask"].sum(dim=1).tolist())
    for row, delta in enumerate(found):
        expected = reference.latent_attack(model, part, row, attacked, 5, 0.03, radius)
        torch.testing.assert_close(delta, expected, rtol=1e-6, atol=1e-8)
    lengths = part["latent"].norm(dim=1)
    assert float(lengths.max()) <= radius * (1 + 1e-9)
    assert all(p.grad is None for p in model.parameters())


def test_a_latent_attack_brings_the_words_back_and_must_reach_the_layer(tokenizer):
    from letgo.objectives.rmu_lat import adversary, adversary_loss, no_shift

    model = make("llama")
    _, batch, _ = prepared("rmu", model, tokenizer)
    part = batch["forget"]
    delta = adversary(model, part, layer=1, inner_steps=16)
    with torch.no_grad():
        losses = [float(adversary_loss(model, part, shift, 1)) for shift in (no_shift(model, part), delta)]
    assert losses[1] < 0.5 * losses[0]
    with pytest.raises(UserError, match="attacked_layer 2 lies above layer 1"):
        adversary(model, part, layer=1, attacked_layer=2)


# -- masks, padding, windows -------------------------------------------------------------------------------------------


def wider(part, left=0):
    pad = {"labels": -100, "input_ids": 17, "attention_mask": 0}
    return {
        key: torch.nn.functional.pad(value, (left, 3), value=pad[key]) if key in pad else value
        for key, value in part.items()
    }


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_padding_changes_nothing_bit_for_bit(name, tokenizer):
    """Neither columns of padding that are added, nor what stands under the padding that is there."""
    model = make("llama")
    objective, batch, _ = prepared(name, model, tokenizer, moved=0.02)
    plain = objective(model, batch)
    padded = objective(model, {key: wider(part) for key, part in batch.items()})
    dirty = {
        key: part | {"input_ids": part["input_ids"].masked_fill(part["attention_mask"] == 0, 29)}
        for key, part in batch.items()
    }
    for other in (padded, objective(model, dirty)):
        assert torch.equal(plain, other)
        if plain.requires_grad:
            assert torch.equal(gradient(model, plain), gradient(model, other))
            plain = objective(model, batch)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES.names() if OBJECTIVES.record(name).hidden == "label"])
def test_masked_labels_never_count(name, tokenizer):
    """A label of −100 more is a token less, of the numerator and of the denominator; prompts' labels are −100."""
    model = make("gpt2").double()
    settings = SETTINGS.get(name.removesuffix("_gdr").removesuffix("_klr"), {})
    objective, batch, _ = prepared(name, model, tokenizer, retain_loss="none", moved=0.02, **settings)
    first, *_ = batch
    assert (batch[first]["labels"] == -100).any()
    fewer = {key: dict(part) for key, part in batch.items()}
    for part in fewer.values():
        part["labels"] = part["labels"].clone()
        counted = (part["labels"] != -100).nonzero()
        row, column = counted[-1]
        part["labels"][row, column] = -100
        if "reference_hidden" in part:
            part["reference_hidden"] = part["reference_hidden"][:-1]
    if name.startswith("random_label"):
        settings = {"labels": random_labels(fewer["forget"], 48, 0)}
    if not OBJECTIVES.record(name).reference:
        term = OBJECTIVES.record(name).target.rpartition(":")[2]
        expected = gradient(model, getattr(reference, term)(model, None, fewer, **settings))
        torch.testing.assert_close(gradient(model, objective(model, fewer)), expected, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(objective(model, fewer), objective(model, batch), rtol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_micro_batches_add_up_to_the_batch(name, tokenizer):
    """With the window's shares, the mean over micro-batches of any cut equals the loss of the whole: one batch of
    four is four of one."""
    model = make("llama").double()
    objective, batch, _ = prepared(name, model, tokenizer, moved=0.02)
    whole = objective(model, batch)
    for cuts in ([slice(i, i + 1) for i in range(4)], [slice(0, 1), slice(1, 4)]):
        window = [{key: rows_of(part, cut) for key, part in batch.items()} for cut in cuts]
        share_window(window)
        parts = [objective(model, micro) for micro in window]
        torch.testing.assert_close(sum(parts) / len(parts), whole, rtol=1e-6, atol=1e-8)


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OBJECTIVES.names() if name != "ft"])
def test_gradients_against_finite_differences(name, tokenizer):
    """In float64, along a random direction in all parameters: what a zeroth-order optimizer sees is what a first-order
    one descends."""
    model = make("gpt2").double()
    settings = {"retain_weight": 1.0} | SETTINGS.get(name.removesuffix("_gdr").removesuffix("_klr"), {})
    objective, batch, _ = prepared(name, model, tokenizer, moved=0.05, **settings)
    found = gradient(model, objective(model, batch))
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in model.parameters()]
    for p, d in zip(model.parameters(), directions, strict=True):
        d[p.abs() < 1e-3] = 0.0  # |θ| has a kink at 0
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(model.parameters(), directions, strict=True):
                p.add_(d, alpha=sign * step)
            values.append(float(objective(model, batch)))
            for p, d in zip(model.parameters(), directions, strict=True):
                p.sub_(d, alpha=sign * step)
    slope = (values[0] - values[1]) / (2 * step)
    along = float(found @ torch.cat([d.flatten() for d in directions]))
    assert slope == pytest.approx(along, rel=1e-5, abs=1e-6)
    assert abs(along) > 1e-3


# -- names and settings ------------------------------------------------------------------------------------------------


def test_names_and_terms(tokenizer):
    model = make("llama")
    graddiff, batch, _ = prepared("graddiff", model, tokenizer, retain_weight=0.5, forget_weight=2.0)
    terms = graddiff.terms(model, batch)
    assert set(terms) == {"forget", "retain"}
    torch.testing.assert_close(graddiff(model, batch), 2 * terms["forget"] + 0.5 * terms["retain"])
    assert set(graddiff.terms(model, batch, "retain")) == {"retain"}
    assert create_objective("npo").parts == ("forget",)
    with pytest.raises(UserError, match="no retain term"):
        create_objective("npo").terms(model, batch, "retain")
    assert not create_objective("npo_gdr", retain_loss="none").needs_retain
    assert create_objective("npo", retain_loss="ce").needs_retain
    assert create_objective("gradient_difference").record.name == "graddiff"


@pytest.mark.parametrize("retain", RETAIN_TERMS.names())
@pytest.mark.parametrize("name", ALONE)
def test_any_forget_term_goes_with_any_retain_term(name, retain, tokenizer):
    model = make("llama")
    objective, batch, _ = prepared(name, model, tokenizer, retain_loss=retain, retain_weight=0.7, moved=0.02)
    terms = objective.terms(model, batch)
    assert set(terms) == ({"forget"} if retain == "none" else {"forget", "retain"})
    assert all(torch.isfinite(term) for term in terms.values())
    if retain != "none":
        assert float(terms["retain"]) > 0
        torch.testing.assert_close(objective(model, batch), terms["forget"] + 0.7 * terms["retain"])


def test_presets_are_their_parts():
    for name in OBJECTIVES.names():
        record, objective = OBJECTIVES.record(name), create_objective(name)
        ending = {"gdr": "ce", "klr": "kl"}.get(name.rpartition("_")[2])
        if ending:
            assert objective.retain.record.name == ending
        assert record.source
        assert objective.forget.function.__doc__, name
    rmu = create_objective("rmu")
    assert (rmu.retain.record.name, rmu.retain_weight) == ("embedding", 1200.0)
    assert create_objective("rmu", retain_loss="ce").retain_weight == 1.0
    assert create_objective("rmu", retain_weight=5).retain_weight == 5.0


def test_what_a_record_names_beside_its_term_has_the_terms_defaults():
    for record in OBJECTIVES:
        settings = settings_of(OBJECTIVES.load(record.name))
        for named in (record.trainable, record.adversary, record.components, record.start):
            if named is not None:
                theirs = settings_of(resolve_name(named), skip=("model", "forget"))
                assert theirs
                assert theirs == {key: settings[key] for key in theirs}, named


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: create_objective("npoo"), "did you mean 'npo'"),
        (lambda: create_objective("npo", bta=0.1), "no setting 'bta'; did you mean 'beta'"),
        (lambda: create_objective("ga", beta=0.1), "its settings: none"),
        (lambda: create_objective("npo", retain_loss="cee"), "unknown retain loss 'cee'"),
        (lambda: create_objective("influence"), "changes the weights in one shot"),
    ],
)
def test_bad_settings(make_it, message):
    with pytest.raises(UserError, match=message):
        make_it()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("npo", {"beta": 0}),
        ("simnpo", {"beta": -1}),
        ("dpo", {"beta": 0}),
        ("altpo", {"beta": 0}),
        ("wga", {"beta": -0.1}),
        ("satimp", {"beta1": 0}),
        ("satimp", {"beta2": -1}),
        ("undial", {"strength": -1}),
        ("ce_u", {"ignore_first": -1}),
        ("rmu", {"steering": 0}),
        ("rmu_lat", {"radius": 0}),
        ("rmu_lat", {"inner_steps": -1}),
        ("ft_l1", {"sparsity": -1}),
    ],
)
def test_values_out_of_range_are_a_users_mistake(name, settings):
    with pytest.raises(UserError, match=f"objective '{name}': {next(iter(settings))} must be a"):
        create_objective(name, **settings)
