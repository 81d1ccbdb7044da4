r"""What a step takes on N devices: a model of its cost in compute, memory and communication.

    T(N) = passes + traffic + wire - hidden

passes    floating-point operations over the rate that a device reaches.
traffic   bytes that the optimizer itself moves in a device's memory, over its bandwidth.
wire      collectives, each alpha + beta: hops times the latency of one, and bytes over bandwidth:

              all-reduce      2 (N-1) a + 2 (N-1)/N n/b   (ring), or 2 ceil(log2 N) a + 2 n/b  (tree), the smaller
              all-gather        (N-1) a +   (N-1)/N n/b   (ring); a reduce-scatter is the same

          of n bytes. A ring over several nodes is as fast as its slowest hop; all devices of a node drive their network
          adapters at once, on rings of their own.
hidden    the share `overlap` of what communication and the passes that it can run beside have in common: 0 is a run
          that waits for every message, 1 one that never waits while it could compute.

Sources: Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in MPICH (IJHPCA 2005);
Patarasu and Yuan, Bandwidth optimal all-reduce algorithms (JPDC 2009).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Strategy = Literal["single", "ddp", "fsdp2"]
SCALAR = 8
"""Bytes of a loss, as `letgo.optim.engine.ranks` sends it."""
SHIFT_TRAFFIC = 3.0
"""Times the trained weights that an evaluation at perturbed ones moves beside the pass: read, written, read again."""
NOISE_TRAFFIC = 24.0
"""Bytes an element that a direction's noise moves when an update sums several: signs as 16-bit lanes (2 written, 2
read), as float32 (4, 4), added to the sum (4 read, 8 and 4 of accumulation), counted off `Estimate.blocks`, rounded up.
On a CPU blocks stay in its cache, and less is moved."""


@dataclass(frozen=True)
class Machine:
    """Devices, and what joins them. Rates in units a second, bytes one way.

    Attributes:
        device: cpu or cuda.
        per_node: devices of one node.
        flops: operations a second that a step reaches, by the weights' type; where a type is missing they are measured
            or given.
        memory: bytes of a device; None where they are not known.
        memory_bandwidth: of a device; infinite where only `flops` counts, as where that is measured on whole steps.
        inside: bandwidth between devices of a node.
        across: bandwidth of a device to other nodes.
        hop_inside, hop_across: latency of one hop, seconds.
        source: where the figures are from.
    """

    name: str
    device: str
    per_node: int
    flops: dict[str, float]
    memory: int | None
    memory_bandwidth: float
    inside: float
    across: float
    hop_inside: float
    hop_across: float
    source: str

    def bandwidth(self, ranks: int) -> float:
        return self.inside if ranks <= self.per_node else min(self.inside, self.per_node * self.across)

    def hops(self, ranks: int) -> float:
        """Seconds of the N - 1 hops around a ring."""
        between = 0 if ranks <= self.per_node else -(-ranks // self.per_node) - 1
        return (ranks - 1 - between) * self.hop_inside + between * self.hop_across

    def depth(self, ranks: int) -> float:
        """Seconds of the hops from a leaf of a binary tree to its root."""
        inside = math.ceil(math.log2(max(1, min(ranks, self.per_node))))
        across = math.ceil(math.log2(-(-ranks // self.per_node)))
        return inside * self.hop_inside + across * self.hop_across


REACHED = 0.4
"""Of a device's peak rate: what large training runs report (0.38 to 0.43: The Llama 3 Herd of Models, arXiv 2407.21783,
table 4)."""
_NCCL = "hops: NCCL's own tuning table, ring and Simple protocol, 3.4 us in a node and 14 us between nodes"

MACHINES: dict[str, Machine] = {
    "h100": Machine(
        "h100", "cuda", 8,
        {"bfloat16": REACHED * 989e12, "float16": REACHED * 989e12, "float32": REACHED * 67e12},
        80 * 10**9, 3.35e12, 450e9, 50e9, 3.4e-6, 14e-6,
        f"NVIDIA's data sheet of the H100 SXM (989 TFLOP/s dense bf16, 67 float32, 80 GB at 3.35 TB/s, NVLink 450 GB/s "
        f"each way), one 400 Gb/s adapter a device as in a DGX H100; {REACHED:.0%} of the peak reached; {_NCCL}",
    ),
    "a100": Machine(
        "a100", "cuda", 8,
        {"bfloat16": REACHED * 312e12, "float16": REACHED * 312e12, "float32": REACHED * 19.5e12},
        80 * 10**9, 2.039e12, 300e9, 25e9, 3.4e-6, 14e-6,
        f"NVIDIA's data sheet of the A100 SXM 80GB (312 TFLOP/s dense bf16, 19.5 float32, 80 GB at 2.039 TB/s, NVLink "
        f"300 GB/s each way), one 200 Gb/s adapter a device as in a DGX A100; {REACHED:.0%} of the peak; {_NCCL}",
    ),
    "cpu": Machine(
        "cpu", "cpu", 1, {}, None, math.inf, 3.1e9, 3.1e9, 5e-5, 5e-5,
        "a process a server, 25 Gb/s Ethernet at its line rate, 50 us a hop (assumed); the rate measured or given",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class StepWork:
    """What one optimizer step asks of a device that works alone on its own rows; counts are averages where steps differ
    (hybrids).

    Attributes:
        evaluations: of the loss without a gradient, E.
        evaluation_flops: of one, over all micro-batches of the step.
        directions: q, over which the evaluations are made.
        backwards: evaluations with a gradient.
        backward_flops: of one, forward and backward.
        windows: micro-batches of a step.
        weights: bytes of the whole model.
        kept: of those, bytes that stay together from the forward to the backward pass under FSDP2.
        trained: bytes of what is trained.
        elements: how many numbers those are.
        state: optimizer state in multiples of `trained`.
        units: that are gathered one after another under FSDP2.
    """

    evaluations: float
    evaluation_flops: float
    directions: float
    backwards: float
    backward_flops: float
    windows: int
    weights: int
    kept: int
    trained: int
    elements: int
    state: float
    units: int

    @property
    def flops(self) -> float:
        return self.evaluations * self.evaluation_flops + self.backwards * self.backward_flops

    def scaled(self, factor: float) -> StepWork:
        """So many times the directions, and with them the evaluations."""
        return replace(self, evaluations=factor * self.evaluations, directions=factor * self.directions)


@dataclass(frozen=True)
class StepCost:
    """A step on N devices: seconds by what they go into, and bytes.

    Attributes:
        hidden: of `wire`: what is not waited for.
        sent: bytes that a device sends.
        work: evaluations times rows, of all devices together, in units of what one device alone does.
    """

    ranks: int
    passes: float
    traffic: float
    wire: float
    hidden: float
    sent: float
    work: float

    @property
    def seconds(self) -> float:
        return self.passes + self.traffic + self.wire - self.hidden


def all_reduce(size: float, ranks: int, machine: Machine) -> float:
    """Seconds."""
    if ranks < 2:
        return 0.0
    over = size / machine.bandwidth(ranks)
    ring = 2 * machine.hops(ranks) + 2 * (ranks - 1) / ranks * over
    return min(ring, 2 * machine.depth(ranks) + 2 * over)


def all_gather(size: float, ranks: int, machine: Machine, messages: float = 1) -> float:
    """Seconds of gathering `size` bytes in so many messages; a reduce-scatter takes as long."""
    if ranks < 2:
        return 0.0
    return messages * machine.hops(ranks) + (ranks - 1) / ranks * size / machine.bandwidth(ranks)


def wire_bytes(work: StepWork, ranks: int, strategy: Strategy) -> dict[str, float]:
    """Bytes that a device sends in a step, by what they are (a rank's last rows padded are not counted)."""
    if ranks < 2 or strategy == "single":
        return {}
    share = (ranks - 1) / ranks
    found: dict[str, float] = {}
    if work.evaluations:
        found["losses"] = SCALAR * work.evaluations
    if strategy == "fsdp2":
        found["weights gathered, evaluations"] = share * work.evaluations * work.windows * work.weights
        found["weights gathered, forward and backward"] = (
            share * work.backwards * work.windows * (2 * work.weights - work.kept)
        )
        found["gradients scattered"] = share * work.backwards * work.trained
    else:
        found["gradients reduced"] = 2 * share * work.backwards * work.trained
    return {name: count for name, count in found.items() if count}


def step_cost(
    work: StepWork,
    ranks: int,
    strategy: Strategy,
    machine: Machine,
    rate: float,
    *,
    share: Literal["data", "directions"] = "data",
    overlap: float = 0.0,
) -> StepCost:
    """The cost of a step.

    Args:
        work: of a device alone.
        ranks: N.
        strategy: how the model lies on them; `single` is one.
        machine: the devices.
        rate: operations a second.
        share: `data`: every device evaluates everything on rows of its own. `directions`: all have the same rows, and
            the evaluations are split; of a first-order step each takes a part of the rows.
        overlap: the share of what can be hidden that is.
    """
    sharded = strategy == "fsdp2"
    mine = work.evaluations
    if share == "directions" and ranks > 1:
        # As whole evaluations as they come; the slowest device has one more than the quickest.
        mine = math.ceil(work.evaluations / ranks - 1e-9)
    forwards = mine * work.evaluation_flops / rate
    backwards = work.backwards * work.backward_flops / rate
    if share == "directions":
        backwards /= ranks
    held = 1 / ranks if sharded else 1.0
    shifts = mine * work.windows * SHIFT_TRAFFIC * held * work.trained
    apply = (work.directions > 0) * 2 * held * work.trained
    if work.directions > 1:
        apply += work.directions * NOISE_TRAFFIC * held * work.elements
    first = work.backwards * (3 + 2 * work.state) * work.trained * held
    traffic = (shifts + apply + first) / machine.memory_bandwidth

    sent = wire_bytes(replace(work, evaluations=mine) if sharded else work, ranks, strategy)
    losses = all_reduce(SCALAR * work.evaluations, ranks, machine) if work.evaluations and ranks > 1 else 0.0
    ahead = behind = 0.0  # what may run beside forward passes, and beside backward passes
    if ranks > 1 and sharded:
        ahead = all_gather(mine * work.windows * work.weights, ranks, machine, mine * work.windows * work.units)
        again = work.backwards * work.windows
        behind = all_gather(again * (2 * work.weights - work.kept), ranks, machine, 2 * again * work.units)
        behind += all_gather(work.backwards * work.trained, ranks, machine, work.backwards * work.units)
    elif ranks > 1 and work.backwards:
        behind = work.backwards * all_reduce(work.trained, ranks, machine)
    # Gradients of replicas are there from the backward pass on, which is two thirds of the work.
    beside = backwards if sharded else backwards * 2 / 3
    hidden = overlap * (min(ahead, forwards) + min(behind, beside))
    done = 1.0 if share == "directions" or ranks == 1 else float(ranks)
    return StepCost(ranks, forwards + backwards, traffic, losses + ahead + behind, hidden, sum(sent.values()), done)


def efficiency(cost: StepCost, alone: StepCost) -> float:
    """Work a second and device, in units of a device alone: 1 where N devices do N times as much."""
    return cost.work / cost.ranks / cost.seconds * alone.seconds / alone.work


def doublings(most: int) -> Sequence[int]:
    """1, 2, 8, 64, 512, … and `most` itself."""
    steps = [1, 2, *(8**power for power in range(1, 12))]
    return [*(n for n in steps if n < most), most]
