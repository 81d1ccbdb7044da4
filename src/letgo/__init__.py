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
    from letgo.attacks.run import attack as attack
    from letgo.benchmarks import create_benchmark as create_benchmark
    from letgo.config import read_config as read_config
    from letgo.errors import EmptyScoreError as EmptyScoreError
    from letgo.errors import LetgoError as LetgoError
    from letgo.errors import NonFiniteLossError as NonFiniteLossError
    from letgo.errors import UserError as UserError
    from letgo.evaluation import evaluate as evaluate
    from letgo.objectives import create_objective as create_objective
    from letgo.optim import create_optimizer as create_optimizer
    from letgo.planning import Plan as Plan
    from letgo.planning import plan as plan
    from letgo.publishing import push_to_hub as push_to_hub
    from letgo.report import write_report as write_report
    from letgo.results import Result as Result
    from letgo.results import read_result as read_result
    from letgo.sequence import unlearn_sequence as unlearn_sequence
    from letgo.trainer import UnlearnConfig as UnlearnConfig
    from letgo.trainer import UnlearnTrainer as UnlearnTrainer
    from letgo.unlearning import Run as Run
    from letgo.unlearning import unlearn as unlearn

__version__ = "0.1.0"

_PUBLIC = {
    "EmptyScoreError": "letgo.errors",
    "LetgoError": "letgo.errors",
    "NonFiniteLossError": "letgo.errors",
    "Plan": "letgo.planning",
    "Result": "letgo.results",
    "Run": "letgo.unlearning",
    "UnlearnConfig": "letgo.trainer",
    "UnlearnTrainer": "letgo.trainer",
    "UserError": "letgo.errors",
    "attack": "letgo.attacks.run",
    "create_benchmark": "letgo.benchmarks",
    "create_objective": "letgo.objectives",
    "create_optimizer": "letgo.optim",
    "evaluate": "letgo.evaluation",
    "plan": "letgo.planning",
    "push_to_hub": "letgo.publishing",
    "read_config": "letgo.config",
    "read_result": "letgo.results",
    "unlearn": "letgo.unlearning",
    "unlearn_sequence": "letgo.sequence",
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
