"""Spectrum: over how many directions unlearning, and each attack, spread their change of every weight matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from letgo.analysis.frame import Analysis, AnalysisOptions
from letgo.analysis.neighbours import attacked_weights, original_of, other_weights, planned
from letgo.analysis.records import Change, MatrixSpectrum, Spectrum
from letgo.analysis.weights import WeightVector, difference, vector_norm
from letgo.attacks.engine.spec import changes_weights
from letgo.core.errors import LetgoError, UserError, first_line


def spectrum(run: str | Path, *, top: int = 8, rerun: bool = True, **options: Unpack[AnalysisOptions]) -> Spectrum:
    r"""Take the singular values σ_1 ≥ σ_2 ≥ … of the change Δ of each weight matrix: by unlearning, θ_u − θ_o, and by
    each recorded attack that changes weights, θ_attacked − θ_u.

        stable rank   ‖Δ‖_F² / σ_1²                 between 1 and the rank: 1 is one direction
        energy        Σ_{i ≤ top} σ_i² / ‖Δ‖_F²     the share of the change that its top components make up
        undone        −⟨Δ_attack, Δ_unlearning⟩ / ‖Δ_unlearning‖²     over all weights: 1 is back at the original

    Attacks are run again, each with its saved settings and its first seed. One that brings the answers back and undoes
    little went another way.

    Args:
        run: a run directory.
        top: components that the energy is over.
        rerun: the attacks too, not unlearning alone.
        options: `letgo.analysis.frame.AnalysisOptions`; nothing is measured on the benchmark.

    Raises:
        UserError: no run, `top` below 1, or an original that can't be had.
    """
    if top < 1:
        raise UserError(f"top must be at least 1, not {top}")
    analysis = Analysis(Spectrum, run, {"top": top, "rerun": rerun}, None, **options)
    target, weights = analysis.target, analysis.weights
    theirs = other_weights("the model it began with", original_of(target), weights, target, analysis.dtype)
    unlearning = difference(weights.originals, theirs)
    changes = [_change("unlearning", "unlearning", unlearning, theirs, top)]
    notes = []
    attacks = [attack for attack in target.result.attacks if changes_weights(attack.name)] if rerun else []
    with analysis.reporter.task("attacks", len(attacks)) as task:
        for attack in attacks:
            try:
                plan, _ = planned(target, attack.label)
                moved = difference(attacked_weights(target, weights, plan), weights.originals)
            except LetgoError as error:
                notes.append(f"{attack.label} is left out: {first_line(error)}")
            else:
                change = _change(attack.label, "attack", moved, weights.originals, top)
                undone = undone_by(moved, unlearning)
                changes.append(change.model_copy(update={"undone": undone, "kept": attack.kept}))
            task.advance()
    if other := [name for name, tensor in weights.originals.items() if tensor.dim() > 2]:
        notes.append(f"{len(other)} tensors of more than two dimensions count in norms only ({other[0]}, …)")
    return analysis.finish(parameters=weights.dimension, top=top, changes=changes, notes=notes)


def matrix_spectrum(change: Tensor, top: int) -> tuple[float | None, float | None]:
    """Stable rank of a matrix, and the share of its squared norm that its `top` largest singular values make up; None
    and None of a matrix of zeros."""
    wide = change.double()
    # The eigenvalues of the smaller Gram matrix are the squares of the singular values.
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    scale = float(gram.diagonal().max()) if gram.numel() else 0.0
    if scale == 0.0:
        return None, None
    squares = torch.linalg.eigvalsh(gram / scale).clamp(min=0.0)
    total = float(squares.sum())
    return total / float(squares[-1]), min(1.0, float(squares[-top:].sum()) / total)


def undone_by(moved: WeightVector, unlearning: WeightVector) -> float | None:
    """−⟨Δ_attack, Δ_unlearning⟩ / ‖Δ_unlearning‖²; None where unlearning changed nothing."""
    squared = vector_norm(unlearning) ** 2
    products = (
        float((moved[name].double() * d.to(moved[name].device).double()).sum()) for name, d in unlearning.items()
    )
    return -math.fsum(products) / squared if squared else None


def _change(name: str, what: str, moved: WeightVector, before: WeightVector, top: int) -> Change:
    matrices = []
    for key, tensor in _matrices(moved):
        rank, energy = matrix_spectrum(tensor, top)
        size, of = vector_norm({key: tensor}), vector_norm({key: before[key]})
        relative = size / of if of else None
        matrices.append(MatrixSpectrum(name=key, norm=size, relative=relative, stable_rank=rank, energy=energy))
    norm, whole = vector_norm(moved), vector_norm(before)
    return Change(
        name=name,
        what=what,  # type: ignore[arg-type]
        norm=norm,
        relative=norm / whole if whole else None,
        matrices=matrices,
    )


def _matrices(vector: WeightVector) -> Iterable[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in vector.items() if tensor.dim() == 2)
