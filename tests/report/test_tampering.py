"""Every file of a run and of an audit, and every key of their records, changed one by one: a check names the part."""

from __future__ import annotations

import copy
import json
import shutil

import pytest

from letgo.report.attestation import attest
from letgo.report.verification import verify
from letgo.runs.results import RESULT_FILE, SIGNATURE_FILE, STATEMENT_FILE, read_result, write_result
from tests.attacks.conftest import saved as saved
from tests.auditing.conftest import made as made
from tests.auditing.conftest import whole as whole

pytest.importorskip("model_signing", reason="not installed: pip install 'letgo[sign]'")

MADE_AGAIN = {"README.md", "report.html"}
"""What letgo writes anew from a record is no part of it: docs/attestation.md."""


@pytest.fixture(params=["run", "audit"])
def told(request, keys, tmp_path):
    """The folder of a signed record, and that of its model: in a run's own, elsewhere beside an audit's."""
    if request.param == "run":
        folder = shutil.copytree(request.getfixturevalue("attested"), tmp_path / "run")
        return folder, folder
    folder = shutil.copytree(request.getfixturevalue("whole"), tmp_path / "audit")
    model = shutil.copytree(request.getfixturevalue("made").loop, tmp_path / "loop")
    result = read_result(folder)
    write_result(folder, result.model_copy(update={"config": result.config | {"unlearned": str(model)}}))
    attest(folder, sign_with=keys["ours"][0])
    return folder, model


def blamed(folder, **how):
    return {(problem.part, problem.name) for problem in verify(folder, **how).problems}


def test_every_file_that_is_changed_or_lost_is_named(told, keys):
    folder, model = told
    key = keys["ours"][1]
    parts = {
        subject["name"]: subject["annotations"]["part"]
        for subject in json.loads((folder / STATEMENT_FILE).read_text())["subject"]
    }
    parts |= {STATEMENT_FILE: "statement", SIGNATURE_FILE: "signature"}
    paths = [path for place in {folder, model} for path in place.rglob("*") if path.is_file()]
    assert len(paths) > 8
    for path in paths:
        place = folder if path.is_relative_to(folder) else model
        name, original = str(path.relative_to(place)), path.read_bytes()
        if name in MADE_AGAIN:
            continue
        # A signature's own file has fields that say nothing: all of it goes.
        middle = 0 if name == SIGNATURE_FILE else len(original) // 2
        for content in (original[:middle] + bytes(byte ^ 1 for byte in original[middle:]), None):
            path.unlink() if content is None else path.write_bytes(content)
            assert blamed(folder, key=key) == {(parts[name], name)}, (name, content is None)
            path.write_bytes(original)
    assert not blamed(folder, key=key)


def places(value, path=()):
    """Every key of a document, with the keys and places that lead to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


def test_every_key_of_a_record_and_of_a_statement(told, keys):
    folder, _ = told
    for name, part in ((RESULT_FILE, "record"), (STATEMENT_FILE, "statement")):
        original = (folder / name).read_bytes()
        document = json.loads(original)
        # One of a list's members stands for all.
        kinds = {tuple("*" if isinstance(key, int) else key for key in path): path for path in places(document)}
        assert {kind[0] for kind in kinds} == set(document)
        for path in kinds.values():
            for lost in (True, False):
                changed = copy.deepcopy(document)
                inside = changed
                for key in path[:-1]:
                    inside = inside[key]
                if lost:
                    del inside[path[-1]]
                else:
                    old = inside[path[-1]]
                    number = isinstance(old, int | float) and not isinstance(old, bool)
                    inside[path[-1]] = old + 1 if number else f"{old}x" if isinstance(old, str) else "x"
                (folder / name).write_text(json.dumps(changed))
                assert blamed(folder, key=keys["ours"][1]) == {(part, name)}, (path, lost)
        (folder / name).write_bytes(original)
    assert not blamed(folder, key=keys["ours"][1])


def test_without_a_statement_every_file_of_the_model_is_named(told):
    folder, model = told
    (folder / STATEMENT_FILE).unlink()
    (folder / SIGNATURE_FILE).unlink()
    bound = read_result(folder).digests
    for part, files in (("weights", bound.model), ("tokenizer", bound.tokenizer)):
        assert files
        for name in files:
            original = (model / name).read_bytes()
            (model / name).write_bytes(original + b" ")
            assert blamed(folder) == {(part, name)}
            (model / name).write_bytes(original)
    assert verify(folder).passed
