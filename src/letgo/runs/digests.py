"""What a record speaks of, bound by digests: the models' files, the tokenizer, the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from letgo.core.catalog import links_of
from letgo.core.errors import UserError
from letgo.core.fingerprints import file_digests, keyed_digest
from letgo.core.progress import Reporter
from letgo.data.binding import data_key, key_id
from letgo.models.adapters import is_adapter, read_base
from letgo.models.files import MODEL_PATTERNS, TOKENIZER_PATTERNS
from letgo.models.formats import EXPORT
from letgo.models.gguf import is_gguf
from letgo.models.load import resolve_model
from letgo.runs.results import AttackResult, DataDigest, Digests, Result

_CODE = "*.py"
"""Code of a model's own decides what it is, too."""


def model_files(directory: Path) -> dict[str, Path]:
    """The files of a directory that a model is loaded from, by name. Not an adapter's `base.json`: where its base is
    may change, and `check_base` knows whether it is the one."""
    return _matching(directory, (*MODEL_PATTERNS, _CODE))


def tokenizer_files(directory: Path) -> dict[str, Path]:
    """The files of a directory that a tokenizer is loaded from, by name."""
    return _matching(directory, TOKENIZER_PATTERNS)


def _matching(directory: Path, patterns: Sequence[str]) -> dict[str, Path]:
    found = {path.name: path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return dict(sorted(found.items()))


def place_of(model: str | Path) -> Path | None:
    """Where a model's files are: its directory, the .gguf file itself, or the hub's cache; None where they are not on
    this machine."""
    path = Path(model)
    if is_gguf(path) and path.is_file():
        return path
    try:
        name = resolve_model(model)
    except UserError:
        # Files that are not whole lie there all the same.
        return path if path.is_dir() else None
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        cached = try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def base_digests(model: str | Path, reporter: Reporter, *, remember: bool = True) -> dict[str, str]:
    """The digests of the files of a model before unlearning. Of an adapter its own files, and below "base/" those of
    the model that it is on. None where the files are not on this machine. `remember` as in `file_digests`: several runs
    of a process begin with the same model."""
    paths, prefix, place = dict[str, Path](), "", place_of(model)
    while place is not None:
        paths |= {prefix + name: path for name, path in _files_at(place).items()}
        if not place.is_dir() or not is_adapter(place):
            break
        prefix, place = f"{prefix}base/", place_of(read_base(place).model)
    return file_digests(paths, reporter=reporter, remember=remember)


def _files_at(place: Path) -> dict[str, Path]:
    return model_files(place) if place.is_dir() else {place.name: place}


def with_model(digests: Digests, model: str | Path, reporter: Reporter) -> Digests:
    """The digests with those of the model that the record is of, and of its tokenizer."""
    place = place_of(model)
    if place is None:
        return digests
    paths = _files_at(place)
    tokens = tokenizer_files(place) if place.is_dir() else {}
    known = file_digests(paths | tokens, reporter=reporter)
    return digests.model_copy(
        update={"model": {name: known[name] for name in paths}, "tokenizer": {name: known[name] for name in tokens}}
    )


def data_digests(contents: Mapping[str, Sequence[Any]], key: bytes | None) -> dict[str, DataDigest]:
    """The keyed digests of sets of JSON values; none without a key, and none of an empty set."""
    if key is None:
        return {}
    return {
        name: DataDigest(rows=len(values), hmac_sha256=keyed_digest(key, values))
        for name, values in contents.items()
        if values
    }


def digests_of(base: str | Path | None, contents: Mapping[str, Sequence[Any]], reporter: Reporter) -> Digests:
    """The digests of what a piece of work begins with: the model before unlearning, where there is one, and its data.

    Raises:
        UserError: the key of the data's digests can't be read.
    """
    key = data_key(reporter.say)
    return Digests(
        base={} if base is None else base_digests(base, reporter),
        data=data_digests(contents, key),
        data_key=None if key is None else key_id(key),
    )


def check_begun_with(where: Path, begun: Digests, now: Digests) -> None:
    """Raise a `UserError` where a piece of work would go on with another model or other data than it was begun with.
    What only one of the two is bound to can't be compared."""
    comparable = begun.data_key is not None and begun.data_key == now.data_key
    data = [name for name in sorted({*begun.data, *now.data}) if begun.data.get(name) != now.data.get(name)]
    base = [name for name in sorted({*begun.base, *now.base}) if begun.base.get(name) != now.base.get(name)]
    changed = [f"the set {name}" for name in data if comparable]
    changed += [f"the model's {name}" for name in base if begun.base and now.base]
    if changed:
        raise UserError(
            f"{where} was begun with other data or another model: {', '.join(changed)} changed since; put back what "
            "was there, or begin anew in another directory"
        )


def attacked_files(attack: AttackResult) -> dict[str, dict[str, Any]]:
    """The files that an attack was made on, with their digests, where it was on files."""
    found: dict[str, dict[str, Any]] = {}
    for did in (attack.did, *attack.links):
        files = did.get("files")
        found |= {name: file for name, file in files.items() if "sha256" in file} if isinstance(files, dict) else {}
    return found


def differing(result: Result, digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """The files that are not those that a record is bound to, or are not there: part and name of each."""
    bound = result.digests
    known = [] if bound is None else [("weights", bound.model), ("tokenizer", bound.tokenizer)]
    for attack in result.attacks:
        if links_of(attack.name, attack.settings)[0][0] == "exported":
            files = attacked_files(attack)
            known.append(("exported file", {f"{EXPORT}/{name}": file["sha256"] for name, file in files.items()}))
    return [(part, name) for part, files in known for name, digest in files.items() if digests.get(name) != digest]


def check_bound(directory: Path, result: Result, reporter: Reporter) -> None:
    """Raise a `UserError` where the model in a run's directory is not the one that its record is bound to."""
    paths = model_files(directory) | tokenizer_files(directory)
    if result.digests is None or not result.digests.model or not paths:
        return
    bound = result.model_copy(update={"attacks": []})
    if wrong := differing(bound, file_digests(paths, reporter=reporter)):
        raise UserError(
            f"{directory}: {', '.join(f'{name} ({part})' for part, name in wrong)}: not as when the record was made, "
            "so what is measured now would be of another model\n  put the file back; or attack what is there as a bare "
            "model, with --benchmark and --original, from a directory without the record"
        )
