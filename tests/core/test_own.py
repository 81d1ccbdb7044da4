"""What is not letgo's own: found by path or entry point, noted with a digest, and never imported for a record."""

from __future__ import annotations

import hashlib
import importlib
import sys

import pytest

from letgo.core import own
from letgo.core.catalog import Catalog, Own, Record, parse_spec
from letgo.core.errors import UserError
from letgo.core.own import Code, as_path, check_recorded, code_in_use, described, expect, noted, recorded_code

GROUP = "letgo.things"
THINGS = Catalog(
    "thing",
    [Record(name="listed", target="math:sqrt", summary="s", source="s", faithfulness="ours")],
    Own(GROUP, Record, lambda thing: {}),
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder to work in; what is imported from it is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    for cache in (own.offered, own._code):
        cache.cache_clear()
    yield tmp_path
    for name in set(sys.modules) - before:
        if not name.startswith("letgo"):
            del sys.modules[name]
    for cache in (own.offered, own._code):
        cache.cache_clear()
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("torch.optim.Adagrad", "torch.optim.Adagrad"),
        ("my.module:Thing", "my.module.Thing"),
        ("my.module:Outer.inner", "my.module.Outer.inner"),
        ("adamw", None),
        ("module:Thing", "module.Thing"),
        ("a.b:c=1", None),
        ("../x.y", None),
        ("a..b", None),
        ("a.b c", None),
        ("1.5", None),
    ],
)
def test_what_a_path_is(text, path):
    assert as_path(text) == path


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("my.module:Thing", ("my.module.Thing", {})),
        ("my.module:Thing:lr=1,fast", ("my.module.Thing", {"lr": 1, "fast": True})),
        ("my.module.Thing:lr=1", ("my.module.Thing", {"lr": 1})),
        ("quantize:double", ("quantize", {"double": True})),
        ("module:Thing:lr=1", ("module.Thing", {"lr": 1})),
        ("module:Thing=1", ("module", {"Thing": 1})),
    ],
)
def test_a_spec_may_begin_with_either_form(spec, parsed):
    assert parse_spec(spec) == parsed


def test_a_module_in_this_folder_is_found_behind_what_is_installed(here):
    (here / "mine_a.py").write_text("def thing(*, n: int = 1):\n    '''A thing.\n\n    More.'''\n    return n\n")
    (here / "math.py").write_text("raise AssertionError('the installed one is taken')\n")
    record = THINGS.record("mine_a.thing")
    assert (record.name, record.target, record.summary) == ("mine_a.thing", "mine_a:thing", "A thing.")
    assert (record.source, record.faithfulness) == ("mine_a.thing", "yours")
    assert THINGS.load("mine_a:thing")(n=3) == 3
    assert THINGS.load("math.sqrt")(9) == 3.0
    assert "mine_a.thing" not in THINGS
    assert THINGS.names() == ["listed"]


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (None, "no_such_module_here.Thing", "there is no module 'no_such_module_here', neither installed nor in"),
        ("def thing(): pass\n", "mine_b.thign", r"mine_b has no 'thign'; did you mean 'thing'\?"),
        ("import no_such_package_here\n", "mine_b.thing", "needs the package 'no_such_package_here'"),
        ("1 / 0\n", "mine_b.thing", "importing mine_b fails: ZeroDivisionError: division by zero"),
        ("def broken(:\n", "mine_b.thing", "importing mine_b fails: SyntaxError"),
        ("thing = 3\n", "mine_b.thing", "is 3, which can't be called"),
        (None, "listd", r"unknown thing 'listd'; did you mean 'listed'\?"),
    ],
)
def test_a_mistake_is_one_message(here, source, name, message):
    if source is not None:
        (here / "mine_b.py").write_text(source)
    with pytest.raises(UserError, match=message):
        THINGS.load(name)


