"""Fused noise kernels for CPUs, where numba is installed: `pip install 'letgo[fast]'`.

The same noise and the same bits as without; only faster, since a weight is read, perturbed and written in one pass.
They serve contiguous float32 and bf16 tensors in a machine's own memory, from lists of tensors large enough to be
worth the compiling (seconds once a machine, then kept on disk), and are asked for by nobody: `use(False)` or
LETGO_FUSED=0 does without, `use(True)` insists.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import mmap
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from letgo.core.extras import need
from letgo.optim.engine import counter

WORTH_COMPILING = 1 << 20
"""Elements that a list of tensors must have for kernels to be compiled."""

PARALLEL = 1 << 16
"""Elements from which on a tensor is worth waking other threads for."""

_chosen: bool | None = None
_lock = threading.Lock()
"""numba's fallback for threads (`workqueue`) must not be entered twice at a time."""


def use(choice: bool | None) -> None:
    """Use the fused kernels always where they can serve (True), never (False), or where they pay (None, the default).

    Raises:
        UserError: True, and numba is not installed.
    """
    global _chosen
    if choice:
        need("numba", "fast", what="the fused noise kernels of letgo.optim")
    _chosen = choice


class Fused:
    """The kernels, called with tensors. Lengths and offsets are in elements; `normal` chooses normals over signs."""

    def __init__(self, kernels: ModuleType) -> None:
        import numba
        import numpy as np

        self._numba, self._np, self._kernels = numba, np, kernels
        self._coefficients = np.array(counter.NUMERATOR + counter.DENOMINATOR, dtype=np.float32)
        self._ready: set[torch.dtype] = set()

    @staticmethod
    def serves(tensor: Tensor) -> bool:
        return (
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.device.type == "cpu"
            and tensor.dtype in (torch.float32, torch.bfloat16)
            and tensor.is_contiguous()
        )

    def prepare(self, tensors: Sequence[Tensor]) -> None:
        """Compile what these tensors need, or read it from disk, and let go of the compiler."""
        wanted = {t.dtype for t in tensors if self.serves(t)} - self._ready
        for dtype in wanted:
            for normal in (False, True):
                # One thread needs no kernel for many, and must not start them.
                for few in (True, False) if torch.get_num_threads() > 1 else (True,):
                    source = torch.zeros(8 if few else PARALLEL, dtype=dtype)
                    self.shift(source, torch.empty_like(source), 0, normal, 0, 0.0, 1.0)
                    self.shift(source, source, 0, normal, 0, 0.0, 1.0)
                    self.values(torch.empty(len(source)), 0, normal, 0, 1.0)
                matrix = torch.zeros(2, 4, dtype=dtype)
                self.rows(matrix, torch.empty_like(matrix), torch.tensor([0, 1]), normal, 0, 0.0, 1.0)
            self.squares(0, 8, 0)
            self._ready.add(dtype)
        if wanted:
            _drop_code_of("llvmlite")

    def shift(
        self, source: Tensor, out: Tensor, start: int, normal: bool, key: int, alpha: float, scale: float
    ) -> None:
        """out = source + alpha v, elements start and following of v; `out` may be `source`, not overlap it."""
        what = self._kernels.SHIFT_HERE if out.data_ptr() == source.data_ptr() else self._kernels.SHIFT
        self._run(what, normal, _array(source), _array(out), start, key, alpha, scale)

    def values(self, out: Tensor, start: int, normal: bool, key: int, scale: float) -> None:
        """out = v, elements start and following; float32."""
        array = _array(out)
        self._run(self._kernels.ALONE, normal, array, array, start, key, 1.0, scale)

    def rows(
        self, source: Tensor, out: Tensor, which: Tensor, normal: bool, key: int, alpha: float, scale: float
    ) -> None:
        """out[i] = (source + alpha v)[which[i]], of matrices."""
        columns = source.shape[1]
        arrays = _array(source).reshape(-1, columns), _array(out).reshape(-1, columns), which.numpy()
        float32, uint64 = self._np.float32, self._np.uint64
        self._kernels.rows(normal, *arrays, uint64(key), float32(alpha), float32(scale), self._coefficients)

    def squares(self, start: int, stop: int, key: int) -> int:
        """As `counter.squares`, of elements start .. stop - 1."""
        with _Threads(self._numba) as threads:
            return int(self._kernels.squares(start, stop, self._np.uint64(key), self._coefficients, threads))

    def _run(
        self, what: int, normal: bool, source: Any, out: Any, start: int, key: int, alpha: float, scale: float
    ) -> None:
        float32 = self._np.float32
        arguments = (
            what, normal, source, out, start, self._np.uint64(key), float32(alpha), float32(scale), self._coefficients,
        )  # fmt: skip
        if out.size < PARALLEL or torch.get_num_threads() == 1:
            self._kernels.single_thread(*arguments)
            return
        with _Threads(self._numba) as threads:
            self._kernels.all_threads(*arguments, threads)


class _Threads:
    """Within: numba runs as many threads as torch (or as many as it may), and nobody else is in here."""

    def __init__(self, numba: ModuleType) -> None:
        self._numba = numba

    def __enter__(self) -> int:
        _lock.acquire()
        self._before = self._numba.get_num_threads()
        wanted = min(torch.get_num_threads(), self._numba.config.NUMBA_NUM_THREADS)
        if wanted != self._before:
            self._numba.set_num_threads(wanted)
        return wanted

    def __exit__(self, *exception: object) -> None:
        try:
            self._numba.set_num_threads(self._before)
        finally:
            _lock.release()


def kernels_for(tensors: Sequence[Tensor]) -> Fused | None:
    """The kernels, if these tensors are to be perturbed by them."""
    if _chosen is False or not any(map(Fused.serves, tensors)):
        return None
    if _chosen is None and sum(t.numel() for t in tensors) < WORTH_COMPILING:
        return None
    kernels = _load()
    if kernels is not None:
        kernels.prepare(tensors)
    return kernels


@functools.lru_cache(maxsize=1)
def _load() -> Fused | None:
    if os.environ.get("LETGO_FUSED", "1") == "0" or importlib.util.find_spec("numba") is None:
        return None
    if "numba" not in sys.modules:
        # The pool is started as large as this, whatever is asked of it later, and shares torch's library of threads:
        # with a pool of two, a torch of one thread runs on two, which ends two processes on two cores (5 to 10 times
        # slower).
        os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))
    try:
        import numba

        if numba.config.DISABLE_JIT:
            return None
        return Fused(importlib.import_module("letgo.optim.engine.fused_kernels"))
    except Exception as error:  # a numba that does not fit its numpy or its machine fails in many ways
        warnings.warn(f"numba is installed but cannot be used ({error}): going on without fused kernels", stacklevel=2)
        return None


def _drop_code_of(library: str) -> None:
    """Take a library's machine code out of memory until it is run again: 50 MB of a compiler that has done its work.

    Only pages that are mapped from the file for reading and running are named to the kernel, which reads them from it
    again when they are needed. Does nothing where there is no such thing.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            lines = [line.split() for line in maps if library in line]
        madvise = ctypes.CDLL(None).madvise
        for addresses, permissions, *_ in lines:
            if permissions == "r-xp":
                low, high = (int(address, 16) for address in addresses.split("-"))
                madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), mmap.MADV_DONTNEED)
    except (OSError, AttributeError):
        pass


def _array(tensor: Tensor) -> Any:
    """The flat numpy array of a contiguous tensor's memory; bf16 as its bits."""
    flat = tensor.detach().view(-1)
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()
