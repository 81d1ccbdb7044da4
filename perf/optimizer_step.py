"""Time and memory of optimizer steps, as ratios to the forward passes that they cannot do without.

    python perf/optimizer_step.py [--quick] [--only PATTERN] [--shape 135m|1b] [--device cuda] [--json FILE]

The model is a Llama of SmolLM2-135M's shape with random weights (`--quick`: a small one; `--shape 1b`: Llama-3.2-1B's
shape, in bf16 only), 8 x 64 tokens. Every ratio is taken within one run: the two things are timed in turn, and the
medians divided. Peaks of memory are of processes of their own.

"fused" are rows with the kernels of `pip install 'letgo[fast]'`, "plain torch" those without.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SHAPES: dict[str, dict[str, Any]] = {
    "quick": {
        "vocab_size": 4096, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
}  # fmt: skip
Timing = tuple[float, float, float]
Function = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """What the rows of a run have in common."""

    shape: str
    device: str
    runs: int

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        of_shape = {"1b": (torch.bfloat16,), "quick": (torch.float32,)}
        return of_shape.get(self.shape, (torch.float32, torch.bfloat16))

    def finish(self) -> None:
        """Wait for what the device was asked to do."""
        if self.device != "cpu":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Row:
    """One line of the table, measured when asked for."""

    name: str
    measure: Callable[[], Timing]
    goal: float | None = None
    runs: int | None = None


@functools.lru_cache(maxsize=1)
def make_model(shape: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SHAPES[shape], tie_word_embeddings=True)).to(dtype).eval()


def make_closure(model: Any, batch: int, length: int) -> Callable[[], torch.Tensor]:
    ids = torch.randint(0, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))
    ids = ids.to(model.device)

    def closure() -> torch.Tensor:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        if loss.requires_grad:
            loss.backward()
        return loss

    return closure


@torch.no_grad()
def forwards(closure: Function, count: int) -> None:
    for _ in range(count):
        closure()


@torch.no_grad()
def mezo_step(model: Any, closure: Function, lr: float, mu: float, seed: int) -> None:
    """The published procedure: Gaussian noise made anew for each of four passes over the weights."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def move(scale: float) -> None:
        generator = torch.Generator(model.device).manual_seed(seed)
        for p in parameters:
            z = torch.normal(0.0, 1.0, p.shape, generator=generator, dtype=p.dtype, device=p.device)
            p.add_(z, alpha=scale)

    move(mu)
    up = float(closure())
    move(-2 * mu)
    down = float(closure())
    move(mu)
    move(-lr * (up - down) / (2 * mu))


def ratio(one: Function, base: Function, setting: Setting) -> Timing:
    """Median seconds of both, timed in turn after a warm-up of each, and the ratio of the medians."""

    def seconds(function: Function) -> float:
        setting.finish()
        start = time.perf_counter()
        function()
        setting.finish()
        return time.perf_counter() - start

    one()
    base()
    pairs = [(seconds(one), seconds(base)) for _ in range(setting.runs)]
    top, bottom = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
    return top, bottom, top / bottom


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def fused_choices(device: str) -> list[tuple[str, bool]]:
    """Ways to make noise: with the fused kernels where they can serve, and without."""
    plain = [("plain torch", False)]
    return plain if device != "cpu" or importlib.util.find_spec("numba") is None else [("fused", True), *plain]