def test_settings_are_checked_from_the_signature(here):
    (here / "mine_c.py").write_text(
        "from __future__ import annotations\n"
        "def strict(*, scale: float = 1.0, count: int = 2): pass\n"
        "def open_(*, scale: float = 1.0, **more): pass\n"
        "def odd(*, scale: NotThere = 1.0): pass\n"
    )
    THINGS.check_settings("mine_c.strict", {"scale": -1.5, "count": -3})
    with pytest.raises(UserError, match=r"'mine_c.strict' has no setting 'scael'; did you mean 'scale'\?"):
        THINGS.check_settings("mine_c.strict", {"scael": 1})
    with pytest.raises(UserError, match="count must be a whole number"):
        THINGS.check_settings("mine_c.strict", {"count": 1.5})
    THINGS.check_settings("mine_c.open_", {"else_": "x"})
    with pytest.raises(UserError, match="no setting 'scales'"):
        THINGS.check_settings("mine_c.open_", {"scales": 1})
    with pytest.raises(UserError, match="scale must be a number"):
        THINGS.check_settings("mine_c.odd", {"scale": "much"})


def test_a_thing_may_be_described(here):
    (here / "mine_d.py").write_text(
        "from letgo.core.own import described\n"
        "@described(source='a paper', note='n')\ndef thing(): 'Doc.'\n"
        "@described(nmoe='n')\ndef wrong(): pass\n"
        "@described(name='n')\ndef renamed(): pass\n"
        "@described(source='base')\nclass Base: 'Base.'\n"
        "class Derived(Base): pass\n"
    )
    record = THINGS.record("mine_d.thing")
    assert (record.source, record.note, record.summary) == ("a paper", "n", "Doc.")
    with pytest.raises(UserError, match=r"@described has no field 'nmoe'; did you mean 'note'"):
        THINGS.record("mine_d.wrong")
    with pytest.raises(UserError, match="@described has no field 'name'"):
        THINGS.record("mine_d.renamed")
    derived = THINGS.record("mine_d.Derived")
    assert (derived.source, derived.summary) == ("mine_d.Derived", "Derived")
    assert described(note="x")(test_a_thing_may_be_described).__letgo__ == {"note": "x"}
    del test_a_thing_may_be_described.__letgo__


def offer(here, package, **points):
    """An installed package, as far as its metadata tell."""
    folder = here / f"{package}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
    if str(here) not in sys.path:
        sys.path.append(str(here))
    own.offered.cache_clear()


def test_an_entry_point_is_found_by_its_name_and_imported_only_when_asked_for(here):
    (here / "mine_e.py").write_text("def thing(): 'Offered.'\n")
    offer(here, "mine-e", shiny="mine_e:thing", listed="mine_e:thing")
    assert THINGS.installed() == {"shiny": "mine_e:thing"}, "a listed name stays letgo's"
    assert "mine_e" not in sys.modules
    assert THINGS.record("shiny").summary == "Offered."
    assert THINGS.record("shiny").name == "shiny"
    assert THINGS.load("listed") is importlib.import_module("math").sqrt
    with pytest.raises(UserError, match=r"unknown thing 'shinny'; did you mean 'shiny'\?"):
        THINGS.record("shinny")
    offer(here, "other", shiny="other:thing")
    with pytest.raises(UserError, match=r"two packages offer 'shiny' in letgo.things"):
        THINGS.record("shiny")


def test_what_is_imported_is_noted_with_the_digest_of_its_file(here):
    path = here / "mine_f.py"
    path.write_text("def thing(): pass\n")
    with noted() as outer:
        with noted():
            THINGS.load("mine_f.thing")
            THINGS.load("listed")
            assert list(code_in_use()) == ["mine_f.thing"]
        assert list(code_in_use()) == ["mine_f.thing"], "the outer one knows too"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert outer.code == {"mine_f.thing": Code("thing", "mine_f:thing", digest)}
    assert code_in_use() == {}


def test_another_source_than_expected_is_refused_with_both_digests(here):
    path = here / "mine_g.py"
    path.write_text("def thing(): pass\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for early in (False, True):
        with noted():
            if early:
                THINGS.load("mine_g.thing")
            expect({"mine_g.thing": digest, "never.asked": "0"})
            THINGS.load("mine_g.thing")
            with pytest.raises(UserError, match=rf"in the record: {'0' * 64}[\s\S]*now: {digest}"):
                expect({"mine_g.thing": "0" * 64})


def test_code_of_a_record_is_imported_only_where_the_user_trusts_it():
    with pytest.raises(UserError, match=r"names the thing 'mine\.x', which is not letgo's own"):
        check_recorded("thing", "mine.x")
    with recorded_code(True):
        check_recorded("thing", "mine.x")
        with recorded_code(None):
            check_recorded("thing", "mine.x")
        with recorded_code(False), pytest.raises(UserError):
            check_recorded("thing", "mine.x")
