from __future__ import annotations

import pytest
import torch

from letgo.data import encode_rows, pad_rows, read_rows
from letgo.errors import UserError
from letgo.objectives import OBJECTIVES, create_objective
from letgo.objectives.ga import gradient_ascent
from letgo.objectives.likelihood import sequence_logps
from letgo.objectives.npo import npo
from letgo.objectives.retain import cross_entropy
from tests import tiny
from tests.reference import objectives as reference


@pytest.fixture
def batch(tokenizer):
    rows, _ = encode_rows(tokenizer, read_rows([*tiny.FORGET, {"text": "old river stone"}]), max_length=64)
    batch = pad_rows(rows, 0)
    return batch | {"reference_logps": torch.tensor([-9.0, -6.0, -8.5, -7.0, -12.0])}


def test_sequence_logps_equal_the_plain_loop(model, batch):
    expected = torch.stack(reference.rows(model, batch))
    torch.testing.assert_close(sequence_logps(model, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_equals_its_reference(model, batch, beta):
    model.double()
    torch.testing.assert_close(
        npo(model, batch, beta=beta), reference.npo(model, batch, beta), rtol=1e-5, atol=1e-6, check_dtype=False
    )
    logps = [float(logp.detach()) for logp in reference.rows(model, batch)]
    by_hand = reference.npo_by_hand(logps, batch["reference_logps"].tolist(), beta)
    assert float(npo(model, batch, beta=beta).detach()) == pytest.approx(by_hand, rel=1e-5)


def test_cross_entropy_and_ascent_equal_their_references(model, batch):
    torch.testing.assert_close(cross_entropy(model, batch), reference.cross_entropy(model, batch))
    torch.testing.assert_close(gradient_ascent(model, batch), reference.gradient_ascent(model, batch))
    # The model's own loss is the same mean over label tokens.
    own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    torch.testing.assert_close(cross_entropy(model, batch), own)


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_npo_becomes_gradient_ascent_as_beta_goes_to_zero(model, batch):
    """∇ NPO → ∇ mean over rows of Σ log π as β → 0 (NPO, section 3)."""
    limit = gradient(model, sequence_logps(model, batch).mean())
    far, near = (gradient(model, npo(model, batch, beta=beta)) for beta in (0.1, 1e-3))
    assert torch.nn.functional.cosine_similarity(near, limit, dim=0) > 0.999999
    assert (near - limit).norm() / limit.norm() < 0.01 < (far - limit).norm() / limit.norm()


def test_npo_at_the_reference_is_two_log_two_over_beta(model, batch):
    at_reference = batch | {"reference_logps": sequence_logps(model, batch).detach()}
    assert float(npo(model, at_reference, beta=0.1).detach()) == pytest.approx(2 / 0.1 * 0.6931472, rel=1e-5)


@pytest.mark.parametrize("loss", [npo, gradient_ascent, cross_entropy], ids=lambda f: f.__name__)
def test_padding_changes_nothing(model, batch, loss):
    wider = {
        key: torch.nn.functional.pad(value, (0, 3), value={"labels": -100}.get(key, 0))
        for key, value in batch.items()
        if value.dim() == 2
    } | {"reference_logps": batch["reference_logps"]}
    a, b = loss(model, batch), loss(model, wider)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    # What stands under the padding is never looked at, to the bit.
    dirty = wider | {"input_ids": wider["input_ids"].masked_fill(wider["attention_mask"] == 0, 17)}
    assert torch.equal(loss(model, wider), loss(model, dirty))


@pytest.mark.parametrize("loss", [npo, gradient_ascent, cross_entropy], ids=lambda f: f.__name__)
def test_masked_labels_never_count(model, batch, loss):
    """The prompt's labels are −100: what they would have been makes no difference to the loss."""
    assert (batch["labels"] == -100).any()
    unmasked = batch | {"labels": torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)}
    assert not torch.allclose(loss(model, batch), loss(model, unmasked))
    torch.testing.assert_close(
        sequence_logps(model, batch), torch.stack(reference.rows(model, batch)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_gradients_against_finite_differences(name, batch):
    model = tiny.make_model().double()
    objective = create_objective(name)
    inputs = {"forget": batch, "retain": batch}
    model.zero_grad()
    objective(model, inputs).backward()
    generator = torch.Generator().manual_seed(0)
    for parameter in (model.model.layers[0].mlp.up_proj.weight, model.model.layers[1].self_attn.v_proj.weight):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-3)
                values.append(float(objective(model, inputs)))
                parameter.sub_(direction, alpha=sign * 1e-3)
        slope = (values[0] - values[1]) / 2e-3
        # The step's own error is of third order; the model's norms are in float32 whatever the weights are.
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_micro_batches_add_up_to_the_batch(name, model, batch):
    """With the window's shares, the mean over micro-batches of any cut equals the loss of the whole."""
    objective = create_objective(name)
    whole = objective(model, {"forget": batch, "retain": batch})
    parts = []
    cuts = [slice(0, 2), slice(2, 5)]
    rows, tokens = 5 / 2, int((batch["labels"][:, 1:] != -100).sum()) / 2
    for cut in cuts:
        part = {key: value[cut] for key, value in batch.items()}
        part |= {"row_share": torch.tensor(rows), "token_share": torch.tensor(tokens)}
        parts.append(objective(model, {"forget": part, "retain": part}))
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-5, atol=1e-5)


def test_names_and_terms(model, batch):
    inputs = {"forget": batch, "retain": batch}
    graddiff = create_objective("graddiff", retain_weight=0.5)
    terms = graddiff.terms(model, inputs)
    assert set(terms) == {"forget", "retain"}
    torch.testing.assert_close(graddiff(model, inputs), terms["forget"] + 0.5 * terms["retain"])
    assert set(create_objective("npo").terms(model, inputs)) == {"forget"}
    assert not create_objective("npo_gdr", retain_loss="none").needs_retain
    assert create_objective("npo", retain_loss="ce").needs_retain
    assert create_objective("gradient_difference").record.name == "graddiff"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_objective("npoo"), "did you mean 'npo'"),
        (lambda: create_objective("npo", bta=0.1), "no setting 'bta'; did you mean 'beta'"),
        (lambda: create_objective("ga", beta=0.1), "its settings: none"),
        (lambda: create_objective("npo", retain_loss="cee"), "unknown retain loss 'cee'"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_beta_must_be_positive(model, batch):
    with pytest.raises(UserError, match="beta must be above 0"):
        npo(model, batch, beta=0.0)