def in_place_rows(setting: Setting, dtype: torch.dtype) -> Iterator[Row]:
    def measure(noise: Any, fused: bool) -> Timing:
        from letgo.optim import ZOSGD
        from letgo.optim.engine.fused import use

        use(fused)
        model = make_model(setting.shape, dtype, setting.device)
        closure = make_closure(model, 8, 64)
        optimizer = ZOSGD(model.parameters(), lr=1e-7, noise=noise)
        timing = ratio(lambda: optimizer.step(closure), lambda: forwards(closure, 2), setting)
        use(None)
        return timing

    for way, fused in fused_choices(setting.device):
        for noise, goal in (("rademacher", 1.10), ("gaussian", 1.35)):
            name = f"in place, q=1, {noise}, {name_of(dtype)}, {way}: step / two forwards"
            serves = fused or setting.device != "cpu"
            yield Row(name, functools.partial(measure, noise, fused), goal if serves else None)

    def published() -> Timing:
        model = make_model(setting.shape, dtype, setting.device)
        closure = make_closure(model, 8, 64)
        return ratio(lambda: mezo_step(model, closure, 1e-7, 1e-3, 0), lambda: forwards(closure, 2), setting)

    yield Row(f"published MeZO procedure, {name_of(dtype)}: step / two forwards", published)


def perturbing_rows(setting: Setting, dtype: torch.dtype) -> Iterator[Row]:
    """One pass that perturbs all weights, against copying them: how near it is to the memory's bandwidth."""

    def measure(noise: Any, fused: bool) -> Timing:
        from letgo.optim.engine.fused import use
        from letgo.optim.engine.noise import Direction

        use(fused)
        # Without the embedding, so that large devices' caches and small ones' memories both see matrices alone.
        weights = [p.detach() for p in make_model(setting.shape, dtype, setting.device).model.layers.parameters()]
        outs = [torch.empty_like(w) for w in weights]
        direction = Direction(noise, (0, 0, 0), weights)

        def perturb() -> None:
            for i, out in enumerate(outs):
                direction.shifted(i, 1e-3, out=out)

        def copy() -> None:
            for weight, out in zip(weights, outs, strict=True):
                out.copy_(weight)

        timing = ratio(perturb, copy, setting)
        use(None)
        return timing

    for way, fused in fused_choices(setting.device):
        for noise in ("rademacher", "gaussian"):
            name = f"perturb pass, {noise}, {name_of(dtype)}, {way}: pass / copying the weights"
            # 70 % of the copy's bandwidth, below which a device wants a kernel of its own.
            goal = None if setting.device == "cpu" else round(1 / 0.7, 2)
            yield Row(name, functools.partial(measure, noise, fused), goal)


def hybrid_row(setting: Setting, dtype: torch.dtype) -> Row:
    """A round of the hybrid against its two optimizers called by hand, on a model without decay or schedule."""

    def measure() -> Timing:
        from letgo.optim import FOZO

        model = make_model(setting.shape, dtype, setting.device)
        closure = make_closure(model, 8, 64)
        hybrid = FOZO(model.parameters(), lr=0.0, zo_lr=0.0, zo="zo_sgd", fo="sgd", fo_steps=1, zo_steps=1)

        def round_of_hybrid() -> None:
            for _ in range(2):
                hybrid.zero_grad()
                hybrid.step(closure)

        def by_hand() -> None:
            for optimizer in (hybrid.fo, hybrid.zo):
                optimizer.zero_grad()
                optimizer.step(closure)

        timing = ratio(round_of_hybrid, by_hand, setting)
        model.zero_grad()
        return timing

    return Row(f"hybrid round / the sum of its two steps, {name_of(dtype)}", measure, 1.02)


def batched_rows(setting: Setting, dtype: torch.dtype) -> Iterator[Row]:
    """Eight directions of rank 1 in batched passes against sixteen forward passes one after another."""

    def measure(batch: int, length: int, at_once: int | None) -> Timing:
        from letgo.optim import ZOSGD

        model = make_model(setting.shape, dtype, setting.device)
        closure = make_closure(model, batch, length)
        optimizer = ZOSGD(
            model.parameters(), lr=1e-9, num_directions=8, rank=1, engine="batched", evaluations_at_once=at_once
        )
        return ratio(lambda: optimizer.step(closure), lambda: forwards(closure, 16), setting)

    for batch, length, at_once, goal in ((8, 64, 1, 1.05), (1, 32, None, 0.55)):
        name = f"batched, rank 1, q=8, {batch}x{length}, {at_once or 'all'} at once, {name_of(dtype)}"
        # The goals are of two saturated cores in float32.
        stated = goal if dtype == torch.float32 and setting.device == "cpu" else None
        yield Row(f"{name}: step / sixteen forwards", functools.partial(measure, batch, length, at_once), stated)


