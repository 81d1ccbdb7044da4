"""A missing extra is named with the line that installs it."""

from __future__ import annotations

import pytest

from letgo.core.errors import UserError
from letgo.core.extras import installing, need


def test_what_is_there_is_imported():
    assert need("json.decoder", "none").JSONDecoder


def test_what_is_missing_is_named_with_its_extra():
    with pytest.raises(UserError, match=r"LoRA needs no_such_library: pip install .*letgo\[lora\]"):
        need("no_such_library.part", "lora", what="LoRA")


def test_a_broken_library_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import something_it_wants\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_wants"):
        need("half_installed", "lora")


@pytest.mark.parametrize(
    ("requirements", "extra", "line"),
    [
        (["peft>=0.17; extra == 'lora'"], "lora", "pip install 'peft>=0.17' (letgo[lora])"),
        (["a>=1; extra == 'x'", "b==2; python_version < '3' and extra == 'x'"], "x", "pip install 'a>=1' (letgo[x])"),
        (["letgo[y]; extra == 'x'", "c>=3; extra == 'y'"], "x", "pip install 'c>=3' (letgo[x])"),
        (["torch>=2.6", "d; python_version > '3'"], "x", "in letgo's checkout, pip install '.[x]' (letgo[x])"),
    ],
)
def test_the_line_names_packages_that_an_index_has(monkeypatch, requirements, extra, line):
    monkeypatch.setattr("letgo.core.extras.requires", lambda name: requirements)
    assert installing(extra) == line
