"""What is pushed to a hub, and what never is. The hub is a stand-in that keeps what it is given."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from letgo import UserError, unlearn
from letgo.cli import app
from letgo.core.errors import LetgoError
from letgo.report import publish as publishing
from letgo.runs.results import read_result, write_result

SETTINGS = {"model": "biographies", "benchmark": "biographies", "max_steps": 2, "eval_limit": 10}


class Hub:
    """Of `huggingface_hub.HfApi`, what pushing calls."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo_id, *, private, repo_type, exist_ok):
        assert repo_type == "model"
        assert exist_ok
        if self.error:
            raise self.error
        self.repositories[repo_id] = private
        return f"hub:{repo_id}"

    def create_commit(self, repo_id, operations, *, commit_message, repo_type):
        assert repo_id in self.repositories
        assert commit_message
        assert repo_type == "model"
        for one in operations:
            source = one.path_or_fileobj
            self.files[one.path_in_repo] = source if isinstance(source, bytes) else Path(source).read_bytes()


def push(directory: Path, error: Exception | None = None, **how) -> Hub:
    """Push a run to a hub of its own."""
    hub = Hub(error)
    assert publishing.push_to_hub(directory, "someone/forgetful", api=hub, **how) == "hub:someone/forgetful"
    return hub


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "run"
    unlearn(**SETTINGS, output_dir=str(folder))
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Path:
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("published") / "adapter"
    unlearn(**SETTINGS, lora_rank=2, save_merged=True, output_dir=str(folder))
    return folder


@pytest.mark.parametrize("name", ["vocab.txt", "model-2.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("target", ["outside", "result.json", "nothing", "itself"])
def test_a_link_is_refused_by_name(whole, tmp_path, name, target):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (tmp_path / "outside").write_text("of nobody's concern")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to({"outside": tmp_path / "outside", "itself": name}.get(target, target))
    with pytest.raises(UserError, match=rf"{name} leads out of the run"):
        push(run)


def test_a_linked_folder_is_refused_and_hidden_files_stay(whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    for name in (".model.safetensors", ".tokenizer.json.1f3a", ".lock", "tokenizer.json.d/x"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("hidden")
    assert b"hidden" not in push(run).files.values()
    (tmp_path / "base.json").write_text("{}")
    (tmp_path / "alias").symlink_to(run)
    assert "model.safetensors" in push(tmp_path / "alias").files
    (run / "adapter_model.safetensors").write_bytes(b"x")
    (run / "adapter_config.json").write_text('{"base_model_name_or_path": "/here"}')
    (run / "merged").symlink_to(whole)
    with pytest.raises(UserError, match=r"merged/config.json leads out of the run"):
        push(run)


def test_the_model_and_its_card_are_pushed_and_nothing_else(whole):
    hub = push(whole)
    assert hub.repositories == {"someone/forgetful": True}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(hub.files)
    assert hub.files["model.safetensors"] == (whole / "model.safetensors").read_bytes()
    for kept in ("samples.jsonl", "result.json", "config.yaml", "history.jsonl"):
        assert (whole / kept).is_file()
        assert kept not in hub.files
    card = hub.files["README.md"].decode()
    assert "biographies, unlearned" in card
    assert "not published" in card
    assert "result.json" not in card


def test_figures_on_a_data_set_of_the_hub_are_pushed_as_entries(whole, tmp_path):
    assert ".eval_results/letgo.yaml" not in push(whole).files, "the biographies are of no data set there"
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    result = read_result(run)
    scored = {"benchmark": "tofu", "data": "locuslab/TOFU", "revision": "0" * 40}
    write_result(run, result.model_copy(update={"config": {**result.config, "scored": scored}}))
    entries = push(run).files[".eval_results/letgo.yaml"].decode()
    assert entries.count("id: locuslab/TOFU") == len(result.after)


def test_a_pushed_model_can_be_read(whole, tmp_path):
    from letgo.models.load import load_model, load_tokenizer

    for name, content in push(whole).files.items():
        (tmp_path / name).write_bytes(content)
    pushed, here = load_model(str(tmp_path)), load_model(str(whole))
    assert all((a == b).all() for a, b in zip(pushed.parameters(), here.parameters(), strict=True))
    assert load_tokenizer(str(tmp_path))("a b").input_ids == load_tokenizer(str(whole))("a b").input_ids


def test_of_an_adapter_on_a_base_of_ones_own_the_merged_model_is_pushed(adapted, tmp_path):
    hub = push(adapted, private=False)
    assert hub.repositories == {"someone/forgetful": False}
    assert hub.files["model.safetensors"] == (adapted / "merged" / "model.safetensors").read_bytes()
    assert not any(name.startswith("adapter") for name in hub.files)
    assert "library_name: transformers" in hub.files["README.md"].decode()
    alone = shutil.copytree(adapted, tmp_path / "alone")
    shutil.rmtree(alone / "merged")
    with pytest.raises(UserError, match="save_merged"):
        push(alone)


def test_a_run_pushes_itself_where_it_is_asked_to_and_only_then(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(publishing, "push_to_hub", lambda *a, **k: pushed.append((a, k)) or "hub:someone/forgetful")
    unlearn(**SETTINGS, output_dir=str(tmp_path / "one"))
    assert not pushed
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    to_hub = {"push_to_hub": True, "hub_model_id": "someone/forgetful"}
    run = unlearn(**SETTINGS, **to_hub, output_dir=str(tmp_path / "two"))
    [((directory, repository), how)] = pushed
    assert (directory, repository, how["private"]) == (run.directory, "someone/forgetful", True)
    assert "token" not in how  # the hub's own login has it
    written = [path for path in run.directory.rglob("*") if path.is_file()]
    assert not any(b"hf_secret" in path.read_bytes() for path in written)


@pytest.mark.parametrize("name", [None, "forgetful", "a/b/c", "../here"])
def test_a_repository_without_a_proper_name_is_refused_before_anything_is_trained(tmp_path, name):
    with pytest.raises(UserError, match="OWNER/NAME"):
        unlearn(**SETTINGS, push_to_hub=True, hub_model_id=name, output_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_cannot_be_pushed_says_why(whole, tmp_path):
    failed = shutil.copytree(whole, tmp_path / "failed")
    write_result(failed, read_result(failed).model_copy(update={"status": "failed"}))
    with pytest.raises(UserError, match="a run that failed"):
        push(failed)
    empty = shutil.copytree(whole, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model's weights"):
        push(empty)
    with pytest.raises(LetgoError, match="try again with `letgo push"):
        push(whole, ConnectionError("no route to the hub"))


def test_the_command_pushes_privately_unless_told_otherwise(whole, monkeypatch):
    calls = []
    monkeypatch.setattr(publishing, "push_to_hub", lambda *a, **k: calls.append((a, k["private"])) or "hub:a/b")
    runner = CliRunner()
    for flags, private in (([], True), (["--public"], False)):
        done = runner.invoke(app, ["push", str(whole), "--repo", "a/b", *flags])
        assert done.exit_code == 0
        assert "hub:a/b" in done.output
        assert calls.pop() == ((whole, "a/b"), private)
