"""The key of the data's digests, and what they hold for."""

from __future__ import annotations

import os

import pytest

from letgo.benchmarks.user_rows import user_rows
from letgo.data.binding import data_key, key_id, key_path
from letgo.runs.digests import data_digests
from tests import tiny


@pytest.fixture
def own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("LETGO_DATA_KEY", str(tmp_path / "keys" / "data.key"))
    return tmp_path / "keys" / "data.key"


def test_a_key_is_made_once_and_named(own_key):
    said = []
    assert data_key(said.append, make=False) is None
    key = data_key(said.append)
    assert len(key) == 32
    assert str(own_key) in said[0]
    assert own_key.stat().st_mode & 0o777 == 0o600
    assert data_key(said.append) == key
    assert len(said) == 1
    assert key.hex() not in key_id(key)


def test_it_lies_in_the_folder_of_settings(monkeypatch, tmp_path):
    monkeypatch.delenv("LETGO_DATA_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert key_path() == tmp_path / "letgo" / "data.key"


def test_where_none_can_be_made_the_work_goes_on(own_key):
    said = []
    own_key.parent.write_text("a file where the folder would be")
    assert data_key(said.append) is None
    assert "not bound" in said[0]
    assert data_digests({"forget": [1]}, None) == {}


def digests(forget, **how):
    return data_digests(user_rows(forget=forget, retain=tiny.RETAIN, **how).contents, b"k" * 32)


def test_a_digest_is_of_what_is_trained_on_and_asked_wherever_it_lies(tmp_path):
    plain = digests(tiny.FORGET)
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", [row | {"note": "not looked at"} for row in tiny.FORGET])
    assert digests(str(rows)) == plain
    assert {name: digest.rows for name, digest in plain.items()} | {"scored": 0} == {
        "forget": 4,
        "retain": 4,
        "scored": 0,
    }
    for change in ({"answer": "stone"}, {"group": "another"}, {"wrong_answers": ["blue"]}, {"end": False}):
        other = digests([tiny.FORGET[0] | change, *tiny.FORGET[1:]])
        assert other["forget"] != plain["forget"], change
        assert other["scored"] != plain["scored"], change
        assert other["retain"] == plain["retain"]
    assert digests(tiny.FORGET[::-1])["forget"] != plain["forget"]


def test_the_umask_does_not_open_what_is_private(own_key):
    before = os.umask(0)
    try:
        data_key(lambda _: None)
    finally:
        os.umask(before)
    assert own_key.stat().st_mode & 0o777 == 0o600
