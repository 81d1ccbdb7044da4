"""Plans of a device of several, held to what two processes hold and send."""

from __future__ import annotations

import json

import pytest

from letgo.planning.shards import bytes_of, shard_bytes, trace_sharded, units_of
from letgo.planning.tracing import faked, trace_forward, trace_training
from tests import warm
from tests.planning.measured_ranks import run_ranks
from tests.planning.two_ranks import CASES, build, loss_of


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    done = warm.run(["-m", "tests.planning.two_ranks", str(folder / "store"), str(folder)], ranks=2)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def without_values(case):
    model = faked(build("tied" in case).to("meta"))
    if "tied" in case:
        model.tie_weights()
    return model, (lambda: loss_of(model, "twice" in case))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_two_processes_hold(counted, case):
    model, loss = without_values(case)
    sharded = case != "ddp"
    weights = sum(shard_bytes(p, 2) if sharded else bytes_of([p]) for p in model.parameters())
    for rank in counted:
        found = rank[case]
        assert (found["weights"], found["gradients"], found["state"]) == (weights, weights, 2 * weights)
    found = counted[0][case]
    if sharded:
        followed, forward = (trace_sharded(model, loss, 2, backward=backward) for backward in (True, False))
        assert followed.gradients == weights
        assert followed.peak == pytest.approx(found["peak"], rel=0.1)
        assert forward.peak == pytest.approx(found["forward peak"], rel=0.05)
    else:
        whole = trace_training(model, loss)
        assert whole.peak + weights == pytest.approx(found["peak"], rel=0.1), "gradients once more, in DDP's buckets"
        # They are there from the beginning on, whether or not there will be gradients.
        assert found["kept by the wrapper"] == pytest.approx(weights, rel=0.01)
        assert trace_forward(model, loss).peak == pytest.approx(found["forward peak"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_two_processes_send(counted, case):
    """A collective of n bytes makes each of N ranks send (N-1)/N n; an all-reduce is two of them."""
    model, loss = without_values(case)
    found = counted[0][case]
    whole = bytes_of(list(model.parameters()))
    if case == "ddp":
        assert found["sent"]["allreduce_"] == whole
        # Once in a run, the order of the buckets is told.
        assert sum(found["sent"].values()) - whole < 1000
        assert found["forward sent"] == {}
        return
    followed = trace_sharded(model, loss, 2)
    gathered = {name: count for name, count in found["sent"].items() if "gather" in name}
    scattered = {name: count for name, count in found["sent"].items() if "reduce_scatter" in name}
    assert set(gathered) | set(scattered) == set(found["sent"])
    assert sum(gathered.values()) / 2 == pytest.approx(followed.gathered, rel=1e-5)
    assert sum(scattered.values()) / 2 == followed.reduced == whole / 2
    if "twice" not in case:
        kept = sum(unit.size for unit in units_of(model) if unit.stays)
        assert sum(found["forward sent"].values()) in (whole, whole - kept), "the output layer may be there"


def test_a_checkpointed_pass_is_followed():
    """Units are together when a block's forward pass is run again, and nothing is gathered twice for it."""
    model, loss = without_values("fsdp2")
    plain = trace_sharded(model, loss, 2)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = trace_sharded(model, loss, 2)
    assert checkpointed.peak < plain.peak
    assert (checkpointed.gathered, checkpointed.reduced) == (plain.gathered, plain.reduced)
    assert checkpointed.flops > 1.2 * plain.flops


@pytest.mark.slow
def test_the_peak_of_a_run_in_two_processes_is_within_a_fifth(tmp_path):
    """(Of replicas it is measured by `python -m tests.planning.measured_ranks ddp`.)"""
    peaks, planned = run_ranks("fsdp2", tmp_path)
    found = max(one["total"] for one in planned["phases"])
    assert found == pytest.approx(max(peaks), rel=0.2)
