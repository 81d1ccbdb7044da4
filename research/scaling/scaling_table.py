"""The tables and the figure of this folder's README.md: python -m research.scaling.scaling_table [--figure FILE]

Steps of three shapes of model under zeroth and first order on 1 to 1,000 devices; prints Markdown.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from letgo.core.sizes import size
from letgo.report.chart import Axis, Figure, Plot
from letgo.report.svg import tag
from research.scaling.run_step import short
from research.scaling.scaling import MACHINES, StepWork, Strategy, efficiency, step_cost

SHAPES = {
    # hidden, inner, layers, heads, heads of keys and values, vocabulary, tied: SmolLM2-135M, Llama-2-7B, Llama-2-70B
    "135M": (576, 1536, 30, 9, 3, 49152, True),
    "7B": (4096, 11008, 32, 32, 32, 32000, False),
    "70B": (8192, 28672, 80, 64, 8, 32000, False),
}
COUNTS = (1, 2, 8, 64, 512, 1000)
ROWS, LENGTH, DIRECTIONS, ITEM = 8, 512, 8, 2
CURVES = (
    ("ZO, data", "ddp", "data"),
    ("ZO, directions", "ddp", "directions"),
    ("ZO, FSDP2", "fsdp2", "data"),
    ("FO, DDP", "ddp", "data"),
    ("FO, FSDP2", "fsdp2", "data"),
)


def work_of(name: str, zeroth: bool) -> StepWork:
    """A step of a shape: bf16, 8 rows of 512 tokens a device; 16 evaluations, or one forward and backward pass with
    AdamW."""
    width, inner, layers, heads, kept_heads, vocabulary, tied = SHAPES[name]
    narrow = width * kept_heads // heads
    block = 2 * width * width + 2 * width * narrow + 3 * width * inner
    table = vocabulary * width
    elements = layers * block + (1 if tied else 2) * table
    tokens = ROWS * LENGTH
    forward = 2.0 * tokens * (layers * block + table) + 4.0 * layers * width * LENGTH * tokens
    common = (1, ITEM * elements, ITEM * table, ITEM * elements, elements)
    units = layers + (1 if tied else 2)
    if zeroth:
        return StepWork(2 * DIRECTIONS, forward, DIRECTIONS, 0, 0.0, *common, 0.0, units)
    return StepWork(0, 0.0, 0, 1, 3 * forward, *common, 2.0, units)


def memory_of(work: StepWork, ranks: int, strategy: Strategy) -> float:
    """Bytes of weights, gradients, state, and DDP's buffers or a kept copy of the shard; no activations."""
    zeroth = work.evaluations > 0
    if strategy == "ddp":
        return work.weights * (1 + (ranks > 1)) + (0 if zeroth else (1 + work.state) * work.weights)
    return work.weights / ranks * (1 + (1 if zeroth else 1 + work.state)) + work.kept


def row(name: str, label: str, strategy: Strategy, share: str, machine_name: str) -> list[str]:
    machine = MACHINES[machine_name]
    base = work_of(name, label.startswith("ZO"))
    rate = machine.flops["bfloat16"]
    cells = [name, label]
    for count in COUNTS:
        # As many directions a device: 8 times the devices.
        work = base.scaled(count) if share == "directions" else base
        found = []
        for overlap in (0.0, 1.0):
            cost = step_cost(work, count, strategy, machine, rate, share=share, overlap=overlap)  # type: ignore[arg-type]
            alone = step_cost(base, 1, strategy, machine, rate, overlap=overlap)
            # Directions of N devices together are N times the work of one.
            grown = count if share == "directions" else 1
            found.append(grown * efficiency(cost, alone))
        low, high = (f"{value:.2f}" for value in found)
        cells.append(low if low == high else f"{low}–{high}")
    return cells


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(one)} |" for one in rows)])


def figure(machine: str, name: str) -> str:
    """Efficiency over devices, nothing hidden, as one SVG that brings its own colours."""
    plot = Plot(Axis("devices, as a power of ten", 0.0, math.log10(COUNTS[-1])), Axis("efficiency", 0.0, 1.05))
    counts = [round(10 ** (step / 20)) for step in range(61)]
    there = MACHINES[machine]
    for number, (label, strategy, share) in enumerate(CURVES):
        base = work_of(name, label.startswith("ZO"))
        points = []
        for count in counts:
            work = base.scaled(count) if share == "directions" else base
            rate = there.flops["bfloat16"]
            cost = step_cost(work, count, strategy, there, rate, share=share)  # type: ignore[arg-type]
            grown = count if share == "directions" else 1
            value = grown * efficiency(cost, step_cost(base, 1, strategy, there, rate))  # type: ignore[arg-type]
            points.append((math.log10(count), value))
        plot.line(points, f"s{number}")
        x, y = points[-1 - 6 * number]
        plot.label(plot.x(x), plot.y(y), label)
    title = f"Efficiency of a step of a {name} model"
    colours = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#b35806")
    style = ".grid{stroke:#ddd;fill:none}.axis{stroke:#444;fill:none}text{font:12px sans-serif;fill:#222}"
    style += ".line{fill:none;stroke-width:2}svg{background:#fff}"
    style += "".join(f".s{number}{{stroke:{colour}}}" for number, colour in enumerate(colours))
    plot.under.append(tag("defs", tag("style", style)))
    drawn = Figure(plot, "scaling", title, "", "From the cost model, nothing hidden.", (), ())
    return str(drawn.drawing).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", default="h100", choices=[name for name in MACHINES if MACHINES[name].flops])
    parser.add_argument("--figure", type=Path, help="write the figure of the 7B model there")
    given = parser.parse_args()
    machine = MACHINES[given.machine]
    heads = ["model", "step", *(f"N = {count:,}" for count in COUNTS)]
    print(f"Machine: {machine.name}: {machine.source}.\n")
    print("Efficiency, with no communication hidden and with all that can be:\n")
    curves = [row(name, *curve, given.machine) for name in SHAPES for curve in CURVES]  # type: ignore[arg-type]
    print(markdown(heads, curves))
    print("\nA step on 8 and on 1,000 devices, nothing hidden, and what a device sends in it:\n")
    rows = []
    for name in SHAPES:
        for label, strategy, share in CURVES:
            cells = [name, label]
            for count in (8, 1000):
                base = work_of(name, label.startswith("ZO"))
                work = base.scaled(count) if share == "directions" else base
                rate = machine.flops["bfloat16"]
                cost = step_cost(work, count, strategy, machine, rate, share=share)  # type: ignore[arg-type]
                held = memory_of(work, count, strategy)  # type: ignore[arg-type]
                cells += [short(cost.seconds), short(cost.wire), size(cost.sent), size(held)]
            rows.append(cells)
    told = ["a step", "of it on the wire", "a device sends", "weights, gradients, state"]
    print(markdown(["model", "step", *(f"{what}, N = {n}" for n in (8, "1,000") for what in told)], rows))
    if given.figure:
        given.figure.write_text(figure(given.machine, "7B"), encoding="utf-8")


if __name__ == "__main__":
    main()
