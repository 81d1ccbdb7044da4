"""A missing extra is named with the line that installs it."""

from __future__ import annotations

import pytest

from letgo.core.errors import UserError
from letgo.core.extras import need


def test_what_is_there_is_imported():
    assert need("json.decoder", "none").JSONDecoder


def test_what_is_missing_is_named_with_its_extra():
    with pytest.raises(UserError, match=r"LoRA needs no_such_library: pip install 'letgo\[lora\]'"):
        need("no_such_library.part", "lora", what="LoRA")


def test_a_broken_library_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import something_it_wants\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_wants"):
        need("half_installed", "lora")
