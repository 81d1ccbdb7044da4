"""Optimizers from zeroth to second order for PyTorch, and hybrids of them. Needs torch and nothing else.

    from letgo.optim import FOZO

    optimizer = FOZO(model.parameters(), lr=1e-5, zo_lr=3e-5)
    for batch in batches:
        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            if loss.requires_grad:
                loss.backward()
            return loss
        optimizer.step(closure)

`OPTIMIZERS` (`registry.py`) is the one list of them; a new optimizer is one file and one record there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from letgo.optim.registry import OPTIMIZERS, OptimizerRecord, create_optimizer, list_optimizers

if TYPE_CHECKING:
    from letgo.optim.auto_rate import AutoRate as AutoRate
    from letgo.optim.averaging import WeightAveraging as WeightAveraging
    from letgo.optim.base import ClosureOptimizer as ClosureOptimizer
    from letgo.optim.bin_floor import BinFloor as BinFloor
    from letgo.optim.compressed import SignAdam as SignAdam
    from letgo.optim.compressed import SignSGD as SignSGD
    from letgo.optim.dual import DualOptim as DualOptim
    from letgo.optim.dual import DualOptimPlus as DualOptimPlus
    from letgo.optim.fzoo import FZOO as FZOO
    from letgo.optim.hybrid import FOZO as FOZO
    from letgo.optim.hybrid import Phases as Phases
    from letgo.optim.muon import Muon as Muon
    from letgo.optim.quantized import Compressed as Compressed
    from letgo.optim.random_walk import RandomWalk as RandomWalk
    from letgo.optim.replay_log import ReplayLog as ReplayLog
    from letgo.optim.replay_log import replay as replay
    from letgo.optim.second_order import Sophia as Sophia
    from letgo.optim.second_order import gnb_loss as gnb_loss
    from letgo.optim.sift import Sift as Sift
    from letgo.optim.smoothing import SAM as SAM
    from letgo.optim.smoothing import RandomizedSmoothing as RandomizedSmoothing
    from letgo.optim.straight_through import StraightThrough as StraightThrough
    from letgo.optim.sure import Sure as Sure
    from letgo.optim.zeroth_order import ZOSGD as ZOSGD
    from letgo.optim.zeroth_order_adaptive import AdaZO as AdaZO
    from letgo.optim.zeroth_order_adaptive import ZOAdam as ZOAdam
    from letgo.optim.zeroth_order_adaptive import ZOSignSGD as ZOSignSGD
    from letgo.optim.zeroth_order_subspace import ZOMuon as ZOMuon
    from letgo.optim.zeroth_order_subspace import ZOSubspace as ZOSubspace
    from letgo.optim.zeroth_order_svrg import ZOSVRG as ZOSVRG

_PUBLIC = {
    "AdaZO": "zeroth_order_adaptive",
    "AutoRate": "auto_rate",
    "BinFloor": "bin_floor",
    "ClosureOptimizer": "base",
    "Compressed": "quantized",
    "DualOptim": "dual",
    "DualOptimPlus": "dual",
    "FOZO": "hybrid",
    "FZOO": "fzoo",
    "Muon": "muon",
    "RandomWalk": "random_walk",
    "RandomizedSmoothing": "smoothing",
    "ReplayLog": "replay_log",
    "SAM": "smoothing",
    "StraightThrough": "straight_through",
    "Phases": "hybrid",
    "Sift": "sift",
    "SignAdam": "compressed",
    "SignSGD": "compressed",
    "Sophia": "second_order",
    "Sure": "sure",
    "WeightAveraging": "averaging",
    "ZOAdam": "zeroth_order_adaptive",
    "ZOMuon": "zeroth_order_subspace",
    "ZOSGD": "zeroth_order",
    "ZOSVRG": "zeroth_order_svrg",
    "ZOSignSGD": "zeroth_order_adaptive",
    "ZOSubspace": "zeroth_order_subspace",
    "gnb_loss": "second_order",
    "replay": "replay_log",
}
"""Public names and the modules that they are imported from when first asked for."""

__all__ = ["OPTIMIZERS", "OptimizerRecord", "create_optimizer", "list_optimizers", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
