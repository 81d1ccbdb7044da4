"""Where a benchmark's tables come from: a repository of the hub at a pinned commit, or a local folder of its layout.

Both are read by the same code: what the hub has is fetched into its cache first, file by file as they are needed. A
layout is what the folder's README.md says in its head (`configs:` with `config_name` and `data_files`), else a file
CONFIG.json (.jsonl, .csv, .parquet), CONFIG/SPLIT.json or CONFIG/SPLIT-00000-of-00001.parquet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.data.rows import kind_of, read_records

FOLDERS = "LETGO_DATA"
"""Environment variable: a folder of local copies, each under its source's name (`tofu`, `muse-news`)."""
_KINDS = (".json", ".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Source:
    """A data set of the hub.

    Attributes:
        name: what its local copy is called under `LETGO_DATA`, and what messages call it.
        repository: its id on the hub.
        revision: the commit that its published numbers can be had with.
        gated: whether access has to be asked for.
        beside: whether `data=` names a folder of several data sets, this one under its name, not this one's folder.
    """

    name: str
    repository: str
    revision: str
    gated: bool = False
    beside: bool = False

    def open(self, *, data: str | Path | None = None, revision: str | None = None) -> Tables:
        """The data set's tables.

        Args:
            data: a local folder; by default the one under `LETGO_DATA`, where there is one, else the hub.
            revision: another commit, branch or tag of the hub.

        Raises:
            UserError: the folder does not exist, or both are given.
        """
        if data is not None and revision is not None:
            raise UserError(f"{self.name}: data={data} is read as it stands; revision={revision} is for the hub")
        folder = Path(str(data)).expanduser() if data is not None else self._under_variable(revision)
        if folder is not None and not folder.is_dir():
            raise UserError(f"{self.name}: data={data}: no such folder\n  {self.help()}")
        return Tables(self, folder, None if folder is not None else revision or self.revision)

    def _under_variable(self, revision: str | None) -> Path | None:
        base = os.environ.get(FOLDERS)
        if not base or revision is not None:
            return None
        folder = Path(base).expanduser() / self.name
        return folder if folder.is_dir() else None

    def help(self) -> str:
        """How to come by a local copy."""
        access = (
            f"ask for access at https://huggingface.co/datasets/{self.repository}, then `hf auth login`; "
            if self.gated
            else ""
        )
        place = f"DIR/{self.name}" if self.beside else "DIR"
        return (
            f"{access}a local copy is made by `hf download {self.repository} --repo-type dataset "
            f"--revision {self.revision} --local-dir {place}`\n"
            f"  then give data=DIR, or put it at ${FOLDERS}/{self.name}"
        )


@dataclass(frozen=True)
class Table:
    """Rows with where each stands, for messages; `whole` is how many the table has where only a part was taken."""

    name: str
    places: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    whole: int

    def __len__(self) -> int:
        return len(self.rows)


class Tables:
    """The tables of one data set, read when they are asked for."""

    def __init__(self, source: Source, folder: Path | None, revision: str | None) -> None:
        self.source, self.folder, self.revision = source, folder, revision
        self._commit: str | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """Repository and commit (that which was read, whatever the revision was called), or the folder."""
        if self.folder is not None:
            return {"data": str(self.folder)}
        return {"data": self.source.repository, "revision": self._commit or self.revision}

    def __contains__(self, config: str) -> bool:
        return any(name == config for name, _ in self.layout)

    def table(
        self,
        config: str,
        split: str = "train",
        *,
        fields: Sequence[str] = (),
        limit: int | None = None,
        part: str | None = None,
    ) -> Table:
        """A table's rows, at most the first `limit`.

        Args:
            config, split: as on the hub.
            fields: names that every row must have.
            limit: take no more rows than these.
            part: of a table of many files that one alone, where it is there (a local copy may have fewer).

        Raises:
            UserError: there is no such table, it can't be had, it has no rows, or a row lacks a field.
        """
        name = config if split == "train" else f"{config}/{split}"
        files = [self._fetch(part)] if part and self._has(part) else self._files(config, split)
        records = [record for file in files for record in read_records(file, name=f"{self.source.name} {name}")]
        if not records:
            raise UserError(f"{self.source.name} {name}: {files[0]} has no rows")
        taken = records[:limit]
        for place, row in taken:
            if not isinstance(row, Mapping):
                raise UserError(f"{place}: a row must be an object with named fields, not {type(row).__name__}")
            for field in fields:
                if field not in row:
                    has = ", ".join(map(repr, row)) or "no fields"
                    raise UserError(f"{place}: no field {field!r}; it has {has}{did_you_mean(field, map(str, row))}")
        return Table(name, [place for place, _ in taken], [row for _, row in taken], len(records))

    def _has(self, part: str) -> bool:
        return self.folder is None or (self.folder / part).is_file()

    @cached_property
    def layout(self) -> dict[tuple[str, str], list[str]]:
        """(config, split) to the patterns of its files, relative to the folder."""
        readme = self._readme()
        found = {} if readme is None else _configs(readme, f"{self.source.name}: {readme}")
        if not found:
            for path in self._listing():
                if (key := _by_name(path)) is not None:
                    found.setdefault(key, []).append(path)
        return found

    def _files(self, config: str, split: str) -> list[Path]:
        layout = self.layout
        if (config, split) not in layout:
            names = sorted({c if s == "train" else f"{c}/{s}" for c, s in layout})
            where = self.folder or f"{self.source.repository}@{self.revision}"
            wanted = config if split == "train" else f"{config}/{split}"
            raise UserError(
                f"{self.source.name}: {where} has no table {wanted!r}{did_you_mean(wanted, names)}\n"
                f"  its tables: {', '.join(names) or 'none'}"
            )
        patterns = layout[config, split]
        paths = [path for path in self._listing(patterns) if any(fnmatch(path, pattern) for pattern in patterns)]
        if not paths:
            raise UserError(
                f"{self.source.name}: {self.folder or self.source.repository} names {', '.join(patterns)} for "
                f"{config}/{split}, but there is no such file"
            )
        return [self._fetch(path) for path in sorted(paths)]

    # -- the folder or the hub ----------------------------------------------------------------------------------------

    def _readme(self) -> Path | None:
        if self.folder is not None:
            return self.folder / "README.md" if (self.folder / "README.md").is_file() else None
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            return self._fetch("README.md")
        except UserError as error:
            if isinstance(error.__cause__, RemoteEntryNotFoundError):
                return None
            raise

    def _listing(self, patterns: Sequence[str] = ()) -> list[str]:
        if self.folder is not None:
            return sorted(
                path.relative_to(self.folder).as_posix()
                for path in self.folder.rglob("*")
                if path.is_file() and kind_of(path) in _KINDS
            )
        if patterns and not any(character in pattern for pattern in patterns for character in "*?["):
            return list(patterns)
        return self._on_hub(lambda hub: hub.HfApi().list_repo_files(**self._where()))

    def _fetch(self, path: str) -> Path:
        if self.folder is not None:
            return self.folder / path
        found = Path(self._on_hub(lambda hub: hub.hf_hub_download(filename=path, **self._where())))
        # The cache keeps a commit's files under snapshots/COMMIT.
        parts = found.parts
        if "snapshots" in parts:
            self._commit = parts[parts.index("snapshots") + 1]
        return found

    def _where(self) -> dict[str, Any]:
        return {"repo_id": self.source.repository, "repo_type": "dataset", "revision": self.revision}

    def _on_hub(self, call: Any) -> Any:
        import huggingface_hub
        from huggingface_hub import errors

        where = f"{self.source.repository}@{self.revision}"
        try:
            return call(huggingface_hub)
        except errors.GatedRepoError as error:
            raise UserError(
                f"{self.source.name}: {where} is gated: ask for access at "
                f"https://huggingface.co/datasets/{self.source.repository}, then `hf auth login`\n"
                f"  {self.source.help()}"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UserError(
                f"{self.source.name}: {self.source.repository} has no revision {self.revision!r}; "
                f"by default it is {self.source.revision}"
            ) from error
        except Exception as error:  # the hub's client raises many kinds for what can't be reached
            said = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {said[0][:200] if said else 'no message'}"
            if huggingface_hub.constants.HF_HUB_OFFLINE:
                reason = "HF_HUB_OFFLINE is set, so the hub is not asked, and its cache does not have it"
            raise UserError(f"{self.source.name}: {where} can't be had ({reason})\n  {self.source.help()}") from error


PINNED: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source("tofu", "locuslab/TOFU", "324592d84ae4f482ac7249b9285c2ecdb53e3a68"),
        Source("muse-news", "muse-bench/MUSE-News", "506bd5b150b92814d45e4404a82f120ab2d748bf"),
        Source("muse-books", "muse-bench/MUSE-Books", "051ba90319e920d410d87cfdbd61f25843c1b892"),
        Source("wmdp", "cais/wmdp", "7125571f22f032c56415e7980f48d877dd830ff8", beside=True),
        Source("wmdp-corpora", "cais/wmdp-corpora", "daf89fa9b618b63a624228061a9cebacca88009c", beside=True),
        # The form asks who one is and what for; its commits can't be seen without access, so none can be pinned here.
        Source("wmdp-bio-forget-corpus", "cais/wmdp-bio-forget-corpus", "main", gated=True, beside=True),
        Source("mmlu", "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe", beside=True),
        Source("wikitext", "Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", beside=True),
        Source("c4", "allenai/c4", "1588ec454efa1a09f29cd18ddd04fe05fc8653a2", beside=True),
        Source("pku-saferlhf", "PKU-Alignment/PKU-SafeRLHF", "2d8577a5fe215c81d01854497c2549942446b533", beside=True),
        Source(
            "real-toxicity-prompts",
            "allenai/real-toxicity-prompts",
            "88a5d7954c54f31e153959c2db98e15cf5cbec01",
            beside=True,
        ),
    )
}
"""Every data set that a benchmark reads, at the commit that it is read at unless another one is asked for."""


