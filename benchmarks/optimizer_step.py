"""Time and memory of optimizer steps, as ratios to the forward passes that they cannot do without.

    python benchmarks/optimizer_step.py [--quick] [--json FILE] [--threads N]

The model is a Llama of SmolLM2-135M's shape with random weights (`--quick`: a small one), 8 x 64 tokens. Every ratio
is taken within one run: the two things are timed in turn, and the medians divided. Peaks of memory are of processes of
their own.
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

SHAPES: dict[str, dict[str, Any]] = {
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    "quick": {"vocab_size": 4096, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 4},
}


def make_model(shape: str, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SHAPES[shape], **heads)).to(dtype).eval()


def make_closure(model: Any, batch: int, length: int) -> Callable[[], torch.Tensor]:
    ids = torch.randint(0, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))

    def closure() -> torch.Tensor:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        if loss.requires_grad:
            loss.backward()
        return loss

    return closure


@torch.no_grad()
def mezo_step(model: Any, closure: Callable[[], torch.Tensor], lr: float, mu: float, seed: int) -> None:
    """The published procedure: Gaussian noise made anew for each of four passes over the weights."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def move(scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in parameters:
            z = torch.normal(0.0, 1.0, p.shape, generator=generator, dtype=p.dtype)
            p.add_(z, alpha=scale)

    move(mu)
    up = float(closure())
    move(-2 * mu)
    down = float(closure())
    move(mu)
    move(-lr * (up - down) / (2 * mu))


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratio(one: Callable[[], Any], base: Callable[[], Any], runs: int) -> tuple[float, float, float]:
    """Median seconds of both, timed in turn after a warm-up of each, and the ratio of the medians."""
    one()
    base()
    pairs = [(seconds(one), seconds(base)) for _ in range(runs)]
    top, bottom = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
    return top, bottom, top / bottom


def step_rows(shape: str, runs: int) -> list[dict[str, Any]]:
    from letgo.optim import FOZO, ZOSGD

    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model(shape, dtype)
        closure = make_closure(model, 8, 64)
        name = str(dtype).removeprefix("torch.")

        @torch.no_grad()
        def two_forwards(closure: Callable[[], torch.Tensor] = closure) -> None:
            closure()
            closure()

        for noise, goal in (("rademacher", 1.10), ("gaussian", 1.35)):
            optimizer = ZOSGD(model.parameters(), lr=1e-7, noise=noise)
            timing = ratio(lambda o=optimizer, c=closure: o.step(c), two_forwards, runs)
            rows.append(row(f"in place, q=1, {noise}, {name}: step / two forwards", timing, goal, runs))
        timing = ratio(lambda m=model, c=closure: mezo_step(m, c, 1e-7, 1e-3, 0), two_forwards, runs)
        rows.append(row(f"published MeZO procedure, {name}: step / two forwards", timing, None, runs))
        if dtype == torch.float32:
            rows.append(hybrid_row(model, closure, FOZO, runs))
            rows += batched_rows(model, ZOSGD, runs)
    return rows


def hybrid_row(model: Any, closure: Callable[[], torch.Tensor], fozo: Any, runs: int) -> dict[str, Any]:
    """A round of the hybrid against its two optimizers called by hand, on a model without decay or schedule."""
    hybrid = fozo(model.parameters(), lr=0.0, zo_lr=0.0, zo="zo_sgd", fo="sgd", fo_steps=1, zo_steps=1)

    def round_of_hybrid() -> None:
        for _ in range(2):
            hybrid.zero_grad()
            hybrid.step(closure)

    def by_hand() -> None:
        for optimizer in (hybrid.fo, hybrid.zo):
            optimizer.zero_grad()
            optimizer.step(closure)

    timing = ratio(round_of_hybrid, by_hand, runs)
    return row("hybrid round / the sum of its two steps, float32", timing, 1.02, runs)


def batched_rows(model: Any, zo_sgd: Any, runs: int) -> list[dict[str, Any]]:
    """Eight directions of rank 1 in batched passes against sixteen forward passes one after another."""
    rows = []
    for batch, length, at_once, goal in ((8, 64, 1, 1.05), (1, 32, None, 0.55)):
        closure = make_closure(model, batch, length)

        @torch.no_grad()
        def sixteen_forwards(closure: Callable[[], torch.Tensor] = closure) -> None:
            for _ in range(16):
                closure()

        optimizer = zo_sgd(
            model.parameters(), lr=1e-9, num_directions=8, rank=1, engine="batched", evaluations_at_once=at_once
        )
        timing = ratio(lambda o=optimizer, c=closure: o.step(c), sixteen_forwards, runs)
        name = f"batched, rank 1, q=8, {batch}x{length}, {at_once or 'all'} at once: step / sixteen forwards"
        rows.append(row(name, timing, goal, runs))
    return rows


MEMORY = """
import sys, torch
sys.path[:0] = {path!r}
from optimizer_step import make_model, make_closure
model = make_model({shape!r}, torch.{dtype})
closure = make_closure(model, 8, 64)
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of making the model
if {step!r}:
    from letgo.optim import ZOSGD
    optimizer = ZOSGD(model.parameters(), lr=1e-7, noise={noise!r})
    optimizer.step(closure)
    optimizer.step(closure)
else:
    with torch.no_grad():
        closure()
        closure()
print(1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]))
"""


def memory_rows(shape: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if not Path("/proc/self/clear_refs").exists():
        return rows  # peaks are read as Linux counts them
    for dtype in ("float32", "bfloat16"):
        peaks = {}
        for noise in (None, "rademacher", "gaussian"):
            path = [str(Path(__file__).parent), *sys.path]
            script = MEMORY.format(path=path, shape=shape, dtype=dtype, step=noise is not None, noise=noise)
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
            peaks[noise] = int(done.stdout.split()[-1])
        for noise in ("rademacher", "gaussian"):
            timing = (peaks[noise], peaks[None], peaks[noise] / peaks[None])
            rows.append(row(f"peak memory, {noise}, {dtype}: step / inference (bytes)", timing, 1.10, 1))
    return rows


def row(name: str, timing: tuple[float, float, float], goal: float | None, runs: int) -> dict[str, Any]:
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    return {
        "name": name,
        "ratio": round(timing[2], 4),
        "goal": goal,
        "better": "lower",
        "value": timing[0],
        "base": timing[1],
        "runs": runs,
        "machine": machine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and three runs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--runs", type=int, help="repetitions (default 7, with --quick 3)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shape, runs = ("quick", 3) if arguments.quick else ("135m", 7)
    runs = arguments.runs or runs
    rows = step_rows(shape, runs) + memory_rows(shape)
    print(f"{'':80} {'value':>12} {'base':>12} {'ratio':>7} {'goal':>6}")
    for r in rows:
        print(f"{r['name']:80} {r['value']:12.4g} {r['base']:12.4g} {r['ratio']:7.3f} {r['goal'] or '':>6}")
    print(rows[0]["machine"])
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
