"""Where a benchmark's tables come from: a repository of the hub at a pinned commit, or a local folder of its layout.

The same code reads both: it first fetches what is on the hub into the hub's cache, file by file as they are needed. The
layout is what the head of the folder's README.md says (`configs:` with `config_name` and `data_files`), else files
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
from letgo.core.errors import UserError, first_line
from letgo.data.rows import checked_text, kind_of, read_records

FOLDERS = "LETGO_DATA"
"""Environment variable: a folder of local copies, each under its source's name (`tofu`, `muse-news`)."""
_KINDS = (".json", ".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Source:
    """A data set of the hub.

    Attributes:
        name: what its local copy is called under `LETGO_DATA`, and what messages call it.
        repository: its id on the hub.
        revision: the commit that the published numbers belong to.
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
        if data is not None:
            if revision is not None:
                raise UserError(f"{self.name}: data={data} is read as it stands; revision={revision} is for the hub")
            folder = Path(str(data)).expanduser()
            folder = folder / self.name if self.beside else folder
            if not folder.is_dir():
                raise UserError(f"{self.name}: data={data}: no such folder: {folder}\n  {self.help(folder)}")
            return Tables(self, folder, None)
        base = os.environ.get(FOLDERS)
        copy = Path(base).expanduser() / self.name if base and revision is None else None
        return Tables(self, copy, None) if copy and copy.is_dir() else Tables(self, None, revision or self.revision)

    @property
    def access(self) -> str:
        """How to get access to the repository."""
        return f"ask for access at https://huggingface.co/datasets/{self.repository}, then `hf auth login`"

    def help(self, folder: str | Path | None = None) -> str:
        """How to make a local copy (in this folder)."""
        access = f"{self.access}; " if self.gated else ""
        return (
            f"{access}a local copy is made by `hf download {self.repository} --repo-type dataset "
            f"--revision {self.revision} --local-dir {folder or ('DIR/' + self.name if self.beside else 'DIR')}`\n"
            f"  then give data=DIR, or put it at ${FOLDERS}/{self.name}"
        )


@dataclass(frozen=True)
class Table:
    """Rows, each after the place where it stands, for messages; `whole` is how many the table has where only the first
    ones were taken."""

    name: str
    records: Sequence[tuple[str, Mapping[str, Any]]]
    whole: int

    def __len__(self) -> int:
        return len(self.records)

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        return [row for _, row in self.records]


class Tables:
    """The tables of one data set, each read when it is asked for."""

    def __init__(self, source: Source, folder: Path | None, revision: str | None) -> None:
        self.source, self.folder, self.revision = source, folder, revision
        self._commit: str | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """Repository and commit (the one that was read, whatever the revision was called), or the folder."""
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
        texts: Sequence[str] = (),
        limit: int | None = None,
        part: str | None = None,
    ) -> Table:
        """A table's rows, at most the first `limit`.

        Args:
            config, split: as on the hub.
            fields: names that every row must have.
            texts: fields that must be text and not empty.
            limit: take no more rows than these.
            part: one file of a table of many, which alone is read if it is there (a local copy may have fewer files).

        Raises:
            UserError: there is no such table, it can't be had, it has no rows, or a row lacks a field.
        """
        name = _table_name(config, split)
        if part and (self.folder is None or (self.folder / part).is_file()):
            files = [self._fetch(part)]
        else:
            files = self._files(config, split)
        records = [record for file in files for record in read_records(file, name=f"{self.source.name} {name}")]
        if not records:
            raise UserError(f"{self.source.name} {name}: {files[0]} has no rows")
        for where, row in records[:limit]:
            if not isinstance(row, Mapping):
                raise UserError(f"{where}: a row must be an object with named fields, not {type(row).__name__}")
            for field in (*fields, *texts):
                if field not in row:
                    names = ", ".join(map(repr, row)) or "no fields"
                    raise UserError(f"{where}: no field {field!r}; it has {names}{did_you_mean(field, map(str, row))}")
            for field in texts:
                checked_text(where, field, row[field])
        return Table(name, records[:limit], len(records))

    @cached_property
    def layout(self) -> dict[tuple[str, str], list[str]]:
        """(config, split) to the patterns of its files, relative to the folder."""
        readme = self._readme()
        layout = {} if readme is None else _configs(readme, f"{self.source.name}: {readme}")
        if not layout:
            for path in self._listing():
                if (key := _by_name(path)) is not None:
                    layout.setdefault(key, []).append(path)
        return layout

    def _files(self, config: str, split: str) -> list[Path]:
        if (config, split) not in self.layout:
            names = sorted({_table_name(*key) for key in self.layout})
            where = self.folder or f"{self.source.repository}@{self.revision}"
            name = _table_name(config, split)
            raise UserError(
                f"{self.source.name}: {where} has no table {name!r}{did_you_mean(name, names)}\n"
                f"  its tables: {', '.join(names) or 'none'}"
            )
        patterns = self.layout[config, split]
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
            files = (path for path in self.folder.rglob("*") if path.is_file() and kind_of(path) in _KINDS)
            return sorted(path.relative_to(self.folder).as_posix() for path in files)
        if patterns and not any(character in pattern for pattern in patterns for character in "*?["):
            return list(patterns)
        return self._on_hub(lambda hub: hub.HfApi().list_repo_files(**self._repository()))

    def _fetch(self, path: str) -> Path:
        if self.folder is not None:
            return self.folder / path
        file = Path(self._on_hub(lambda hub: hub.hf_hub_download(filename=path, **self._repository())))
        # The cache keeps a commit's files under snapshots/COMMIT.
        if "snapshots" in file.parts:
            self._commit = file.parts[file.parts.index("snapshots") + 1]
        return file

    def _repository(self) -> dict[str, Any]:
        return {"repo_id": self.source.repository, "repo_type": "dataset", "revision": self.revision}

    def _on_hub(self, call: Any) -> Any:
        import huggingface_hub
        from huggingface_hub import errors

        name, where = self.source.name, f"{self.source.repository}@{self.revision}"
        try:
            return call(huggingface_hub)
        except errors.GatedRepoError as error:
            raise UserError(f"{name}: {where} is gated: {self.source.access}\n  {self.source.help()}") from error
        except errors.RevisionNotFoundError as error:
            raise UserError(
                f"{name}: {self.source.repository} has no revision {self.revision!r}; "
                f"by default it is {self.source.revision}"
            ) from error
        except Exception as error:  # the hub's client raises many kinds for what can't be reached
            reason = f"{type(error).__name__}: {first_line(error)}"
            if huggingface_hub.constants.HF_HUB_OFFLINE:
                reason = "HF_HUB_OFFLINE is set, so the hub is not asked, and its cache does not have it"
            raise UserError(f"{name}: {where} can't be had ({reason})\n  {self.source.help()}") from error


PINNED: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source("tofu", "locuslab/TOFU", "324592d84ae4f482ac7249b9285c2ecdb53e3a68"),
        Source("muse-news", "muse-bench/MUSE-News", "506bd5b150b92814d45e4404a82f120ab2d748bf"),
        Source("muse-books", "muse-bench/MUSE-Books", "051ba90319e920d410d87cfdbd61f25843c1b892"),
        # Their commits can't be seen from where this was written: none is pinned, and the record has the one read.
        Source("rwku", "jinzhuoran/RWKU", "main"),
        Source("knowundo", "zjunlp/KnowUnDo", "main"),
        Source("lume", "llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public", "main", gated=True),
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


def _table_name(config: str, split: str) -> str:
    return config if split == "train" else f"{config}/{split}"


def _configs(readme: Path, where: str) -> dict[tuple[str, str], list[str]]:
    """The tables' files as the head of a data set's README names them."""
    from huggingface_hub import metadata_load

    try:
        head = metadata_load(readme) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: its head is not YAML ({getattr(error, 'problem', None) or error})") from error
    layout: dict[tuple[str, str], list[str]] = {}
    for config in head.get("configs") or []:
        if not isinstance(config, Mapping) or "config_name" not in config or "data_files" not in config:
            raise UserError(f"{where}: an entry of 'configs' needs config_name and data_files, not {config!r}")
        name, files = str(config["config_name"]), config["data_files"]
        for entry in [files] if isinstance(files, str) else files:
            file = {"split": "train", "path": entry} if isinstance(entry, str) else entry
            if not isinstance(file, Mapping) or "split" not in file or "path" not in file:
                raise UserError(f"{where}: data_files of {name!r} must have split and path, not {file!r}")
            paths = file["path"] if isinstance(file["path"], list) else [file["path"]]
            layout.setdefault((name, str(file["split"])), []).extend(str(path).removeprefix("./") for path in paths)
    return layout


def _by_name(path: str) -> tuple[str, str] | None:
    """CONFIG.json as (CONFIG, train); CONFIG/SPLIT.json and CONFIG/SPLIT-00000-of-00001.parquet as (CONFIG, SPLIT)."""
    *folders, file = path.split("/")
    kind = kind_of(Path(path))
    if kind not in _KINDS or len(folders) > 1:
        return None
    stem = re.sub(r"-\d+-of-\d+$", "", file[: file.lower().rindex(kind)])
    return (folders[0], stem) if folders else (stem, "train")
