"""The reference store: what a reference model says of each row of a data set, on disk, computed once for all runs.

A file holds one quantity of one data set under one model, one tensor a row, packed. It lies in `references` below
letgo's cache directory (`LETGO_CACHE`), or in the folder that `LETGO_REFERENCES` names, is a plain safetensors file, is
streamed to disk a batch at a time and read memory-mapped, so that neither making nor using it takes its size in memory.

A file appears whole or not at all: it is written under another name and renamed, so two processes that make the same
one at once both end well. Its checksum is looked at when it is opened; a broken one is removed and made again. When a
new file takes the store over `LETGO_REFERENCES_GB` (default 20), those unused for longest are removed first. Removing
any of them by hand is safe: they can be made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from letgo.core.errors import LetgoError, UserError, not_writable
from letgo.core.files import cache_directory, written_whole
from letgo.core.fingerprints import Fingerprint, text_fingerprint
from letgo.models.load import in_shards, whole

DIRECTORY_VARIABLE = "LETGO_REFERENCES"
LIMIT_VARIABLE = "LETGO_REFERENCES_GB"
DEFAULT_LIMIT_GB = 20.0
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# safetensors pads headers with spaces, so room for one can be kept free until the sizes are known.
_HEADER = 4096
_CHUNK = 1 << 24


@dataclass(frozen=True)
class ReferenceKey:
    """What a stored quantity depends on: another value of any of these is another file."""

    model: str
    data: str
    tokenizer: str
    template: str
    max_length: int
    dtype: str
    quantity: str
    layer: int | None = None

    @property
    def file(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.quantity}-{text_fingerprint(text)}.safetensors"


class RowValues(Sequence[Tensor]):
    """One tensor a row: `logps` scalars, hidden states of shape (tokens, width). Memory-mapped where it comes from
    the store."""

    def __init__(self, values: Tensor, offsets: Tensor) -> None:
        self.values, self.offsets = values, offsets.tolist()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        row = self.values[self.offsets[index] : self.offsets[index + 1]]
        return row[0] if self.values.dim() == 1 else row


class ReferenceStore:
    """The files, and the rules they are kept by.

    Args:
        directory: where they lie; by default what `LETGO_REFERENCES` says, or `references` in letgo's cache directory.
        limit: most bytes in all; by default `LETGO_REFERENCES_GB`, or 20 GB.
    """

    def __init__(self, directory: Path | None = None, limit: int | None = None) -> None:
        given = os.environ.get(DIRECTORY_VARIABLE)
        self.directory = directory or (Path(given).expanduser() if given else cache_directory() / "references")
        self.limit = _limit_from_environment() if limit is None else limit

    def read(self, key: ReferenceKey) -> RowValues | None:
        """What is stored under a key; None where nothing is, or where it was broken (it is then removed)."""
        path = self.directory / key.file
        if not path.is_file():
            return None
        try:
            values = _open(path, key)
            os.utime(path)  # used now: the last to be removed
        except ValueError:
            path.unlink(missing_ok=True)
            return None
        except OSError:
            # Removed by another process meanwhile, or a store that can only be read.
            return None
        return values

    @contextlib.contextmanager
    def writer(self, key: ReferenceKey) -> Iterator[ReferenceWriter]:
        """Something to append rows to; when the block ends well, the file is there and the writer's `written` is what
        it holds, mapped: that stays good even where another process removes the file."""
        path = self.directory / key.file
        try:
            with written_whole(path) as temporary, temporary.open("r+b") as file:
                writer = ReferenceWriter(file, key)
                yield writer
                writer.finish()
            writer.written = _open(path, key)
        except OSError as error:
            way = f"set {DIRECTORY_VARIABLE} to a folder that has the room"
            raise not_writable(f"the reference store {self.directory}", error, way) from error
        self._keep_limit(path)

    def _keep_limit(self, newest: Path) -> None:
        """Remove the files unused for longest until the rest is within the limit; never the newest."""
        files = []
        for path in self.directory.glob("*.safetensors"):
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                return
            if path != newest:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= size


class ReferenceWriter:
    """Appends rows of one quantity to a file: a header's room, the values as they come, then the offsets."""

    def __init__(self, file: IO[bytes], key: ReferenceKey) -> None:
        self.file, self.key = file, key
        self.written: RowValues | None = None
        self.offsets = [0]
        self.dtype: torch.dtype | None = None
        self.width: tuple[int, ...] = ()
        self.digest = Fingerprint()
        self.bytes = 0
        file.write(b"\0" * (8 + _HEADER))

    def append(self, row: Tensor) -> None:
        """One row's values, on any device: a scalar, or of shape (tokens, width)."""
        row = row.detach().cpu().contiguous()
        row = row.reshape(1) if row.dim() == 0 else row
        if self.dtype is None:
            self.dtype, self.width = row.dtype, tuple(row.shape[1:])
            if self.dtype not in _NAMES:
                raise LetgoError(f"the reference store keeps floating-point values, not {row.dtype}")
        if row.dtype != self.dtype or tuple(row.shape[1:]) != self.width:
            raise LetgoError(f"rows of {self.key.quantity} differ: {row.dtype} {tuple(row.shape)}")
        if row.numel():
            self._write(row.view(torch.uint8).numpy().tobytes())
        self.offsets.append(self.offsets[-1] + row.shape[0])

    def finish(self) -> None:
        if self.dtype is None:
            raise LetgoError(f"no row of {self.key.quantity} was written to the reference store")
        values = self.bytes
        self._write(struct.pack(f"<{len(self.offsets)}q", *self.offsets))
        header = {
            "__metadata__": {"key": json.dumps(asdict(self.key), sort_keys=True), "digest": self.digest.hexdigest()},
            "values": {
                "dtype": _NAMES[self.dtype],
                "shape": [self.offsets[-1], *self.width],
                "data_offsets": [0, values],
            },
            "offsets": {"dtype": "I64", "shape": [len(self.offsets)], "data_offsets": [values, self.bytes]},
        }
        text = json.dumps(header).encode()
        self.file.seek(0)
        self.file.write(struct.pack("<Q", _HEADER) + text.ljust(_HEADER))
        self.file.flush()
        os.fsync(self.file.fileno())

    def _write(self, data: bytes) -> None:
        self.digest.add(data)
        self.file.write(data)
        self.bytes += len(data)


