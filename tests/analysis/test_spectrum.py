from __future__ import annotations

import pytest
import torch

from letgo.analysis.records import read_analyses
from letgo.analysis.spectrum import matrix_spectrum, spectrum, undone_by
from letgo.core.errors import UserError
from letgo.models.load import load_model
from letgo.report.analyses import in_text


def matrix(values, rows, columns, seed=0):
    """A matrix of these singular values."""
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, len(values), generator=generator, dtype=torch.float64))
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize(("rows", "columns"), [(9, 6), (6, 9)])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_rank_and_energy_of_known_singular_values(rows, columns, size):
    values = [4.0, 2.0, 2.0, 1.0]
    rank, energy = matrix_spectrum(size * matrix(values, rows, columns), 2)
    assert rank == pytest.approx(25 / 16, rel=1e-9)
    assert energy == pytest.approx(20 / 25, rel=1e-9)


def test_ends_of_the_range():
    one = torch.outer(torch.arange(1.0, 6.0), torch.arange(1.0, 4.0))
    assert matrix_spectrum(one, 1) == (pytest.approx(1.0), pytest.approx(1.0))
    assert matrix_spectrum(torch.eye(7), 2) == (pytest.approx(7.0), pytest.approx(2 / 7))
    assert matrix_spectrum(torch.eye(3), 99) == (pytest.approx(3.0), pytest.approx(1.0))
    assert matrix_spectrum(torch.zeros(3, 4), 1) == (None, None)


def test_what_is_undone():
    there = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    back = {name: -0.25 * tensor for name, tensor in there.items()}
    assert undone_by(back, there) == pytest.approx(0.25)
    assert undone_by({"a": torch.tensor([0.0, 5.0]), "b": torch.zeros(1)}, there) == 0.0
    assert undone_by(there, there) == pytest.approx(-1.0)
    assert undone_by(there, {name: torch.zeros_like(tensor) for name, tensor in there.items()}) is None


def test_a_run_and_its_attacks(run, original):
    entry = spectrum(run, top=3)
    unlearning, *attacks = entry.changes
    before, after = (dict(load_model(path).named_parameters()) for path in (original, run))
    for found in unlearning.matrices:
        change = (after[found.name] - before[found.name]).detach().double()
        values = torch.linalg.svdvals(change)
        assert found.norm == pytest.approx(float(change.norm()), rel=1e-6)
        assert found.stable_rank == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=1e-6)
        assert found.energy == pytest.approx(float((values[:3] ** 2).sum() / (values**2).sum()), rel=1e-6)
        # The change is noise: it has no direction of its own.
        assert found.stable_rank > 2
    assert len(unlearning.matrices) == sum(p.dim() == 2 for p in before.values())
    assert (unlearning.undone, unlearning.kept) == (None, None)
    kinds = [change.name.partition(":")[0] for change in attacks]
    assert kinds == ["quantize", "relearn"]
    for change in attacks:
        assert change.undone is not None
        assert abs(change.undone) < 0.5
        assert change.kept is not None
    assert read_analyses(run, ["spectrum"]) == [entry]
    text = "\n".join(in_text(entry))
    assert "Spectrum of the change: run" in text
    assert "Each matrix: unlearning" in text


def test_an_original_that_is_gone_is_a_users_mistake(run, original):
    (original / "model.safetensors").rename(original / "away")
    try:
        with pytest.raises(UserError):
            spectrum(run)
    finally:
        (original / "away").rename(original / "model.safetensors")
