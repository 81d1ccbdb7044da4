"""letgo: make a language model forget what it must not know, and prove that it stays forgotten.

The public API, imported when first used:

    import letgo

    run = letgo.unlearn(model="smollm2", benchmark="capitals", optimizer="fozo", output_dir="run")
    result = letgo.attack(run.directory, ["quantize:bits=4", "relearn:steps=50,holdout=0.5"])
    letgo.write_report([run.directory], "report.html")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from letgo.analysis.certificate import certificate as certificate
    from letgo.analysis.connectivity import connectivity as connectivity
    from letgo.analysis.depth import depth as depth
    from letgo.analysis.landscape import landscape as landscape
    from letgo.analysis.records import read_analyses as read_analyses
    from letgo.analysis.sharpness import sharpness as sharpness
    from letgo.analysis.spectrum import spectrum as spectrum
    from letgo.attacks.engine.outcome import robustness as robustness
    from letgo.attacks.engine.spec import plan_attack as plan_attack
    from letgo.auditing.audit import audit as audit
    from letgo.auditing.gate import check as check
    from letgo.benchmarks import create_benchmark as create_benchmark
    from letgo.benchmarks.engine.evaluate import evaluate as evaluate
    from letgo.core.errors import EmptyScoreError as EmptyScoreError
    from letgo.core.errors import LetgoError as LetgoError
    from letgo.core.errors import NonFiniteLossError as NonFiniteLossError
    from letgo.core.errors import UserError as UserError
    from letgo.core.own import described as described
    from letgo.objectives import create_objective as create_objective
    from letgo.optim import create_optimizer as create_optimizer
    from letgo.planning import Plan as Plan
    from letgo.planning import plan as plan
    from letgo.planning.optimizers import optimizer_cost as optimizer_cost
    from letgo.report import write_report as write_report
    from letgo.report.attestation import attest as attest
    from letgo.report.load import LoadedRun as LoadedRun
    from letgo.report.load import read_run as read_run
    from letgo.report.numbers import number as number
    from letgo.report.plots import plot_attack as plot_attack
    from letgo.report.plots import plot_attacks as plot_attacks
    from letgo.report.plots import plot_looks as plot_looks
    from letgo.report.plots import plot_map as plot_map
    from letgo.report.plots import plot_runs as plot_runs
    from letgo.report.plots import plot_trade_off as plot_trade_off
    from letgo.report.plots import plot_training as plot_training
    from letgo.report.publish import push_to_hub as push_to_hub
    from letgo.report.verification import verify as verify
    from letgo.runs.results import Result as Result
    from letgo.runs.results import read_result as read_result
    from letgo.runs.sweeps import read_sweep as read_sweep
    from letgo.scoring.server.served import connect as connect
    from letgo.sweep.grid import read_grid as read_grid
    from letgo.training.attack import attack as attack
    from letgo.training.closures import closure_trainer as closure_trainer
    from letgo.training.config import UnlearnConfig as UnlearnConfig
    from letgo.training.config import read_config as read_config
    from letgo.training.erasure import run_requests as run_requests
    from letgo.training.export import export as export
    from letgo.training.requests import unlearn_sequence as unlearn_sequence
    from letgo.training.trainer import UnlearnTrainer as UnlearnTrainer
    from letgo.training.unlearn import Run as Run
    from letgo.training.unlearn import unlearn as unlearn

__version__ = "0.1.0"

_PUBLIC = {
    "EmptyScoreError": "letgo.core.errors",
    "LetgoError": "letgo.core.errors",
    "LoadedRun": "letgo.report.load",
    "NonFiniteLossError": "letgo.core.errors",
    "Plan": "letgo.planning",
    "Result": "letgo.runs.results",
    "Run": "letgo.training.unlearn",
    "UnlearnConfig": "letgo.training.config",
    "UnlearnTrainer": "letgo.training.trainer",
    "UserError": "letgo.core.errors",
    "attack": "letgo.training.attack",
    "attest": "letgo.report.attestation",
    "audit": "letgo.auditing.audit",
    "certificate": "letgo.analysis.certificate",
    "closure_trainer": "letgo.training.closures",
    "connect": "letgo.scoring.server.served",
    "connectivity": "letgo.analysis.connectivity",
    "check": "letgo.auditing.gate",
    "create_benchmark": "letgo.benchmarks",
    "depth": "letgo.analysis.depth",
    "create_objective": "letgo.objectives",
    "create_optimizer": "letgo.optim",
    "described": "letgo.core.own",
    "evaluate": "letgo.benchmarks.engine.evaluate",
    "export": "letgo.training.export",
    "landscape": "letgo.analysis.landscape",
    "number": "letgo.report.numbers",
    "optimizer_cost": "letgo.planning.optimizers",
    "plan": "letgo.planning",
    "plan_attack": "letgo.attacks.engine.spec",
    "plot_attack": "letgo.report.plots",
    "plot_attacks": "letgo.report.plots",
    "plot_looks": "letgo.report.plots",
    "plot_map": "letgo.report.plots",
    "plot_runs": "letgo.report.plots",
    "plot_trade_off": "letgo.report.plots",
    "plot_training": "letgo.report.plots",
    "push_to_hub": "letgo.report.publish",
    "read_analyses": "letgo.analysis.records",
    "read_config": "letgo.training.config",
    "read_grid": "letgo.sweep.grid",
    "read_result": "letgo.runs.results",
    "read_run": "letgo.report.load",
    "sharpness": "letgo.analysis.sharpness",
    "spectrum": "letgo.analysis.spectrum",
    "read_sweep": "letgo.runs.sweeps",
    "robustness": "letgo.attacks.engine.outcome",
    "run_requests": "letgo.training.erasure",
    "unlearn": "letgo.training.unlearn",
    "unlearn_sequence": "letgo.training.requests",
    "verify": "letgo.report.verification",
    "write_report": "letgo.report",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'letgo' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
