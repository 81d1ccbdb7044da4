"""The fused kernels give the bits of plain torch: for every kind, dtype, layout, offset and number of threads."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from problems import make_problem, same_bits, snapshot
from torch import Tensor, nn

from letgo.core.errors import UserError
from letgo.optim import ZOSGD, ReplayLog, create_optimizer, replay
from letgo.optim.engine import fused
from letgo.optim.engine.noise import Direction

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba (extra fast) is not installed"
)
KINDS = ["rademacher", "gaussian", "sphere"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    fused.use(None)
    torch.set_num_threads(threads)


def bits(tensor: Tensor) -> Tensor:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(integers[tensor.element_size()])


def tensors_of(dtype: torch.dtype) -> list[nn.Parameter]:
    """Everything that layout can do, and every size that groups, words and threads can trip over."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    shapes = [(), (1,), (0, 5), (255,), (4096,), (4097,), (33, 7), (3, 5, 7), (211, 1024), (700, 300)]
    made = [randn(*shape) for shape in shapes]
    made += [randn(90, 50).t(), randn(60, 60)[::2, ::3], randn(300, 300)[100:200], randn(7).expand(5, 7)]
    special = randn(6000)
    special[:8] = torch.tensor([0.0, -0.0, 1e-42, -1e-42, float("inf"), -float("inf"), 6e4, -6e4])
    return [nn.Parameter(t) for t in (*made, special)]


def made_by(use: bool, kind: str, dtype: torch.dtype, alpha: float) -> list[Tensor]:
    fused.use(use)
    tensors = tensors_of(dtype)
    direction = Direction(kind, (1, 2, 3), tensors)  # type: ignore[arg-type]
    assert (direction.fused is not None) == (use and dtype in (torch.float32, torch.bfloat16))
    results = []
    for i, tensor in enumerate(tensors):
        results += [direction.tensor(i), direction.shifted(i, alpha)]
        results += [values.clone() for _, values in direction.blocks(i)]
        if tensor.dim() == 2 and tensor.numel():
            results += [piece.clone() for _, piece in direction.shifted_pieces(i, alpha, 5000)]
            results.append(direction.shifted_rows(i, alpha, torch.tensor([4, 0, tensor.shape[0] - 1, 4])))
        if tensor.is_contiguous() or 0 not in tensor.stride():
            direction.move(i, alpha)
            results.append(tensor.detach().clone())
    return results


@needs_numba
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.25, -0.0123, 1e-30])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_both_give_the_same_bits(kind: str, dtype: torch.dtype, alpha: float, threads: int) -> None:
    torch.set_num_threads(threads)
    plain, fast = made_by(False, kind, dtype, alpha), made_by(True, kind, dtype, alpha)
    assert len(plain) == len(fast) > 30
    for i, (one, other) in enumerate(zip(plain, fast, strict=True)):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(bits(one), bits(other)), i


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_number_is_rounded_as_torch_rounds_it(dtype: torch.dtype) -> None:
    everything = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).to(dtype)
    results = []
    for use in (False, True):
        fused.use(use)
        tensor = nn.Parameter(everything.clone())
        results.append(Direction("gaussian", (5,), [tensor]).shifted(0, 0.01))
    numbers = ~results[0].isnan()
    assert torch.equal(results[0].isnan(), results[1].isnan())
    assert torch.equal(bits(results[0][numbers]), bits(results[1][numbers]))
    assert int(numbers.sum()) > 65000


@needs_numba
@pytest.mark.parametrize("name", ["zo_sgd", "ada_zo", "zo_adam", "zo_sign_sgd", "zo_muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_with_kernels_is_replayed_without_and_the_other_way_round(name: str, dtype: torch.dtype) -> None:
    for first in (True, False):
        fused.use(first)
        model, loss_of = make_problem(dtype)
        noise = "gaussian" if name == "zo_muon" else "sphere"
        optimizer = create_optimizer(name, model.parameters(), lr=1e-3, num_directions=1, noise=noise)
        log = ReplayLog.attach(optimizer)
        for _ in range(8):
            optimizer.step(loss_of)
        fused.use(not first)
        fresh, _ = make_problem(dtype)
        replay(fresh, log)
        assert same_bits(snapshot(model), snapshot(fresh))


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noise", KINDS)
def test_rate_zero_changes_no_bit_not_even_the_sign_of_a_zero(noise: str, dtype: torch.dtype) -> None:
    for use in (True, False):
        fused.use(use)
        model, loss_of = make_problem(dtype)
        with torch.no_grad():
            model.mixing[0].fill_(-0.0)
        before = {name: bits(p).clone() for name, p in model.named_parameters()}
        optimizer = ZOSGD(model.parameters(), lr=0.0, mu=1e-2, noise=noise)
        for _ in range(200):
            optimizer.step(loss_of)
        assert all(torch.equal(before[name], bits(p)) for name, p in model.named_parameters())
        assert optimizer.last_losses[0] != optimizer.last_losses[1]


@needs_numba
def test_numba_keeps_the_number_of_threads_that_somebody_else_gave_it() -> None:
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    fused.use(True)
    Direction("sphere", (1,), [nn.Parameter(torch.zeros(1 << 17))]).shifted(0, 1.0)
    assert numba.get_num_threads() == 1
    numba.set_num_threads(before)


def test_small_models_and_those_who_say_no_do_without() -> None:
    small, large = nn.Parameter(torch.zeros(1000)), nn.Parameter(torch.zeros(fused.WORTH_COMPILING))
    assert fused.kernels_for([small]) is None
    assert (fused.kernels_for([small, large]) is not None) == (importlib.util.find_spec("numba") is not None)
    fused.use(False)
    assert fused.kernels_for([small, large]) is None


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "numba" else find(name, *a)
import torch
from letgo.core.errors import UserError
from letgo.optim import ZOSGD
from letgo.optim.engine import fused
x = torch.nn.Parameter(torch.zeros(1 << 20))
ZOSGD([x], lr=1.0).step(lambda: (x - 1).square().mean())
print(float(x.detach().abs().sum()) > 0)
try:
    fused.use(True)
except UserError as error:
    print(error)
"""


def test_without_numba_everything_works_and_insisting_names_the_extra() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, check=True, env=environment
    )
    worked, message = done.stdout.strip().splitlines()
    assert worked == "True"
    assert "(letgo[fast])" in message
    assert issubclass(UserError, Exception)


@needs_numba
def test_the_environment_can_say_no() -> None:
    code = (
        "import sys, torch; from letgo.optim.engine import fused;"
        "print(fused.kernels_for([torch.zeros(1 << 20)]), 'numba' in sys.modules)"
    )
    environment = {**os.environ, "LETGO_FUSED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["None", "False"]
