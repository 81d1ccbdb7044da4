"""Two processes share a zeroth-order step: the trajectory of one, some bytes on the wire, and no silent difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranked
import torch
from torch import nn

from letgo.core import ranks_lost
from letgo.core.ranks_lost import RankLostError, rank_loss_named
from letgo.optim import ZOSGD, replay
from letgo.optim.engine.ranks import Ranks, checksum
from tests import warm


def started(folder: Path, *what: str) -> list[Any]:
    """Two ranks, what each prints in two files."""
    words = [ranked.__file__, str(folder), *what]
    return [
        warm.start(words, said=folder / f"said{rank}", wrong=folder / f"wrong{rank}", **place)
        for rank, place in enumerate(warm.places(2))
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two ranks wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = warm.run([ranked.__file__, str(folder)], ranks=2)
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) | {"folder": folder} for rank in range(2)]


def alone(case: str) -> dict[str, Any]:
    return ranked.run(case, Ranks("directions", ranked.CHECK_EVERY))


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("case", "evaluations"),
    [
        ("three directions", 6),
        ("momentum", 2),
        ("forward differences", 3),
        ("low rank", 6),
        ("ada_zo", 4),
        ("zo_muon", 4),
        ("zo_subspace", 6),
    ],
)
def test_directions_shared_by_two_ranks_give_the_bits_of_one_process(case, evaluations, done):
    whole = alone(case)
    # Every evaluation's loss, and a checksum every fourth step.
    sent = ranked.STEPS * 8 * evaluations + ranked.STEPS // ranked.CHECK_EVERY * 8
    for rank in done:
        assert same(rank[case]["weights"], whole["weights"])
        assert rank[case]["losses"] == whole["losses"]
        assert rank[case]["described"] == {
            "share": "directions", "ranks": 2, "steps": ranked.STEPS, "scalars_a_step": evaluations,
            "bytes_exchanged": sent, "bytes_a_step": sent / ranked.STEPS,
        }  # fmt: skip
    assert whole["described"] == {
        "share": "directions", "ranks": 1, "steps": ranked.STEPS, "scalars_a_step": 0,
        "bytes_exchanged": 0, "bytes_a_step": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "case", ["three directions", "momentum", "low rank", "ada_zo", "zo_muon", "zo_subspace", "zo_svrg"]
)
def test_the_log_of_two_ranks_is_a_checkpoint_for_one(case, done):
    straight = ranked.run(case, Ranks("directions"), steps=ranked.STEPS + 5)
    begun = replay(ranked.problem(), done[0]["folder"] / f"{case}.json")
    more = ranked.run(case, Ranks("directions"), steps=5, begun=begun)
    assert same(more["weights"], straight["weights"])
    assert more["losses"] == straight["losses"][ranked.STEPS :]


def test_batched_evaluations_are_shared_too(done):
    one, two = (rank["batched"]["weights"] for rank in done)
    assert same(one, two)
    # Batches of other sizes are summed in other orders.
    torch.testing.assert_close(one, alone("batched")["weights"], rtol=1e-4, atol=1e-5)


def test_rows_shared_by_two_ranks_give_the_mean_of_all_rows(done):
    one, two = (rank["data"] for rank in done)
    assert same(one["weights"], two["weights"])
    assert one["losses"] == two["losses"]
    torch.testing.assert_close(one["weights"], alone("three directions")["weights"], rtol=1e-3, atol=1e-4)
    assert one["described"]["bytes_exchanged"] == ranked.STEPS * 8 * 6


def test_what_crosses_the_wire_does_not_depend_on_the_model(done):
    for rank in done:
        assert rank["wide"]["described"] == rank["three directions"]["described"]


def test_ranks_whose_weights_differ_stop(tmp_path):
    for rank, process in enumerate(started(tmp_path, "differ")):
        process.join(100)
        assert process.exitcode == 1
        said = (tmp_path / f"wrong{rank}").read_text()
        assert "after step 8 the weights of rank 1 differ from those of rank 0" in said


@pytest.mark.parametrize("how", ["end", "hang"])
def test_a_rank_that_ends_or_hangs_stops_the_others_with_one_clear_error(tmp_path, how):
    """Ended: at once, its connections close. Hanging: after the process group's timeout, of five seconds here."""
    one, two = started(tmp_path, how)
    one.join(60)
    two.kill()
    assert one.exitcode == 3, (tmp_path / "wrong0").read_text()
    said = (tmp_path / "said0").read_text()
    assert said.startswith("step 3, RankLostError: a rank is gone (")
    assert "start again with --resume on however many are left" in said


def test_only_what_is_about_ranks_is_told_as_a_lost_rank(monkeypatch):
    monkeypatch.setattr(ranks_lost, "has_ranks", lambda: True)
    with pytest.raises(RankLostError, match=r"a rank is gone \(\[.*Connection closed by peer"), rank_loss_named():
        raise RuntimeError("[../third_party/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RankLostError, match="Socket Timeout"), rank_loss_named():
        raise torch.distributed.DistNetworkError("Socket Timeout")
    with pytest.raises(RuntimeError, match="out of memory") as caught, rank_loss_named():
        raise RuntimeError("out of memory")
    assert not isinstance(caught.value, RankLostError)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="Connection closed") as caught, rank_loss_named():
        raise RuntimeError("Connection closed by peer")
    assert not isinstance(caught.value, RankLostError)


@pytest.mark.parametrize("hessian", ["hutchinson", "gnb"])
def test_sophia_under_ddp_has_the_hessian_of_all_rows(hessian, done):
    """Half of the rows on each of two ranks, against all of them in one process; DDP itself never sees these."""
    one, two, whole = done[0][hessian], done[1][hessian], ranked.sophia(hessian, -1)
    for what in ("weights", "hessian"):
        assert same(one[what], two[what])
        torch.testing.assert_close(one[what], whole[what], rtol=1e-5, atol=1e-9)
    if hessian == "gnb":
        assert one["seeds"] == whole["seeds"]
        assert len(one["seeds"]) == 3
        assert not set(one["seeds"]) & set(two["seeds"])


def test_without_other_ranks_nothing_is_shared():
    ranks = Ranks("directions", check_every=1)
    assert (ranks.count, ranks.rank, ranks.assigned(5)) == (1, 0, [0, 1, 2, 3, 4])
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