def _configs(readme: Path, where: str) -> dict[tuple[str, str], list[str]]:
    """What the head of a data set's README says of its files."""
    text = readme.read_text(encoding="utf-8", errors="replace")
    head = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", text, flags=re.DOTALL)
    if head is None:
        return {}
    try:
        said = yaml.safe_load(head[1])
    except yaml.YAMLError as error:
        raise UserError(f"{where}: its head is not YAML ({getattr(error, 'problem', None) or error})") from error
    found: dict[tuple[str, str], list[str]] = {}
    configs = said.get("configs") if isinstance(said, Mapping) else None
    for config in configs if isinstance(configs, list) else []:
        if not isinstance(config, Mapping) or "config_name" not in config or "data_files" not in config:
            raise UserError(f"{where}: an entry of 'configs' needs config_name and data_files, not {config!r}")
        name, files = str(config["config_name"]), config["data_files"]
        if isinstance(files, str):
            files = [{"split": "train", "path": files}]
        for entry in files:
            one = {"split": "train", "path": entry} if isinstance(entry, str) else entry
            if not isinstance(one, Mapping) or "split" not in one or "path" not in one:
                raise UserError(f"{where}: data_files of {name!r} must have split and path, not {one!r}")
            paths = one["path"] if isinstance(one["path"], list) else [one["path"]]
            found.setdefault((name, str(one["split"])), []).extend(str(path).removeprefix("./") for path in paths)
    return found


def _by_name(path: str) -> tuple[str, str] | None:
    """CONFIG.json as (CONFIG, train); CONFIG/SPLIT.json and CONFIG/SPLIT-00000-of-00001.parquet as (CONFIG, SPLIT)."""
    parts = path.split("/")
    kind = kind_of(Path(path))
    if kind not in _KINDS or len(parts) > 2:
        return None
    stem = parts[-1][: parts[-1].lower().rindex(kind)]
    stem = re.sub(r"-\d+-of-\d+$", "", stem)
    return (stem, "train") if len(parts) == 1 else (parts[0], stem)
