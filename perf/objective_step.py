"""Time and memory of unlearning steps, as ratios to the same steps done the usual way.

    python perf/objective_step.py [--quick] [--json FILE] [--only NAME] [--runs N] [--threads N]

The model is a Llama of SmolLM2-135M's shape with random weights (`--quick`: a small one); a step is 8 x 64 forget and
8 x 64 retain tokens, every token but a row's first a label, and one step of fused AdamW. Every ratio is taken within
one run: the two things are timed in turn, and the medians divided. Peaks of memory are of processes of their own.

npo, kl     NPO with cross-entropy (kl: with the KL divergence) on the retain set, its reference quantities read from
            where they were stored, against the same step with a second model in memory that is run without gradients
            over the rows that the mathematics needs it for: the forget rows (kl: and the retain rows). All else is the
            same in both. A forward pass is 1, a backward pass 2: the limits are 6/7 and, but for the output layer on
            stored hidden states, 6/8.
            "usual implementation": the second model in memory, a forward pass for each part, the logits of all
            positions whole, as trainers of the field have it.
rmu         RMU with its retain term at block 7 of 30, against the same with forward passes through the whole model.
joint       a step with one forward pass for forget and retain rows, against one with a pass each.
memory      peaks of npo and kl. A step without the second model that takes X bytes is X / (X + w) of one with it, w the
            weights: at most 0.85 where X is at most 5.67 w, 3.05 GB. The process (0.56 GB), weights, gradients and
            AdamW's state alone are 2.7 GB, and the activations of 1,024 tokens, all kept, 1.4 GB: so with all of
            them kept at once the limit is about 0.87. "checkpointed": with gradient checkpointing in both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from letgo.models import forward
from letgo.objectives import create_objective, joint, likelihood
from letgo.objectives.references import reference_quantities

ROWS, LENGTH = 8, 64
LAYER = {"135m": 7, "quick": 1}
GOALS = {"npo": 0.87, "kl": 0.80, "rmu": 0.40, "joint": 1.0}
MEMORY_GOAL = 0.85


SHAPES: dict[str, dict[str, Any]] = {
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    "quick": {"vocab_size": 4096, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 4},
}


def make_model(shape: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SHAPES[shape], **heads)).eval()


def ratio(one: Callable[[], Any], base: Callable[[], Any], runs: int) -> tuple[float, float, float]:
    """Median seconds of both, timed in turn after a warm-up of each, and the ratio of the medians."""

    def seconds(function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    one()
    base()
    pairs = [(seconds(one), seconds(base)) for _ in range(runs)]
    top, bottom = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    return top, bottom, top / bottom


def row(name: str, timing: tuple[float, float, float], goal: float | None, runs: int) -> dict[str, Any]:
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    figures = {"ratio": round(timing[2], 4), "goal": goal, "better": "lower", "value": timing[0], "base": timing[1]}
    return {"name": name, **figures, "runs": runs, "machine": machine}


def make_batch(vocabulary: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    batch = {}
    for name in ("forget", "retain"):
        ids = torch.randint(0, vocabulary, (ROWS, LENGTH), generator=generator)
        batch[name] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    return batch


class Case:
    """A model, an objective and a batch with its reference quantities; `ours` and `usual` are a step each."""

    def __init__(self, name: str, shape: str, *, second_model: bool, checkpointed: bool = False) -> None:
        self.model = make_model(shape)
        if checkpointed:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.train()
        settings: dict[str, Any] = {"layer": LAYER[shape]} if name == "rmu" else {}
        objective = {"npo": "npo_gdr", "kl": "npo_klr", "rmu": "rmu", "joint": "npo_gdr"}[name]
        self.name, self.objective = name, create_objective(objective, **settings)
        pattern = self.objective.trainable_pattern(self.model)
        if pattern:
            from letgo.models.load import freeze_all_but

            freeze_all_but(self.model, pattern)
        self.objective.prepare(self.model)
        self.reference = make_model(shape).requires_grad_(False) if second_model else None
        self.batch = make_batch(self.model.config.vocab_size)
        self.fill(self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-7, fused=True)

    def fill(self, reference: Any) -> None:
        """The reference quantities of the batch."""
        for part, names in self.objective.reference.items():
            found = reference_quantities(reference, self.batch[part], names, layer=self.objective.layer)
            for name, values in found.items():
                whole = torch.stack(values) if values[0].dim() == 0 else torch.cat(values)
                self.batch[part][f"reference_{name}"] = whole

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.objective(self.model, self.batch).backward()
        self.optimizer.step()

    def ours(self) -> None:
        self.step()

    def usual(self) -> None:
        if self.name == "rmu":
            with full_passes():
                self.step()
        elif self.name == "joint":
            with apart():
                self.step()
        else:
            self.fill(self.reference)
            self.step()

    def plain(self) -> None:
        """NPO as trainers of the field have it: a second model, all logits."""
        self.optimizer.zero_grad()
        logps, kept = {}, {}
        for name, part in self.batch.items():
            inputs = {key: part[key] for key in ("input_ids", "attention_mask")}
            if name == "forget" or self.name == "kl":
                with torch.no_grad():
                    kept[name] = self.reference(**inputs, use_cache=False).logits[:, :-1]
            logits = self.model(**inputs, use_cache=False).logits[:, :-1]
            if name == "forget":
                logps = {
                    "now": -cross_entropy(logits, part["labels"][:, 1:]).sum(-1),
                    "then": -cross_entropy(kept[name], part["labels"][:, 1:]).sum(-1),
                }
            elif self.name == "kl":
                before, now = (one.log_softmax(-1) for one in (kept[name], logits))
                retain = F.kl_div(now, before, log_target=True, reduction="none").sum(-1).mean()
            else:
                retain = cross_entropy(logits, part["labels"][:, 1:]).mean()
        forget = -(2 / 0.1) * F.logsigmoid(-0.1 * (logps["now"] - logps["then"])).mean()
        (forget + retain).backward()
        self.optimizer.step()


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of each label, (rows, length)."""
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


