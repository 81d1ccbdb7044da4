from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from letgo.benchmarks.engine.tables import FOLDERS, PINNED, Source
from letgo.core.errors import UserError
from tests import stand_ins

SOURCE = Source("little", "somebody/little", "0" * 40)
UNPINNED = {"rwku", "knowundo", "lume", "wmdp-bio-forget-corpus"}
"""Data sets whose commits could not be seen; the record has the one that was read."""
ROWS = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(5)]
README = """---
license: mit
configs:
- config_name: one
  data_files: tables/first.jsonl
- config_name: two
  data_files:
  - split: test
    path: tables/second-*.jsonl
---
# Little
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "README.md").write_text(README)
    stand_ins.write_rows(tmp_path / "tables/first.jsonl", ROWS)
    stand_ins.write_rows(tmp_path / "tables/second-1.jsonl", ROWS[:2])
    stand_ins.write_rows(tmp_path / "tables/second-2.jsonl", ROWS[2:])
    return tmp_path


@pytest.fixture
def hub(folder, tmp_path_factory, monkeypatch):
    """A hub that has the folder's files, and keeps what was asked for."""
    snapshot = tmp_path_factory.mktemp("cache") / "snapshots" / ("f" * 40)
    asked = []

    def download(filename, repo_id, repo_type, revision):
        asked.append((filename, repo_id, repo_type, revision))
        target = snapshot / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((folder / filename).read_bytes())
        return str(target)

    class Api:
        def list_repo_files(self, **_):
            return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return asked


def test_the_readme_says_what_the_tables_are(folder):
    tables = SOURCE.open(data=folder)
    assert tables.table("one", fields=("question", "answer")).rows == ROWS
    table = tables.table("two", "test", limit=3)
    assert (table.rows, table.whole, len(table)) == (ROWS[:3], 5, 3)
    assert table.records[0][0].endswith("second-1.jsonl:1")
    assert "one" in tables
    assert "three" not in tables


def test_without_a_readme_the_names_of_the_files_do(tmp_path):
    stand_ins.write_rows(tmp_path / "alone.json", ROWS)
    stand_ins.write_rows(tmp_path / "pair/left.jsonl", ROWS[:1])
    stand_ins.write_rows(tmp_path / "pair/right-00000-of-00001.jsonl", ROWS[1:])
    tables = SOURCE.open(data=tmp_path)
    assert len(tables.table("alone")) == 5
    assert len(tables.table("pair", "left")) == 1
    assert len(tables.table("pair", "right")) == 4


def test_parquet_in_the_hubs_layout(tmp_path):
    import datasets

    (tmp_path / "pair").mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "pair/left-00000-of-00001.parquet")
    assert SOURCE.open(data=tmp_path).table("pair", "left").rows == ROWS


def test_the_hub_is_read_by_the_same_code_at_the_pinned_commit(folder, hub):
    tables = SOURCE.open()
    for config, split in (("one", "train"), ("two", "test")):
        assert tables.table(config, split).rows == SOURCE.open(data=folder).table(config, split).rows
    assert tables.provenance == {"data": "somebody/little", "revision": "f" * 40}, "the commit that was read"
    assert {revision for *_, revision in hub} == {"0" * 40}
    assert ("README.md", "somebody/little", "dataset", "0" * 40) in hub
    SOURCE.open(revision="main").table("one")
    assert hub[-1][-1] == "main"


def test_a_folder_of_local_copies(folder, monkeypatch, hub, tmp_path_factory):
    copies = tmp_path_factory.mktemp("copies")
    monkeypatch.setenv(FOLDERS, str(copies))
    assert SOURCE.open().folder is None, "no copy there: the hub"
    (copies / "little").symlink_to(folder)
    assert SOURCE.open().folder == copies / "little"
    assert SOURCE.open(revision="main").folder is None, "a revision is the hub's"


