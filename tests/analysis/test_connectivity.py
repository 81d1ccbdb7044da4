from __future__ import annotations

import json

import pytest
import torch

from letgo.analysis.connectivity import barrier, connectivity, mixture
from letgo.analysis.losses import RowLosses
from letgo.analysis.records import read_analyses
from letgo.analysis.weights import Weights
from letgo.attacks.engine.target import open_targets
from letgo.core.errors import UserError
from letgo.models.load import load_model
from tests import tiny
from tests.analysis.conftest import SAME
from tests.analysis.problems import Quadratic, symmetric


def test_barrier_of_a_quadratic_in_closed_form():
    """On a line ℓ is a quadratic of curvature c = ΔᵀAΔ: ℓ(a) − line = −½ c a(1−a)."""
    ends = [torch.randn(5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2)]
    hessian, linear = symmetric(3, 5), torch.arange(5.0)
    curvature = float((ends[1] - ends[0]) @ hessian @ (ends[1] - ends[0]))
    model, other = (Quadratic(hessian, linear, end) for end in ends)
    weights, theirs = Weights(model), {n: p.detach() for n, p in other.named_parameters()}
    alphas, values = [k / 10 for k in range(11)], []
    for alpha in alphas:
        with weights.at(mixture(theirs, alpha)):
            values.append(float(model.loss().detach()))
    found = barrier(alphas, values)
    top, bottom = (found.fall, found.rise) if curvature > 0 else (found.rise, found.fall)
    assert top == pytest.approx(abs(curvature) / 8, rel=1e-12)
    assert bottom == pytest.approx(0.0, abs=1e-12)
    assert (found.fall_at if curvature > 0 else found.rise_at) == 0.5


def test_ends_are_the_models_themselves(run, other):
    found = connectivity([run, other], points=3, metrics=False)
    [path] = found.paths
    subjects = open_targets([run, other])
    for point, subject in zip((path.points[0], path.points[-1]), subjects, strict=True):
        model = subject.load("float32")
        losses = RowLosses(model, subject.tokenizer(), subject.benchmark, template=subject.template, limit=32).metrics(
            model
        )
        assert point.values == losses
    assert path.distance > 0
    assert path.barriers["forget_loss"].rise >= 0


def test_row_losses_are_the_models_own_cross_entropy(run):
    """Against transformers' own loss, a row at a time."""
    [subject] = open_targets([run])
    model, tokenizer = subject.load("float32"), subject.tokenizer()
    losses = RowLosses(model, tokenizer, subject.benchmark, template=subject.template, limit=None, token_budget=30)
    total, tokens = 0.0, 0
    for row in losses.sets["forget_loss"].rows:
        labels = torch.tensor([row.labels])
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(input_ids=torch.tensor([row.input_ids]), labels=labels).loss) * count
        tokens += count
    assert losses.values(model)["forget_loss"] == pytest.approx(total / tokens, rel=1e-5)
    parts = sum(float(term().detach()) for term in losses.terms(model, "forget_loss"))
    assert parts == pytest.approx(total / tokens, rel=1e-5)
    metric = losses.metrics(model)["forget_loss"]
    assert metric.n == 4
    assert metric.ci95[0] <= metric.value <= metric.ci95[1]


def test_every_pair_twice_the_same_and_written_once(run, other, original):
    first = connectivity([run, other, original], points=3, limit=2)
    again = connectivity([run, other, original], points=3, limit=2)
    assert [(p.first, p.second) for p in first.paths] == [
        ("run", "other"),
        ("run", "original"),
        ("other", "original"),
    ]
    assert first.model_dump(exclude=SAME) == again.model_dump(exclude=SAME)
    assert "forget_probability" in first.paths[0].barriers
    connectivity([run, other], points=3, metrics=False)
    entries = read_analyses(run)
    assert [len(entry.models) for entry in entries] == [3, 2]
    assert not list(run.glob(".analysis-*"))
    document = json.loads((run / "analysis-connectivity.json").read_text())
    assert (document["schema"], document["kind"]) == (1, "connectivity")


def test_an_adapter_run_is_merged(run, original, tmp_path):
    pytest.importorskip("peft")
    from letgo.models.adapters import Base, add_lora, linear_targets, quick_fingerprint, save_adapter

    model = load_model(original)
    fingerprint = quick_fingerprint(model)
    adapted = add_lora(model, rank=2, targets=linear_targets(model), seed=1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    directory = tmp_path / "adapter"
    save_adapter(adapted, directory, Base(str(original), "float32", None, fingerprint))
    tiny.make_tokenizer().save_pretrained(directory)
    # peft draws an adapter's weights before it reads them.
    with torch.random.fork_rng():
        [path] = connectivity([run, directory], points=3, metrics=False).paths
        merged = dict(load_model(directory).named_parameters())
    saved = dict(load_model(run).named_parameters())
    expected = sum(float((merged[n] - saved[n]).detach().double().square().sum()) for n in saved) ** 0.5
    assert path.distance == pytest.approx(expected, rel=1e-6)


def test_refused(run, other, original, tmp_path):
    small = tmp_path / "small"
    tiny.make_model(hidden_size=16).save_pretrained(small)
    tiny.make_tokenizer().save_pretrained(small)
    with pytest.raises(UserError, match="run and small are not of one architecture"):
        connectivity([run, small], points=3)
    foreign = tmp_path / "foreign"
    tiny.make_model().save_pretrained(foreign)
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(foreign)
    with pytest.raises(UserError, match="run and foreign have different tokenizers"):
        connectivity([run, foreign], points=3)
    with pytest.raises(UserError, match="needs two models"):
        connectivity([run])
    with pytest.raises(UserError, match="at least 3"):
        connectivity([run, other], points=2)
    with pytest.raises(UserError, match=r"none of these is a run.*--benchmark"):
        connectivity([original, other], points=3)
    with pytest.raises(UserError, match="no such model"):
        connectivity([run, tmp_path / "nowhere"], points=3)
