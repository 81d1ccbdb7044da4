"""The processes that a launcher started for one run: which is the first, how they share work and exchange values.

`torchrun` and `accelerate launch` start the same command several times; each process finds its number in the
environment. Everything here works in a single process too, where it costs nothing. What crosses the wire is JSON.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from letgo.core import errors
from letgo.core.errors import LetgoError, UserError, first_line
from letgo.core.ranks_lost import rank_loss_named

Thing = TypeVar("Thing")
Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others. One that has died is noticed at once; this is for one that hangs."""


def asked() -> int:
    """How many processes the launcher says that it started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def number() -> int:
    """This process's number, from 0; as the launcher says it, before `start` too."""
    return int(os.environ.get("RANK") or 0) if asked() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes files and talks."""
    return number() == 0


def count() -> int:
    """How many processes have joined: 1 before `start`."""
    return _group().get_world_size() if _joined() else 1


def start(expected: int | None = None) -> None:
    """Join the processes of the run, once; without a launcher nothing happens.

    Args:
        expected: how many processes there must be; None takes what comes.

    Raises:
        UserError: another number of processes runs than was asked for.
    """
    _check(expected)
    if asked() == 1:
        return
    if not _joined():
        import torch
        from accelerate import PartialState

        # With a GPU accelerate sees by itself that there are several processes.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
        if state.num_processes != asked():
            raise UserError(
                f"the launcher started {asked()} processes, but each of them would run alone: accelerate knows no way "
                f"to join them on this machine ({state.device})"
            )
    # Whoever has joined before (transformers' arguments do) leaves it to nobody. Registered once, however often asked.
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    # Left open, the group is torn down with the process, which can abort it after all is done. A model in shards holds
    # groups of its own, and is a cycle that only the collector frees.
    if _joined():
        with contextlib.suppress(Exception):
            gc.collect()
            _group().destroy_process_group()


def end(code: int = 0) -> NoReturn:
    """End the process with an exit status: the last call of a program that a launcher starts.

    Those that ended well leave the group together. Several processes then end without Python's finalization: torch's
    caches keep some of a sharded model's groups alive, and one of their threads that asks for the interpreter while it
    is being torn down is ended through native code, which aborts the process ("terminate called without an active
    exception") after all its work is done.
    """
    if not _joined():
        sys.exit(code)
    if code == 0:
        # One that has failed does not come; its connections close, and the wait ends with an error.
        with contextlib.suppress(Exception):
            _group().barrier()
    _leave()
    # As Python does it, which has no public way to do so without the rest: executors' idle threads are told to go, all
    # threads are joined, and what is registered runs.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _check(expected: int | None) -> None:
    wanted = _launched_for()
    if wanted is not None and wanted != asked():
        raise UserError(
            f"`accelerate launch` was asked for {wanted} processes and started {asked()}: on CPUs it starts one, "
            f"whatever --num_processes says\n  on one machine of CPUs: torchrun --nproc_per_node {wanted} -m letgo …"
        )
    if expected is not None and expected != asked():
        raise UserError(
            f"processes: {expected} were asked for, {asked()} run\n"
            f"  start them by a launcher: torchrun --nproc_per_node {expected} -m letgo … (or accelerate launch "
            f"--num_processes {expected} -m letgo … with GPUs)"
        )


def _launched_for() -> int | None:
    """The number of processes that `accelerate launch` was told, where it is what started this process without saying
    how many there are; None where that is not the case, or can't be found out."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "WORLD_SIZE" in os.environ:
        return None
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:
        return None
    if (given := _option(words, "num_processes")) is not None:
        return int(given) if given.isdigit() else None
    # Told by a file: only that there are several is known, by the address that they would meet at.
    file = _option(words, "config_file") if "MASTER_ADDR" in os.environ else None
    return None if file is None else _in_config(Path(file))


def _option(words: Sequence[str], name: str) -> str | None:
    """What a command line gives an option of `accelerate launch`, in any of the ways that it can be written."""
    for position, word in enumerate(words):
        written, equals, value = word.partition("=")
        if written.replace("-", "_") == f"__{name}":
            return value if equals else next(iter(words[position + 1 : position + 2]), "")
    return None


def _in_config(path: Path) -> int | None:
    import yaml

    with contextlib.suppress(OSError, yaml.YAMLError, AttributeError, TypeError, ValueError):
        return int(yaml.safe_load(path.read_text(encoding="utf-8")).get("num_processes"))
    return None


def exchange(value: Any) -> list[Any]:
    """Every process's value (JSON), by number, in every process. All of them must call it."""
    if count() == 1:
        return [value]
    import torch

    group = _group()
    device = torch.device("cuda", torch.cuda.current_device()) if group.get_backend() == "nccl" else None
    raw = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    with rank_loss_named():
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(count())]
        group.all_gather(sizes, torch.tensor([len(raw)], device=device))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8, device=device)
        padded[: len(raw)] = raw
        received = [torch.empty_like(padded) for _ in range(count())]
        group.all_gather(received, padded)
    return [
        json.loads(bytes(raw[: int(size)].cpu().numpy()).decode()) for raw, size in zip(received, sizes, strict=True)
    ]


