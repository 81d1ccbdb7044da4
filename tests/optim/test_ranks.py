"""Two processes share a zeroth-order step: the trajectory of one, some bytes on the wire, and no silent difference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from letgo.optim import ZOSGD
from letgo.optim.ranks import Ranks, checksum

RANK = """
import json, sys, torch
from torch import nn
from letgo.optim import OPTIMIZERS
from letgo.optim.ranks import Ranks, checksum
rank, store, out, name, width, settings, tampered = sys.argv[1:]
rank = int(rank)
if rank >= 0:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.rand(rank + 2)
weight = nn.Parameter(torch.linspace(-1, 1, 4 * int(width)).view(4, int(width)))
bias = nn.Parameter(torch.zeros(int(width)))
data = torch.arange(20.0).view(5, 4).sin()
optimizer = OPTIMIZERS.load(name)([weight, bias], lr=0.02, seed=3, **json.loads(settings))
optimizer.ranks = Ranks("directions", check_every=4)
for step in range(12):
    if tampered == "yes" and rank == 1 and step == 6:
        with torch.no_grad():
            weight[0, 0] += 1e-6
    optimizer.step(lambda: (data @ weight + bias).square().mean())
done = {"weights": [weight.tolist(), bias.tolist()], "bytes": optimizer.ranks.bytes_exchanged,
        "losses": optimizer.last_losses}
open(out, "w").write(json.dumps(done))
"""


def started(folder: Path, name: str, settings: dict[str, object], ranks: tuple[int, ...], *, width=3, tampered="no"):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    folder.mkdir(parents=True)
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(folder / "store"), str(folder / f"{rank}.json"), name,
             str(width), json.dumps(settings), tampered],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in ranks
    ]  # fmt: skip


def ended(folder: Path, processes, ranks) -> list[dict[str, object]]:
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in ranks]


@pytest.mark.parametrize(
    ("name", "settings", "evaluations"),
    [
        ("zo_sgd", {"num_directions": 3}, 6),
        ("zo_sgd", {"num_directions": 1, "momentum": 0.5, "noise": "gaussian"}, 2),
        ("zo_sgd", {"num_directions": 2, "difference": "forward", "noise": "sphere"}, 3),
        ("ada_zo", {"num_directions": 2}, 4),
    ],
)
def test_directions_shared_by_two_ranks_give_the_bits_of_one_process(tmp_path, name, settings, evaluations):
    processes = started(tmp_path / "run", name, settings, (0, 1, -1))
    one, two, alone = ended(tmp_path / "run", processes, (0, 1, -1))
    assert one["weights"] == two["weights"] == alone["weights"]
    assert one["losses"] == two["losses"] == alone["losses"]
    # Every evaluation's loss, and a checksum every fourth step.
    assert one["bytes"] == two["bytes"] == 12 * 8 * evaluations + 3 * 8
    assert alone["bytes"] == 0


def test_batched_evaluations_are_shared_too(tmp_path):
    settings = {"num_directions": 3, "engine": "batched", "rank": 1}
    one, two, alone = ended(tmp_path / "run", started(tmp_path / "run", "zo_sgd", settings, (0, 1, -1)), (0, 1, -1))
    assert one["weights"] == two["weights"]
    # Batches of other sizes are summed in other orders.
    torch.testing.assert_close(torch.tensor(one["weights"][0]), torch.tensor(alone["weights"][0]), rtol=1e-4, atol=1e-5)


def test_what_crosses_the_wire_does_not_depend_on_the_model(tmp_path):
    sent = []
    for width in (3, 3000):
        folder = tmp_path / str(width)
        done = ended(folder, started(folder, "zo_sgd", {"num_directions": 2}, (0, 1), width=width), (0, 1))
        sent.append([one["bytes"] for one in done])
    assert sent[0] == sent[1] == [12 * 8 * 4 + 3 * 8] * 2


def test_ranks_whose_weights_differ_stop(tmp_path):
    processes = started(tmp_path / "run", "zo_sgd", {}, (0, 1), tampered="yes")
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "after step 8 the weights of rank 1 differ from those of rank 0" in said
    assert not (tmp_path / "run" / "0.json").exists()


def test_without_other_ranks_nothing_is_shared():
    ranks = Ranks("directions", check_every=1)
    assert (ranks.count, ranks.rank, ranks.own(5)) == (1, 0, [0, 1, 2, 3, 4])
    assert ranks.joined([1.0, 2.0], 2, torch.device("cpu")) == [1.0, 2.0]
    ranks.check([torch.zeros(1)], 1)
    assert ranks.bytes_exchanged == 0
    assert ZOSGD([nn.Parameter(torch.zeros(1))]).ranks.share == "data"


@pytest.mark.parametrize(("share", "every"), [("rows", 0), ("data", -1)])
def test_mistakes_are_refused(share, every):
    with pytest.raises(ValueError, match=r"share|check_every"):
        Ranks(share, every)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
def test_a_checksum_sees_every_bit_and_every_place(dtype):
    values = torch.arange(1, 9).to(dtype)
    whole = checksum([values])
    assert whole == checksum([values.clone()]) >= 0
    assert whole < 2**63
    assert whole != checksum([values.flip(0)])
    assert whole != checksum([values[:4], values[4:]])
    changed = values.clone()
    changed[5] += 1
    assert whole != checksum([changed])
    assert checksum([values[:0], values]) != checksum([values, values[:0]])