def _open(path: Path, key: ReferenceKey) -> RowValues:
    """A file of the store, checked.

    Raises:
        ValueError: it is broken, or another key's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != json.dumps(asdict(key), sort_keys=True):
                raise ValueError("of another key")
            if metadata.get("digest") != _digest(path):
                raise ValueError("its checksum is wrong")
            return RowValues(file.get_tensor("values"), file.get_tensor("offsets"))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _digest(path: Path) -> str:
    digest = Fingerprint()
    with path.open("rb") as file:
        file.seek(8 + _HEADER)
        while chunk := file.read(_CHUNK):
            digest.add(chunk)
    return digest.hexdigest()


def _limit_from_environment() -> int:
    text = os.environ.get(LIMIT_VARIABLE)
    try:
        gigabytes = DEFAULT_LIMIT_GB if text is None else float(text)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes > 0:
        raise UserError(f"{LIMIT_VARIABLE} is {text!r}; give the most gigabytes of the reference store, such as 20")
    return int(gigabytes * 1e9)


# -- what the keys are made of ---------------------------------------------------------------------------------------


def model_fingerprint(model: Any) -> str:
    """A hash of a model's base: every weight (quantized ones with their scales) and what its config says of how they
    are used. Adapters are left out, so a LoRA run shares its references with one of the whole model."""
    digest = Fingerprint()
    seen: set[tuple[int, int]] = set()
    for name, value in in_shards(model).state_dict().items():
        if "lora_" in name or not isinstance(value, Tensor):
            continue
        held = value.to_local() if hasattr(value, "to_local") else value
        storage = (held.data_ptr(), value.numel())
        if value.numel() and storage in seen:
            continue  # tied
        seen.add(storage)
        data = whole(value.detach()).cpu().contiguous()
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        digest.add(f"{plain} {tuple(data.shape)} {data.dtype}\n")
        if data.numel():
            digest.add(data.reshape(-1).view(torch.uint8).numpy().data)
    digest.add(config_fingerprint(model.config))
    return digest.hexdigest()


def config_fingerprint(config: Any) -> str:
    """A hash of what a model's config says of its computation: not of where it lies, nor of who wrote it."""
    settings: Mapping[str, Any] = config.to_dict()
    kept = {
        k: v for k, v in settings.items() if not k.startswith("_") and k not in ("transformers_version", "use_cache")
    }
    text = json.dumps(kept, sort_keys=True, default=str)
    return text_fingerprint(text)


def rows_fingerprint(rows: Sequence[Any]) -> str:
    """A hash of encoded rows: their tokens and labels, in order."""
    digest = Fingerprint()
    for row in rows:
        ids, labels = list(row.input_ids), list(row.labels)
        digest.add(struct.pack(f"<q{len(ids)}q{len(labels)}q", len(ids), *ids, *labels))
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of a tokenizer: its pieces and how they are joined, its special tokens, its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pieces = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    text = "\n".join([pieces, repr(sorted(tokenizer.special_tokens_map.items())), str(tokenizer.chat_template or "")])
    return text_fingerprint(text)
