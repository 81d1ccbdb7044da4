"""What a process has imported from which tests fork others (`tests/warm.py`)."""

import accelerate  # noqa: F401
import torch

import letgo.attacks.engine.run
import letgo.cli
import letgo.training.unlearn  # noqa: F401
from letgo.core.environment import freeze_imports

torch.set_num_threads(1)
freeze_imports()
