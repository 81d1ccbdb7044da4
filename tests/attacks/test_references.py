"""The original and the retrained model are attacked once for each attack and seed, not once a run."""

from __future__ import annotations

import hashlib
import shutil

import pytest

import letgo
from letgo.attacks.engine import run as attacking
from letgo.models.load import resolve_model

ATTACK = "relearn:steps=2,learning_rate=1e-3,batch_size=4,holdout=0.5,seeds=2,evaluations=0"
HOW = {"benchmark": "biographies", "original": "biographies", "limit": 40}


@pytest.fixture
def attacked(monkeypatch):
    """(model, seed) of every attack that is made, in a process that remembers none."""
    made = []
    real = attacking.apply_attack

    def counted(victim, plan, settings, seed):
        made.append((str(victim.directory), seed))
        return real(victim, plan, settings, seed)

    monkeypatch.setattr(attacking, "_REMEMBERED", {})
    monkeypatch.setattr(attacking, "apply_attack", counted)
    return made


def test_runs_under_the_same_attack_share_the_attacked_references(attacked):
    first = letgo.attack("biographies-retrained", [ATTACK], **HOW)
    assert len(attacked) == 6, "two seeds of the model, two of each reference"
    again = letgo.attack("biographies-retrained", [ATTACK], **HOW)
    assert len(attacked) == 8, "the references are not attacked again"
    assert again.attacks[0].per_seed == first.attacks[0].per_seed
    letgo.attack("biographies-retrained", [ATTACK], **(HOW | {"limit": 41}))
    assert len(attacked) == 14, "scored on other items it is another measurement"


def test_a_folder_carries_it_to_other_processes(attacked, tmp_path, monkeypatch):
    shared = tmp_path / "scores"
    first = letgo.attack("biographies-retrained", [ATTACK], **HOW, shared_scores=shared)
    assert len(attacked) == 6
    assert len(list(shared.iterdir())) == 4, "one for each reference and seed"
    monkeypatch.setattr(attacking, "_REMEMBERED", {})
    again = letgo.attack("biographies-retrained", [ATTACK], **HOW, shared_scores=shared)
    assert len(attacked) == 8, "the references are read, not attacked again"
    assert again.attacks[0].per_seed == first.attacks[0].per_seed
    assert all("R" in row for row in again.attacks[0].per_seed)
    # Damaged, it is made again.
    monkeypatch.setattr(attacking, "_REMEMBERED", {})
    for path, text in zip(shared.iterdir(), ("{", "[]", '{"ways": {"": [{}]}, "curve": []}', ""), strict=True):
        path.write_text(text)
    again = letgo.attack("biographies-retrained", [ATTACK], **HOW, shared_scores=shared)
    assert len(attacked) == 14
    assert again.attacks[0].per_seed == first.attacks[0].per_seed
    # Another attack, and other weights where the same reference is said to lie, are other measurements.
    monkeypatch.setattr(attacking, "_REMEMBERED", {})
    letgo.attack("biographies-retrained", [ATTACK.replace("1e-3", "2e-3")], **HOW, shared_scores=shared)
    assert len(attacked) == 20
    monkeypatch.setattr(attacking, "_REMEMBERED", {})
    monkeypatch.setattr(attacking, "weights_fingerprint", lambda model: "others")
    letgo.attack("biographies-retrained", [ATTACK], **HOW, shared_scores=shared)
    assert len(attacked) == 26


def test_the_retrained_model_is_attacked_anew_beside_another_original(attacked, tmp_path):
    """It may be rounded to the original's own format."""
    other = shutil.copytree(resolve_model("biographies"), tmp_path / "other")
    attack = "noise:sigma=0.01,seeds=1"
    letgo.attack("biographies-retrained", [attack], **HOW)
    letgo.attack("biographies-retrained", [attack], **(HOW | {"original": str(other)}))
    assert len(attacked) == 6


@pytest.mark.parametrize("folder", [None, "scores"])
def test_what_lies_under_the_same_name_is_attacked_anew_where_it_has_changed(attacked, tmp_path, monkeypatch, folder):
    """The original's weights and a file of the attacker's, in one process and by way of a shared folder."""
    original = shutil.copytree(resolve_model("biographies"), tmp_path / "original")
    texts = tmp_path / "texts.jsonl"
    attack = f"relearn:data={texts},steps=1,learning_rate=1e-3,seeds=1,evaluations=0"
    how = HOW | {"original": str(original), "limit": 4, "shared_scores": folder and tmp_path / folder}

    def references():
        if folder:
            monkeypatch.setattr(attacking, "_REMEMBERED", {})
        attacked.clear()
        letgo.attack("biographies-retrained", [attack], **how)
        return len(attacked) - 1

    texts.write_text('{"text": "the river is old"}\n')
    assert [references(), references()] == [2, 0]
    texts.write_text('{"text": "the river is new"}\n')
    assert references() == 2
    shutil.copy(f"{resolve_model('biographies-retrained')}/model.safetensors", original)
    assert references() == 2


def test_a_setting_may_be_any_text_and_a_folder_may_have_broken_links(tmp_path):
    assert [attacking._content(text) for text in ("a word", "long " * 1000, "", 3, None)] == [[], [], [], None, None]
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "weights").write_text("old")
    [(name, size, _)] = attacking._content(str(tmp_path))
    assert (name, size) == ("weights", 3)
    assert attacking._content(str(tmp_path / "weights")) == hashlib.sha256(b"old").hexdigest()