MEMORY = """
import sys, torch
sys.path[:0] = {path!r}
from optimizer_step import make_model, make_closure
model = make_model({shape!r}, torch.{dtype}, {device!r})
closure = make_closure(model, 8, 64)
if {device!r} == "cpu":
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak of making the model
else:
    torch.cuda.reset_peak_memory_stats()
if {step!r}:
    from letgo.optim import ZOSGD
    from letgo.optim.engine import fused
    fused.use({fused!r})
    optimizer = ZOSGD(model.parameters(), lr=1e-7, noise={noise!r})
    optimizer.step(closure)
    optimizer.step(closure)
else:
    with torch.no_grad():
        closure()
        closure()
if {device!r} == "cpu":
    print(1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]))
else:
    print(torch.cuda.max_memory_allocated())
"""


def memory_rows(setting: Setting, dtype: torch.dtype) -> Iterator[Row]:
    if setting.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return  # peaks are read as Linux counts them

    @functools.cache
    def peak(noise: str | None, fused: bool) -> int:
        script = MEMORY.format(
            path=[str(Path(__file__).parent), *sys.path], shape=setting.shape, dtype=name_of(dtype),
            device=setting.device, step=noise is not None, noise=noise, fused=fused,
        )  # fmt: skip
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])

    def measure(noise: str, fused: bool) -> Timing:
        top, bottom = peak(noise, fused), peak(None, False)
        return top, bottom, top / bottom

    for way, fused in fused_choices(setting.device):
        for noise in ("rademacher",) if setting.shape == "quick" else ("rademacher", "gaussian"):
            name = f"peak memory, {noise}, {name_of(dtype)}, {way}: step / inference (bytes)"
            yield Row(name, functools.partial(measure, noise, fused), 1.10, 1)


def all_rows(setting: Setting) -> Iterator[Row]:
    for dtype in setting.dtypes:
        yield from in_place_rows(setting, dtype)
        if dtype == setting.dtypes[0]:
            yield hybrid_row(setting, dtype)
            yield from batched_rows(setting, dtype)
        yield from perturbing_rows(setting, dtype)
    # Each peak is a process of its own.
    for dtype in setting.dtypes:
        yield from memory_rows(setting, dtype)


def machine_of(device: str) -> str:
    where = torch.cuda.get_device_name() if device != "cpu" else platform.machine()
    return f"{where}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, one run, and few peaks of memory")
    parser.add_argument("--shape", choices=list(SHAPES), help="the model (default 135m, with --quick quick)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", default="*", help="rows to measure: a shell pattern, or a part of their names")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--runs", type=int, help="repetitions (default 7, with --quick 1)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shape = arguments.shape or ("quick" if arguments.quick else "135m")
    setting = Setting(shape, arguments.device, arguments.runs or (1 if arguments.quick else 7))
    pattern = arguments.only if any(c in arguments.only for c in "*?[") else f"*{arguments.only}*"
    wanted = [row for row in all_rows(setting) if fnmatch.fnmatchcase(row.name, pattern)]
    if arguments.list:
        print("\n".join(row.name for row in wanted))
        return
    done = []
    print(f"{'':80} {'value':>12} {'base':>12} {'ratio':>7} {'goal':>6}")
    for row in wanted:
        value, base, measured = row.measure()
        print(f"{row.name:80} {value:12.4g} {base:12.4g} {measured:7.3f} {row.goal or '':>6}", flush=True)
        done.append(
            {
                "name": row.name,
                "ratio": round(measured, 4),
                "goal": row.goal,
                "better": "lower",
                "value": value,
                "base": base,
                "runs": row.runs or setting.runs,
                "machine": machine_of(setting.device),
            }
        )
    print(machine_of(setting.device))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": done}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