def test_every_pinned_revision_is_a_commit():
    assert {"tofu", "muse-news", "muse-books", "wmdp"} <= set(PINNED)
    assert {name for name, source in PINNED.items() if source.revision == "main"} == UNPINNED
    for source in (source for source in PINNED.values() if source.name not in UNPINNED):
        assert len(source.revision) == 40
        assert int(source.revision, 16) >= 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: _http(errors.GatedRepoError), "is gated: ask for access at https://huggingface.co/datasets/somebody"),
        (lambda: _http(errors.RevisionNotFoundError), "has no revision"),
        (lambda: errors.LocalEntryNotFoundError("no connection"), r"can't be had \(LocalEntryNotFoundError"),
        (lambda: OSError("disk full"), "--local-dir DIR"),
    ],
)
def test_data_that_cant_be_had_is_said_with_the_way_out(monkeypatch, error, message):
    def fail(**_):
        raise error()

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=message):
        SOURCE.open().table("one")


@pytest.mark.parametrize("beside", [False, True])
def test_a_hub_that_is_not_to_be_asked_and_where_the_copy_belongs(beside):
    """Tests run with HF_HUB_OFFLINE set, and nothing of the source is in the hub's cache."""
    source = Source("little", "somebody/little", "0" * 40, beside=beside)
    place = "DIR/little" if beside else "DIR"
    with pytest.raises(UserError, match=rf"HF_HUB_OFFLINE is set(.|\n)*--local-dir {place}`\n  then give data=DIR"):
        source.open().table("one")


def test_sources_that_data_names_together_say_so():
    own = {"tofu", "muse-news", "muse-books", "rwku", "knowundo", "lume"}
    assert {name for name, source in PINNED.items() if not source.beside} == own


def _http(kind):
    """Such an error without the answer of a server that it is made of."""
    error = kind.__new__(kind)
    Exception.__init__(error, "refused")
    return error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: SOURCE.open(data=f / "nowhere"), "no such folder"),
        (lambda f: SOURCE.open(data=f, revision="main"), "is for the hub"),
        (
            lambda f: SOURCE.open(data=f).table("on"),
            r"has no table 'on'; did you mean 'one'\?\n  its tables: one, two/test",
        ),
        (lambda f: SOURCE.open(data=f).table("two"), "has no table 'two'"),
        (
            lambda f: SOURCE.open(data=f).table("one", fields=("quest",)),
            "first.jsonl:1: no field 'quest'; it has 'question', 'answer'; did you mean 'question'",
        ),
    ],
)
def test_bad_tables(folder, change, message):
    with pytest.raises(UserError, match=message):
        change(folder)


def test_broken_folders(folder):
    (folder / "tables/first.jsonl").write_text("")
    with pytest.raises(UserError, match="has no rows"):
        SOURCE.open(data=folder).table("one")
    (folder / "tables/first.jsonl").unlink()
    with pytest.raises(UserError, match="there is no such file"):
        SOURCE.open(data=folder).table("one")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: one\n---\n")
    with pytest.raises(UserError, match="needs config_name and data_files"):
        SOURCE.open(data=folder).table("one")
    (folder / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(UserError, match="not YAML"):
        SOURCE.open(data=folder).table("one")


def test_the_manual_names_every_data_set_at_its_commit():
    manual = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for source in PINNED.values():
        lines = [line for line in manual.splitlines() if line.startswith(f"| `{source.name}` |")]
        [line] = [line for line in lines if f"`{source.repository}`" in line]
        assert f"`{source.revision}`" in line
        assert ("(gated)" in line) == source.gated


def test_tofus_tables_are_those_that_datasets_reads():
    """The same rows as by the library that the hub's own pages name, from the same folder."""
    import datasets

    base = os.environ.get(FOLDERS)
    folder = Path(base) / "tofu" if base else Path(__file__).parents[3] / "shared" / "data" / "tofu"
    if not folder.is_dir():
        pytest.skip("no tofu under LETGO_DATA or beside the checkout")
    tables = PINNED["tofu"].open(data=folder)
    for config in ("forget10", "retain90", "forget10_perturbed", "world_facts_perturbed"):
        theirs = datasets.load_dataset(str(folder), config, split="train", keep_in_memory=True)
        assert tables.table(config).rows == list(theirs), config
