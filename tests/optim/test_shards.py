"""Every optimizer of the catalog on two ranks that hold a shard each, against one process that holds all.

Two gloo processes run all the cases once (`sharded.py`); what they wrote is compared here, bit for bit: the rows of a
rank are moved by what one process would move them by. Both ranks have the same rows of data, so that the mean of their
gradients and losses is one process's.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import sharded
import torch
from problems import same_bits
from torch import nn

from letgo.optim import list_optimizers, replay
from letgo.optim.engine import perturbation
from letgo.optim.engine.shards import (
    Piece,
    cut_like,
    gathered,
    gathering_anew,
    has_shards,
    local,
    piece_of,
    whole_state,
)
from tests import warm

NAMES = [case for case in sharded.CASES if sharded.installed(case)]
REFUSED = {
    "adamw_8bit": "UserError: the parameters are sharded over the ranks (FSDP2). optimizer 'adamw_8bit': ",
    "sure": "UserError: the parameters are sharded over the ranks (FSDP2). optimizer 'sure': ",
    "batched": "ValueError: engine='batched' runs all evaluations as one pass over whole weights",
    "sophia hutchinson": "ValueError: hessian='hutchinson' differentiates gradients once more",
}
STEPPING = [case for case in NAMES if case not in REFUSED]
RULES = ("zo_sgd", "ada_zo", "zo_adam", "zo_sign_sgd", "zo_muon", "fzoo")
ZEROTH = [case for case in STEPPING if sharded.CASES[case][0] in RULES]


@pytest.fixture(scope="module", autouse=True)
def _as_the_ranks() -> Any:
    """What bits depend on, as it is in the ranks: one thread, and the sizes from which products are taken another
    way."""
    before, threads = (perturbation.LARGE_ELEMENTS, perturbation.PIECE_ELEMENTS), torch.get_num_threads()
    perturbation.LARGE_ELEMENTS, perturbation.PIECE_ELEMENTS = sharded.LARGE, sharded.PIECE
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    perturbation.LARGE_ELEMENTS, perturbation.PIECE_ELEMENTS = before


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, _as_the_ranks: None) -> list[dict[str, Any]]:
    """What each of the two ranks wrote."""
    folder = tmp_path_factory.mktemp("shards")
    for case in STEPPING:
        torch.save(sharded.saved(case, sharded.make_model()), folder / f"{case}.pt")
    ended = warm.run([sharded.__file__, str(folder)], ranks=2)
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) | {"folder": folder} for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> Any:
    """The same runs of one process, each made when it is first asked for."""
    made: dict[str, dict[str, Any]] = {}

    def run(case: str) -> dict[str, Any]:
        if case not in made:
            made[case] = sharded.straight(case, sharded.make_model())
        return made[case]

    return run


def test_the_cases_cover_the_catalog() -> None:
    assert {name for name, _ in sharded.CASES.values()} == set(list_optimizers())


def test_shards_are_uneven_and_some_are_empty(done: list[dict[str, Any]]) -> None:
    assert (1, 8) in done[0]["pieces"]
    assert (0, 8) in done[1]["pieces"]
    assert (7, 8) in done[0]["pieces"]
    assert (6, 8) in done[1]["pieces"]


@pytest.mark.parametrize("case", STEPPING)
def test_every_case_descends(case: str, alone: Any) -> None:
    """A run that diverges compares rounding errors, and hides small changes in large weights."""
    assert alone(case)["loss"] < 1.02 * sharded.loss_now(sharded.make_model())


@pytest.mark.parametrize("case", STEPPING)
def test_two_ranks_with_shards_step_as_one_process_does(case: str, done: list[dict[str, Any]], alone: Any) -> None:
    one = alone(case)
    start = sharded.make_model().state_dict()
    assert not torch.equal(start["embedding.weight"], one["weights"]["embedding.weight"])
    for here in (rank[case] for rank in done):
        assert same_bits(here["weights"], one["weights"])
        assert here["losses"] == one["losses"]
        # The model computes with the weights that it has now, not with some that it gathered before.
        assert here["loss"] == one["loss"]
        if "finished" in one:
            assert same_bits(here["finished"], one["finished"])
            assert here["finished loss"] == one["finished loss"]


def test_in_bf16_too(done: list[dict[str, Any]]) -> None:
    one = sharded.straight("zo_sgd momentum", sharded.make_model(torch.bfloat16))
    assert same_bits(done[0]["bf16"]["weights"], one["weights"])


@pytest.mark.parametrize("case", STEPPING)
def test_a_checkpoint_goes_on_on_any_number_of_ranks(case: str, done: list[dict[str, Any]], alone: Any) -> None:
    straight = alone(case)["weights"]
    assert same_bits(done[0][f"{case}, resumed"], straight)
    assert same_bits(done[0][f"{case}, from one"], straight)
    assert same_bits(sharded.resumed(case, done[0][f"{case}, saved"], sharded=False), straight)


def test_a_log_written_over_shards_is_replayed_by_one_process(done: list[dict[str, Any]]) -> None:
    model = sharded.make_model()
    replay(model, done[0]["folder"] / "replay.json")
    assert same_bits(sharded.whole(model), done[0]["logged"])


@pytest.mark.parametrize("case", sharded.SWAPPED)
def test_parameters_may_be_sharded_after_the_optimizer_was_made(case: str, done: list[dict[str, Any]]) -> None:
    assert same_bits(done[0][f"{case}, swapped"], done[0][case]["weights"])


@pytest.mark.parametrize("case", [case for case in REFUSED if case in NAMES])
def test_what_cannot_step_shards_says_why(case: str, done: list[dict[str, Any]], alone: Any) -> None:
    assert "error" not in alone(case)
    assert done[0][case]["error"] == done[1][case]["error"]
    assert done[0][case]["error"].startswith(REFUSED[case])


def test_directions_are_not_shared_over_shards(done: list[dict[str, Any]]) -> None:
    assert "directions cannot be shared over ranks that hold shards" in done[0]["directions"]


@pytest.mark.parametrize("case", ZEROTH)
def test_bytes_are_counted(case: str, done: list[dict[str, Any]], alone: Any) -> None:
    described = done[0][case]["ranks"]
    name, settings = sharded.CASES[case]
    q = settings.get("num_directions", 4 if name == "zo_muon" else 1)
    forward = settings.get("difference", "forward" if name in ("zo_muon", "fzoo") else "central") == "forward"
    scalars = q + 1 if forward else 2 * q
    lengths = q if settings.get("noise") == "sphere" else 0
    # What a ring sends of this rank's rows to the one other rank, for every evaluation; frozen rows too.
    own = sum(4 * math.prod(shape) for shape in done[0]["pieces"])
    assert described == {
        "share": "data",
        "ranks": 2,
        "steps": sharded.STEPS,
        "scalars_a_step": scalars,
        "bytes_exchanged": 8 * (scalars + lengths) * sharded.STEPS,
        "bytes_a_step": 8 * (scalars + lengths),
        "bytes_gathered": own * scalars * sharded.STEPS,
    }
    assert alone(case)["ranks"]["bytes_exchanged"] == 0
    assert "bytes_gathered" not in alone(case)["ranks"]


def test_what_is_whole_is_compared_and_shards_are_not(done: list[dict[str, Any]]) -> None:
    assert done[0]["mixed"] == [False] + [True] * 16
    assert same_bits(done[0]["mixed weights"], done[1]["mixed weights"])
    # Two steps of four losses, and one comparison of three numbers.
    assert done[0]["mixed bytes"] == 2 * 4 * 8 + 3 * 8
    assert all("after step 4 the weights of rank 1 differ from those of rank 0" in rank["tampered"] for rank in done)


def test_replicas_of_shards_are_compared_with_one_another(done: list[dict[str, Any]], alone: Any) -> None:
    assert all(same_bits(rank["replicas"], alone("zo_sgd")["weights"]) for rank in done)
    assert all("weights of rank 1 differ from those of rank 0" in rank["replicas tampered"] for rank in done)


def test_without_shards_nothing_is_done() -> None:
    weight = nn.Parameter(torch.arange(6.0).view(3, 2))
    piece = piece_of(weight)
    assert piece == Piece(piece.local, weight.shape, 0)
    assert not piece.sharded
    assert (piece.start, piece.width) == (0, 2)
    assert piece.local.data_ptr() == weight.data_ptr()
    assert not has_shards([weight])
    assert gathered(weight, weight) is weight
    assert cut_like(weight, weight) is weight
    assert local(weight).data_ptr() == weight.data_ptr()
    assert whole_state({"a": [weight]})["a"][0] is weight
    with gathering_anew([weight]):
        pass


@pytest.mark.parametrize(
    ("rows", "columns", "ways", "elements", "whether"),
    [(8, 4, 2, 16, True), (8, 4, 2, 32, False), (7, 4, 2, 8, True), (8, 3, 2, 8, False), (1, 6, 4, 3, True)],
)
def test_where_pieces_begin(rows: int, columns: int, ways: int, elements: int, whether: bool) -> None:
    piece = Piece(torch.empty(0, columns), torch.Size((rows, columns)), 0, group="some", ways=ways)
    assert piece.cut_at_multiples_of(elements) == whether
    starts = [start.numel() for start in torch.empty(rows, columns).chunk(ways)][:-1]
    assert all(start % elements == 0 for start in starts) or not whether
