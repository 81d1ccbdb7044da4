"""Two processes against one: what sharing a step over ranks costs, in time and in bytes.

    python perf/distributed_step.py [--quick] [--only PATTERN] [--shape 135m] [--rows 4] [--json FILE]

Two gloo processes of one thread each take a step together, and one of them takes the same step alone while the other
waits; both in turn, several times. Efficiency is (time alone) / (2 x time together): 1 where two processes take half
of the time. The model is a Llama of SmolLM2-135M's shape with random weights (`--quick`: a small one), in float32.

directions  q = 8 directions, the same rows everywhere, each process evaluates half of the 16 losses; alone: all of them
data        the same 16 losses, each process on half of the rows, the losses averaged; alone: on all rows
AdamW, DDP  one forward and backward pass, each process on half of the rows, the gradients averaged

Bytes a step are what a process hands to the others: counted by `letgo.optim.engine.ranks` where the order is zero,
reckoned for DDP as a ring sends gradients, 2 (n - 1) / n of them. All on one machine: what a network adds is not
measured.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from optimizer_step import SHAPES, machine_of, make_model

WORLD = 2
GOAL = 0.85
Step = Callable[[], Any]


class Alone:
    """Made into a `Ranks` of one process, inside a run of several."""

    count, rank = 1, 0


def ids_of(arguments: argparse.Namespace, vocabulary: int) -> torch.Tensor:
    """(rows, length): the same on all processes."""
    return torch.randint(0, vocabulary, (arguments.rows, arguments.length), generator=torch.Generator().manual_seed(1))


def closure_of(model: Any, ids: torch.Tensor) -> Step:
    def closure() -> torch.Tensor:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        if loss.requires_grad:
            loss.backward()
        return loss

    return closure


def zeroth_order(model: Any, together: Step, alone: Step, share: Any, q: int) -> tuple[Step, Step, Callable[[], float]]:
    """A step together, the same alone, and the bytes a step that the first has sent so far."""
    from letgo.optim import ZOSGD
    from letgo.optim.engine.ranks import Ranks

    class AloneRanks(Alone, Ranks):
        pass

    def make(ranks: Ranks) -> Any:
        optimizer = ZOSGD(model.parameters(), lr=1e-9, num_directions=q)
        optimizer.ranks = ranks
        return optimizer

    shared, single = make(Ranks(share)), make(AloneRanks(share))
    return (
        lambda: shared.step(together),
        lambda: single.step(alone),
        lambda: float(shared.ranks.describe()["bytes_a_step"]),
    )


def first_order(model: Any, ids: torch.Tensor, mine: torch.Tensor) -> tuple[Step, Step, Callable[[], float]]:
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)

    def step(called: Any, rows: torch.Tensor) -> None:
        optimizer.zero_grad()
        closure_of(called, rows)()
        optimizer.step()

    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    return (
        lambda: step(wrapped, mine),
        lambda: step(model, ids),
        lambda: 2 * (WORLD - 1) / WORLD * gradients,
    )


def seconds_of(step: Step, mine: bool) -> float:
    """From when all processes are ready until all are done, of which only some may have something to do."""
    dist.barrier()
    start = time.perf_counter()
    if mine:
        step()
    dist.barrier()
    return time.perf_counter() - start


def work(arguments: argparse.Namespace) -> None:
    """What each process does; the first one writes what was measured."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{arguments.folder}/store", rank=arguments.rank, world_size=WORLD
    )
    model = make_model(arguments.shape, torch.float32)
    ids = ids_of(arguments, model.config.vocab_size)
    share = arguments.rows // WORLD
    mine = ids[arguments.rank * share : (arguments.rank + 1) * share]
    both, half = closure_of(model, ids), closure_of(model, mine)
    kinds: dict[str, Callable[[], tuple[Step, Step, Callable[[], float]]]] = {
        "directions": lambda: zeroth_order(model, both, both, "directions", arguments.directions),
        "data": lambda: zeroth_order(model, half, both, "data", arguments.directions),
        "AdamW, DDP": lambda: first_order(model, ids, mine),
    }
    measured = {}
    for kind in arguments.kinds:
        together, alone, sent = kinds[kind]()
        first = arguments.rank == 0
        seconds_of(together, True)
        seconds_of(alone, first)  # a process that waits takes no step, so that the weights' states may differ
        pairs = [(seconds_of(alone, first), seconds_of(together, True)) for _ in range(arguments.runs)]
        if first:
            print(f"{kind}: {pairs}", file=sys.stderr, flush=True)
        measured[kind] = {"pairs": pairs, "bytes": sent()}
    if arguments.rank == 0:
        (arguments.folder / "measured.json").write_text(json.dumps(measured), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the processes and read what they measured."""
    with tempfile.TemporaryDirectory() as folder:
        shared = [
            "--folder", folder, "--shape", arguments.shape, "--rows", str(arguments.rows),
            "--length", str(arguments.length), "--directions", str(arguments.directions),
            "--runs", str(arguments.runs), "--kinds", *arguments.kinds,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        processes = [
            subprocess.Popen([sys.executable, __file__, "--rank", str(rank), *shared], env=environment)
            for rank in range(WORLD)
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit(f"the processes ended with {codes}")
        return dict(json.loads((Path(folder) / "measured.json").read_text(encoding="utf-8")))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and three runs")
    parser.add_argument("--shape", choices=list(SHAPES), help="the model (default 135m, with --quick quick)")
    parser.add_argument("--rows", type=int, help="rows of the whole batch (default 4)")
    parser.add_argument("--length", type=int, help="tokens a row (default 64, with --quick 32)")
    parser.add_argument("--directions", type=int, default=8, help="q")
    parser.add_argument("--only", default="*", help="kinds to measure: a shell pattern, or a part of their names")
    parser.add_argument("--runs", type=int, help="repetitions (default 5, with --quick 3)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    for name, kind in (("--rank", int), ("--folder", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--kinds", nargs="*", default=["directions", "data", "AdamW, DDP"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.shape = arguments.shape or ("quick" if arguments.quick else "135m")
    arguments.rows = arguments.rows or 4
    arguments.length = arguments.length or (32 if arguments.quick else 64)
    arguments.runs = arguments.runs or (3 if arguments.quick else 5)
    pattern = arguments.only if any(c in arguments.only for c in "*?[") else f"*{arguments.only}*"
    arguments.kinds = [kind for kind in arguments.kinds if fnmatch.fnmatchcase(kind.lower(), pattern.lower())]
    if arguments.rows % WORLD:
        parser.error(f"--rows must be even, not {arguments.rows}: {WORLD} processes share them")
    return arguments


def rows_of(arguments: argparse.Namespace, measured: dict[str, Any]) -> list[dict[str, Any]]:
    machine = machine_of("cpu")
    setting = f"{arguments.shape}, {arguments.rows}x{arguments.length}"
    rows = []
    for kind, found in measured.items():
        alone, together = (statistics.median(pair[i] for pair in found["pairs"]) for i in range(2))
        order = "" if "DDP" in kind else f", zeroth order, q={arguments.directions}"
        rows.append(
            {
                "name": f"{kind}{order}, {setting}: alone / (2 x two processes)",
                "ratio": round(alone / (WORLD * together), 4),
                "goal": GOAL if kind == "directions" else None,
                "better": "higher",
                "value": alone,
                "base": together,
                "bytes_a_step": found["bytes"],
                "runs": len(found["pairs"]),
                "machine": machine,
            }
        )
        if kind != "AdamW, DDP":
            losses = 2 * arguments.directions
            rows.append(
                {
                    "name": f"{kind}{order}, {setting}: bytes a step / 8 bytes a loss",
                    "ratio": round(found["bytes"] / (8 * losses), 4),
                    "goal": 1.0,
                    "better": "lower",
                    "value": found["bytes"],
                    "base": 8 * losses,
                    "runs": len(found["pairs"]),
                    "machine": machine,
                }
            )
    return rows


def main() -> None:
    arguments = parsed()
    if arguments.rank is not None:
        work(arguments)
        return
    rows = rows_of(arguments, measure(arguments))
    print(f"{'':88} {'value':>11} {'base':>11} {'ratio':>7} {'goal':>6} {'bytes a step':>13}")
    for row in rows:
        sent = row.get("bytes_a_step", "")
        print(
            f"{row['name']:88} {row['value']:11.4g} {row['base']:11.4g} {row['ratio']:7.3f} {row['goal'] or '':>6} "
            f"{sent:>13}"
        )
    print(
        f"medians of {arguments.runs} runs in turn; seconds (or bytes); {machine_of('cpu')}, one used by each process"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
