"""How far rounding, or any other change, moves a model's weights, beside how far unlearning had: layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from letgo.optim.engine.rounding import Levels, bin_width


def layer_row(
    name: str,
    weight: Tensor,
    attacked: Tensor,
    original: Tensor | None,
    levels: Levels | None = None,
    index: Tensor | None = None,
) -> dict[str, Any]:
    """One layer's numbers: `attack` ‖Q(θ_u) − θ_u‖ and `norm` ‖θ_u‖; where the original of the same shape is known,
    `unlearning` ‖θ_u − θ_o‖, `changed`, the share of weights that unlearning changed at all, and `change`, by how much
    on average. Where the levels are known too: `same_bin`, the share of weights in the bin in which the original's
    weight would be on the same levels; `undone`, that share among the weights that unlearning changed; `bin`, the
    average width of a bin; `carried`, the part of the update that is still there, ⟨Q(θ_u) − Q(θ_o), θ_u − θ_o⟩ /
    ‖θ_u − θ_o‖², which is 1 where rounding keeps the update on average.

    Args:
        index: the levels to which the weights were rounded; by default the nearest ones.
    """
    row: dict[str, Any] = {
        "layer": name,
        "weights": weight.numel(),
        "norm": _norm(weight),
        "attack": _norm(attacked.to(weight.dtype) - weight),
    }
    if original is None or original.shape != weight.shape:
        return row
    original = original.to(weight.device)
    changed = weight != original
    row |= {"unlearning": _norm(weight - original), "changed": float(changed.double().mean())}
    if changed.any():
        row["change"] = float((weight - original)[changed].abs().double().mean())
    if levels is not None:
        mine, before = levels.index(weight) if index is None else index, levels.index(original)
        same = mine == before
        row |= {"same_bin": float(same.double().mean()), "bin": bin_width(levels, before)}
        if changed.any():
            row["undone"] = float(same[changed].double().mean())
            update = (weight - original).double()
            moved = (levels.values(mine) - levels.values(before)).double()
            row["carried"] = float((moved * update).sum() / (update * update).sum())
    return row


def summary(rows: Sequence[Mapping[str, Any]], why: str = "") -> dict[str, Any]:
    """Over all layers' rows: displacements in norm, shares weighted by the number of weights. `why` is the reason where
    the original is not known."""
    total: dict[str, Any] = {
        "layers": len(rows),
        "weights": sum(row["weights"] for row in rows),
        "displacement": _joint(rows, "attack"),
        "relative_displacement": _joint(rows, "attack") / (_joint(rows, "norm") or 1.0),
    }
    known = [row for row in rows if "unlearning" in row]
    if not known:
        return total | {"original": why or "not compared: it has other layers"}
    total["unlearning_displacement"] = _joint(known, "unlearning")
    changed = sum(row["changed"] * row["weights"] for row in known)
    total["changed"] = changed / sum(row["weights"] for row in known)
    if binned := [row for row in known if "same_bin" in row]:
        total["same_bin"] = sum(r["same_bin"] * r["weights"] for r in binned) / sum(r["weights"] for r in binned)
        moved = sum(r["changed"] * r["weights"] for r in binned)
        if moved:
            of_changed = [(r, r["changed"] * r["weights"] / moved) for r in binned if r["changed"]]
            total |= {key: sum(r[key] * share for r, share in of_changed) for key in ("undone", "change")}
            total["bin"] = sum(r["bin"] * share for r, share in of_changed)
            total["bins_per_change"] = total["bin"] / total["change"]
            size = sum(r["unlearning"] ** 2 for r, _ in of_changed)
            total["carried"] = sum(r["carried"] * r["unlearning"] ** 2 for r, _ in of_changed) / size
    return total


def _norm(values: Tensor) -> float:
    return float(values.double().norm())


def _joint(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(row[key] ** 2 for row in rows) ** 0.5