def average(tensors: Sequence[Any]) -> None:
    """Each tensor becomes its mean over the processes, in place. All of them must call it."""
    if count() == 1:
        return
    group = _group()
    on_gpus = group.get_backend() == "nccl"
    with rank_loss_named():
        for tensor in tensors:
            there = tensor.cuda() if on_gpus and not tensor.is_cuda else tensor
            group.all_reduce(there)
            tensor.copy_(there.div_(count()))


def first_does(work: Callable[[], Value]) -> Value | None:
    """The first process does it while the others wait; returns what it gave there, None elsewhere.

    Raises:
        LetgoError: what the first process's work raised, in every process.
    """
    if count() == 1:
        return work()
    value, raised = None, None
    if is_first():
        try:
            value = work()
        except LetgoError as caught:
            raised = caught
        except BaseException as caught:
            # The others must not wait for what will never come.
            exchange(_as_json(LetgoError(f"the first process failed: {first_line(caught)}")))
            raise
    error = exchange(None if raised is None else _as_json(raised))[0]
    if raised is not None:
        raise raised
    if error is not None:
        raise _from_json(error)
    return value


def agreed(value: Any) -> Any:
    """The first process's value (JSON), in every process: for what each would find for itself and might find
    otherwise (a time, an id, a file that is just being made)."""
    return exchange(value)[0]


def shared(
    things: Sequence[Thing],
    work: Callable[[Sequence[Thing], Sequence[int], Callable[[int], None]], Sequence[Value]],
    *,
    pack: Callable[[Value], Any],
    unpack: Callable[[Any], Value],
    advance: Callable[[int], None] = lambda _: None,
    together: bool = False,
) -> list[Value]:
    """Work on many things, each done by one of the processes; all of them get all values.

    Args:
        things: the same, in the same order, in every process.
        work: given some of the things, their positions in the whole, and a function to report things done; returns a
            value for each.
        pack, unpack: a value to JSON and back, exactly.
        advance: is told the number of things done by all; they sum up to all of them.
        together: every process must do everything (a model whose weights are shared out runs in all at once, or not
            at all); nothing is exchanged then.
    """
    if count() == 1 or together:
        return list(work(things, range(len(things)), advance))
    positions = range(number(), len(things), count())
    done_by_all = 0

    def reported(done: int) -> None:
        # The others are about as far.
        nonlocal done_by_all
        step = min(done * count(), len(things) - done_by_all)
        done_by_all += step
        advance(step)

    raised: LetgoError | None = None
    values_here: list[Any] | None = None
    try:
        values_here = [pack(value) for value in work([things[position] for position in positions], positions, reported)]
    except LetgoError as error:
        # Told to the others, which would wait for this part.
        raised = error
    parts = exchange({"values": values_here} if raised is None else _as_json(raised))
    if raised is not None:
        raise raised
    values: list[Any] = [None] * len(things)
    for rank, part in enumerate(parts):
        if "error" in part:
            raise _from_json(part)
        for position, value in zip(range(rank, len(things), count()), part["values"], strict=True):
            values[position] = unpack(value)
    advance(len(things) - done_by_all)
    return values


def _as_json(error: LetgoError) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error)}


def _from_json(fields: dict[str, str]) -> LetgoError:
    """The same error, as far as it is one of those that are everybody's."""
    kind = getattr(errors, fields["error"], LetgoError)
    error: LetgoError = kind(fields["message"])
    return error


def _joined() -> bool:
    # A command that has imported no torch has no processes to join, and must not wait for the import.
    torch = sys.modules.get("torch")
    return bool(torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized())


def _group() -> Any:
    import torch.distributed

    return torch.distributed
