"""What two processes hold and send in a step of a small Llama, counted: run as a module, once a rank.

python -m tests.planning.two_ranks STORE OUT      with OUT/RANK.json as the result; $RANK is one of two
"""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from letgo.core import processes

SHAPE = {"vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}
CASES = ("fsdp2, tied", "fsdp2, tied, twice", "fsdp2", "fsdp2, twice", "ddp")
"""twice: a loss of two forward passes, as of a forget and a retain part."""


class Tally(TorchDispatchMode):
    """Bytes alive in storages as large as they are at the time (FSDP2 shrinks and grows them), and bytes handed to
    collectives, by kind.

    Args:
        known: tensors that are not to be counted.
    """

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.peak = 0
        self.sent: dict[str, int] = {}
        self._alive: dict[int, Any] = {}
        self._known = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((out, args, kwargs)) if type(one) in (Tensor, torch.nn.Parameter)]
        for one in tensors:
            storage = one.untyped_storage()
            key = storage._cdata
            if key not in self._known and key not in self._alive:
                self._alive[key] = weakref.ref(storage, lambda _, key=key: self._alive.pop(key, None))
        if func.namespace == "c10d":
            name = func._opname
            mine = [one for one in tree_leaves(args) if isinstance(one, Tensor)]
            largest = max((one.nbytes for one in mine), default=0)
            self.sent[name] = self.sent.get(name, 0) + largest
        self.peak = max(self.peak, self.now)
        return out

    @property
    def now(self) -> int:
        return sum(s.nbytes() for one in list(self._alive.values()) if (s := one()) is not None)


def build(tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPE, num_attention_heads=6, num_key_value_heads=6, tie_word_embeddings=tied)
    return LlamaForCausalLM(config)


def loss_of(model: Any, twice: bool) -> Tensor:
    ids = torch.arange(2 * 64).reshape(2, 64) % SHAPE["vocab_size"]
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss + model(input_ids=ids, labels=ids.flip(0), use_cache=False).loss if twice else loss


def shard(model: Any, mesh: Any) -> None:
    """As transformers and accelerate do it."""
    from torch.distributed.fsdp import fully_shard

    inner, tied = model.model, model.lm_head.weight is model.model.embed_tokens.weight
    for block in inner.layers:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    if not tied:
        fully_shard(inner.embed_tokens, mesh=mesh, reshard_after_forward=True)
    tail = [inner.norm, *([inner.embed_tokens] if tied else []), model.lm_head]
    fully_shard(tail, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def held(tensors: Any) -> int:
    return sum(local(one).numel() * local(one).element_size() for one in tensors)


def measured(case: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build("tied" in case)
    trained: Any = model
    kept = 0
    if case == "ddp":
        with Tally(model.parameters()) as tally:
            trained = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        kept = tally.now
    else:
        shard(model, dist.init_device_mesh("cpu", (dist.get_world_size(),)))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    # A step beforehand: DDP puts its buckets in order after the first.
    for step in range(2):
        with Tally([local(p) for p in parameters]) as tally:
            loss_of(trained, "twice" in case).backward()
        if step == 0:
            optimizer.step()
            optimizer.zero_grad()
    found = {
        "kept by the wrapper": kept,
        "weights": held(parameters),
        "gradients": held(p.grad for p in parameters),
        "state": held(v for s in optimizer.state.values() for v in s.values() if v.dim()),
        "peak": tally.peak,
        "sent": tally.sent,
    }
    optimizer.zero_grad()
    with Tally([local(p) for p in parameters]) as tally, torch.no_grad():
        loss_of(trained, "twice" in case)
    return found | {"forward peak": tally.peak, "forward sent": tally.sent}


def main() -> None:
    rank, store, out = processes.number(), sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {case: measured(case) for case in CASES}
    (out / f"{rank}.json").write_text(json.dumps(found))
    processes.end()


if __name__ == "__main__":
    main()