class full_passes:
    """Within: hidden states after a block come from a forward pass through the whole model, as by a hook."""

    def __enter__(self) -> None:
        self.before = likelihood.hidden_after

        def hidden_after(model: Any, layer: int, **inputs: Any) -> torch.Tensor:
            caught: list[torch.Tensor] = []
            _, blocks = forward.find_blocks(model)
            handle = blocks[layer].register_forward_hook(
                lambda module, args, output: caught.append(output if isinstance(output, torch.Tensor) else output[0])
            )
            model(use_cache=False, **inputs)
            handle.remove()
            return caught[0]

        likelihood.hidden_after = hidden_after

    def __exit__(self, *error: object) -> None:
        likelihood.hidden_after = self.before


class apart:
    """Within: every part has a forward pass of its own."""

    def __enter__(self) -> None:
        self.before, joint.MOST_WASTE = joint.MOST_WASTE, -1.0

    def __exit__(self, *error: object) -> None:
        joint.MOST_WASTE = self.before


NAMES: dict[str, str] = {
    "npo": "NPO + retain step / the same with a reference model's forward",
    "kl": "NPO + KL-retained step / the same with a reference model's forwards",
    "rmu": "RMU step at block {layer} of {blocks} / the same with full forward passes",
    "joint": "NPO + retain step, one forward pass / a pass each",
}


USUAL = " / the usual implementation"


def time_rows(name: str, shape: str, runs: int) -> list[dict[str, Any]]:
    case = Case(name, shape, second_model=name in ("npo", "kl"))
    title = NAMES[name].format(layer=LAYER[shape], blocks=case.model.config.num_hidden_layers)
    rows = [row(title, ratio(case.ours, case.usual, runs), GOALS[name], runs)]
    if name in ("npo", "kl"):
        rows.append(row(title.partition(" / ")[0] + USUAL, ratio(case.ours, case.plain, runs), None, runs))
    return rows


MEMORY = """
import sys
sys.path[:0] = {path!r}
from objective_step import Case
case = Case({name!r}, {shape!r}, second_model={step!r} != "ours", checkpointed={checkpointed!r})
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of making the models
for _ in range(3):
    case.{step}()
print(1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]))
"""


def peak_bytes(name: str, shape: str, step: str, checkpointed: bool) -> int:
    """The peak of a process of its own that makes three steps."""
    path = [str(Path(__file__).parent), *sys.path]
    script = MEMORY.format(path=path, name=name, shape=shape, step=step, checkpointed=checkpointed)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def memory_rows(name: str, shape: str) -> list[dict[str, Any]]:
    if not Path("/proc/self/clear_refs").exists():
        return []  # peaks are read as Linux counts them
    titles = {"usual": NAMES[name], "plain": NAMES[name].partition(" / ")[0] + USUAL}
    rows = []
    every = ((False, ("usual", "plain")), (True, ("usual",)))
    for checkpointed, bases in every[1:] if shape == "quick" else every:
        ours = peak_bytes(name, shape, "ours", checkpointed)
        for base in bases:
            other = peak_bytes(name, shape, base, checkpointed)
            title = f"peak memory, {'checkpointed, ' if checkpointed else ''}{titles[base]} (bytes)"
            rows.append(row(title, (ours, other, ours / other), MEMORY_GOAL, 1))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, one run, and few peaks of memory")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--only", action="append", choices=[*GOALS, "memory"], help="these rows alone; repeat")
    parser.add_argument("--runs", type=int, help="repetitions (default 7, with --quick 1)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shape, runs = ("quick", 1) if arguments.quick else ("135m", 7)
    runs, only = arguments.runs or runs, arguments.only or [*GOALS, "memory"]
    todo: list[Callable[[], list[dict[str, Any]]]] = [
        lambda name=name: time_rows(name, shape, runs) for name in GOALS if name in only
    ]
    if "memory" in only:
        todo += [
            lambda name=name: memory_rows(name, shape) for name in (("npo",) if arguments.quick else ("npo", "kl"))
        ]
    print(f"{'':84} {'value':>10} {'base':>10} {'ratio':>6} {'goal':>5}")
    rows = []
    for one in todo:
        for r in one():
            rows.append(r)
            print(
                f"{r['name']:84} {r['value']:10.4g} {r['base']:10.4g} {r['ratio']:6.3f} {r['goal'] or '':>5}",
                flush=True,
            )
    if rows:
        print(rows[0]["machine"])
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
