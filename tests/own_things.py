"""A user's own module with one thing of each kind, as a file beside the run."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''
"""One of each."""
import torch

from letgo import create_benchmark, described
from letgo.attacks.engine.base import Attacked


class Halving(torch.optim.Optimizer):
    """A gradient step whose rate halves."""

    def __init__(self, params, lr: float = 1e-3, *, floor: float = -1.0):
        super().__init__(params, {"lr": lr, "floor": floor})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"])
                    self.state[parameter]["steps"] = self.state[parameter].get("steps", 0) + 1


def ascend(model, forget, *, scale: float = 1.0):
    """Ascent on the forget rows."""
    logits = model(input_ids=forget["input_ids"], attention_mask=forget["attention_mask"]).logits
    labels = forget["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=-100)
    return -scale * loss


def wither(model, data, *, share: float = 0.5):
    """Every weight smaller, in one shot."""
    data.say(f"withered for {sum(len(part['labels']) for part in data.forget(2))} rows")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(share)


@described(means="weights", random=False, summary="every weight smaller")
def shrink(victim, *, seed, share: float = 0.5):
    model = victim.load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(share)
    return Attacked(model, {"share": share})


def pairs(*, forget: str, retain: str):
    """The user's rows."""
    return create_benchmark("rows", forget=forget, retain=retain)


def letters(sample, *, of: str = "answer") -> float:
    """How long a text is."""
    return float(len(getattr(sample, of)))
'''


def write(folder: Path, name: str = "mine_own", more: str = "") -> Path:
    path = folder / f"{name}.py"
    path.write_text(SOURCE + more, encoding="utf-8")
    return path
